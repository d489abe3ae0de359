"""Sampling against distributions worked out by hand, and generation with the cache against generation without."""

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from torch import nn

from config import CHAR, Sampling, Settings
from model.generation import sampling as sampling_module
from model.generation.one_token import OneToken
from model.generation.sampling import (
    Step,
    apply_temperature,
    draw,
    find_candidates,
    generate,
    most_likely,
    next_logits,
    penalise,
    random_numbers,
    read,
    sampling_probabilities,
)
from model.gpt import GPT

P = [0.5, 0.3, 0.15, 0.05]  # what most tests start from
LOGITS = np.log(P)
in_any_time = hypothesis_settings(deadline=None)  # a busy machine is no failure
NEUTRAL = Sampling(temperature=1.0, top_k=0)  # draws from the model's own distribution
BELOW_1 = math.nextafter(1.0, 0.0)  # the largest random number there is


def distribution(logits, temperature: float = 1.0, **filters) -> np.ndarray:
    return sampling_probabilities(apply_temperature(np.array(logits), temperature), **filters)[0]


def probabilities(**values) -> list[float]:
    return distribution(LOGITS, **values).tolist()


# --- the distribution -------------------------------------------------------------------------------------------------


def test_without_settings_the_model_decides():
    assert probabilities() == pytest.approx(P)


def test_temperature_by_hand():
    # p^(1/T), normalised. T = 1/2: squares 0.25, 0.09, 0.0225, 0.0025, together 0.365
    assert probabilities(temperature=0.5) == pytest.approx([0.25 / 0.365, 0.09 / 0.365, 0.0225 / 0.365, 0.0025 / 0.365])
    # T = 2: square roots 0.70711, 0.54772, 0.38730, 0.22361, together 1.86574
    assert probabilities(temperature=2.0) == pytest.approx([0.37900, 0.29357, 0.20758, 0.11985], abs=1e-5)


def test_temperature_0_is_greedy_whatever_the_filters():
    for values in ({}, {"top_k": 3}, {"top_p": 0.9}, {"top_k": 2, "top_p": 0.1}):
        assert probabilities(temperature=0, **values) == [1, 0, 0, 0]


def test_temperature_near_0_is_greedy_too():
    assert probabilities(temperature=1e-6) == [1, 0, 0, 0]
    assert probabilities(temperature=5e-324) == [1, 0, 0, 0]


@pytest.mark.parametrize(
    ("top_k", "expected"),
    [
        (1, [1, 0, 0, 0]),
        (2, [0.625, 0.375, 0, 0]),
        (3, [0.5 / 0.95, 0.3 / 0.95, 0.15 / 0.95, 0]),
        (4, P),
        (99, P),  # more than there are
        (0, P),  # off
    ],
)
def test_top_k_by_hand(top_k, expected):
    assert probabilities(top_k=top_k) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("top_p", "expected"),
    [
        (1e-9, [1, 0, 0, 0]),  # the most likely always stays
        (0.49, [1, 0, 0, 0]),
        (0.51, [0.625, 0.375, 0, 0]),  # the one that crosses the limit stays
        (0.79, [0.625, 0.375, 0, 0]),
        (0.81, [0.5 / 0.95, 0.3 / 0.95, 0.15 / 0.95, 0]),
        (0.96, P),
        (1.0, P),
    ],
)
def test_top_p_by_hand(top_p, expected):
    assert probabilities(top_p=top_p) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("min_p", "expected"),
    [
        (0.0, P),
        (0.09, P),  # of the most likely, 0.5, that is 0.045, and 0.05 is above
        (0.11, [0.5 / 0.95, 0.3 / 0.95, 0.15 / 0.95, 0]),
        (0.31, [0.625, 0.375, 0, 0]),
        (0.61, [1, 0, 0, 0]),
        (1.0, [1, 0, 0, 0]),  # the most likely always stays
    ],
)
def test_min_p_by_hand(min_p, expected):
    assert probabilities(min_p=min_p) == pytest.approx(expected)


def test_filters_stop_where_the_limit_is_reached_exactly():
    equal = [0.0, 0.0, 0.0, 0.0]  # quarters, which floats add up without rounding
    assert distribution(equal, top_p=0.5).tolist() == [0.5, 0.5, 0, 0]
    assert distribution(equal, top_p=0.25).tolist() == [1, 0, 0, 0]
    assert distribution(equal, min_p=1.0).tolist() == [0.25] * 4


