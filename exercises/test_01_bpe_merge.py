"""1. One merge of byte-pair encoding.

Replace each occurrence of a pair of neighbours by a new id, from left to right:

    merge([1, 2, 3, 1, 2], (1, 2), 256)  gives  [256, 3, 256]
    merge([1, 1, 1], (1, 1), 256)        gives  [256, 1]

Where the project does it: merge_pair() in model/tokenization/bpe_trainer_plain.py
"""

import pytest


def merge(ids: list[int], pair: tuple[int, int], new_id: int) -> list[int]:
    raise NotImplementedError


# === the test: it passes when you are done ============================================================================


@pytest.mark.parametrize(
    ("ids", "pair", "expected"),
    [
        ([1, 2, 3, 1, 2], (1, 2), [256, 3, 256]),
        ([1, 1, 1], (1, 1), [256, 1]),
        ([1, 1, 1, 1], (1, 1), [256, 256]),
        ([2, 1], (1, 2), [2, 1]),
        ([1, 2, 1], (1, 2), [256, 1]),
        ([], (1, 2), []),
    ],
)
def test_merge(ids, pair, expected):
    before = list(ids)
    assert merge(ids, pair, 256) == expected
    assert ids == before, "the list that came in is left as it was"
