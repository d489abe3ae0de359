"""A model in the layout of Hugging Face, and back. Our GPT has the shape that is called Qwen3 there, so nothing is
computed: numbers get other names, and the products that we keep in one matrix are taken apart.

config.json          the architecture, under Qwen3's names
model.safetensors    the weights: a list of names, types and shapes, then plain numbers, nothing that could run
tokenizer.json       the tokenizer, as the `tokenizers` library and this project write it

What is read is compared with what an architecture of ours can be, number by number, before a model is made of it.
"""

import hashlib
import json
from pathlib import Path

import torch
from torch import Tensor

from model.gpt import GPT
from model.layers import mlp_size
from model.storage.checks import check_tensors, is_whole, skeleton
from plumbing.errors import UserError
from plumbing.text import shown_path

# Our names and theirs. Where there are several, our matrix is theirs, one below the other.
PARTS = {"embedding": "model.embed_tokens", "norm": "model.norm", "head": "lm_head"}
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
EPS = 1e-6  # of every RMSNorm, here and in Qwen3
MAX_CONFIG = 1_000_000  # bytes of a config.json


def their_names(name: str) -> list[str]:
    """The names of our tensor in Qwen3: "blocks.0.mlp.gate_up.weight" gives model.layers.0.mlp.gate_proj.weight and
    model.layers.0.mlp.up_proj.weight."""
    name = name.removesuffix(".weight")
    if name in PARTS:
        return [f"{PARTS[name]}.weight"]
    _, layer, part = name.split(".", 2)
    return [f"model.layers.{layer}.{theirs}.weight" for theirs in IN_BLOCK[part]]


def to_qwen3(model: GPT) -> dict[str, Tensor]:
    """The weights under Qwen3's names. A tied head is not written: it is the embedding."""
    weights = model.state_dict()
    if model.architecture["tie_embeddings"]:
        del weights["head.weight"]
    named = {}
    for name, weight in weights.items():
        theirs = their_names(name)
        named |= dict(zip(theirs, weight.chunk(len(theirs)), strict=True))
    return named


def from_qwen3(tensors: dict[str, Tensor], expected: GPT) -> dict[str, Tensor]:
    """The state dict for a model like `expected`, which may be one of shapes alone."""
    weights = {}
    for name in expected.state_dict():
        source = "embedding.weight" if name == "head.weight" and expected.architecture["tie_embeddings"] else name
        weights[name] = torch.cat([tensors[theirs] for theirs in their_names(source)])
    return weights


def qwen3_config(architecture: dict, end_of_text_id: int) -> dict:
    """config.json of an architecture: what transformers' Qwen3Config is made of."""
    a = architecture
    return {
        "architectures": ["Qwen3ForCausalLM"],
        "model_type": "qwen3",
        "vocab_size": a["vocab_size"],
        "hidden_size": a["n_embd"],
        "intermediate_size": mlp_size(a["n_embd"]),
        "num_hidden_layers": a["n_layer"],
        "num_attention_heads": a["n_head"],
        "num_key_value_heads": a["n_head"],
        "head_dim": a["n_embd"] // a["n_head"],
        "hidden_act": "silu",
        "max_position_embeddings": a["block_size"],
        "rms_norm_eps": EPS,
        "rope_theta": float(a["rotary_base"]),  # the name that transformers 4 reads; 5 reads the next one
        "rope_parameters": {"rope_type": "default", "rope_theta": float(a["rotary_base"])},
        "attention_bias": False,
        "attention_dropout": a["dropout"],
        "tie_word_embeddings": a["tie_embeddings"],
        "use_cache": True,
        "bos_token_id": end_of_text_id,
        "eos_token_id": end_of_text_id,
        "dtype": "float32",
    }


# --- reading a folder, which may come from anywhere -------------------------------------------------------------------


def safetensors_library():
    """The package safetensors, which is an optional extra. Raises UserError where it is missing."""
    try:
        import safetensors.torch
    except ImportError:
        raise UserError(
            "The package safetensors is missing. Install it with: uv sync --extra export (or pip install safetensors)."
        ) from None
    return safetensors


