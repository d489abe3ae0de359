"""From logits to the next token, one small function an idea: penalty, filters, the draw, one token, many.

    logits ─ repetition penalty ─ / temperature ─ softmax ─ top-k ─ top-p ─ min-p ─ draw

The order is that of Hugging Face's generate, so that settings mean here what they mean elsewhere: the penalty corrects
the model's logits, the temperature shapes the distribution, and the three filters cut the tail of what will be drawn
from, each one renormalised before the next. Every filter keeps the likeliest, so what is left is the first few of the
candidates, sorted once. Everything that a step used is kept in its Step: what is shown is what was sampled from.

On the CPU in numpy, wherever the model runs: one token's worth of this takes microseconds. What is drawn from is in
double precision, the model's logits are in fp32.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch

from model.gpt import GPT
from model.layers import KeyValueCache


@dataclass(slots=True)
class Step:
    """One generated token and what it came from. V is the vocabulary's size.

    The arrays (n,) hold candidates, the likeliest after the penalty first: all that could be drawn and at least as many
    as were to be recorded.
    """

    token: int  # the chosen id
    rank: int  # its place among the candidates, from 1
    p: float  # the model's own probability of it
    number: float  # the random number in [0, 1) that decided
    ids: np.ndarray
    logits: np.ndarray  # the model's
    penalised: np.ndarray  # after the repetition penalty
    tempered: np.ndarray  # and after the temperature; 0 for the likeliest
    model_p: np.ndarray  # the model's own probabilities; over all V tokens they sum to 1
    sampled_p: np.ndarray  # after every knob; what was drawn from; they sum to 1
    ends: np.ndarray  # where each one's stretch of [0, 1) ends; it begins where that of the one before ends
    kept: tuple[int, int, int]  # how many candidates top-k, top-p and min-p left, in turn
    vocab_size: int  # V


# === one token ========================================================================================================


def penalise(logits: np.ndarray, seen: np.ndarray, penalty: float) -> np.ndarray:
    """Make the tokens of a text less likely to come again: (V,) -> (V,). `seen` (V,) is True for them.

    Keskar et al. 2019, CTRL (arXiv:1909.05858), section 4.1, divides their logits by the penalty. That would make a
    token of negative logit likelier, so those are multiplied, as Hugging Face does. A penalty of 2: 3 -> 1.5, -3 -> -6.
    """
    if penalty == 1:
        return logits
    old, logits = logits[seen], logits.copy()
    logits[seen] = np.where(old > 0, old / penalty, old * penalty)
    return logits


def likeliest(logits: np.ndarray, n: int) -> np.ndarray:
    """The ids of the n highest of V logits, from high to low, (n,); of equal ones the lower id first.

    Sorting 50,000 numbers takes milliseconds. So they are cut into groups, each of which hands in its highest: the n-th
    highest of these is reached by at least n of all, seldom by many more, and only those are sorted.
    """
    rows = len(logits) // (8 * n)
    if rows > 1:
        groups = len(logits) // rows
        highest = logits[: rows * groups].reshape(rows, groups).max(axis=0)
        ids = np.flatnonzero(logits >= np.partition(highest, -n)[-n])
    else:
        ids = np.arange(len(logits))
    return ids[(-logits[ids]).argsort(kind="stable")[:n]]


def temper(ordered: np.ndarray, temperature: float) -> np.ndarray:
    """Logits from high to low, less the first (so that nothing overflows), by the temperature; at 0 only the first is
    left (greedy), the others are minus infinity.
    """
    if temperature == 0:
        return np.where(np.arange(len(ordered)) == 0, 0.0, -np.inf)
    return (ordered - ordered[0]) / max(temperature, 1e-30)  # smaller ones do the same, and overflow


def sampling_probabilities(
    tempered: np.ndarray, top_k: int = 0, top_p: float = 1.0, min_p: float = 0.0
) -> tuple[np.ndarray, tuple[int, int, int]]:
    """The distribution to draw from, given tempered logits from high to low: (n,), sum 1, zero for what is left out;
    and how many candidates are left after each filter.

    top_k  keep the k likeliest (0: all). Fan et al. 2018 (arXiv:1805.04833), section 5.1
    top_p  keep the fewest of the likeliest that together reach top_p (1: all). Holtzman et al. 2019 (arXiv:1904.09751),
           section 3.1
    min_p  keep what is at least min_p times as likely as the likeliest (0: all). Nguyen et al. 2024 (arXiv:2407.01082),
           section 3
    """
    p = np.exp(tempered)
    by_k = min(top_k or len(p), len(p))
    p[by_k:] = 0
    p /= np.add.reduce(p)
    by_p = by_k
    if top_p < 1:
        before = p.cumsum() - p  # what the likelier ones hold: below top_p, this one is still needed
        by_p = min(int(np.count_nonzero(before < top_p)), by_k)
        p[by_p:] = 0
        p /= p.sum()
    by_min = by_p
    if min_p > 0:
        by_min = min(int(np.count_nonzero(p >= min_p * p[0])), by_p)
        p[by_min:] = 0
        p /= p.sum()
    return p, (by_k, by_p, by_min)


def draw(p: np.ndarray, number: float) -> tuple[int, np.ndarray]:
    """The place in which a number in [0, 1) falls when the probabilities are laid end to end, and where each one ends.

    p = (0.5, 0.3, 0.2): 0.10 falls into place 0, 0.79 into place 1, 0.80 into place 2; the ends are (0.5, 0.8, 1).
    """
    ends = p.cumsum()
    ends /= ends[-1]  # the last end is 1 exactly, so no number reaches a token that was left out
    return int(ends.searchsorted(number, side="right")), ends


def choose(
    logits: np.ndarray,
    number: float,
    seen: np.ndarray | None = None,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    min_p: float = 0.0,
    repetition_penalty: float = 1.0,
    record: int = 0,
) -> Step:
    """Choose the next token from logits (V,) with a random number in [0, 1).

    `seen` (V,) is True for the tokens of the text so far, the prompt's too; only the penalty needs it. The Step keeps
    at least `record` candidates, to be shown.
    """
    penalised = penalise(logits, seen, repetition_penalty)
    n = min(max(top_k, record), len(logits)) if top_k else len(logits)
    ids = likeliest(penalised, n)
    own, ordered = logits[ids].astype(np.float64), penalised[ids].astype(np.float64)
    tempered = temper(ordered, temperature)
    sampled_p, kept = sampling_probabilities(tempered, top_k, top_p, min_p)
    place, ends = draw(sampled_p, number)
    highest = logits.max()
    model_p = np.exp(own - highest) / np.add.reduce(np.exp(logits - highest), dtype=np.float64)
    return Step(
        int(ids[place]), place + 1, float(model_p[place]), number,
        ids, own, ordered, tempered, model_p, sampled_p, ends, kept, len(logits),
    )  # fmt: skip


# === many tokens ======================================================================================================


def random_numbers(seed: int) -> Iterator[float]:
    """Numbers in [0, 1) without end, the same on every device. Drawn in groups: the same as one by one, but faster."""
    generator = torch.Generator().manual_seed(seed % 2**64)
    while True:
        yield from torch.rand(100, generator=generator, dtype=torch.float64).tolist()


@torch.inference_mode()
def feed(model: GPT, texts: list[list[int]], cache: KeyValueCache) -> torch.Tensor:
    """Feed B texts of T ids, continuing those in the cache. Returns the fp32 logits after each token, (B, T, V)."""
    return model(torch.tensor(texts, device=model.device), cache).float()


def read(model: GPT, ids: list[int], cache: KeyValueCache) -> torch.Tensor:
    """Feed one text to the model, continuing that in the cache. Returns the fp32 logits after each token, (T, V)."""
    return feed(model, [ids], cache)[0]


def next_logits(model: GPT, texts: list[list[int]], cache: KeyValueCache, one_token: Callable | None = None):
    """Logits (B, V) after each of B texts of one length, all but the last token of which the cache has seen.

    A full block forgets its older half: the newest block_size // 2 tokens are read again, from position 0 on.
    """
    if cache.length == model.block_size:
        cache.length = 0
        texts = [text[-max(1, model.block_size // 2) :] for text in texts]
    elif one_token is not None:
        return one_token(texts[0][-1])[None]
    else:
        texts = [text[-1:] for text in texts]
    return feed(model, texts, cache)[:, -1].cpu().numpy()


def generate_samples(
    model: GPT,
    ids: list[int],
    logits: torch.Tensor,
    cache: KeyValueCache,
    tokens: int,
    samples: int,
    seed: int = 0,
    one_token: Callable | None = None,
    **knobs,
) -> Iterator[list[Step]]:
    """Yield `tokens` times a list of one step for each of so many texts, which all go on from the same prompt.

    As generate(), of which sample i is the text of the seed + i, but fed to the model as one batch.
    """
    texts = [list(ids) for _ in range(samples)]
    numbers = [random_numbers(seed + i) for i in range(samples)]
    seen = np.zeros((samples, model.vocab_size), bool)
    seen[:, ids] = True
    rows = [logits.cpu().numpy()] * samples
    if samples > 1:
        one, cache = cache, model.new_cache(samples)
        cache.store.copy_(one.store)
        cache.length = one.length
    for i in range(tokens):
        if i > 0:
            rows = next_logits(model, texts, cache, one_token)
        steps = [choose(row, next(n), s, **knobs) for row, n, s in zip(rows, numbers, seen, strict=True)]
        for text, s, step in zip(texts, seen, steps, strict=True):
            text.append(step.token)
            s[step.token] = True
        yield steps


def generate(model: GPT, ids: list[int], logits: torch.Tensor, cache: KeyValueCache, tokens: int, **more):
    """Yield `tokens` steps after a prompt that was read: its ids, the logits (V,) after it, and the filled cache.

        cache = model.new_cache()
        logits = read(model, ids, cache)
        for step in generate(model, ids, logits[-1], cache, tokens=100): ...

    `more` are the knobs of choose(), seed, and one_token: a faster way to feed one token (one_token.py), whose cache
    this is. Random numbers come from the seed, one a token. For a model in eval mode.
    """
    for (step,) in generate_samples(model, ids, logits, cache, tokens, samples=1, **more):
        yield step