def test_ties_at_the_limit_of_top_k_stay_in_order():
    assert distribution([0.0] * 4, top_k=2).tolist() == [0.5, 0.5, 0, 0]


def test_temperature_acts_before_top_p():
    # Squared, the first holds 0.685, enough for 0.6. Were top_p first, it would hold 0.5, and a second one would stay.
    assert probabilities(temperature=0.5, top_p=0.6) == [1, 0, 0, 0]
    # Flattened, the first three hold 0.880 and do not reach 0.9. Were top_p first, they would hold 0.95.
    assert probabilities(temperature=2.0, top_p=0.9)[3] > 0


def test_top_k_acts_before_top_p_and_is_renormalised_between():
    # The first of two holds 0.625, enough for 0.6. Of all four it would hold 0.5, and the second one would stay.
    assert probabilities(top_k=2, top_p=0.6) == [1, 0, 0, 0]


def test_temperature_acts_before_min_p():
    # Squared, the second is 0.36 times as likely as the first, less than 0.5. As they are, it is 0.6 times.
    assert probabilities(temperature=0.5, min_p=0.5) == [1, 0, 0, 0]
    assert probabilities(min_p=0.5) == pytest.approx([0.625, 0.375, 0, 0])


def test_all_settings_together_by_hand():
    # Squares of the first three: 0.25, 0.09, 0.0225, together 0.3625; the first two hold 0.9379 and reach 0.9.
    p, kept = sampling_probabilities(apply_temperature(LOGITS, 0.5), top_k=3, top_p=0.9)
    assert p.tolist() == pytest.approx([0.25 / 0.34, 0.09 / 0.34, 0, 0])
    assert kept == (3, 2, 2)
    # The second one is 0.36 times as likely as the first.
    assert sampling_probabilities(apply_temperature(LOGITS, 0.5), top_k=3, top_p=0.9, min_p=0.4)[1] == (3, 2, 1)


def test_large_logits_do_not_overflow():
    assert distribution([1e4, 1e4 - math.log(3), -1e4, -math.inf]).tolist() == pytest.approx([0.75, 0.25, 0, 0])


def test_the_logits_are_left_as_they_are():
    logits = LOGITS.astype(np.float32)
    everything = np.ones(4, bool)
    choose(logits, 0.5, Sampling(temperature=0.5, top_k=2, top_p=0.5, min_p=0.1, repetition_penalty=2.0), everything)
    assert (logits == LOGITS.astype(np.float32)).all()


sampling_values = st.fixed_dictionaries(
    {
        "temperature": st.one_of(st.just(0.0), st.floats(0.05, 20)),
        "top_k": st.integers(0, 12),
        "top_p": st.floats(0.001, 1),
        "min_p": st.floats(0, 1),
    }
)
logit_lists = st.lists(st.floats(-40, 40), min_size=1, max_size=10)


@in_any_time
@given(logit_lists, sampling_values)
def test_the_distribution_is_one_and_keeps_the_order(logits, values):
    p = distribution(sorted(logits, reverse=True), **values)
    assert p.sum() == pytest.approx(1)
    assert p[0] > 0
    assert (p >= 0).all() and (np.diff(p) <= 0).all()
    if values["top_k"]:
        assert np.count_nonzero(p) <= values["top_k"]
    assert p[p > 0].min() >= values["min_p"] * p[0] * (1 - 1e-12)


# --- the draw ---------------------------------------------------------------------------------------------------------


def test_draw_by_hand():
    # Laid end to end: 0 to 1/2, 1/2 to 3/4, 3/4 to 7/8, 7/8 to 1, each with its beginning and without its end.
    p = np.array([0.5, 0.25, 0.125, 0.125])
    falls = {0.0: 0, 0.3: 0, 0.499999: 0, 0.5: 1, 0.6: 1, 0.749999: 1, 0.75: 2, 0.874999: 2, 0.875: 3, BELOW_1: 3}
    assert {number: draw(p, number)[0] for number in falls} == falls
    for place, start in [(1, 0.5), (2, 0.75), (3, 0.875)]:
        assert draw(p, math.nextafter(start, 0.0))[0] == place - 1
    assert draw(p, 0.3)[1].tolist() == [0.5, 0.75, 0.875, 1.0]


def test_draw_from_one_token():
    for number in (0.0, 0.5, BELOW_1):
        assert draw(np.array([1.0, 0.0, 0.0]), number)[0] == 0


