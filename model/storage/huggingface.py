"""A model as a folder in Hugging Face's layout, written and read. Our GPT has the architecture that is called Qwen3
there, so nothing is computed: weights get other names, and matrices that we keep fused are split.

    config.json          the architecture, under Qwen3's names
    model.safetensors    the weights: a list of names, types and shapes, then plain numbers, nothing that could run
    tokenizer.json       the tokenizer, in the format of the `tokenizers` library, which this project uses too

write_folder() adds the small files that transformers looks for beside these. read_folder() accepts a folder from
anywhere: it checks every value before it builds a model, and runs nothing.
"""

import hashlib
import io
import json
import sys
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor

from config import Sampling
from model.gpt import GPT
from model.layers import mlp_size
from model.storage.checks import check_tensors, is_integer, meta_model
from model.tokenization.tokenizer import UNKNOWN, Tokenizer
from plumbing.corpus import END_OF_TEXT
from plumbing.errors import UserError
from plumbing.files import CHUNK, whole_file
from plumbing.text import shown_path

# Our names and Qwen3's. A weight with several of theirs is a fused matrix: theirs, stacked by rows in this order.
OUTSIDE_BLOCKS = {"embedding": "model.embed_tokens", "norm": "model.norm", "head": "lm_head"}
IN_BLOCK = {
    "attention_norm": ["input_layernorm"],
    "attention.qkv": ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"],
    "attention.query_norm": ["self_attn.q_norm"],
    "attention.key_norm": ["self_attn.k_norm"],
    "attention.output": ["self_attn.o_proj"],
    "mlp_norm": ["post_attention_layernorm"],
    "mlp.gate_up": ["mlp.gate_proj", "mlp.up_proj"],
    "mlp.down": ["mlp.down_proj"],
}
SIZES = {
    "vocab_size": "vocab_size",
    "n_embd": "hidden_size",
    "n_layer": "num_hidden_layers",
    "n_head": "num_attention_heads",
    "block_size": "max_position_embeddings",
}
EPS = 1e-6  # of every RMSNorm, here and in Qwen3
MAX_HEADER = 4_000_000  # bytes of the list of tensors in a safetensors file; a thousand layers need half of it
EXPANDED = ("k_proj.weight", "v_proj.weight")
MAX_CONFIG = 1_000_000  # bytes of a config.json
EXTRAS = {"export": "safetensors gguf", "onnx": "onnx onnxscript onnxruntime"}  # of pyproject.toml
CHAT_TEMPLATE = "{% for message in messages %}{{ message['content'] }}{% endfor %}"  # the model only continues a text


def qwen3_names(name: str) -> list[str]:
    """The names of our tensor in Qwen3: "blocks.0.mlp.gate_up.weight" gives model.layers.0.mlp.gate_proj.weight and
    model.layers.0.mlp.up_proj.weight."""
    name = name.removesuffix(".weight")
    if name in OUTSIDE_BLOCKS:
        return [f"{OUTSIDE_BLOCKS[name]}.weight"]
    _, layer, module = name.split(".", 2)
    return [f"model.layers.{layer}.{theirs}.weight" for theirs in IN_BLOCK[module]]


def to_qwen3(model: GPT) -> dict[str, Tensor]:
    """The weights under Qwen3's names. A tied head is left out: it is the embedding."""
    weights = model.state_dict()
    if model.architecture["tie_embeddings"]:
        del weights["head.weight"]
    renamed = {}
    for name, weight in weights.items():
        names = qwen3_names(name)
        renamed |= dict(zip(names, weight.chunk(len(names)), strict=True))
    return renamed


def from_qwen3(tensors: dict[str, Tensor], expected: GPT) -> dict[str, Tensor]:
    """The state dict for a model like `expected`, which may be on the meta device."""
    tied = {"head.weight": "embedding.weight"} if expected.architecture["tie_embeddings"] else {}
    names = {name: qwen3_names(tied.get(name, name)) for name in expected.state_dict()}
    return {name: torch.cat([tensors[theirs] for theirs in several]) for name, several in names.items()}


def qwen3_config(architecture: dict, end_of_text_id: int) -> dict:
    """The content of config.json: the arguments of transformers' Qwen3Config."""
    a = architecture
    return {
        "architectures": ["Qwen3ForCausalLM"],
        "model_type": "qwen3",
        **{theirs: a[ours] for ours, theirs in SIZES.items()},
        "intermediate_size": mlp_size(a["n_embd"]),
        "num_key_value_heads": a["n_head"],
        "head_dim": a["n_embd"] // a["n_head"],
        "hidden_act": "silu",
        "rms_norm_eps": EPS,
        "rope_theta": float(a["rotary_base"]),  # read by transformers 4; version 5 reads the next one
        "rope_parameters": {"rope_type": "default", "rope_theta": float(a["rotary_base"])},
        "attention_bias": False,
        "attention_dropout": 0.0,  # of training; some programs load a model in training mode and would compute with it
        "tie_word_embeddings": a["tie_embeddings"],
        "use_cache": True,
        "bos_token_id": end_of_text_id,
        "eos_token_id": end_of_text_id,
        "dtype": "float32",
    }


