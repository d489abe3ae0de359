"""From logits to the next token, one small function an idea: probabilities, filters, the draw, one token, many.

    logits ─ / temperature ─ softmax ─ top-k ─ top-p ─ renormalise ─ draw

Everything that a step used is kept in its Step, so what is shown is what was sampled from.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from model.gpt import GPT
from model.layers import KeyValueCache


@dataclass(frozen=True)
class Step:
    """One generated token and the distributions that it came from. V is the vocabulary's size."""

    token: int  # the chosen id
    order: Tensor  # (V,) ids from the likeliest to the least likely
    model_p: Tensor  # (V,) the model's own probabilities, in that order; sum 1
    sampled_p: Tensor  # (V,) after temperature, top-k and top-p, in that order; sum 1; what was drawn from
    number: float  # the random number in [0, 1) that decided; with sampled_p, the draw can be done by hand
    rank: int  # place of the chosen token in the order, from 1
    p: float  # the model's own probability of it

    def candidates(self, n: int) -> list[tuple[int, float, float]]:
        """The first n as (id, model_p, sampled_p)."""
        return list(zip(self.order[:n].tolist(), self.model_p[:n].tolist(), self.sampled_p[:n].tolist(), strict=True))


def sampling_probabilities(
    sorted_logits: Tensor, temperature: float = 1.0, top_k: int = 0, top_p: float = 1.0
) -> Tensor:
    """The distribution to draw from, given logits (V,) from high to low: (V,), sum 1, zero for what is left out.

    temperature  p proportional to exp(logit / temperature); 0 gives all to the first (greedy)
    top_k        keep the k likeliest (0: all). Fan et al. 2018 (arXiv:1805.04833), section 5.1
    top_p        keep the fewest of the likeliest that together reach top_p (1: all). Holtzman et al. 2019
                 (arXiv:1904.09751), section 3.1
    """
    if temperature == 0:
        return torch.zeros_like(sorted_logits).index_fill_(0, torch.tensor(0), 1.0)
    p = torch.softmax((sorted_logits - sorted_logits[0]) / temperature, dim=0)  # the first stays finite
    if 0 < top_k < len(p):
        p[top_k:] = 0
        p /= p.sum()
    if top_p < 1:
        before = p.cumsum(0) - p  # what the likelier ones hold: below top_p, this one is still needed
        p[before >= top_p] = 0
        p /= p.sum()
    return p


def draw(p: Tensor, number: float) -> int:
    """The place in which a number in [0, 1) falls, when the probabilities are laid end to end from 0 to 1.

    p = (0.5, 0.3, 0.2): 0.10 falls into place 0, 0.79 into place 1, 0.80 into place 2.
    """
    ends = p.cumsum(0)
    place = int(torch.searchsorted(ends, number * ends[-1], right=True))
    return min(place, int(p.count_nonzero()) - 1)  # rounding must not reach a token that was left out


def choose(logits: Tensor, number: float, temperature: float, top_k: int, top_p: float) -> Step:
    """Choose the next token from logits (V,) with a random number in [0, 1)."""
    ordered, order = logits.cpu().double().sort(descending=True, stable=True)
    sampled_p = sampling_probabilities(ordered, temperature, top_k, top_p)
    model_p = torch.softmax(ordered, dim=0)
    place = draw(sampled_p, number)
    return Step(int(order[place]), order, model_p, sampled_p, number, place + 1, float(model_p[place]))


@torch.inference_mode()
def read(model: GPT, ids: list[int], cache: KeyValueCache) -> Tensor:
    """Feed tokens to the model, continuing those in the cache. Returns the fp32 logits after each of them, (T, V)."""
    return model(torch.tensor([ids], device=model.device), cache)[0].float()


def next_logits(model: GPT, context: list[int], cache: KeyValueCache) -> Tensor:
    """Logits (V,) after `context`, all but the last token of which the cache has seen.

    A full block forgets its older half: the newest block_size // 2 tokens are read again, from position 0 on.
    """
    if cache.length < model.block_size:
        return read(model, context[-1:], cache)[-1]
    cache.length = 0
    return read(model, context[-max(1, model.block_size // 2) :], cache)[-1]


def generate(
    model: GPT,
    ids: list[int],
    logits: Tensor,
    cache: KeyValueCache,
    tokens: int,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    seed: int = 0,
) -> Iterator[Step]:
    """Yield `tokens` steps after a prompt that was read: its ids, the logits (V,) after it, and the filled cache.

        cache = model.new_cache()
        logits = read(model, ids, cache)
        for step in generate(model, ids, logits[-1], cache, tokens=100): ...

    Random numbers come from `seed`, one a token, drawn on the CPU: the same on every device. For a model in eval mode.
    """
    numbers = torch.Generator().manual_seed(seed)
    context = list(ids)
    for i in range(tokens):
        if i > 0:
            logits = next_logits(model, context, cache)
        number = torch.rand((), generator=numbers, dtype=torch.float64).item()
        step = choose(logits, number, temperature, top_k, top_p)
        context.append(step.token)
        yield step