def test_draw_just_below_1_stays_with_those_that_are_left():
    assert draw(np.array([0.75, 0.25, 0.0, 0.0]), BELOW_1)[0] == 1
    # Tenths and thirds do not add up to 1 in floats.
    assert draw(np.array([0.1] * 10 + [0.0] * 3), BELOW_1)[0] == 9
    assert draw(np.array([1 / 3] * 3 + [0.0], np.float32), BELOW_1)[0] == 2


@in_any_time
@given(logit_lists, sampling_values, st.one_of(st.just(0.0), st.just(BELOW_1), st.floats(0, BELOW_1)))
def test_draw_never_reaches_a_token_that_was_left_out(logits, values, number):
    p = distribution(sorted(logits, reverse=True), **values)
    place, ends = draw(p, number)
    assert p[place] > 0
    assert ends[place] > number and (place == 0 or ends[place - 1] <= number)
    # and it is the place whose interval holds the number, give or take rounding
    assert p[:place].sum() <= number + 1e-12
    assert p[: place + 1].sum() >= number - 1e-12


def test_frequencies_follow_the_distribution():
    """Pearson's chi-square against the distribution: with 3 degrees of freedom, 16.3 is passed once in a thousand."""
    n, numbers = 8000, torch.Generator().manual_seed(11)
    p, counts = np.array(P), [0] * 4
    for number in torch.rand(n, generator=numbers, dtype=torch.float64).tolist():
        counts[draw(p, number)[0]] += 1
    assert sum((count - n * q) ** 2 / (n * q) for count, q in zip(counts, P, strict=True)) < 16.3


# --- one token --------------------------------------------------------------------------------------------------------


def choose(logits, random_number, sampling, seen=None, record=0):
    """The step that the logits (V,) lead to."""
    return sampling_module.choose(find_candidates(logits, sampling, seen, record), random_number, sampling)


SHUFFLED = np.log(np.array([0.3, 0.05, 0.5, 0.15], np.float32))  # ids 2, 0, 3, 1 from the most likely on


def candidates(step: Step) -> list[list[float]]:
    return [list(row) for row in zip(step.ids.tolist(), step.model_p, step.sampled_p, strict=True)]


def test_choose_maps_places_back_to_ids():
    for number, token, rank, p in [(0.0, 2, 1, 0.5), (0.49, 2, 1, 0.5), (0.51, 0, 2, 0.3), (0.81, 3, 3, 0.15)]:
        step = choose(SHUFFLED, number, NEUTRAL)
        assert (step.token, step.rank, step.random_number) == (token, rank, number)
        assert step.p == pytest.approx(p)
        assert step.ids.tolist() == [2, 0, 3, 1]
        assert step.model_p.tolist() == pytest.approx(P)
        assert step.vocab_size == 4


def test_candidates_come_from_the_distribution_that_was_sampled():
    step = choose(SHUFFLED, 0.8, Sampling(temperature=0.5, top_k=2), record=4)
    # Squares of the two most likely: 0.25 and 0.09, together 0.34. The number 0.8 falls behind 0.735, into the second.
    expected = [(2, 0.5, 0.25 / 0.34), (0, 0.3, 0.09 / 0.34), (3, 0.15, 0.0), (1, 0.05, 0.0)]
    assert candidates(step) == [pytest.approx(list(e)) for e in expected]
    assert step.ends.tolist() == pytest.approx([0.25 / 0.34, 1, 1, 1])
    assert (step.token, step.rank, step.kept) == (0, 2, (2, 2, 2))
    assert step.p == pytest.approx(0.3), "the model's own probability, not the sampled one"


def test_what_is_recorded_changes_nothing_else():
    few, more, all_of_them = (choose(SHUFFLED, 0.8, replace(NEUTRAL, top_k=2), record=n) for n in (0, 3, 99))
    assert [len(step.ids) for step in (few, more, all_of_them)] == [2, 3, 4]
    assert candidates(all_of_them)[:2] == candidates(more)[:2] == candidates(few)
    assert few.token == more.token == all_of_them.token


def test_the_columns_of_a_step_follow_from_each_other():
    seen = np.array([True, False, True, False])
    logits = np.array([1.0, 0.2, 3.0, -2.0])
    step = choose(logits, 0.5, Sampling(temperature=0.5, top_k=0, repetition_penalty=2.0), seen)
    assert step.ids.tolist() == [2, 0, 1, 3]
    assert step.logits.tolist() == [3.0, 1.0, 0.2, -2.0]
    assert step.penalised.tolist() == [1.5, 0.5, 0.2, -2.0]  # halved where seen
    assert step.tempered.tolist() == pytest.approx([0.0, -2.0, -2.6, -7.0])  # less 1.5, doubled
    p = np.exp([0.0, -2.0, -2.6, -7.0])
    assert step.sampled_p.tolist() == pytest.approx((p / p.sum()).tolist())
    assert step.model_p.tolist() == pytest.approx((np.exp(step.logits) / np.exp(logits).sum()).tolist())