def import_extra(module: str, extra: str = "export"):
    """Import a module of an optional extra. Returns its package. Raises UserError if it is missing."""
    try:
        return __import__(module)
    except ImportError:
        name = module.partition(".")[0]
        advice = f"Install it with: uv sync --extra {extra} (or pip install {EXTRAS[extra]})."
        raise UserError(f"The package {name} is missing. {advice}") from None


def save_weights(weights: dict[str, Tensor], config: dict) -> bytes:
    """A model.safetensors with a checksum of the weights and of what config.json says about them."""
    save = import_extra("safetensors.torch").torch.save
    data = save(weights, {"format": "pt"})
    return save(weights, {"format": "pt", "sha256": weights_sha256(io.BytesIO(data), config)})


def weights_sha256(file: BinaryIO, config: dict) -> str:
    """The checksum of a safetensors file: of its list of tensors without the comments, of its numbers, and of the
    architecture."""
    header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    header.pop("__metadata__", None)
    digest = hashlib.sha256(json.dumps([header, architecture_from(config, sys.maxsize)], sort_keys=True).encode())
    while data := file.read(CHUNK):
        digest.update(data)
    return digest.hexdigest()


def check_sum(path: Path, config: dict) -> None:
    """Compare a safetensors file with its checksum. Those of other programs have none. Raises ValueError."""
    with import_extra("safetensors").safe_open(path, "pt") as file:
        expected = (file.metadata() or {}).get("sha256")
    if expected is not None:
        with open(path, "rb") as file:
            if weights_sha256(file, config) != expected:
                raise ValueError(f"{path.name} or config.json is damaged: the checksum in it is another")


def folder_content(model: GPT, tokenizer: Tokenizer, model_card: str, sampling: Sampling) -> dict[str, bytes]:
    """The files of the folder, by name. config.json is last: without it, nobody takes the folder for a model."""
    weights = {name: tensor.contiguous() for name, tensor in to_qwen3(model).items()}
    end, roles = tokenizer.end_of_text_id, ("bos_token", "eos_token", "pad_token")
    configs = {
        "tokenizer_config.json": {
            "tokenizer_class": "PreTrainedTokenizerFast",
            **dict.fromkeys(roles, END_OF_TEXT),
            **({"unk_token": UNKNOWN} if tokenizer.kind == "char" else {}),
            "model_max_length": model.block_size,
            "padding_side": "left",  # a text is continued at its end, which padding must not move away
            "model_input_names": ["input_ids", "attention_mask"],  # all that generate() of transformers 4 takes
            "clean_up_tokenization_spaces": False,  # decoding gives back exactly the text that was encoded
            "split_special_tokens": True,  # a text that reads <|endoftext|> is text, as it is here
        },
        "generation_config.json": {
            **{f"{role}_id": end for role in roles},
            "do_sample": True,
            "temperature": sampling.temperature,
            "top_k": sampling.top_k,
            "max_length": model.block_size,
        },
        "config.json": qwen3_config(model.architecture, end),
    }
    return {
        "model.safetensors": save_weights(weights, configs["config.json"]),
        "tokenizer.json": tokenizer.json_text.encode(),
        "chat_template.jinja": CHAT_TEMPLATE.encode(),
        "README.md": model_card.encode(errors="surrogateescape"),
        **{name: json.dumps(config, indent=2).encode() + b"\n" for name, config in configs.items()},
    }


def write_folder(folder: Path, content: dict[str, bytes], model: GPT) -> None:
    """Write the files of folder_content() and compare what is read back with the model. Raises UserError."""
    (folder / "config.json").unlink(missing_ok=True)  # a half-written folder is not a model
    for name, data in content.items():
        with whole_file(folder / name) as file:
            file.write(data)
    architecture, weights, _ = read_folder(folder, model.block_size)
    same = all(torch.equal(weight, weights[name]) for name, weight in model.state_dict().items())
    if not same or {**architecture, "dropout": model.architecture["dropout"]} != model.architecture:
        raise UserError(f"{shown_path(folder)} does not contain the model that was written. Write it again.")


