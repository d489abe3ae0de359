"""Which precision is taken, and what else depends on the device."""

import ctypes

import pytest
import torch

from config import UsageError
from model import device
from model.device import keep_memory, pick_dtype, wait_for

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
