"""The time machine: what a record holds, that training does not notice it, and the kinds of tokens."""

import json
import math
import re
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import train
from config import CHAR
from dataset import open_tokens, token_writer
from model.gpt import GPT
from model.interpretation.forward_pass import trace_forward
from model.interpretation.heads import entropy
from model.monitoring import baselines, recorder
from model.monitoring.log import Log
from model.monitoring.python_tokens import KINDS, kinds_of, kinds_of_bytes
from model.monitoring.recorder import Recorder
from model.storage.checkpoint import load_checkpoint, newest_checkpoint
from model.tokenization.bpe_trainer import train_bpe_tokenizer
from model.tokenization.display import token_text
from model.tokenization.tokenizer import Tokenizer, load_tokenizer
from model.training.optimizer import Optimizer


def log_of(settings):
    return [json.loads(line) for line in (settings.checkpoint_dir / "log.jsonl").read_text("utf-8").splitlines()]


def records_of(settings):
    return {entry["step"]: entry["record"] for entry in log_of(settings) if "record" in entry}


# --- when -------------------------------------------------------------------------------------------------------------


def test_powers_of_two_evaluations_and_the_end_are_recorded(char, capsys):
    train.main(replace(char, max_steps=23, eval_every=7), fresh=False)
    assert list(records_of(char)) == [0, 1, 2, 4, 7, 8, 14, 16, 21, 23]
    out = capsys.readouterr().out
    assert "Records for scripts/plot_training.py took" in out
    assert len(re.findall(r"^  (no )?better than ", out, re.MULTILINE)) == 5  # at each evaluation


def test_without_evaluations_nothing_is_recorded(char, monkeypatch):
    def fail(*_):
        raise AssertionError("this costs time")

    monkeypatch.setattr(Recorder, "predictions", fail)
    monkeypatch.setattr(recorder, "update_sizes", fail)
    monkeypatch.setattr(baselines, "compute_baselines", fail)
    monkeypatch.setattr(recorder, "held_out_blocks", fail)
    train.main(replace(char, eval_every=0, sample_tokens=0), fresh=False)
    assert records_of(char) == {} and not any("about" in entry for entry in log_of(char))


def test_training_is_the_same_with_records_and_without(char, tmp_path):
    """With dropout, which draws random numbers at every step: weights, optimizer and random state equal to the bit."""
    train.main(replace(char, eval_every=3), fresh=False)
    other = replace(char, eval_every=0, checkpoint_dir=tmp_path / "other")
    train.main(other, fresh=False)
    one, two = (newest_checkpoint(folder)[1] for folder in (char.checkpoint_dir, other.checkpoint_dir))
    assert one["step"] == two["step"] == 10
    assert torch.equal(one["rng"], two["rng"])
    for part in ("model", "optimizer"):
        assert all(torch.equal(tensor, two[part][name]) for name, tensor in one[part].items())


def test_a_resumed_run_has_the_same_records(char):
    train.main(char, fresh=False)
    whole = records_of(char)
    (char.checkpoint_dir / "step_00000010.pt").unlink()
    train.main(char, fresh=False)  # from step 5: 8 and 10 are recorded anew
    assert records_of(char) == whole
    assert list(whole) == [0, 1, 2, 4, 5, 8, 10]
    assert sum("about" in entry for entry in log_of(char)) == 1


def test_a_damaged_description_is_made_anew(char):
    train.main(char, fresh=False)
    path = char.checkpoint_dir / "log.jsonl"
    path.write_text(path.read_text("utf-8").replace('"ladder"', '"madder"'), "utf-8")
    assert Log(char.checkpoint_dir, 10).about is None
    train.main(replace(char, max_steps=12, eval_every=12), fresh=False)
    assert Log(char.checkpoint_dir, 12).about["ladder"]


# --- what -------------------------------------------------------------------------------------------------------------