def test_ties_go_to_the_lower_id():
    step = choose(np.array([1.0, 7.0, 7.0, 0.0, 7.0]), 0.9, Sampling(temperature=0, top_k=0))
    assert step.token == 1
    assert step.ids.tolist() == [1, 2, 4, 0, 3]


@in_any_time
@given(st.lists(st.integers(-3, 3), min_size=1, max_size=12), st.integers(1, 14))
def test_the_most_likely_are_the_first_of_a_stable_sort(values, n):
    expected = sorted(range(len(values)), key=lambda i: -values[i])[:n]
    assert most_likely(np.array(values, np.float64), n).tolist() == expected


@in_any_time
@given(st.integers(0, 2**32), st.integers(1, 40), st.integers(300, 3000), st.sampled_from([3, 1000]))
def test_the_most_likely_of_many_are_found_through_their_groups(seed, n, size, distinct):
    """Sizes at which groups hand in their highest, whether or not they divide the size; with and without ties."""
    values = np.random.default_rng(seed).integers(0, distinct, size).astype(np.float32)
    assert most_likely(values, n).tolist() == (-values).argsort(kind="stable")[:n].tolist()


def test_penalty_by_hand():
    logits, seen = np.array([3.0, -3.0, 3.0, -3.0, 0.0]), np.array([True, True, False, False, True])
    assert penalise(logits, seen, 2.0).tolist() == [1.5, -6.0, 3.0, -3.0, 0.0]
    assert penalise(logits, seen, 0.5).tolist() == [6.0, -1.5, 3.0, -3.0, 0.0]
    assert penalise(logits, seen, 1.0).tolist() == logits.tolist()


def test_the_penalty_acts_before_temperature_and_filters():
    # Unpenalised, id 0 would win; its logit 4 becomes 1. Top-k then keeps ids 1 and 2, whatever id 0 was before.
    logits, seen = np.array([4.0, 3.0, 2.0]), np.array([True, False, False])
    step = choose(logits, 0.0, Sampling(temperature=0.5, top_k=2, repetition_penalty=4.0), seen, record=3)
    assert step.ids.tolist() == [1, 2, 0]
    assert step.sampled_p.tolist() == pytest.approx([1 / (1 + math.exp(-2)), math.exp(-2) / (1 + math.exp(-2)), 0])
    assert choose(logits, 0.0, Sampling(temperature=0, top_k=0, repetition_penalty=4.0), seen).token == 1


@in_any_time
@given(logit_lists, sampling_values, st.floats(0, BELOW_1), st.floats(0.5, 2), st.integers(0, 12))
def test_a_step_agrees_with_itself(logits, values, number, penalty, record):
    logits = np.array(logits, np.float32)
    seen = np.arange(len(logits)) % 2 == 0
    step = choose(logits, number, Sampling(repetition_penalty=penalty, **values), seen, record)
    assert len(set(step.ids.tolist())) == len(step.ids) >= min(max(record, values["top_k"]), len(logits))
    assert step.sampled_p.sum() == pytest.approx(1, abs=1e-12)  # computed in double precision
    assert step.token == step.ids[step.rank - 1]
    assert step.p == step.model_p[step.rank - 1]
    own = torch.softmax(torch.tensor(logits).double(), dim=0)
    assert step.model_p.tolist() == pytest.approx(own[torch.tensor(step.ids)].tolist(), rel=1e-5, abs=1e-12)
    assert step.sampled_p[step.rank - 1] > 0
    assert step.sampled_p.nonzero()[0].tolist() == list(range(step.kept[-1])) or values["temperature"] < 0.06


# --- many tokens ------------------------------------------------------------------------------------------------------


def spread_model(block_size: int, n_layer: int = 2, n_head: int = 2, n_embd: int = 16, seed: int = 0, **more) -> GPT:
    """A model whose next token hangs on all that it sees and on the order of it. An untrained one repeats itself."""
    torch.manual_seed(seed)
    model = GPT(29, block_size=block_size, n_layer=n_layer, n_head=n_head, n_embd=n_embd, **more)
    for weight in model.parameters():
        nn.init.normal_(weight, mean=float(weight.dim() == 1), std=0.4)
    return model.eval()


