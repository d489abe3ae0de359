"""Where tokens are in a text: lines, columns and spans."""

from types import SimpleNamespace

import numpy as np
import pytest
from surprise import KNOWN, TOKENIZERS, layout

from model.interpretation.surprise import layout_tokens, spans_by_line
from plumbing.text import cell_width


@pytest.fixture(params=["char", "bpe"])
def kind(request):
    return request.param


def bpe_of(*tokens: str):
    """A stand-in for a BPE tokenizer that cuts a text into just these tokens, given as bytes in Latin-1."""
    return SimpleNamespace(kind="bpe", token_bytes=lambda token: tokens[token].encode("latin-1"))


def test_layout_by_hand():
    text = "a\n  b\n\nc"
    tokenizer = bpe_of("a", "\n ", " b", "\n\n", "c")
    found = layout_tokens(tokenizer, text, np.arange(5))
    assert found.line.tolist() == [0, 0, 1, 1, 3]  # a token belongs to the line in which it begins
    assert found.column.tolist() == [0, 1, 1, 3, 0]
    assert found.lines == 4
    assert list(spans_by_line(text, found)) == [
        [(0, "a"), (1, "↵")],
        [(1, "·"), (2, "·b"), (3, "↵")],
        [(3, "↵")],
        [(4, "c")],
    ]


def test_only_a_newline_ends_a_line():
    text = "a\r\nb\x0cc\u2028d\re"
    tokenizer = bpe_of("a\r\n", "b\x0cc\xe2\x80\xa8d\re")
    found = layout_tokens(tokenizer, text, np.arange(2))
    assert (found.lines, found.line.tolist()) == (2, [0, 1])
    assert list(spans_by_line(text, found)) == [[(0, "a␍↵")], [(1, r"b\x0cc\u2028d␍e")]]


def test_a_character_of_several_tokens_is_one_span():
    text = "xé🙂y"  # x c3 a9 f0 9f 99 82 y
    tokenizer = bpe_of("x\xc3", "\xa9\xf0", "\x9f", "\x99\x82", "y")
    found = layout_tokens(tokenizer, text, np.arange(5))
    assert found.first.tolist() == [0, 4, 5]
    assert found.starts.tolist() == [0, 3, 4]
    assert found.column.tolist() == [0, 1, 2, 2, 3]  # the character that a token begins in
    assert list(spans_by_line(text, found)) == [[(0, "xé🙂"), (1, "y")]]


@pytest.mark.parametrize("text", ["a", "\n", "a\n", "\n\n", "a\nb", "a\r\nb\x0cc\u2028d\x85e\n", "日本\n🙂", KNOWN * 3])
def test_lines_spans_and_tokens_fit_the_text(kind, text):
    """Nothing is lost and nothing stands twice, and only a newline ends a line."""
    ids = TOKENIZERS[kind].encode(text)
    found = layout(kind, text)
    parts = text.split("\n")
    lines = list(spans_by_line(text, found))
    assert found.lines == len(lines) == len(parts) - (parts[-1] == "")
    assert found.first[0] == found.starts[0] == 0
    assert (found.first[-1], found.starts[-1]) == (len(ids), len(text))
    assert (np.diff(found.first) > 0).all()
    assert (np.diff(found.starts) > 0).all()
    for a, b, begin, end in zip(found.first, found.first[1:], found.starts, found.starts[1:], strict=False):
        data = text[begin:end].encode()
        if kind == "bpe":
            assert b"".join(TOKENIZERS["bpe"].token_bytes(token) for token in ids[a:b]) == data
        start = len(parts[found.line[a]]) - found.column[a]
        assert start >= 0
        assert text[: int(begin)].count("\n") == found.line[a]


def test_a_combining_mark_of_its_own_stands_on_a_dotted_circle():
    text = "e\u0301a\u0301"
    found = layout_tokens(bpe_of("e", "\xcc\x81", "a\xcc\x81"), text, np.arange(3))
    assert list(spans_by_line(text, found)) == [[(0, "e"), (1, "◌\u0301"), (2, "a\u0301")]]


def test_cells_by_hand():
    assert [cell_width(text) for text in ("", "a·↵", "日本", "🙂", "a\u0301", "◌\u0301")] == [0, 3, 4, 2, 1, 1]
