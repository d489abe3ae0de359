"""The displayed arithmetic: a wrong figure on the screen teaches something wrong."""

import itertools
import math
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model import metrics
from model.tokenization.bpe_trainer import train_bpe_tokenizer
from model.tokenization.display import cut_line, token_rows, token_text
from model.tokenization.tokenizer import Tokenizer, make_character_tokenizer
from plumbing.text import bar, duration, readable, time_left, visible

in_any_time = settings(deadline=None)  # a busy machine is no failure

# --- figures ----------------------------------------------------------------------------------------------------------


def test_surprise_by_hand():
    assert [metrics.surprise(p) for p in (1.0, 0.5, 0.25, 1 / 1024)] == [0.0, 1.0, 2.0, 10.0]
    assert metrics.surprise(0.001) == pytest.approx(9.965784)
    assert metrics.surprise(0.0) == math.inf
    assert f"{metrics.surprise(1.0):.2f}" == f"{metrics.surprise(math.nextafter(1.0, 2.0)):.2f}" == "0.00"  # no minus
    assert metrics.surprise(5e-324) == 1074.0  # the smallest float above zero


def test_bits_by_hand():
    assert metrics.bits(0.0) == 0.0
    assert metrics.bits(math.log(2)) == 1.0
    assert metrics.bits(math.log(1024)) == pytest.approx(10.0)
    assert metrics.bits(1.0) == pytest.approx(1.442695)


def test_surprise_and_loss_are_the_same_thing_in_two_units():
    p = [0.5, 0.1, 0.003]
    loss = -sum(math.log(q) for q in p) / 3
    assert metrics.bits(loss) == pytest.approx(sum(metrics.surprise(q) for q in p) / 3)


def test_bits_per_byte_by_hand():
    # 8 tokens of 3 bits each write 12 bytes: 24 bits over 12 bytes.
    assert metrics.bits_per_byte(3 * math.log(2), 8 / 12) == pytest.approx(2.0)
    # A byte a token, every byte equally likely: 8 bits per byte, which is no compression at all.
    assert metrics.bits_per_byte(math.log(256), 1.0) == pytest.approx(8.0)


def test_tokens_per_second_by_hand():
    assert metrics.tokens_per_second(3000, 1.5) == 2000
    assert metrics.tokens_per_second(10, 0.0) == 0  # a clock that has not moved


def test_perplexity_by_hand():
    assert metrics.perplexity(0.0) == 1.0
    assert metrics.perplexity(math.log(65)) == pytest.approx(65)
    assert metrics.perplexity(math.log(50257)) == pytest.approx(50257)
    assert metrics.perplexity(600.0) == pytest.approx(math.exp(600))
    assert metrics.perplexity(1e4) == math.inf
    assert metrics.perplexity(math.inf) == math.inf


def test_first_loss_by_hand():
    assert metrics.uniform_loss(1) == 0.0
    assert metrics.uniform_loss(65) == pytest.approx(4.174387)
    assert metrics.uniform_loss(4096) == pytest.approx(12 * math.log(2))


# --- time -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        (0, "0.0 s"),
        (0.04, "0.0 s"),
        (8.2, "8.2 s"),
        (59.94, "59.9 s"),
        (59.96, "1 min 00 s"),
        (60, "1 min 00 s"),
        (61.4, "1 min 01 s"),
        (119.4, "1 min 59 s"),
        (119.6, "2 min 00 s"),
        (200, "3 min 20 s"),
        (3599.4, "59 min 59 s"),
        (3599.6, "1 h 00 min"),
        (3600, "1 h 00 min"),
        (7199.6, "2 h 00 min"),
        (7500, "2 h 05 min"),
        (360_000, "100 h 00 min"),
    ],
)
def test_duration_by_hand(seconds, expected):
    assert duration(seconds) == expected


@in_any_time
@given(st.one_of(st.floats(0, 200), st.floats(3500, 7300), st.floats(0, 1e6)))
def test_duration_says_what_it_was_given(seconds):
    text = duration(seconds)
    units = {"h": 3600, "min": 60, "s": 1}
    figures = re.findall(r"([\d.]+) (h|min|s)\b", text)
    assert " ".join(f"{number} {unit}" for number, unit in figures) == text
    assert all(float(number) < 60 for number, unit in figures if unit != "h")
    smallest = {"h": 3600, "min": 60, "s": 0.1 if "." in text else 1}[figures[-1][1]]
    assert abs(sum(float(number) * units[unit] for number, unit in figures) - seconds) <= smallest


