"""The models that are measured, and how much of each. This file needs no torch, so `benchmark.py --help` is quick."""

# What nanoGPT's README trains on a CPU and on a GPU, the smallest of llama2.c, one in between, and GPT-2.
MODELS = {
    "0.8M": {"vocab_size": 65, "block_size": 64, "n_layer": 4, "n_head": 4, "n_embd": 128},
    "10.7M": {"vocab_size": 65, "block_size": 256, "n_layer": 6, "n_head": 6, "n_embd": 384},
    "15M": {"vocab_size": 32000, "block_size": 256, "n_layer": 6, "n_head": 6, "n_embd": 288},
    "30M": {"vocab_size": 4096, "block_size": 256, "n_layer": 8, "n_head": 8, "n_embd": 512},
    "124M": {"vocab_size": 50257, "block_size": 1024, "n_layer": 12, "n_head": 12, "n_embd": 768},
}
BATCH_SIZES = {"0.8M": 32, "10.7M": 64, "30M": 16, "124M": 2}  # sequences per step on a CPU; 64 is nanoGPT's own
GPU_BATCH_SIZES = {"0.8M": 64, "10.7M": 64, "30M": 128, "124M": 32}
GENERATED = ["0.8M", "10.7M", "124M", "15M", "page"]  # page: in a browser, see page.py
SCALING_STEPS = {"0.8M": 60, "10.7M": 6, "30M": 6, "124M": 6}  # steps per run


def is_tied(shape: dict) -> bool:
    """Whether our model shares embedding and head. The peers' models do; with few ids it makes no difference."""
    return shape["vocab_size"] > 1000
