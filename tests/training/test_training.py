"""Training runs: what they write, how they stop, how a step is computed."""

import hashlib
import math
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import make_pipeline
from faults import change_sidecar
from runs import flags, interrupt_after, log_of, same, steps_of

import train
from config import BPE, CHAR, ROOT
from dataset import open_tokens
from model import by_hand_c
from model.gpt import GPT
from model.monitoring.reporter import check_finite
from model.storage.checkpoint import newest_checkpoint
from model.storage.model_file import load_model
from model.storage.safe_load import load
from model.training import choose_step
from model.training.inputs import Batches
from model.training.optimizer import Optimizer
from plumbing.errors import UserError
from plumbing.text import shown_path

# --- one run ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("base", "kind"), [(CHAR, "char"), (BPE, "bpe")])
def test_a_run_writes_a_model_that_has_learned(tmp_path, capsys, base, kind):
    settings = replace(make_pipeline(tmp_path, base, kind), max_steps=60, eval_every=60, dropout=0.0)
    assert train.main(settings, fresh=False, kind=kind) == 0
    out = capsys.readouterr().out

    model, tokenizer, training = load_model(settings.model_file)
    evaluations = {entry["step"]: entry for entry in log_of(settings) if "val_loss" in entry}
    assert sorted(evaluations) == [0, 60]
    untrained = evaluations[0]["val_loss"] / math.log(tokenizer.vocab_size)
    assert untrained == pytest.approx(1, rel=0.01) if kind == "char" else untrained < 0.7  # which counted its data
    assert evaluations[60]["val_loss"] < 0.8 * evaluations[0]["val_loss"]
    assert training["val_loss"] == evaluations[60]["val_loss"]
    assert training["steps"] == 60
    assert training["tokens_seen"] == 60 * 4 * 24
    assert training["settings"]["n_embd"] == 16
    # The loss in the file is the loss of the weights in the file.
    val = open_tokens(settings.val_file)
    loss, scored = train.evaluate(model, val)
    assert loss == pytest.approx(training["val_loss"], rel=1e-6)
    assert scored == len(val) - 1 == evaluations[60]["val_tokens"]
    assert {"char": f"ln({tokenizer.vocab_size})", "bpe": "loss is near the bigram's"}[kind] in out
    assert "One training example" in out
    script = {"char": "generate.py", "bpe": "generatev2.py"}[kind]
    assert out.endswith(f"Next: python {script} --prompt def --model {shlex.quote(shown_path(settings.model_file))}\n")
    assert "a sample of its text:" in out
    # The run keeps its model beside its checkpoints, where another run's does not replace it.
    assert same(load(settings.model_file), load(settings.checkpoint_dir / "gpt_model.pt"))


@pytest.mark.parametrize(("base", "kind"), [(CHAR, "char"), (BPE, "bpe")])
def test_the_lines_of_a_run_fit_into_80_columns(tmp_path, capsys, base, kind, monkeypatch):
    """Titles once, the figures of the log below them; long sentences may wrap, tables must not."""
    monkeypatch.setenv("COLUMNS", "80")
    settings = replace(make_pipeline(tmp_path, base, kind), max_steps=12, log_every=1)
    train.main(settings, fresh=False, kind=kind)
    lines = capsys.readouterr().out.splitlines()
    prose = "  | ", str(tmp_path), "The untrained", "The initial", *"Next Records checkpoint One Baselines Warn".split()
    assert [line for line in lines if len(line) > 80 and not line.startswith(prose)] == []
    (titles,) = [line for line in lines if "tokens/s" in line and "loss" in line]
    steps = [line for line in lines if line.startswith("step ")]
    logged = [entry for entry in log_of(settings) if "loss" in entry]
    assert len(steps) == len(logged) == 12
    for line, entry in zip(steps, logged, strict=True):
        assert line.startswith(f"step {entry['step']:>2}/12 ") and len(line) == len(titles)
        end = {name: titles.index(name) + len(name) for name in titles.split()}
        shown = {name: line[:at].split()[-1] for name, at in end.items()}
        assert shown["loss"] == f"{entry['loss']:.4f}" and shown["grad"] == f"{entry['gradient_norm']:.2f}"
        assert shown["bits/token"] == f"{entry['surprise_bits']:.2f}"
        assert shown["bits/byte"] == f"{entry['bits_per_byte']:.2f}"


