"""Which precision is taken, and what else depends on the device."""

import ctypes

import numpy as np
import pytest
import torch

from model import device
from model.device import keep_memory, memory_advice, pick_device, pick_dtype, wait_for
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


@pytest.mark.parametrize("name", ["abacus", "meta", "privateuseone"])
def test_a_device_that_cannot_compute_is_refused(name):
    with pytest.raises(UsageError, match=rf"The device '{name}' cannot be used here: [^\n]*[^.]\. Try --device cpu\.$"):
        pick_device(name)


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
