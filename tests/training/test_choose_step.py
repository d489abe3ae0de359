"""How the step is chosen: timing that leaves no trace, when to compile, what a recorded step does."""

import copy
import shutil
import time
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from conftest import make_pipeline

import train
from config import CHAR
from model.gpt import GPT
from model.monitoring import reporter
from model.training import choose_step
from model.training.choose_step import compiler_missing, pick_step, seconds_per_step, steps_that_fit, worth_compiling
from model.training.cuda_graph import CudaGraph
from model.training.optimizer import Optimizer


def test_steps_that_are_timed_leave_no_trace():
    """Even steps at the full rate, with dropout, on a model that has taken a step already."""
    model = GPT(10, block_size=8, n_layer=2, n_head=2, n_embd=16, dropout=0.1)
    optimizer = Optimizer(model, CHAR)
    idx, taken = torch.arange(8)[None], []

    def step(idx, targets, rate):
        taken.append((idx, targets, rate))
        optimizer.zero_grad()
        model.loss(idx, targets).backward()
        optimizer.step(torch.tensor(1.0))

    def batches(number):
        return idx + number, idx

    stop = SimpleNamespace(check=lambda: None)
    run = SimpleNamespace(optimizer=optimizer, batches=batches, device=torch.device("cpu"), stop=stop)
    step(idx, idx, None)
    weights, memory = copy.deepcopy(model.state_dict()), copy.deepcopy(optimizer.state_dict())
    random_numbers = torch.get_rng_state()
    assert seconds_per_step(run, step, at_most=0.0) > 0
    assert [(int(i[0, 0]), float(rate)) for i, _, rate in taken[1:]] == [(0, 0.0), (1, 0.0), (2, 0.0)]
    assert all(torch.equal(weights[name], now) for name, now in model.state_dict().items())
    assert all(torch.equal(memory[name], now) for name, now in optimizer.state_dict().items())
    assert torch.equal(random_numbers, torch.get_rng_state())
    with pytest.raises(ZeroDivisionError):  # nor does one that fails half way
        seconds_per_step(run, lambda *batch: step(*batch) or 1 / 0, at_most=0.0)
    assert all(torch.equal(weights[name], now) for name, now in model.state_dict().items())


@pytest.mark.parametrize(
    ("planned", "missing", "expected", "said"),
    [
        (1000.0, None, True, "Compiling the model: uncompiled, its steps would take 16 min 40 s"),
        (150.0, None, False, ""),
        (1000.0, "there is no C++ compiler", False, "Not compiling the model: there is no C++ compiler"),
    ],
)
def test_when_compiling_is_worth_it(monkeypatch, capsys, planned, missing, expected, said):
    monkeypatch.setattr(choose_step, "compiler_missing", lambda: missing)
    assert worth_compiling(planned) is expected
    assert capsys.readouterr().out.startswith(said)


def fake_run(monkeypatch, device, time_step):
    """A run of 100 steps, in which a step is "plain" or "compiled", and time_step(step) gives its seconds."""
    monkeypatch.setattr(choose_step, "seconds_per_step", lambda run, step, at_most: time_step(step))
    model, optimizer = SimpleNamespace(loss=None, device=torch.device(device)), SimpleNamespace(step="plain")
    run = SimpleNamespace(device=torch.device(device), model=model, optimizer=optimizer, settings=CHAR)
    run.timed, run.step, run.max_steps, run.in_c = False, 0, 100, False
    return run


def kind_of(step) -> str:
    """ "plain" or "compiled": the last argument of train_step that is known before the batch."""
    return step.args[-1]


def train_step():
    """Never called: steps are only chosen here."""


@pytest.mark.parametrize(
    ("choice", "seconds", "compiled_seconds", "expected"),
    [
        ("auto", 2.0, 1.0, "compiled"),
        ("auto", 2.0, 3.0, "plain"),
        ("auto", 0.5, 0.1, "plain"),  # a hundred of these steps are not worth it
        ("on", 0.5, 3.0, "compiled"),
    ],
)
def test_the_step_that_is_taken(monkeypatch, choice, seconds, compiled_seconds, expected):
    monkeypatch.setattr(choose_step, "COMPILE_FROM", 100.0)
    monkeypatch.setattr(choose_step, "compiler_missing", lambda: None)
    monkeypatch.setattr(torch, "compile", lambda f, dynamic: "compiled")
    times = {"plain": seconds, "compiled": compiled_seconds}
    run = fake_run(monkeypatch, "cpu", lambda step: times[kind_of(step)])
    step, *rest = pick_step(run, train_step, choice)
    assert (kind_of(step), rest) == (expected, [times[expected], expected == "compiled"])


@pytest.mark.parametrize("device", ["cpu", "cuda", "mps"])
@pytest.mark.parametrize(("choice", "expected"), [("auto", "plain"), ("on", "compiled")])
def test_layers_by_hand_are_compiled_only_when_asked(monkeypatch, device, choice, expected):
    monkeypatch.setattr(torch, "compile", lambda f, dynamic: "compiled")
    monkeypatch.setattr(choose_step, "compiler_missing", lambda: None)
    times = {"plain": 10.0, "compiled": 1.0}
    monkeypatch.setattr(choose_step, "graph_if_possible", lambda run, step, at_most: (step, times[kind_of(step)]))
    run = fake_run(monkeypatch, device, None)
    run.in_c = device == "cpu"
    step, *_ = pick_step(run, train_step, choice)
    assert kind_of(step) == expected