def random_model(vocab_size, n_embd=16):
    torch.manual_seed(3)
    model = GPT(vocab_size, block_size=24, n_layer=2, n_head=2, n_embd=n_embd)
    for weight in model.parameters():
        torch.nn.init.normal_(weight, mean=float(weight.dim() == 1), std=0.3)
    return model


@pytest.fixture
def parts(char, tmp_path):
    """(a recorder on a random model, the model, the validation file, the tokenizer)"""
    val, tokenizer = open_tokens(char.val_file), load_tokenizer(char.tokenizer_file)
    model = random_model(tokenizer.vocab_size)
    settings = replace(char, grad_clip=0.5)
    run = SimpleNamespace(model=model, val_data=val, tokenizer=tokenizer, settings=settings, eval_every=5)
    made = Recorder(run, Log(tmp_path / "log", None), {"bigram": 1.0}, lambda: "a sample")
    return made, model, val, tokenizer


def test_a_look_against_plain_pytorch(parts):
    made, model, val, tokenizer = parts
    record = made.predictions()
    tokens = torch.from_numpy(val.tokens.astype(np.int64))
    with torch.no_grad():
        log_p = F.log_softmax(model(tokens[None, :24])[0], dim=-1)
    bits = -log_p.gather(1, tokens[1:25, None])[:, 0] / math.log(2)
    assert record["surprise_bits"] == pytest.approx(bits.tolist(), abs=1e-3)
    for place, row in zip(made.positions, record["expected"], strict=True):
        top = log_p[place].exp().topk(5)
        assert [p for _, p in row] == pytest.approx(top.values.tolist(), abs=1e-4)
        assert row[0][0] == token_text(tokenizer, int(top.indices[0]))
    assert model.training
    # entropy of each head, over all blocks; from the same attention that a traced forward pass has
    blocks = torch.from_numpy(made.inputs)
    whole = torch.stack([entropy(trace_forward(model.eval(), row.tolist()).attention) for row in blocks])
    assert np.array(record["entropy_bits"]) == pytest.approx(whole.mean(0).numpy(), abs=1e-3)
    # loss by kind: means over all targets of a kind
    assert set(record["kind_bits"]) >= {"indentation", "keyword", "name", "operator", "line end"}
    with torch.no_grad():
        p = F.log_softmax(model(blocks), dim=-1).gather(2, torch.from_numpy(made.targets)[..., None])[..., 0]
    names = made.kinds["name"]
    assert record["kind_bits"]["name"] == pytest.approx(
        -float(p[torch.from_numpy(names)].mean()) / math.log(2), abs=1e-3
    )
    assert made.about["kinds"]["name"] == names.sum()


def test_gradients_and_updates_by_layer(parts):
    made, model, _, tokenizer = parts
    settings = replace(CHAR, grad_clip=0.5)
    run = SimpleNamespace(model=model, optimizer=Optimizer(model, settings), settings=settings)
    idx = torch.randint(tokenizer.vocab_size, (3, 24))
    before = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    made.before(1)
    _, norm = train.train_step(run, model.loss, run.optimizer.step, idx, idx.roll(1, 1), torch.tensor(1.0))
    sizes = recorder.update_sizes(made.layers, made.weights_before, norm.item(), 0.5)
    assert norm > 0.5  # it was clipped, and the record undoes that
    total = math.sqrt(sum(value**2 for value in sizes["gradient_norm"].values()))
    assert total == pytest.approx(norm.item(), rel=1e-4)
    now = dict(model.named_parameters())
    names = [name for name in now if name.startswith("blocks.1.")]
    moved = math.sqrt(sum(float((now[name].detach() - before[name]).square().sum()) for name in names))
    size = math.sqrt(sum(float(before[name].square().sum()) for name in names))
    assert sizes["update_to_weight"]["layer 1"] == pytest.approx(moved / size, rel=1e-4)
    assert list(sizes["update_to_weight"]) == ["embedding", "layer 0", "layer 1", "head"]


