"""Files that an earlier version wrote keep working: tests/fixtures/before_rooms, from before model/ had sub-packages.

It holds the checkpoint of step 10 of a character run of 30 steps with its whole log, a finished model of each kind,
both tokenizers, and the character token files. Losses are compared to 1e-4, since another CPU rounds differently,
and those of further training to 5e-4.
"""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from runs import log_of, same

import train
from config import CHAR
from dataset import open_tokens
from model.gpt import GPT
from model.storage.checkpoint import newest_checkpoint
from model.storage.model_file import load_model
from model.tokenization.tokenizer import Tokenizer, load_tokenizer

OLD = Path(__file__).resolve().parents[1] / "fixtures" / "before_rooms"

# What the earlier version reached, by step. The checkpoint is that of step 10.
TRAINING_LOSS = {15: 4.051108360290527, 20: 3.3691930770874023, 25: 3.793423891067505, 30: 3.6731960773468018}
VALIDATION_LOSS = {0: 4.489114761352539, 10: 4.118709087371826, 20: 3.6733882427215576, 30: 3.5171186923980713}

SETTINGS = replace(  # the flags of that run
    CHAR,
    tokenizer_file=OLD / "tokenizer_char.json",
    train_file=OLD / "train.bin",
    val_file=OLD / "val.bin",
    n_layer=1,
    n_embd=16,
    n_head=2,
    block_size=16,
    dropout=0.1,
    batch_size=4,
    max_steps=30,
    warmup_steps=2,
    eval_every=10,
    eval_tokens=0,
    checkpoint_every=10,
    log_every=5,
    sample_tokens=10,
    dtype="float32",
    device="cpu",
    compile="off",
)


def losses(settings, name: str) -> dict[int, float]:
    """The losses of that name in a run's log, by step."""
    return {entry["step"]: entry[name] for entry in log_of(settings) if name in entry}


def validation_text() -> str:
    tokens = open_tokens(OLD / "val.bin").tokens[:]
    return load_tokenizer(OLD / "tokenizer_char.json").decode(tokens[:-1])  # without the end of the document


@torch.inference_mode()
def validation_loss(model: GPT, tokenizer: Tokenizer) -> float:
    """The mean loss on the whole validation text, cut into blocks."""
    tokens = np.append(tokenizer.encode(validation_text()), tokenizer.end_of_text_id)
    tokens, total = torch.from_numpy(tokens.astype(np.int64)), 0.0
    for start in range(0, len(tokens) - 1, model.block_size):
        ids = tokens[None, start : start + model.block_size + 1]
        total += model.loss(ids[:, :-1], ids[:, 1:]).item() * (ids.size(1) - 1)
    return total / (len(tokens) - 1)


def test_tokenizers_and_token_files():
    for kind, vocab_size in (("char", 89), ("bpe", 300)):
        tokenizer = load_tokenizer(OLD / f"tokenizer_{kind}.json")
        assert (tokenizer.kind, tokenizer.vocab_size, tokenizer.end_of_text_id) == (kind, vocab_size, 0)
        assert tokenizer.decode(tokenizer.encode(validation_text())) == validation_text()
    char = load_tokenizer(OLD / "tokenizer_char.json")
    for name, tokens in (("train.bin", 9601), ("val.bin", 2401)):
        data = open_tokens(OLD / name)
        assert len(data) == tokens and data.tokens[tokens - 1] == 0
        assert data.facts["tokenizer_sha256"] == char.sha256
    assert len(validation_text().encode()) == 2400


def test_checkpoint():
    path, content, problems = newest_checkpoint(OLD / "run")
    assert path.name == "step_00000010.pt" and problems == []
    assert (content["step"], content["settings"]["max_steps"], content["device"]) == (10, 30, "cpu")
    assert same(content, torch.load(path, weights_only=True))
    model = GPT(89, block_size=16, n_layer=1, n_head=2, n_embd=16).eval()
    model.load_state_dict(content["model"])
    tokenizer = load_tokenizer(OLD / "tokenizer_char.json")
    assert validation_loss(model, tokenizer) == pytest.approx(VALIDATION_LOSS[10], rel=1e-4)


@pytest.mark.parametrize(("name", "kind", "steps"), [("gpt_model.pt", "char", 30), ("gpt_model_bpe.pt", "bpe", 10)])
def test_models(name, kind, steps):
    model, tokenizer, training = load_model(OLD / name)
    assert tokenizer.json_text == (OLD / f"tokenizer_{kind}.json").read_text("utf-8")
    assert training["steps"] == steps
    assert training["val_loss"] == pytest.approx(VALIDATION_LOSS[30] if kind == "char" else 5.284832052282385)
    assert validation_loss(model, tokenizer) == pytest.approx(training["val_loss"], rel=1e-4)


def test_the_run_resumes_to_nearly_the_same_losses(tmp_path, capsys):
    """For Muon, the queries, keys and values of all heads were one matrix each then."""
    settings = replace(SETTINGS, checkpoint_dir=tmp_path / "run", model_file=tmp_path / "model.pt")
    shutil.copytree(OLD / "run", settings.checkpoint_dir)
    log = settings.checkpoint_dir / "log.jsonl"
    before = [line for line in log.read_text("utf-8").splitlines(keepends=True) if json.loads(line)["step"] <= 10]
    log.write_text("".join(before), "utf-8")
    assert losses(settings, "val_loss") == {step: VALIDATION_LOSS[step] for step in (0, 10)}
    train.main(settings, fresh=False)
    assert "Resuming from" in capsys.readouterr().out
    reached = {step: loss for step, loss in losses(settings, "loss").items() if step > 10}
    assert reached == pytest.approx(TRAINING_LOSS, rel=5e-4)
    assert losses(settings, "val_loss") == pytest.approx(VALIDATION_LOSS, rel=5e-4)
    _, _, training = load_model(settings.model_file)
    assert training["steps"] == 30 and training["val_loss"] == pytest.approx(VALIDATION_LOSS[30], rel=5e-4)
    assert "".join(before) == "".join(log.read_text("utf-8").splitlines(keepends=True)[: len(before)])
