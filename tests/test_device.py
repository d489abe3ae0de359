"""Which precision is taken, and what it does to a product."""

import ctypes

import pytest
import torch

from config import UsageError
from model import device
from model.device import keep_memory, pick_dtype, set_precision

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def as_it_was():
    yield
    set_precision(torch.float32, CPU)


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


def test_bfloat16_rounds_products_only():
    """Weights, results and sums stay fp32; the inputs of a product keep 8 bits where the CPU can do that, else all."""
    a, b = torch.randn(2, 256, 256, generator=torch.Generator().manual_seed(0))
    exact = a.double() @ b.double()
    with set_precision(torch.float32, CPU):
        full = a @ b
    with set_precision(torch.bfloat16, CPU):
        low = a @ b
    assert full.dtype == low.dtype == torch.float32
    scale = exact.square().mean().sqrt()
    assert ((full - exact).square().mean().sqrt() / scale).item() < 1e-5
    error = ((low - exact).square().mean().sqrt() / scale).item()
    rounded = a.bfloat16().double() @ b.bfloat16().double()
    assert error < 1e-5 or error == pytest.approx(((rounded - exact).square().mean().sqrt() / scale).item(), rel=0.01)


def test_keep_memory_does_no_harm_where_there_is_no_such_call(monkeypatch):
    keep_memory()

    def no_library(name):
        raise OSError

    monkeypatch.setattr(ctypes, "CDLL", no_library)
    keep_memory()
