"""A model as one .gguf file, which llama.cpp and the programs built on it run: weights, architecture and tokenizer.

The package gguf, of the llama.cpp project, knows the format and what Qwen3's tensors are called there. What is left to
say here is the tokenizer, because llama.cpp has no tokenizer library: it has a few kinds of its own, of which
byte-level BPE as in GPT-2 fits both of ours.
"""

import json
import shutil
import tempfile
from itertools import pairwise
from pathlib import Path

from model.gpt import GPT
from model.storage.huggingface import qwen3_config, to_qwen3
from model.tokenization.byte_letters import BYTE_TO_LETTER
from model.tokenization.tokenizer import UNKNOWN, Tokenizer
from plumbing.corpus import END_OF_TEXT
from plumbing.errors import UserError
from plumbing.files import whole_file


def tokens_and_merges(tokenizer: Tokenizer) -> tuple[list[str], list[str]]:
    """The tokens in the order of their ids, and the merges ("a b"), as a file of byte-level BPE has them.

    Characters are byte-level BPE too, with merges that only put the bytes of a character together: é is the bytes c3
    a9, which are written Ã and ©, so there is a token "Ã©" and a merge "Ã ©". One thing differs: of a character without
    an id nothing is left, where our own tokenizer writes <|unk|>.
    """
    tokens = [tokenizer.token_string(token) for token in range(tokenizer.vocab_size)]
    if tokenizer.kind == "bpe":
        return tokens, [f"{left} {right}" for left, right in json.loads(tokenizer.json_text)["model"]["merges"]]
    merges: dict[str, None] = {}  # each once, in order
    for i, token in enumerate(tokens):
        if token in (END_OF_TEXT, UNKNOWN):
            continue
        letters = "".join(BYTE_TO_LETTER[byte] for byte in token.encode())
        tokens[i] = letters
        for first, last in pairwise(range(1, len(letters) + 1)):
            merges[f"{letters[:first]} {letters[first:last]}"] = None
    return tokens, list(merges)


def write_gguf(path: Path, model: GPT, tokenizer: Tokenizer, chat_template: str) -> None:
    """Write the model to a .gguf file, in fp32. Raises UserError where the package gguf is missing."""
    try:
        import gguf
    except ImportError:
        raise UserError(
            "The package gguf is missing. Install it with: uv sync --extra export (or pip install gguf)."
        ) from None
    config = qwen3_config(model.architecture, tokenizer.end_of_text_id)
    tokens, merges = tokens_and_merges(tokenizer)
    kinds = {END_OF_TEXT: gguf.TokenType.CONTROL, UNKNOWN: gguf.TokenType.UNKNOWN}
    if tokenizer.kind == "bpe":
        del kinds[UNKNOWN]  # there it would be a token like any other
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.QWEN3, config["num_hidden_layers"])

    with tempfile.TemporaryDirectory() as folder:  # the package wants to open its file by name
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
        writer.add_tokenizer_pre("gpt-2")  # the pattern that cuts text into words before merging: GPT-2's
        writer.add_token_list(tokens)
        writer.add_token_types([kinds.get(token, gguf.TokenType.NORMAL) for token in tokens])
        writer.add_token_merges(merges)
        writer.add_bos_token_id(tokenizer.end_of_text_id)
        writer.add_eos_token_id(tokenizer.end_of_text_id)
        writer.add_pad_token_id(tokenizer.end_of_text_id)
        if tokenizer.unknown_id is not None:
            writer.add_unk_token_id(tokenizer.unknown_id)
        writer.add_add_bos_token(False)  # a prompt is what was typed
        writer.add_add_space_prefix(False)
        writer.add_chat_template(chat_template)

        for name, tensor in to_qwen3(model).items():
            writer.add_tensor(names.get_name(name, try_suffixes=(".weight",)), tensor.contiguous().numpy())
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        with open(file, "rb") as written, whole_file(path) as output:
            shutil.copyfileobj(written, output)
