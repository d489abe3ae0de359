"""The passes by hand for a GPU, in a process of their own."""

import importlib.util

import pytest
from triton_process import run_kernels


@pytest.mark.skipif(not importlib.util.find_spec("triton"), reason="Triton comes with torch on Linux only")
def test_the_kernels_compute_what_the_layers_compute():
    run_kernels("tests/model/by_hand_gpu.py")
