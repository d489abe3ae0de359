"""The one-token step on a GPU: its kernels, in a process of their own, and when it is taken."""

import importlib.util
import sys

import pytest
import torch
from triton_process import run_kernels

from model.generation import one_token


@pytest.mark.skipif(not importlib.util.find_spec("triton"), reason="Triton comes with torch on Linux only")
def test_the_kernels_compute_what_the_model_computes():
    run_kernels("tests/generation/one_token_gpu.py")


def test_the_step_that_fits_the_device(monkeypatch, capsys):
    """On a GPU Triton's where it works, with a word where it does not; on Apple's none."""

    class Elsewhere:
        device, is_sharded = torch.device("mps"), False

    assert one_token.fast_one_token(Elsewhere, None) is None
    Elsewhere.device = torch.device("cuda")

    def broken(model, cache):
        raise RuntimeError("no C compiler\nand more")

    monkeypatch.setitem(sys.modules, "model.generation.one_token_gpu", type("Module", (), {"OneTokenOnGPU": broken}))
    assert one_token.fast_one_token(Elsewhere, None) is None
    assert capsys.readouterr().err == (
        "The fast step for a GPU does not work here, so generating is slower: no C compiler\n"
    )