def settings_of(tokens: int, **more) -> Settings:
    """Settings that draw from the model's own distribution, but for what is given."""
    return replace(CHAR, **{"tokens": tokens, "temperature": 1.0, "top_k": 0, "seed": 0, "show": 0} | more)


def steps_of(model: GPT, prompt: list[int], tokens: int, fast: bool = False, **more) -> list[Step]:
    cache = model.new_cache()
    logits = read(model, prompt, cache)
    one_token = OneToken(model, cache) if fast else None
    return [step for (step,) in generate(model, prompt, logits[-1], cache, settings_of(tokens, **more), one_token)]


def tokens_of(*args, **more) -> list[int]:
    return [step.token for step in steps_of(*args, **more)]


@torch.no_grad()
def without_cache(model: GPT, prompt: list[int], tokens: int) -> tuple[list[int], list[torch.Tensor]]:
    """Greedy generation as the rule says it, every token computed anew: (tokens, the distribution (V,) of each).

    A full block forgets its older half: it keeps the newest block_size // 2 tokens, at least one.
    """
    window, chosen, distributions = list(prompt), [], []
    for _ in range(tokens):
        if len(window) > model.block_size:
            window = window[-max(1, model.block_size // 2) :]
        logits = model(torch.tensor([window]))[0, -1]
        distributions.append(logits.softmax(dim=0))
        chosen.append(int(logits.argmax()))
        window.append(chosen[-1])
    return chosen, distributions


def check_against_recomputation(model: GPT, prompt: list[int], tokens: int, fast: bool) -> None:
    steps = steps_of(model, prompt, tokens, fast, temperature=0)
    expected, distributions = without_cache(model, prompt, tokens)
    assert [step.token for step in steps] == expected
    for step, p in zip(steps, distributions, strict=True):
        np.testing.assert_allclose(step.model_p, p[step.ids], rtol=1e-4, atol=1e-5)


both_ways = pytest.mark.parametrize("fast", [False, True], ids=["model", "one_token"])


@pytest.mark.parametrize(
    "shape",
    [
        {"block_size": 16},
        {"block_size": 16, "tie_embeddings": True},
        {"block_size": 21, "n_layer": 1, "n_head": 1, "n_embd": 10},
        {"block_size": 24, "n_layer": 3, "n_head": 8},
    ],
    ids=str,
)
@pytest.mark.parametrize("prompt", [[5], [3, 1, 4, 1, 5, 9, 2, 6]], ids=len)
@both_ways
def test_greedy_with_the_cache_equals_full_recomputation(shape, prompt, fast):
    model = spread_model(**shape)
    room = model.block_size - len(prompt)
    check_against_recomputation(model, prompt, room + 1, fast)  # the last one is predicted from a full block
    assert len(set(tokens_of(model, prompt, room, temperature=0))) > 2, "a model that repeats itself would prove little"


@pytest.mark.parametrize("block_size", [1, 2, 3, 5, 8])
@pytest.mark.parametrize("length", ["one", "full"])
@both_ways
def test_past_the_block_the_older_half_is_forgotten(block_size, length, fast):
    model = spread_model(block_size, seed=2)
    prompt = [4] if length == "one" else [(7 * i + 3) % 29 for i in range(block_size)]
    check_against_recomputation(model, prompt, 3 * block_size + 4, fast)


def test_a_full_block_is_read_again_by_hand():
    """The one step at which it happens: of six tokens in a block of five, the newest two are left."""
    model = spread_model(5)
    cache, context = model.new_cache(), [3, 1, 4, 1, 5]
    read(model, context, cache)
    context.append(9)
    logits = next_logits(model, [context], cache)
    assert cache.length == 2
    np.testing.assert_allclose(logits[0], read(model, [5, 9], model.new_cache())[-1], rtol=1e-5, atol=1e-6)


def test_read_gives_logits_for_every_token_and_fills_the_cache():
    model = spread_model(8)
    cache = model.new_cache()
    logits = read(model, [3, 1, 4], cache)
    assert logits.shape == (3, 29) and logits.dtype == torch.float32
    assert cache.length == 3
    with torch.no_grad():
        torch.testing.assert_close(logits, model(torch.tensor([[3, 1, 4]]))[0])


def test_generate_starts_from_the_logits_it_is_given():
    """They stand for the prompt that was read: the first token comes from them, not from a second look."""
    model = spread_model(8)
    prompt, cache = [3, 1, 4], model.new_cache()
    read(model, prompt, cache)
    only_17 = torch.full((29,), -30.0).index_fill(0, torch.tensor(17), 30.0)
    steps = [step for (step,) in generate(model, prompt, only_17, cache, settings_of(2))]
    assert steps[0].token == 17
    assert prompt == [3, 1, 4], "the caller's list is the caller's"
    p = read(model, [3, 1, 4, 17], model.new_cache())[-1].softmax(0)
    np.testing.assert_allclose(steps[1].model_p, p[steps[1].ids], rtol=1e-4, atol=1e-6)


def test_generate_gives_as_many_tokens_as_asked_for():
    model = spread_model(8)
    assert [len(steps_of(model, [1], n)) for n in (0, 1, 7, 8, 9, 20)] == [0, 1, 7, 8, 9, 20]


def test_the_seed_decides():
    model = spread_model(16)
    first = tokens_of(model, [1, 2], 24, temperature=2.0, seed=5)
    assert tokens_of(model, [1, 2], 24, temperature=2.0, seed=5) == first
    torch.manual_seed(99)  # the global generator has no say
    assert tokens_of(model, [1, 2], 24, temperature=2.0, seed=5) == first
    assert tokens_of(model, [1, 2], 24, temperature=2.0, seed=6) != first


def test_random_numbers_are_one_per_token_whatever_the_settings():
    model = spread_model(16)
    numbers = [step.random_number for step in steps_of(model, [1], 30, temperature=0, seed=5)]
    assert numbers == [step.random_number for step in steps_of(model, [1], 30, temperature=3.0, top_k=4, seed=5)]
    assert len(set(numbers)) == 30
    assert all(0 <= number < 1 for number in numbers)
    assert 0.3 < sum(numbers) / 30 < 0.7


def test_random_numbers_in_groups_are_those_drawn_one_by_one():
    generator = torch.Generator().manual_seed(5)
    one_by_one = [torch.rand((), generator=generator, dtype=torch.float64).item() for _ in range(250)]
    assert list(itertools.islice(random_numbers(5), 250)) == one_by_one


@both_ways
def test_the_settings_reach_every_step(fast):
    values = {"temperature": 3.0, "top_k": 4, "top_p": 0.5, "min_p": 0.3, "repetition_penalty": 1.5}
    seen = np.zeros(29, bool)
    seen[1] = True
    for step in steps_of(spread_model(16), [1], 24, fast, show=29, **values):
        logits = np.empty(29, np.float32)
        logits[step.ids] = step.logits
        again = choose(logits, step.random_number, Sampling(**values), seen, record=29)
        assert again.sampled_p.tolist() == step.sampled_p.tolist()
        assert again.penalised.tolist() == step.penalised.tolist()
        assert again.token == step.token
        assert step.rank <= 4
        seen[step.token] = True


def test_sampled_text_is_the_same_both_ways():
    """The one-token step's logits differ from the model's in the seventh digit or so. A random number would have to
    fall as close to an end of a token's stretch to change a text."""
    for seed in range(5):
        model = spread_model(16, seed=seed)
        slow, fast = (steps_of(model, [1, 2], 40, fast, temperature=2.0, top_k=8, seed=seed) for fast in (False, True))
        assert [step.token for step in slow] == [step.token for step in fast]
        for a, b in zip(slow, fast, strict=True):
            np.testing.assert_allclose(a.sampled_p, b.sampled_p, rtol=1e-3, atol=1e-6)


def test_each_of_several_samples_is_the_text_of_its_own_seed():
    model = spread_model(8)
    cache = model.new_cache()
    logits = read(model, [1, 2, 3], cache)
    values = {"temperature": 2.0, "top_k": 8, "repetition_penalty": 1.3}
    settings = settings_of(30, samples=4, seed=5, **values)
    batches = list(generate(model, [1, 2, 3], logits[-1], cache, settings))
    texts = [[step.token for step in steps] for steps in zip(*batches, strict=True)]
    assert texts == [tokens_of(model, [1, 2, 3], 30, seed=5 + i, **values) for i in range(4)]
    assert len({tuple(text) for text in texts}) == 4


def test_the_largest_seed_has_successors():
    model = spread_model(8)
    cache = model.new_cache()
    logits = read(model, [1], cache)
    ((_, second),) = generate(model, [1], logits[-1], cache, settings_of(1, samples=2, seed=2**64 - 1))
    assert second.random_number == steps_of(model, [1], 1, seed=0)[0].random_number