def test_quiet_says_less(char, capsys):
    train.main(char, fresh=False)
    loud = capsys.readouterr().out
    train.main(replace(char, debug=False), fresh=True)
    quiet = capsys.readouterr().out
    assert len(quiet) < len(loud) / 2
    assert "validation at step 10" in quiet  # the figures that a run is made for stay


def test_an_evaluation_holds_a_bounded_number_of_logits(char, monkeypatch):
    """However large the batches are that the device likes."""
    val = open_tokens(char.val_file)
    model = GPT(val.facts["vocab_size"], block_size=24, n_layer=1, n_head=1, n_embd=8)
    sizes, loss_of = [], model.loss
    monkeypatch.setattr(model, "loss", lambda idx, targets: sizes.append(idx.numel()) or loss_of(idx, targets))
    whole = train.evaluate(model, val)
    assert max(sizes) > 3 * 24
    sizes.clear()
    monkeypatch.setattr(train, "LOGITS", 3 * 24 * model.vocab_size)
    assert train.evaluate(model, val) == (pytest.approx(whole[0], rel=1e-5), whole[1])
    assert max(sizes) == 3 * 24
    monkeypatch.setattr(train, "LOGITS", 1)  # one block at least
    assert train.evaluate(model, val) == (pytest.approx(whole[0], rel=1e-5), whole[1])


def test_evaluation_scores_every_token_but_the_first_once(char):
    """Against a plain loop: one block after the other, one token after the other."""
    torch.manual_seed(0)
    val = open_tokens(char.val_file)
    model = GPT(val.facts["vocab_size"], block_size=24, n_layer=2, n_head=2, n_embd=16)
    for p in model.parameters():  # away from the uniform predictions of an untrained model
        torch.nn.init.normal_(p, std=0.5)
    tokens = torch.from_numpy(val.tokens.astype(np.int64))
    assert (len(tokens) - 1) % 24  # the last block is a short one
    total, scored = 0.0, 0
    for start in range(0, len(tokens) - 1, 24):
        block = tokens[start : start + 25]
        log_p = F.log_softmax(model(block[None, :-1])[0], dim=-1)
        for position, target in enumerate(block[1:]):
            total -= log_p[position, target].item()
            scored += 1
    assert scored == len(tokens) - 1
    assert train.evaluate(model, val) == (pytest.approx(total / scored, rel=1e-5), scored)
    assert model.training  # and training goes on as it was


def test_before_the_end_a_part_of_the_file_is_scored(char, monkeypatch, capsys):
    real, parts = train.evaluate, []
    monkeypatch.setattr(
        train,
        "evaluate",
        lambda model, data, check, at_most: parts.append(at_most) or real(model, data, check, at_most),
    )
    train.main(replace(char, eval_tokens=50), fresh=False)
    assert parts == [50, 50, 0]
    scored = re.findall(r"^validation at step \d+ on (.*) tokens: ", capsys.readouterr().out, re.MULTILINE)
    assert scored[-1] == f"all {len(open_tokens(char.val_file)) - 1:,}"
    assert len(scored) == 3 and not any("all" in part for part in scored[:2])
    train.main(replace(char, max_steps=20, eval_tokens=50), fresh=False)
    assert parts[3:] == [50, 0]
    # A run that ends where only a part was scored scores the rest.
    interrupt_after(char, 15)
    train.main(replace(char, max_steps=15, eval_tokens=50), fresh=False)
    assert parts[5:] == [0]
    evaluated = [entry["val_tokens"] for entry in log_of(char) if entry["step"] == 15 and "val_loss" in entry]
    assert evaluated[0] < evaluated[1] == len(open_tokens(char.val_file)) - 1
    assert load_model(char.model_file)[2]["val_loss"] == log_of(char)[-1]["val_loss"]


def test_the_log_holds_the_figures_of_each_line(char):
    train.main(char, fresh=False)
    tokens_per_byte = open_tokens(char.train_file).tokens_per_byte
    lines = [entry for entry in log_of(char) if "loss" in entry]
    assert [entry["step"] for entry in lines] == [1, 2, 4, 6, 8, 10]
    for entry in lines:
        assert entry["surprise_bits"] == pytest.approx(entry["loss"] / math.log(2))
        assert entry["bits_per_byte"] == pytest.approx(entry["surprise_bits"] * tokens_per_byte)
        assert entry["gradient_norm"] > 0
        assert entry["tokens_per_second"] > 0
    rates = [entry["learning_rate"] for entry in lines]
    fractions = (1 / 3, 2 / 3, 7 / 9, 5 / 9, 3 / 9, 1 / 9)  # two steps of climb, then the fall
    assert rates == pytest.approx([char.learning_rate * fraction for fraction in fractions])