def architecture_of(config: dict, block_size: int) -> dict:
    """Our architecture for a Qwen3 config, blocks being at most block_size long. Raises ValueError for what our model
    has no room for: another width of heads or of the MLP, biases, sliding windows, stretched positions."""
    if config.get("model_type") != "qwen3":
        raise ValueError(f"its model_type is {str(config.get('model_type'))[:40]!r}, not 'qwen3'")
    sizes = "vocab_size hidden_size intermediate_size num_hidden_layers num_attention_heads max_position_embeddings"
    for name in sizes.split():
        if not is_whole(config.get(name), 1):
            raise ValueError(f"its {name} is no whole number above 0")
    width, heads = config["hidden_size"], config["num_attention_heads"]
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}  # transformers 5; 4
    if not isinstance(rope, dict):
        raise ValueError("its rope_parameters are none")
    wanted = {
        "head_dim": (config.get("head_dim"), width / heads),
        "intermediate_size": (config["intermediate_size"], mlp_size(width)),
        "rms_norm_eps": (config.get("rms_norm_eps"), EPS),
        "hidden_act": (config.get("hidden_act"), "silu"),
        "attention_bias": (config.get("attention_bias", False), False),
        "use_sliding_window": (config.get("use_sliding_window", False), False),
        "rope_type": (rope.get("rope_type", "default"), "default"),
    }
    for name, (theirs, ours) in wanted.items():
        if theirs != ours:
            raise ValueError(f"its {name} is {str(theirs)[:40]}, and a model of this project that is {width} wide and "
                             f"has {heads} heads can only have {ours}")  # fmt: skip
    return {
        "vocab_size": config["vocab_size"],
        "block_size": min(block_size, config["max_position_embeddings"]),
        "n_layer": config["num_hidden_layers"],
        "n_head": heads,
        "n_embd": width,
        "rotary_base": rope.get("rope_theta", config.get("rope_theta")),
        "dropout": 0.0,
        "tie_embeddings": config.get("tie_word_embeddings", False),
    }


def one_key_a_head(tensors: dict[str, Tensor], config: dict) -> None:
    """Undo grouped queries, where several heads share a key and a value: each head gets its own copy. The function
    stays the same (Ainslie et al. 2023, arXiv:2305.13245, figure 2)."""
    heads, groups = config["num_attention_heads"], config.get("num_key_value_heads", config["num_attention_heads"])
    if not is_whole(groups, 1) or heads % groups:
        raise ValueError("its num_key_value_heads is no divisor of num_attention_heads")
    for name, tensor in tensors.items():
        if name.endswith(("k_proj.weight", "v_proj.weight")) and tensor.dim() == 2 and len(tensor) % groups == 0:
            tensors[name] = tensor.unflatten(0, (groups, -1)).repeat_interleave(heads // groups, 0).flatten(0, 1)


def read_folder(folder: Path, block_size: int) -> tuple[dict, dict[str, Tensor], str]:
    """Read a folder in Qwen3's layout: (architecture, state dict in fp32, SHA-256 of the weights' files).

    Blocks are at most block_size long. Raises UserError with the reason for a folder that is none, is damaged, or holds
    what our model has no room for. Nothing that stands in it is run.
    """
    files = sorted(folder.glob("model*.safetensors"))
    path = folder / "config.json"
    if not path.is_file() or not files:
        raise UserError(
            f"{shown_path(folder)} is no folder in Hugging Face's layout: it lacks config.json or model.safetensors. "
            "scripts/export_huggingface.py writes such folders."
        )
    library = safetensors_library()
    digest = hashlib.sha256()
    try:
        if path.stat().st_size > MAX_CONFIG:
            raise ValueError("its config.json is too large")
        config = json.loads(path.read_text("utf-8"))
        if not isinstance(config, dict):
            raise ValueError("its config.json is none")
        architecture = architecture_of(config, block_size)
        tensors: dict[str, Tensor] = {}
        for file in files:
            with open(file, "rb") as opened:
                digest.update(hashlib.file_digest(opened, "sha256").digest())
            tensors |= library.torch.load_file(file)
        # Weights are often stored in half precision; what is no such number stays, and is refused below.
        tensors = {name: t.float() if t.is_floating_point() else t for name, t in tensors.items()}
        if architecture["tie_embeddings"]:
            tensors.pop("lm_head.weight", None)
        model = skeleton(architecture, tensors)
        one_key_a_head(tensors, config)
        check_tensors(tensors, to_qwen3(model))
    except (ValueError, TypeError, RecursionError, library.SafetensorError) as error:
        reason = str(error).splitlines()[0][:300]
        raise UserError(f"{shown_path(folder)} cannot be the start of a training: {reason}.") from None
    return architecture, from_qwen3(tensors, model), digest.hexdigest()
