"""Which precision is taken, and what else depends on the device."""

import ctypes
import os

import numpy as np
import pytest
import torch

from model import device
from model.device import compute_deterministically, keep_memory, memory_advice, pick_device, pick_dtype, wait_for
from plumbing.errors import UsageError, UserError

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("low", "full", "expected"),
    [(1.0, 3.0, torch.bfloat16), (1.0, 1.25, torch.float32), (1.0, 1.0, torch.float32), (9.0, 1.0, torch.float32)],
)
def test_a_cpu_takes_bfloat16_where_it_is_measured_to_be_faster(monkeypatch, low, full, expected):
    monkeypatch.setattr(device, "product_seconds", {torch.bfloat16: low, torch.float32: full}.get)
    assert pick_dtype("auto", CPU) is expected
    assert pick_dtype("float32", CPU) is torch.float32
    assert pick_dtype("bfloat16", CPU) is torch.bfloat16
    with pytest.raises(UsageError, match="not 'float16'"):
        pick_dtype("float16", CPU)


def test_the_timing_runs_in_both_precisions():
    assert all(0 < device.product_seconds(dtype, size=64) < 1 for dtype in (torch.bfloat16, torch.float32))


@pytest.mark.parametrize("name", ["gpu", "GPU", "cuda:", "cuda:x", ""])
def test_a_device_that_is_none_is_refused_with_those_that_are(name):
    with pytest.raises(UsageError, match=rf"^--device is auto, cpu, cuda, cuda:1 \(.*\) or mps, not '{name}'\.$"):
        pick_device(name)


@pytest.mark.parametrize("name", ["meta", "privateuseone"])
def test_a_device_that_cannot_compute_is_refused(name):
    with pytest.raises(UsageError, match=rf"The device '{name}' cannot be used here: [^\n]*[^.]\. Try --device cpu\.$"):
        pick_device(name)


def test_the_gpu_that_is_named_becomes_the_current_one(monkeypatch):
    """Streams and CUDA graphs belong to the current device."""
    current = []
    monkeypatch.setattr(torch, "zeros", lambda *size, device: torch.ones(*size))
    monkeypatch.setattr(torch.cuda, "set_device", current.append)
    assert pick_device("cuda") == torch.device("cuda") and current == []
    assert pick_device("cuda:1") == torch.device("cuda:1") and current == [torch.device("cuda:1")]


def test_deterministic_algorithms(monkeypatch):
    """And the compiler is told; both off again for the other tests."""
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", "")
    compiler = pytest.importorskip("torch._inductor").config
    try:
        compute_deterministically()
        assert torch.are_deterministic_algorithms_enabled() and compiler.deterministic
        assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
    finally:
        torch.use_deterministic_algorithms(False)
        compiler.deterministic = False


@pytest.mark.parametrize("take", [lambda: torch.empty(2**60), lambda: np.zeros(2**50)], ids=["torch", "numpy"])
def test_too_little_memory_becomes_advice(take):
    with pytest.raises(UserError, match=r"There is not enough memory for this\. Less\."), memory_advice("Less."):
        take()


def test_wait_for_waits_for_the_device_that_is_named(monkeypatch):
    waited = []
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: waited.append("cuda"))
    wait_for(CPU)
    assert waited == []
    wait_for(torch.device("cuda"))
    assert waited == ["cuda"]


def test_keep_memory_does_no_harm_where_there_is_no_such_call(monkeypatch):
    keep_memory()

    def no_library(name):
        raise OSError

    monkeypatch.setattr(ctypes, "CDLL", no_library)
    keep_memory()