def test_the_log_holds_the_loss_of_every_step(char, tmp_path):
    """Also of those without a line of their own; and there are lines at the first steps, where most happens."""
    train.main(replace(char, log_every=1), fresh=False)
    every = [entry["loss"] for entry in log_of(char) if "loss" in entry]
    other = replace(char, log_every=4, max_steps=10, checkpoint_dir=tmp_path / "other")
    train.main(other, fresh=False)
    lines = [entry for entry in log_of(other) if "loss" in entry]
    assert [entry["step"] for entry in lines] == [1, 2, 4, 8, 10]
    assert [loss for entry in log_of(other) for loss in entry.get("losses", [])] == pytest.approx(every, abs=6e-5)
    assert len(every) == 10


@pytest.mark.parametrize("steps", [40, 7])
def test_ten_evaluations_a_run(char, steps):
    train.main(replace(char, max_steps=steps, eval_every=-1, sample_tokens=0), fresh=False)
    found = [entry["step"] for entry in log_of(char) if "val_loss" in entry]
    assert found == (list(range(0, 41, 4)) if steps == 40 else list(range(8)))
    train.main(replace(char, max_steps=steps, eval_every=0, sample_tokens=0), fresh=True)
    assert [entry["step"] for entry in log_of(char) if "val_loss" in entry] == [steps]


def test_tokens_per_second_leave_out_evaluations(char, monkeypatch):
    """Nor one of step 3 in the line of step 4, which is about both steps."""
    real, calls = train.evaluate, []

    def evaluate(*args):
        calls.append(1)
        time.sleep(1 if len(calls) == 2 else 0)  # the first is that of step 0
        return real(*args)

    monkeypatch.setattr(train, "evaluate", evaluate)
    train.main(replace(char, max_steps=6, eval_every=3), fresh=False)
    assert [entry["step"] for entry in log_of(char) if "val_loss" in entry] == [0, 3, 6]
    speeds = {entry["step"]: entry["tokens_per_second"] for entry in log_of(char) if "loss" in entry}
    assert speeds[4] > 2 * 4 * 24 / 1.0, speeds  # the tokens of the line, in the second that the evaluation takes


def test_the_first_loss_and_gradient_are_those_of_plain_pytorch(char):
    train.main(replace(char, initial_weights="random", dropout=0.0, max_steps=1, log_every=1), fresh=False)
    first = next(entry for entry in log_of(char) if "loss" in entry)
    torch.manual_seed(char.seed)
    data = open_tokens(char.train_file)
    model = GPT(data.facts["vocab_size"], block_size=24, n_layer=2, n_head=2, n_embd=16)
    starts = np.random.default_rng((char.seed, 0)).integers(0, len(data.tokens) - 24, size=4)
    rows = torch.tensor([[int(data.tokens[s + t]) for t in range(25)] for s in starts])
    loss = -F.log_softmax(model(rows[:, :-1]), dim=-1).gather(2, rows[:, 1:, None]).mean()
    loss.backward()
    norm = math.sqrt(sum(float((p.grad**2).sum()) for p in model.parameters()))
    assert first["loss"] == pytest.approx(loss.item(), rel=1e-5)
    assert first["gradient_norm"] == pytest.approx(norm, rel=1e-4)


def test_minutes_become_a_number_of_steps_that_stays(char, capsys, monkeypatch):
    monkeypatch.setattr(train, "STARTED", time.perf_counter())
    monkeypatch.setattr(choose_step, "seconds_per_step", lambda *rest: 0.1)
    timed = replace(char, minutes=0.1, eval_every=1000, checkpoint_every=20)
    train.main(timed, fresh=False)
    planned = newest_checkpoint(char.checkpoint_dir)[1]["settings"]["max_steps"]
    assert planned > 5
    assert f"max_steps = {planned}" in capsys.readouterr().out
    interrupt_after(char, int(steps_of(char)[-2][5:13]))
    train.main(timed, fresh=False)  # the resumed run times nothing and ends at the same step
    content = newest_checkpoint(char.checkpoint_dir)[1]
    assert content["step"] == content["settings"]["max_steps"] == planned
    out = capsys.readouterr().out
    assert "fit into" not in out
    assert "changed:" not in out
    train.main(replace(timed, minutes=5), fresh=False)  # and other minutes are no longer asked for
    assert f"The run has {planned} steps since it began. --max-steps without --minutes" in capsys.readouterr().out


