"""From logits to the next token, one small function per idea: penalty, temperature, filters, the draw, one token, many.

    logits ─ repetition penalty ─ / temperature ─ softmax ─ top-k ─ top-p ─ min-p ─ draw

The order is that of Hugging Face's generate, so settings mean the same here as there: the penalty corrects the model's
logits, the temperature shapes the distribution, and each of the three filters cuts its tail and renormalises it. Every
filter keeps the most likely tokens, so the candidates are sorted once and a filter keeps the first few of them. A Step
keeps everything that was computed for its token: what is shown is what was sampled from.

This runs in numpy on the CPU, wherever the model runs: for one token it takes microseconds. The logits are in fp32, the
probabilities in double precision.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from config import Sampling, Settings
from model.generation.one_token import fast_one_token
from model.gpt import GPT
from model.layers import KeyValueCache
from model.metrics import LN2

# A faster way to feed one token: token -> logits (V,) (one_token.py), or B of them -> (B, V) (one_token_gpu.py)
FastStep = Callable[..., np.ndarray] | None


class Candidates(NamedTuple):
    """The tokens that can be drawn, and those to be shown, sorted by their logits after the penalty, highest first."""

    ids: np.ndarray  # (n,)
    logits: np.ndarray  # (n,), the model's
    penalised: np.ndarray  # (n,), after the repetition penalty
    log_sum: float  # ln of the sum of exp(logit) over all V tokens
    mean_logit: float  # over all V tokens, by their probabilities
    vocab_size: int  # V


@dataclass(slots=True)
class Step:
    """One generated token and what it was drawn from. The arrays (n,) hold the candidates, sorted by their logits after
    the penalty, highest first: all that could be drawn, and at least as many as choose() was asked to record."""

    token: int  # the chosen id
    rank: int  # its rank among the candidates, from 1
    p: float  # the model's own probability of it
    entropy: float  # of the model's own distribution over all V tokens, in bits
    random_number: float  # in [0, 1); it decided
    ids: np.ndarray
    logits: np.ndarray  # the model's
    penalised: np.ndarray  # logits after the repetition penalty
    tempered: np.ndarray  # then after the temperature, shifted so that the highest is 0
    model_p: np.ndarray  # the model's own probabilities; over all V tokens they sum to 1
    sampled_p: np.ndarray  # what was drawn from, after all settings; sums to 1
    ends: np.ndarray  # cumulative sums of sampled_p: candidate i owns the interval from ends[i - 1] to ends[i]
    kept: tuple[int, int, int]  # candidates left after top-k, after top-p, and after min-p
    vocab_size: int  # V


# --- one token --------------------------------------------------------------------------------------------------------


def penalise(logits: np.ndarray, seen: np.ndarray, penalty: float) -> np.ndarray:
    """Make tokens that are already in the text less likely: (V,) -> (V,). `seen` (V,) is True for them. Keskar et al.
    2019, CTRL (arXiv:1909.05858), section 4.1, divide by the penalty. A negative logit, which that would raise, is
    multiplied, as in Hugging Face. With a penalty of 2, 3 becomes 1.5 and -3 becomes -6."""
    if penalty == 1:
        return logits
    old, logits = logits[seen], logits.copy()
    logits[seen] = np.where(old > 0, old / penalty, old * penalty)
    return logits


def most_likely(logits: np.ndarray, n: int) -> np.ndarray:
    """The ids of the n highest of V logits, from high to low, (n,). Of equal logits, the lower id comes first. Sorting
    50,000 numbers takes milliseconds. So only those are sorted that reach the n-th highest of the maxima of groups of
    logits: at least n, seldom many more."""
    rows = len(logits) // (8 * n)
    if rows < 2:
        return (-logits).argsort(kind="stable")[:n]
    groups = len(logits) // rows
    highest = logits[: rows * groups].reshape(rows, groups).max(axis=0)
    ids = np.flatnonzero(~(logits < np.partition(highest, -n)[-n]))  # with all that is NaN
    return ids[(-logits[ids]).argsort(kind="stable")[:n]]


def apply_temperature(ordered: np.ndarray, temperature: float) -> np.ndarray:
    """Divide logits, sorted from high to low, by the temperature. The first is subtracted, so that exp cannot overflow.
    Temperature 0 is greedy: all but the first become minus infinity."""
    if temperature == 0:
        return np.where(np.arange(len(ordered)) == 0, 0.0, -np.inf)
    return (ordered - ordered[0]) / max(temperature, 1e-30)  # smaller ones would overflow, and are greedy as well


def sampling_probabilities(
    tempered: np.ndarray, top_k: int = 0, top_p: float = 1.0, min_p: float = 0.0
) -> tuple[np.ndarray, tuple[int, int, int]]:
    """The distribution to draw from, for tempered logits from high to low: (n,), sum 1, zero for what was filtered out;
    and how many candidates are left after each filter.

    top_k  keep the k most likely (0: all). Fan et al. 2018 (arXiv:1805.04833), section 5.1
    top_p  keep the fewest of the most likely that together reach top_p (1: all). Holtzman et al. 2019
           (arXiv:1904.09751), section 3.1
    min_p  keep those at least min_p times as likely as the most likely (0: all). Nguyen et al. 2024 (arXiv:2407.01082),
           section 3
    """
    p = np.exp(tempered)
    by_k = min(top_k or len(p), len(p))
    p[by_k:] = 0
    p /= np.add.reduce(p)
    by_min = by_p = by_k
    if top_p < 1:
        before = p.cumsum() - p  # the sum of all more likely ones: while it is below top_p, this one is needed
        by_min = by_p = min(int(np.count_nonzero(before < top_p)), by_k)
        p[by_p:] = 0
        p /= p.sum()
    if min_p > 0:
        by_min = min(int(np.count_nonzero(p >= min_p * p[0])), by_p)
        p[by_min:] = 0
        p /= p.sum()
    return p, (by_k, by_p, by_min)


def draw(p: np.ndarray, random_number: float) -> tuple[int, np.ndarray]:
    """Lay the probabilities end to end on [0, 1): the index whose interval holds the number, and where each one ends.
    With p = (0.5, 0.3, 0.2), 0.10 selects index 0, 0.79 index 1, 0.80 index 2; the ends are (0.5, 0.8, 1)."""
    ends = p.cumsum()
    ends /= ends[-1]  # now the last end is exactly 1, so no number selects a token that was filtered out
    return int(ends.searchsorted(random_number, side="right")), ends


def candidate_count(sampling: Sampling, record: int, vocab_size: int) -> int:
    """How many candidates a step needs: all that can be drawn, and `record` of them to be shown."""
    return min(max(sampling.top_k, record), vocab_size) if sampling.top_k else vocab_size


def find_candidates(logits: np.ndarray, sampling: Sampling, seen: np.ndarray | None = None, record: int = 0):
    """The Candidates of logits (V,). `seen` (V,) is True for the tokens of the text so far, prompt included; only a
    penalty needs it."""
    penalised = penalise(logits, seen, sampling.repetition_penalty)
    ids = most_likely(penalised, candidate_count(sampling, record, len(logits)))
    own = logits[ids].astype(np.float64)
    after = own if penalised is logits else penalised[ids].astype(np.float64)
    highest = float(np.maximum.reduce(logits))
    shifted = np.maximum(logits - highest, -1e4)  # so that 0 times it is 0
    weights = np.exp(shifted)
    total = float(np.add.reduce(weights, dtype=np.float64))
    sums = highest + math.log(total), highest + float(np.dot(weights, shifted)) / total
    return Candidates(ids, own, after, *sums, len(logits))


def choose(candidates: Candidates, random_number: float, sampling: Sampling) -> Step:
    """Choose the next token with a random number in [0, 1)."""
    ids, logits, penalised, log_sum, mean_logit, vocab_size = candidates
    tempered = apply_temperature(penalised, sampling.temperature)
    sampled_p, kept = sampling_probabilities(tempered, sampling.top_k, sampling.top_p, sampling.min_p)
    index, ends = draw(sampled_p, random_number)
    model_p = np.exp(logits - log_sum)
    return Step(
        int(ids[index]), index + 1, float(model_p[index]), (log_sum - mean_logit) / LN2, random_number,
        ids, logits, penalised, tempered, model_p, sampled_p, ends, kept, vocab_size,
    )  # fmt: skip


# --- many tokens ------------------------------------------------------------------------------------------------------


def random_numbers(seed: int) -> Iterator[float]:
    """Endless random numbers in [0, 1), the same on every device. Groups of 100 are the same numbers, sooner."""
    generator = torch.Generator().manual_seed(seed % 2**64)
    while True:
        yield from torch.rand(100, generator=generator, dtype=torch.float64).tolist()


@torch.inference_mode()
def read(model: GPT, ids: list[int], cache: KeyValueCache) -> Tensor:
    """Feed one text to the model, continuing the one in the cache. Returns fp32 logits after each token, (T, V)."""
    return model(torch.tensor([ids], device=model.device), cache)[0].float()


def next_logits(model: GPT, texts: list[list[int]], cache: KeyValueCache, one_token: FastStep = None):
    """Logits (B, V) after each of B texts of the same length, all but the last token of which are in the cache. A full
    block forgets its older half: the newest block_size // 2 tokens are read again, from position 0."""
    if cache.length == model.block_size:
        cache.length = 0
        texts = [text[-max(1, model.block_size // 2) :] for text in texts]
    elif one_token is not None:
        return np.atleast_2d(one_token(*(text[-1] for text in texts)))
    else:
        texts = [text[-1:] for text in texts]
    with torch.inference_mode():
        return model(torch.tensor(texts, device=model.device), cache)[:, -1].float().cpu().numpy()


def next_candidates(model: GPT, texts: list[list[int]], cache: KeyValueCache, one_token: FastStep, settings, seen):
    """The Candidates after each of B texts; see next_logits(). A fast step may select up to `most_candidates` itself,
    sooner than numpy; on a GPU only they are copied. A penalty, or no top-k, needs all logits."""
    n = candidate_count(settings, settings.show, model.vocab_size)
    selects = settings.top_k and n <= getattr(one_token, "most_candidates", 0)
    if selects and settings.repetition_penalty == 1 and cache.length < model.block_size:
        ids, logits, *sums = one_token.candidates(n, *(text[-1] for text in texts))
        logits = logits.astype(np.float64)
        found = zip(ids.copy(), logits, *sums, strict=True)  # copies, because the next step overwrites them
        return [Candidates(i, x, x, float(log_sum), float(mean), model.vocab_size) for i, x, log_sum, mean in found]
    rows = next_logits(model, texts, cache, one_token)
    return [find_candidates(row, settings, s, settings.show) for row, s in zip(rows, seen, strict=True)]


def generate(
    model: GPT, ids: list[int], logits: Tensor, cache: KeyValueCache, settings: Settings, one_token: FastStep = None
) -> Iterator[list[Step]]:
    """Continue a prompt, given as its ids, the logits (V,) after it, and the cache that it filled. Yields a list of one
    step for each of settings.samples texts, settings.tokens times.

        cache = model.new_cache()
        logits = read(model, ids, cache)
        for (step,) in generate(model, ids, logits[-1], cache, settings): ...

    For a model in eval mode. Sample i is the text of the seed settings.seed + i, and all are fed to the model as one
    batch. `one_token` is made for this cache; several samples get a cache and a fast step of their own.
    """
    samples = settings.samples
    texts = [list(ids) for _ in range(samples)]
    numbers = [random_numbers(settings.seed + i) for i in range(samples)]
    seen = np.zeros((samples, model.vocab_size), bool)
    seen[:, ids] = True
    found = [find_candidates(logits.cpu().numpy(), settings, seen[0], settings.show)] * samples  # all begin alike
    if samples > 1:
        one, cache = cache, model.new_cache(samples)
        cache.store.copy_(one.store)
        cache.length = one.length
        one_token = fast_one_token(model, cache)
    for i in range(settings.tokens):
        if i > 0:
            found = next_candidates(model, texts, cache, one_token, settings, seen)
        steps = [choose(each, next(n), settings) for each, n in zip(found, numbers, strict=True)]
        for text, s, step in zip(texts, seen, steps, strict=True):
            text.append(step.token)
            s[step.token] = True
        yield steps