@pytest.mark.parametrize(
    ("device", "compiled", "said"), [("cuda", True, True), ("cuda", False, False), ("cpu", True, False)]
)
def test_a_compiled_run_on_a_gpu_is_told_that_it_is_slow(monkeypatch, capsys, device, compiled, said):
    monkeypatch.setattr(choose_step, "pick_step", lambda run, train_step, choice: (train_step, 1.0, choice == "on"))
    run = fake_run(monkeypatch, device, None)
    run.resumed_at, run.compiled = 5, compiled
    choose_step.choose_step(run, train_step)
    assert run.compiled is compiled
    assert ("slower now" in capsys.readouterr().out) == said


def test_uncompiled_steps_are_timed_only_for_minutes(monkeypatch):
    taken = []
    run = fake_run(monkeypatch, "cpu", lambda step: taken.append(kind_of(step)) or 2.0)
    step, _, compiled = pick_step(run, train_step, "off")
    assert (kind_of(step), compiled, taken) == ("plain", False, [])
    run.timed, run.started, run.settings = True, time.perf_counter(), replace(CHAR, minutes=1)
    assert pick_step(run, train_step, "off")[1:] == (2.0, False) and taken == ["plain"]


def test_a_step_that_cannot_be_recorded_is_taken_as_it_stands(monkeypatch, capsys):
    def time_step(step):
        if isinstance(step, CudaGraph):
            raise RuntimeError("no stream\nmore")
        return 1.0

    step, *rest = pick_step(fake_run(monkeypatch, "cuda", time_step), train_step, "off")
    assert (kind_of(step), rest) == ("plain", [1.0, False])
    assert "cannot be recorded as a CUDA graph, so it is slower: no stream\n" in capsys.readouterr().out


def test_minutes_leave_room_for_evaluations_and_their_records():
    """100 s for steps of 1 s, with an evaluation and a record of 1 s each after every second one."""
    run = SimpleNamespace(val_data=range(0), tokens_per_step=1, evaluation_seconds=1.0, record_seconds=1.0)
    run.settings, run.started = replace(CHAR, minutes=112.5 / 60, eval_every=2), time.perf_counter()
    assert steps_that_fit(run, 1.0) == 50
    run.settings = replace(run.settings, eval_every=0)
    assert steps_that_fit(run, 1.0) == 100


def test_minutes_do_not_count_what_only_the_first_record_takes(tmp_path, monkeypatch):
    """The first one compiles, say; each of the others is taken to be as long as the second one."""
    calls, planned = [], []

    def slow_at_first(*_):
        calls.append(time.sleep(0 if calls else 1.0))
        return "text"

    def plan(run, seconds):
        planned.append(run.record_seconds)
        return 3

    monkeypatch.setattr(reporter, "sample_text", slow_at_first)
    monkeypatch.setattr(choose_step, "steps_that_fit", plan)
    settings = replace(make_pipeline(tmp_path, CHAR, "char"), minutes=1.0)
    assert train.main(settings) == 0
    assert 0 < planned[0] < 0.9


def test_a_compiler_is_looked_for_by_name(monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    monkeypatch.delenv("CXX", raising=False)
    assert "no C++ compiler (g++ or clang++)" in compiler_missing()
    monkeypatch.setattr(shutil, "which", lambda name: "/bin/cc" if name == "my-c++" else None)
    assert compiler_missing()
    monkeypatch.setenv("CXX", "my-c++")
    assert compiler_missing() is None


class Graph:
    """Stands in for CUDA's graph on a machine without one: while it records, the function runs once, and its result is
    not to be used; to replay is to run it again on the recorded inputs, into the recorded outputs."""

    def replay(self):
        for old, new in zip(self.recorded.result, self.recorded.function(*self.recorded.inputs), strict=True):
            old.copy_(new)


def test_a_recorded_function_is_the_function(monkeypatch):
    """First calls as they are, then replays that read the inputs given; with a stand-in for CUDA itself."""
    recorded = CudaGraph(lambda x, y: (calls.append(1), (x * y, x + y))[1], calls_before=2)
    calls, graph = [], Graph()
    graph.recorded = recorded

    class Quiet:
        def __init__(self, *args): ...
        def __enter__(self): ...
        def __exit__(self, *error): ...
        def wait_stream(self, other): ...

    for name in ("Stream", "stream", "graph", "current_stream"):
        monkeypatch.setattr(torch.cuda, name, Quiet)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", lambda: graph)
    for number in range(1, 7):
        product, total = recorded(torch.tensor(float(number)), torch.tensor(10.0))
        assert (product, total) == (10.0 * number, 10.0 + number)
    assert len(calls) == 2 + 1 + 4, "two as they are, one recorded, four replayed"
    assert recorded(torch.tensor(1.0), torch.tensor(2.0))[0] is recorded.result[0]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
def test_a_recorded_function_is_the_function_on_a_gpu():
    total = torch.zeros((), device="cuda")
    recorded = CudaGraph(lambda x: total.add_(x).clone())
    assert [recorded(torch.tensor(float(i), device="cuda")).item() for i in range(8)] == [0, 1, 3, 6, 10, 15, 21, 28]
