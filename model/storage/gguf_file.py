"""A model as one .gguf file, for llama.cpp and the programs built on it: weights, architecture and tokenizer.

The package gguf, from the llama.cpp project, knows the format and its names for Qwen3's tensors. This file adds the
tokenizer: of llama.cpp's own few types, byte-level BPE as in GPT-2 fits both of ours.
"""

import json
import shutil
import tempfile
from itertools import pairwise
from pathlib import Path

from model.gpt import GPT
from model.storage.huggingface import CHAT_TEMPLATE, import_extra, qwen3_config, to_qwen3
from model.tokenization.byte_letters import BYTE_TO_LETTER
from model.tokenization.tokenizer import UNKNOWN, Tokenizer
from plumbing.corpus import END_OF_TEXT
from plumbing.files import whole_file


def tokens_and_merges(tokenizer: Tokenizer) -> tuple[list[str], list[str]]:
    """The tokens in the order of their ids and the merges ("a b"), as byte-level BPE needs them. A character tokenizer
    becomes BPE with merges that only join the bytes of a character: é is the bytes c3 a9, which are written Ã and ©, so
    there is a token "Ã©" and a merge "Ã ©". One thing differs: llama.cpp drops characters without an id, where our own
    tokenizer writes <|unk|>."""
    tokens = [tokenizer.token_string(token) for token in range(tokenizer.vocab_size)]
    if tokenizer.kind == "bpe":
        return tokens, [f"{left} {right}" for left, right in json.loads(tokenizer.json_text)["model"]["merges"]]
    merges: dict[str, None] = {}  # a set that keeps the order
    for i, token in enumerate(tokens):
        if token in (END_OF_TEXT, UNKNOWN):
            continue
        tokens[i] = letters = "".join(BYTE_TO_LETTER[byte] for byte in token.encode())
        for first, last in pairwise(range(1, len(letters) + 1)):
            merges[f"{letters[:first]} {letters[first:last]}"] = None
    return tokens, list(merges)


def write_gguf(path: Path, model: GPT, tokenizer: Tokenizer) -> None:
    """Write the model to a .gguf file, in fp32. Raises UserError if the package gguf is missing."""
    gguf = import_extra("gguf")
    token_types = {END_OF_TEXT: gguf.TokenType.CONTROL}
    if tokenizer.kind == "char":  # to BPE, <|unk|> is a token like any other
        token_types[UNKNOWN] = gguf.TokenType.UNKNOWN
    config = qwen3_config(model.architecture, tokenizer.end_of_text_id)
    tokens, merges = tokens_and_merges(tokenizer)
    tensor_names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.QWEN3, model.architecture["n_layer"])

    with tempfile.TemporaryDirectory() as folder:  # the package insists on opening its file by name
        file = Path(folder) / "model.gguf"
        writer = gguf.GGUFWriter(file, gguf.MODEL_ARCH_NAMES[gguf.MODEL_ARCH.QWEN3])
        writer.add_name(path.stem)
        writer.add_file_type(gguf.LlamaFileType.ALL_F32)
        writer.add_context_length(config["max_position_embeddings"])
        writer.add_embedding_length(config["hidden_size"])
        writer.add_block_count(config["num_hidden_layers"])
        writer.add_feed_forward_length(config["intermediate_size"])
        writer.add_head_count(config["num_attention_heads"])
        writer.add_head_count_kv(config["num_key_value_heads"])
        writer.add_key_length(config["head_dim"])
        writer.add_value_length(config["head_dim"])
        writer.add_rope_freq_base(config["rope_theta"])
        writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
        writer.add_tokenizer_model("gpt2")  # byte-level BPE
        writer.add_tokenizer_pre("gpt-2")  # GPT-2's pattern, which cuts text into words before merging
        writer.add_bos_token_id(config["bos_token_id"])
        writer.add_eos_token_id(config["eos_token_id"])
        writer.add_pad_token_id(config["eos_token_id"])
        if tokenizer.unknown_id is not None:
            writer.add_unk_token_id(tokenizer.unknown_id)
        writer.add_add_bos_token(False)  # the prompt is exactly what was typed
        writer.add_add_space_prefix(False)
        writer.add_chat_template(CHAT_TEMPLATE)
        writer.add_token_list(tokens)
        writer.add_token_types([token_types.get(token, gguf.TokenType.NORMAL) for token in tokens])
        writer.add_token_merges(merges)
        for name, tensor in to_qwen3(model).items():
            writer.add_tensor(tensor_names.get_name(name, try_suffixes=(".weight",)), tensor.contiguous().numpy())
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        with open(file, "rb") as written, whole_file(path) as output:
            shutil.copyfileobj(written, output)
