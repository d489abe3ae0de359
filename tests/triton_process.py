"""Tests of kernels, in a process of their own, because Triton's interpreter is chosen before Triton is imported."""

import os
import subprocess
import sys

import torch

from config import ROOT


def run_kernels(path: str) -> None:
    """Run the tests in this file: on the GPU, or else in the interpreter."""
    interpreted = {} if torch.cuda.is_available() else {"TRITON_INTERPRET": "1"}
    command = [sys.executable, *"-m pytest -q -n 0 -p no:cacheprovider".split(), path]
    done = subprocess.run(
        command, cwd=ROOT, env=os.environ | interpreted, capture_output=True, text=True, encoding="utf-8"
    )
    assert done.returncode == 0, done.stdout
    assert " passed" in done.stdout
