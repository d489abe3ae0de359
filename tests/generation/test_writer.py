"""The text that training shows of its model: all sampling settings count, and generate.py writes the same."""

from dataclasses import replace

import pytest
import torch
from models import SMALL, random_model

from config import CHAR
from model.generation import one_token
from model.generation.sampling import generate, read
from model.generation.writer import Writer, sample_text
from model.tokenization.tokenizer import BareIds

TOKENIZER = BareIds(SMALL["vocab_size"])
SETTINGS = replace(CHAR, sample_tokens=40, temperature=1.5, top_k=0, seed=5, tokens=3, samples=2)


def text_of(model, **changes) -> str:
    return sample_text(model, TOKENIZER, replace(SETTINGS, **changes))


def test_every_sampling_setting_counts():
    model = random_model(SMALL)
    base = text_of(model)
    assert len(base.split()) == 40 and base == text_of(model)
    for changes in (
        {"temperature": 0.5}, {"top_k": 3}, {"top_p": 0.5}, {"min_p": 0.5}, {"repetition_penalty": 3.0}, {"seed": 6},
    ):  # fmt: skip
        assert text_of(model, **changes) != base, changes


def test_it_is_the_text_that_a_writer_writes():
    model = random_model(SMALL)
    settings = replace(SETTINGS, tokens=40, samples=1, min_p=0.05, repetition_penalty=1.3)
    pen = Writer(model, TOKENIZER)
    pen.read("")
    steps = [step.token for (step,) in pen.steps(settings)]
    assert sample_text(model, TOKENIZER, settings) == TOKENIZER.decode(steps)


def test_the_model_is_left_as_training_needs_it():
    """In train mode and its own precision, also after an interruption; the sample itself is in fp32."""
    model = random_model(SMALL).train()
    exact = text_of(model)
    model.compute_in(torch.bfloat16)
    assert text_of(model) == exact
    calls = []

    def stop_at_3():
        calls.append(None)
        if len(calls) == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        sample_text(model, TOKENIZER, SETTINGS, stop_at_3)
    assert model.training and model.head.compute == torch.bfloat16


def test_no_tokens_are_no_text():
    assert sample_text(None, TOKENIZER, replace(SETTINGS, sample_tokens=0)) == ""


def test_a_sharded_model_writes_without_the_fast_step(monkeypatch):
    """A process holds a part of its weights, which the step would copy as if they were whole."""
    model = random_model(SMALL)
    expected = text_of(model)
    model.set_requires_gradient_sync = None  # as torch's fully_shard() adds it
    monkeypatch.setattr(one_token, "step_on_cpu", None)
    assert text_of(model) == expected


def test_a_writer_starts_anew_with_each_prompt():
    model, settings = random_model(SMALL), replace(CHAR, tokens=5, temperature=0)
    pen = Writer(model, TOKENIZER)
    for prompt in ("4 5 6", "7", "4 5 6"):
        pen.read(prompt)
        written = [step.token for (step,) in pen.steps(settings)]
        ids, cache = TOKENIZER.encode(prompt).tolist(), model.new_cache()
        logits = read(model, ids, cache)
        assert written == [step.token for (step,) in generate(model, ids, logits[-1], cache, settings)]