def test_a_run_killed_before_its_first_checkpoint_begins_anew(char):
    """With --minutes too, which needs the time of the evaluation that the log of the killed run holds already."""
    timed = replace(char, minutes=0.01)
    train.main(timed, fresh=False)
    for path in char.checkpoint_dir.glob("step_*.pt"):
        path.unlink()
    train.main(timed, fresh=False)
    evaluated = [entry["step"] for entry in log_of(char) if "val_loss" in entry]
    assert evaluated[0] == 0 and len(set(evaluated)) == len(evaluated)


def test_only_the_newest_checkpoints_are_kept(char):
    train.main(replace(char, checkpoint_every=2, keep_checkpoints=2), fresh=False)
    assert steps_of(char) == ["step_00000008.pt", "step_00000010.pt"]


# --- stopping ---------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(os.name != "posix", reason="Windows ends a process without asking it")
def test_ctrl_c_saves(char):
    """As a process of its own; test_stop_signals.py sends signals to forks, everywhere, and goes on to the same run."""
    settings = replace(char, max_steps=150, checkpoint_every=150, eval_every=150)
    command = [sys.executable, str(ROOT / "train.py"), *flags(settings)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, encoding="utf-8")
    for line in process.stdout:
        if line.startswith("step  20"):
            process.send_signal(signal.SIGINT)
            break
    rest, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert "The same command resumes it" in rest
    assert "Traceback" not in errors
    content = newest_checkpoint(char.checkpoint_dir)[1]
    assert 20 <= content["step"] < 150


def test_a_stop_in_evaluation_or_sampling_is_not_lost(char, monkeypatch, capsys):
    real = train.evaluate

    def stopped_evaluation(model, data, check, at_most):
        if newest_checkpoint(char.checkpoint_dir)[0] is not None:
            signal.raise_signal(signal.SIGTERM)
        return real(model, data, check, at_most)

    monkeypatch.setattr(train, "evaluate", stopped_evaluation)
    assert train.main(replace(char, checkpoint_every=4), fresh=False) == 143  # stopped in the evaluation of step 5
    assert steps_of(char) == ["step_00000004.pt", "step_00000005.pt"]
    assert "Stopped at step 5" in capsys.readouterr().out
    monkeypatch.undo()
    assert train.main(replace(char, checkpoint_every=4), fresh=False) == 0
    assert [entry["step"] for entry in log_of(char) if "val_loss" in entry] == [0, 5, 10]


def test_a_loss_that_is_not_finite_stops_before_the_update(char):
    wild = replace(char, learning_rate=1e30, grad_clip=0.0, warmup_steps=0, checkpoint_every=1, dropout=0.0)
    with pytest.raises(UserError, match=r"Step \d+ failed.*--learning-rate.* --grad-clip 1 .*last good checkpoint"):
        train.main(wild, fresh=False)
    _, content, problems = newest_checkpoint(char.checkpoint_dir)
    assert problems == []
    assert all(torch.isfinite(weight).all() for weight in content["model"].values())
    assert not char.model_file.exists()


def test_weights_that_are_not_finite_are_not_saved(char, monkeypatch):
    """The loss of a step cannot tell what its update did to the weights: here the last one breaks them."""
    real = train.train_step

    def break_the_weights(run, *rest):
        result = real(run, *rest)
        if run.optimizer.steps == 10:
            run.optimizer.weights[0] = math.nan
        return result

    monkeypatch.setattr(train, "train_step", break_the_weights)
    with pytest.raises(UserError, match=r"Step 10 failed: a weight.* is not a finite .*step_00000005.pt"):
        train.main(char, fresh=False)
    assert steps_of(char) == ["step_00000005.pt"]
    assert not char.model_file.exists()


def test_weights_that_are_not_finite_are_not_saved_by_a_stop(char, monkeypatch):
    real = train.train_step

    def break_the_weights_and_stop(run, *rest):
        result = real(run, *rest)
        if run.optimizer.steps == 7:
            run.optimizer.weights[0] = math.nan
            signal.raise_signal(signal.SIGTERM)
        return result

    monkeypatch.setattr(train, "train_step", break_the_weights_and_stop)
    with pytest.raises(UserError, match=r"Step 7 failed: a weight.* is not a finite .*step_00000005.pt"):
        train.main(char, fresh=False)
    assert steps_of(char) == ["step_00000005.pt"]