def test_time_left_by_hand():
    assert time_left(done=25, total=100, seconds=50.0) == 150.0
    assert time_left(done=1, total=2000, seconds=0.5) == 999.5
    assert time_left(done=100, total=100, seconds=50.0) == 0.0
    assert math.isnan(time_left(done=0, total=100, seconds=50.0))  # nothing is known yet


# --- bars -------------------------------------------------------------------------------------------------------------

EIGHTHS = " ▏▎▍▌▋▊▉"


def cells(bar: str) -> float:
    """How many cells of a bar are filled, after a check that it is a bar: full cells, at most one part, spaces."""
    assert re.fullmatch(rf"█*[{EIGHTHS}]? *", bar)
    return sum(1 if cell == "█" else EIGHTHS.index(cell) / 8 for cell in bar)


@pytest.mark.parametrize(
    ("p", "width", "expected"),
    [
        (0.0, 4, "    "),
        (1.0, 4, "████"),
        (0.5, 4, "██  "),
        (1 / 32, 4, "▏   "),
        (2 / 32, 4, "▎   "),
        (4 / 32, 4, "▌   "),
        (7 / 32, 4, "▉   "),
        (0.3, 4, "█▎  "),  # 9.6 eighths
        (31 / 32, 4, "███▉"),
        (0.999, 4, "████"),
        (0.001, 4, "    "),
        (0.5, 1, "▌"),
    ],
)
def test_bar_by_hand(p, width, expected):
    assert bar(p, width) == expected


def test_bar_is_twenty_cells_wide_unless_told():
    assert bar(0.25) == "█" * 5 + " " * 15


@in_any_time
@given(st.floats(0, 1), st.integers(1, 60))
def test_bar_has_its_width_and_shows_its_share(p, width):
    drawn = bar(p, width)
    assert len(drawn) == width
    assert abs(cells(drawn) - p * width) <= 1 / 16 + 1e-9


@in_any_time
@given(st.lists(st.floats(0, 1), min_size=2).map(sorted), st.integers(1, 60))
def test_bar_grows_with_p(ps, width):
    bars = [cells(bar(p, width)) for p in ps]
    assert all(a <= b for a, b in itertools.pairwise(bars))


# --- text that can be seen --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", ""),
        ("a b\n", "a·b↵"),
        ("\tif x:\r\n", "→if·x:␍↵"),
        ("naïve λ 中 🙂", "naïve·λ·中·🙂"),
        ("\x00\x1b\x7f", r"\x00\x1b\x7f"),
        ("a\x0bb\x0cc", r"a\x0bb\x0cc"),  # vertical tab and form feed, which source files do hold
        ("\xa0", r"\xa0"),  # a no-break space
        ("\u200b\u2028\ufeff", r"\u200b\u2028\ufeff"),
        ("\U000e0001", r"\U000e0001"),
        ("\ud800", r"\ud800"),  # half a surrogate pair
    ],
)
def test_visible_by_hand(text, expected):
    assert visible(text) == expected


@in_any_time
@given(st.text())
def test_visible_is_one_line_that_prints(text):
    assert visible(text).isprintable()
    assert " " not in visible(text)


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"", ""),
        (b" def", "·def"),
        ("é".encode(), "é"),
        (b"\xc3", "<c3>"),  # the first half of é
        (b"\xa9", "<a9>"),  # its second half
        ("🙂".encode()[:3], "<f0><9f><99>"),
        (b" \xc3", "<20><c3>"),  # a token is shown as text or as bytes, not as half of each
        (b"\x0a\xff", "<0a><ff>"),
    ],
)
def test_readable_by_hand(data, expected):
    assert readable(data) == expected


@in_any_time
@given(st.binary())
def test_readable_never_shows_a_replacement_sign(data):
    if "\ufffd".encode() not in data:  # which a text can hold, as any other character
        assert "\ufffd" not in readable(data)


# --- tokens -----------------------------------------------------------------------------------------------------------


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
