"""7. Top-p.

Keep the most likely tokens that together reach the probability top_p, the last of them included, and give the others 0.
What is left must sum to 1 again. The most likely token always stays.

    top_p([0.5, 0.3, 0.2], 0.7)  gives  [0.625, 0.375, 0.0]

Where the project does it: sampling_probabilities() in model/generation/sampling.py
"""

import pytest


def top_p(p: list[float], limit: float) -> list[float]:
    raise NotImplementedError


# === the test: it passes when you are done ============================================================================


@pytest.mark.parametrize(
    ("p", "limit", "expected"),
    [
        ([0.5, 0.3, 0.2], 0.7, [0.625, 0.375, 0.0]),
        ([0.2, 0.5, 0.3], 0.7, [0.0, 0.625, 0.375]),
        ([0.5, 0.3, 0.2], 0.4, [1.0, 0.0, 0.0]),
        ([0.5, 0.3, 0.2], 1.0, [0.5, 0.3, 0.2]),
        ([0.1, 0.6, 0.05, 0.25], 0.9, [0.1 / 0.95, 0.6 / 0.95, 0.0, 0.25 / 0.95]),
    ],
)
def test_top_p(p, limit, expected):
    assert top_p(p, limit) == pytest.approx(expected)