TORCHS = RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 byte")


@pytest.mark.parametrize("error", [TORCHS, MemoryError("Unable to allocate 127. GiB")])
def test_too_little_memory_is_a_plain_error(char, monkeypatch, error):
    def full(*rest):
        raise error

    monkeypatch.setattr(train, "train_step", full)
    with pytest.raises(UserError, match="not enough memory.*--batch-size"):
        train.main(char, fresh=False)


def test_train_step_leaves_the_weights_alone_when_a_gradient_is_not_finite():
    model = GPT(10, block_size=8, n_layer=1, n_head=1, n_embd=8)
    run = SimpleNamespace(model=model, optimizer=Optimizer(model, CHAR), settings=CHAR)
    with torch.no_grad():
        model.norm.weight[0] = math.inf
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    idx = torch.arange(8)[None]
    with pytest.raises(FloatingPointError):
        train.train_step(run, model.loss, run.optimizer.step, idx, idx, torch.tensor(1.0))
    assert same(before, model.state_dict())


# --- how a step is computed -------------------------------------------------------------------------------------------


def test_a_compiled_run_resumes_as_one_to_the_bit(char, capsys, monkeypatch):
    """With a stand-in for the compiler that computes something else, as a real one does in the last digits."""

    def almost(f, dynamic):
        return f if f.__name__ == "step" else lambda idx, targets: f(idx, targets) * 1.001

    monkeypatch.setattr(torch, "compile", almost)
    train.main(replace(char, compile="on"), fresh=False)
    assert "Compiled in" in capsys.readouterr().out
    whole = newest_checkpoint(char.checkpoint_dir)[1]
    assert whole["compiled"] is True
    interrupt_after(char, 5)
    train.main(char, fresh=False)  # auto goes on as the run began, however short it is
    assert same(whole, newest_checkpoint(char.checkpoint_dir)[1])
    with pytest.raises(UserError, match="compile was on, is off"):
        train.main(replace(char, compile="off"), fresh=False)
    train.main(replace(char, compile="off"), fresh=True)
    assert not same(whole["model"], newest_checkpoint(char.checkpoint_dir)[1]["model"])
    with pytest.raises(UserError, match="compile was off, is on"):
        train.main(replace(char, compile="on"), fresh=False)


def test_a_compiler_that_fails_or_slows_down_is_done_without(char, capsys, monkeypatch):
    def broken(f, dynamic):
        def compile_now(*args):
            raise RuntimeError("g++ says no\nand more")

        return compile_now

    monkeypatch.setattr(torch, "compile", broken)
    train.main(replace(char, compile="on"), fresh=False)
    assert "Compiling failed, continuing without: g++ says no\n" in capsys.readouterr().out
    assert newest_checkpoint(char.checkpoint_dir)[1]["compiled"] is False

    monkeypatch.setattr(torch, "compile", lambda f, dynamic: lambda *batch: (time.sleep(0.02), f(*batch))[1])
    monkeypatch.setattr(choose_step, "COMPILE_FROM", 0.0)
    monkeypatch.setattr(choose_step, "compiler_missing", lambda: None)
    monkeypatch.setattr(by_hand_c, "use", lambda wanted: False)  # as without a C compiler
    train.main(char, fresh=True)
    assert "Compiled in" in capsys.readouterr().out
    assert newest_checkpoint(char.checkpoint_dir)[1]["compiled"] is False


def test_a_compiled_run_does_not_go_on_uncompiled(char, monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda f, dynamic: f)
    train.main(replace(char, compile="on"), fresh=False)
    interrupt_after(char, 5)

    def broken(f, dynamic):
        raise RuntimeError("no g++ here")

    monkeypatch.setattr(torch, "compile", broken)
    with pytest.raises(UserError, match="was compiled, and here compiling fails: no g.. here.*--fresh"):
        train.main(char, fresh=False)
    assert steps_of(char) == ["step_00000005.pt"]


