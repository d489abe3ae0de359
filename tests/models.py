"""Small models with random weights."""

import torch
from torch import nn

from model.gpt import GPT

SMALL = {"vocab_size": 31, "block_size": 24, "n_layer": 2, "n_head": 4, "n_embd": 32}


def random_model(shape: dict, seed: int = 1) -> GPT:
    """A model in eval mode with every weight away from its initial value: at the start, output projections are zero
    and norm weights one, and many a mistake would not show.
    """
    torch.manual_seed(seed)
    model = GPT(**shape).eval()
    for name, weight in model.named_parameters():
        if weight.dim() == 1:
            nn.init.uniform_(weight, 0.5, 1.5)
        elif name == "embedding.weight":
            nn.init.normal_(weight)
        else:
            nn.init.normal_(weight, std=weight.size(1) ** -0.5)
    return model
