"""Tokens as text that people read."""

import pytest

from model.tokenization.bpe_trainer import train_bpe_tokenizer
from model.tokenization.display import cut_line, token_rows, token_text
from model.tokenization.tokenizer import Tokenizer, make_character_tokenizer


@pytest.fixture(scope="module")
def characters() -> Tokenizer:
    """ids: 0 and 1 special, newline 2, space 3, a 4, b 5, é 6"""
    return Tokenizer(make_character_tokenizer("ab é\n").to_str())


@pytest.fixture(scope="module")
def bpe() -> Tokenizer:
    """Byte level, with two merges that this text leaves no choice about: "ab" first, then " ab"."""
    return Tokenizer(train_bpe_tokenizer(["ab ab ab ab ab ab"], vocab_size=259).to_str())


def test_tokens_of_characters(characters):
    ids = characters.encode("ab é\nz")
    assert ids.tolist() == [4, 5, 3, 6, 2, 1]
    assert cut_line(characters, ids) == "a|b|·|é|↵|<|unk|>"
    assert cut_line(characters, ids, as_text=False) == r"'a'|'b'|' '|'é'|'\n'|'<|unk|>'"
    assert token_text(characters, 0) == "<|endoftext|>"


def test_tokens_of_bpe(bpe):
    ids = bpe.encode("ab abb\n")
    assert cut_line(bpe, ids) == "ab|·ab|b|↵"
    assert cut_line(bpe, ids, as_text=False) == "'ab'|'Ġab'|'b'|'Ċ'"
    assert token_text(bpe, bpe.end_of_text_id) == "<|endoftext|>"


def test_half_a_character_of_bpe_is_shown_as_bytes(bpe):
    ids = bpe.encode("é 🙂")  # no merges for these: every byte is a token
    assert cut_line(bpe, ids) == "<c3>|<a9>|·|<f0>|<9f>|<99>|<82>"
    assert cut_line(bpe, ids, as_text=False) == "'Ã'|'©'|'Ġ'|'ð'|'Ł'|'Ļ'|'Ĥ'"


def test_cut_line_of_nothing(bpe):
    assert cut_line(bpe, []) == ""


def test_token_rows_by_hand(characters, bpe):
    # Tokens above their ids, each column as wide as the wider of the two, at most per_row of them in a row.
    assert token_rows(characters, characters.encode("ab é\n"), per_row=3) == [
        "a  b  ·",
        "4  5  3",
        "é  ↵",
        "6  2",
    ]
    ids = bpe.encode("ab abb")
    b = bpe.library.token_to_id("b")
    assert ids.tolist() == [257, 258, b]
    assert token_rows(bpe, ids) == ["ab   ·ab  b", f"257  258  {b}"]
    assert token_rows(bpe, []) == []