def architecture_from(config: dict, block_size: int) -> dict:
    """Our architecture for a Qwen3 config, with blocks of at most block_size tokens. Raises ValueError for what our
    model does not have: another head or MLP size, biases, sliding windows, scaled positions."""
    if config.get("model_type") != "qwen3":
        raise ValueError(f"its model_type is {str(config.get('model_type'))[:40]!r}, not 'qwen3'")
    for name in (*SIZES.values(), "intermediate_size"):
        if not is_integer(config.get(name), 1):
            raise ValueError(f"its {name} is not a whole number above 0")
    architecture = {ours: config[theirs] for ours, theirs in SIZES.items()}
    n_embd, n_head = architecture["n_embd"], architecture["n_head"]
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}  # transformers 5, or 4
    if not isinstance(rope, dict):
        raise ValueError("its rope_parameters are not a JSON object")
    # Name: (what it has, the only value that our model can have)
    fixed = {
        "head_dim": (config.get("head_dim"), n_embd / n_head),
        "intermediate_size": (config["intermediate_size"], mlp_size(n_embd)),
        "rms_norm_eps": (config.get("rms_norm_eps"), EPS),
        "hidden_act": (config.get("hidden_act"), "silu"),
        "attention_bias": (config.get("attention_bias", False), False),
        "use_sliding_window": (config.get("use_sliding_window", False), False),
        "rope_type": (rope.get("rope_type", "default"), "default"),
    }
    for name, (theirs, ours) in fixed.items():
        if theirs != ours:
            raise ValueError(
                f"its {name} is {str(theirs)[:40]}, but with n_embd {n_embd} and n_head {n_head}, "
                f"a model of this project always has {ours}"
            )
    return architecture | {
        "block_size": min(block_size, architecture["block_size"]),
        "rotary_base": rope.get("rope_theta", config.get("rope_theta")),
        "dropout": 0.0,
        "tie_embeddings": config.get("tie_word_embeddings", False),
    }


def repeat_key_value_heads(tensors: dict[str, Tensor], config: dict) -> None:
    """Replace grouped-query attention, where several query heads share a key and a value head, by one copy of it per
    query head. The model computes the same (Ainslie et al. 2023, arXiv:2305.13245, figure 2)."""
    heads = config["num_attention_heads"]
    groups = config.get("num_key_value_heads", heads)
    if not is_integer(groups, 1) or heads % groups:
        raise ValueError("its num_key_value_heads does not divide num_attention_heads")
    for name, tensor in tensors.items():
        if name.endswith(EXPANDED) and tensor.dim() == 2 and len(tensor) % groups == 0:
            tensors[name] = tensor.unflatten(0, (groups, -1)).repeat_interleave(heads // groups, 0).flatten(0, 1)


def read_folder(folder: Path, block_size: int) -> tuple[dict, dict[str, Tensor], str]:
    """Read a folder in Qwen3's layout: (architecture, state dict in fp32, SHA-256 of the weights' files). Blocks are at
    most block_size tokens. Raises UserError with the reason for a folder that has another layout, is damaged, or
    contains a model that ours cannot represent."""
    files, config_file = sorted(folder.glob("model*.safetensors")), folder / "config.json"
    if not config_file.is_file() or not files:
        raise UserError(
            f"{shown_path(folder)} is not a folder in Hugging Face's layout: it needs config.json and "
            "model.safetensors. scripts/export_huggingface.py writes such folders."
        )
    safetensors, digest = import_extra("safetensors.torch"), hashlib.sha256()
    try:
        if config_file.stat().st_size > MAX_CONFIG:
            raise ValueError("its config.json is too large")
        config = json.loads(config_file.read_text("utf-8"))
        if not isinstance(config, dict):
            raise ValueError("its config.json is not a JSON object")
        architecture, tensors = architecture_from(config, block_size), {}
        for path in files:
            if not path.is_file():
                raise ValueError(f"{path.name} is not a file")
            with open(path, "rb") as file:
                if int.from_bytes(file.read(8), "little") > MAX_HEADER:
                    raise ValueError(f"{path.name} is damaged, or lists far more tensors than a model has")
                file.seek(0)
                digest.update(hashlib.file_digest(file, "sha256").digest())
            check_sum(path, config)
            tensors |= safetensors.torch.load_file(path)
        # Weights are often stored in half precision. Integers stay as they are; check_tensors refuses them.
        tensors = {name: t.float() if t.is_floating_point() else t for name, t in tensors.items()}
        if architecture["tie_embeddings"]:
            tensors.pop("lm_head.weight", None)
        model = meta_model(architecture, tensors)
        expected = to_qwen3(model)
        # First what is not expanded: keys and values then become no larger than the queries that the file holds.
        check_tensors(*({n: t for n, t in some.items() if not n.endswith(EXPANDED)} for some in (tensors, expected)))
        repeat_key_value_heads(tensors, config)
        check_tensors(tensors, expected)
    except (ValueError, TypeError, OverflowError, RecursionError, safetensors.SafetensorError) as error:
        reason = str(error).splitlines()[0][:300].rstrip(".")
        raise UserError(
            f"Training cannot start from {shown_path(folder)}: {reason}. Name a folder with a Qwen3 model that fits."
        ) from None
    return architecture, from_qwen3(tensors, model), digest.hexdigest()