def test_what_stands_in_the_log(parts):
    made, *_ = parts
    made.after(0)
    made.after(0)  # once is enough
    about, record = (json.loads(line) for line in made.log.path.read_text("utf-8").splitlines())
    assert about["about"]["ladder"] == {"bigram": 1.0}
    assert len(about["about"]["paragraph"]) == 25
    assert record["record"]["sample"] == "a sample"
    assert "gradient_norm" not in record["record"]  # nothing has been learned yet


def test_the_sample_is_what_generating_writes(char, capsys):
    train.main(replace(char, dtype="bfloat16", sample_tokens=40), fresh=False)
    final = records_of(char)[10]["sample"]
    assert final == [entry for entry in log_of(char) if "val_loss" in entry][-1]["sample"]
    import generate
    from model.generation.command_line import generation_flags

    argv = ["--model", str(char.model_file), "--tokens", "40", "--quiet", "--device", "cpu"]
    capsys.readouterr()
    generate.main(*generation_flags(char, "", argv))
    assert capsys.readouterr().out == final.partition("<|endoftext|>")[0]


# --- kinds of tokens --------------------------------------------------------------------------------------------------


def named(text):
    kinds = kinds_of_bytes(text.encode(), whole=True)
    return None if kinds is None else ["-" if kind < 0 else KINDS[kind][:2] for kind in kinds]


def test_kinds_by_hand():
    assert named("if x:  # é\n") == ["ke", "ke", "-", "na", "op", "-", "-", "co", "co", "co", "co", "li"]
    assert named("  y = 12\n")[:3] == ["in", "in", "na"]
    assert named("f('a', 1.5)") == ["na", "op", "st", "st", "st", "op", "-", "nu", "nu", "nu", "op"]
    text = "def f():\n    '''a\n    b'''\n    return 1\n"
    kinds = named(text)
    place = text.index("    b'''")
    assert kinds[place : place + 8] == ["st"] * 8  # within a string, indentation is the string's
    place = text.index("    return")
    assert kinds[place : place + 11] == ["in"] * 4 + ["ke"] * 6 + ["-"]
    assert named("x = é é\n") == ["na", "-", "op", "-", "na", "na", "-", "na", "na", "li"]


@pytest.mark.parametrize(
    "text", ["Don't you know?\nIt's a \u201cplay\u201d.", "x = $y\n", "def f(:\n  '''never closed"]
)
def test_what_is_no_python_has_no_kinds(text):
    assert named(text) is None


def test_tokens_in_the_middle_of_documents(tmp_path):
    documents = ["import os\n" * 30, "def f(x):\n    return x + 1\n" * 10]
    tokenizer = Tokenizer(train_bpe_tokenizer(documents, 290).to_str())
    facts = {"vocab_size": tokenizer.vocab_size, "end_of_text_id": 0, "tokenizer_sha256": "x"}
    with token_writer(tmp_path / "val.bin", facts) as writer:
        for text in documents:
            writer.add(tokenizer.encode(text), len(text.encode()))
    val = open_tokens(tmp_path / "val.bin")
    tokens = val.tokens
    end = int(np.flatnonzero(tokens == 0)[0])
    kinds = kinds_of(val, tokenizer, end - 6, 30)  # across the border
    assert len(kinds) == 30
    assert kinds[5] == -1  # <|endoftext|>
    for token, kind in zip(tokens[end - 5 : end + 25], kinds, strict=True):
        text = tokenizer.decode([token])
        expected = {"import": "keyword", "os": "name", "return": "keyword", "+": "operator", "1": "number"}.get(
            text.strip()
        )
        assert expected is None or KINDS[kind] == expected
    assert {"keyword", "name", "operator", "line end"} <= {KINDS[kind] for kind in kinds if kind >= 0}


def test_a_whole_checkpoint_was_written(char):
    train.main(char, fresh=False)
    assert load_checkpoint(newest_checkpoint(char.checkpoint_dir)[0])["step"] == 10
