"""12. Read the surprise map.

A text as tokens, and the probability that the model gave to each. Return the surprise of each line in bits, and the
index of the most surprising token. A token counts for the line in which it starts, a line end for the line that it
ends. Surprise is -log2 p.

    read_map(["a", "\\n", "b"], [0.5, 0.5, 0.25])  gives  ([2.0, 2.0], 2)

Where the project does it: scripts/surprise_map.py, model/interpretation/surprise_map.py
"""

import math

import pytest


def read_map(tokens: list[str], p: list[float]) -> tuple[list[float], int]:
    raise NotImplementedError


# === the test: it passes when you are done ============================================================================


def test_read_map():
    bits, most = read_map(["a", "\n", "b"], [0.5, 0.5, 0.25])
    assert bits == pytest.approx([2.0, 2.0]) and most == 2
    bits, most = read_map(
        ["def", " f", "():", "\n    ", "return", " 1", "\n"], [0.25, 0.001, 0.5, 0.5, 0.5, 0.125, 1.0]
    )
    assert bits == pytest.approx([2 - math.log2(0.001) + 2, 4.0]) and most == 1
    bits, _ = read_map(["a\n\n", "b"], [0.5, 0.5])
    assert bits == pytest.approx([1.0, 0.0, 1.0]), "a line can cost nothing"