def test_a_stop_where_a_damaged_checkpoint_has_its_name_saves(char, monkeypatch, capsys):
    train.main(replace(char, max_steps=7), fresh=False)
    damaged = char.checkpoint_dir / "step_00000007.pt"
    damaged.write_bytes(b"damaged")
    real = train.train_step

    def stopping(run, *rest):
        result = real(run, *rest)
        if run.optimizer.steps == 7:
            signal.raise_signal(signal.SIGTERM)
        return result

    monkeypatch.setattr(train, "train_step", stopping)
    assert train.main(char, fresh=False) == 143
    assert f"Stopped at step 7, saved as {damaged}" in capsys.readouterr().out
    assert newest_checkpoint(char.checkpoint_dir)[1]["step"] == 7


def test_a_stop_while_steps_are_timed_is_no_compiler_error(char, capsys, monkeypatch):
    def stopping(f, dynamic):
        if f.__name__ == "loss":  # once: the second signal would end this process
            signal.raise_signal(signal.SIGTERM)
        return f

    monkeypatch.setattr(torch, "compile", stopping)
    assert train.main(replace(char, compile="on"), fresh=False) == 143
    assert "Stopped at step 0, nothing to save yet" in capsys.readouterr().out


@pytest.mark.slow
def test_the_real_compiler_gives_the_same_loss_and_resumes_to_the_bit(char):
    char = replace(char, dropout=0.0, compile="on")
    train.main(char, fresh=False)
    whole, lines = newest_checkpoint(char.checkpoint_dir)[1], log_of(char)
    assert whole["compiled"] is True
    interrupt_after(char, 5)
    train.main(char, fresh=False)
    assert same(whole, newest_checkpoint(char.checkpoint_dir)[1])
    train.main(replace(char, compile="off"), fresh=True)
    logs = lines, log_of(char)
    ours, eager = ([line[key] for line in log for key in ("loss", "val_loss") if key in line] for log in logs)
    assert len(ours) == 5 + 3 and ours == pytest.approx(eager, rel=1e-4)


def test_batches_from_the_device_are_those_from_the_file(char):
    data = open_tokens(char.train_file)
    from_file, resident = (Batches(data, char, torch.device("cpu")) for _ in range(2))
    resident.move_to_device()
    for step in range(5):
        for ours, theirs in zip(resident(step), from_file(step), strict=True):
            assert torch.equal(ours, theirs)
            assert ours.dtype == theirs.dtype == torch.int64


@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_a_step_reads_no_value_back(char, dropout):
    """So that it can be recorded as a CUDA graph, and Python can run ahead of the GPU. On torch's device "meta", which
    has shapes and no numbers, a step goes the way of a GPU, and to read a value is an error."""
    model = GPT(10, block_size=8, n_layer=2, n_head=2, n_embd=16, dropout=dropout).to("meta").compute_in(torch.bfloat16)
    with torch.device("meta"):
        run = SimpleNamespace(model=model, optimizer=Optimizer(model, char, torch.bfloat16), settings=char)
        idx = torch.empty(3, 8, dtype=torch.long)
        loss, norm = train.train_step(run, model.loss, run.optimizer.step, idx, idx, torch.empty(()))
    assert loss.shape == norm.shape == ()
    with pytest.raises((RuntimeError, NotImplementedError)):
        check_finite(loss.item(), norm.item())


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_grows_neither_with_the_token_file_nor_with_steps(char):
    """The resident memory of a process that draws batches and scores: with a file of 4 MB and few steps, and with one
    of 100 MB and many. Growth with either would show."""
    script = """
import sys
from dataset import open_tokens, draw_batch, blocks_in_order
data = open_tokens(__import__("pathlib").Path(sys.argv[1]))
for step in range(int(sys.argv[2])):
    draw_batch(data.tokens, 128, 64, 1, step)
for i, _ in zip(range(2000), blocks_in_order(data, 128, 256)): pass
print(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")))
"""
    peak = {}
    for megabytes, steps in ((4, 100), (100, 2000)):
        path = char.train_file.with_name(f"{megabytes}.bin")
        np.zeros(megabytes * 500_000, np.uint16).tofile(path)
        sha256 = hashlib.sha256(bytes(megabytes * 1_000_000)).hexdigest()
        shutil.copy(char.train_file.with_name("train.bin.json"), path.with_name(path.name + ".json"))
        change_sidecar(path, tokens=megabytes * 500_000, sha256=sha256)
        command = [sys.executable, "-c", script, str(path), str(steps)]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
        peak[megabytes, steps] = int(done.stdout) / 1000
    assert max(peak.values()) - min(peak.values()) < 25, peak
