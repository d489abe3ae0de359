"""Durations, bars, and text with its white space visible."""

import itertools
import math
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from plumbing.text import (
    bar,
    byte_rate,
    byte_size,
    duration,
    plural,
    printable,
    quoted_path,
    readable,
    shown_path,
    time_left,
    visible,
)

in_any_time = settings(deadline=None)  # a busy machine is no failure


@pytest.mark.parametrize(
    ("size", "expected"),
    [(0, "0.0 kB"), (5_000, "5.0 kB"), (999_949, "999.9 kB"), (999_951, "1.0 MB"), (12_345_678, "12.3 MB"),
     (999_949_999, "999.9 MB"), (999_950_001, "1.00 GB"), (61_250_000_000, "61.25 GB")],
)  # fmt: skip
def test_byte_size_by_hand(size, expected):
    assert byte_size(size) == expected


def test_a_rate_of_less_than_a_megabyte_says_nothing():
    assert [byte_rate(size, 2.0) for size in (999_999, 3_000_000)] == ["", " (1.5 MB/s)"]


def test_plural_by_hand():
    assert [plural(n, "token") for n in (0, 1, 2, 1234)] == ["0 tokens", "1 token", "2 tokens", "1,234 tokens"]


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


# --- what comes from outside ------------------------------------------------------------------------------------------

NAMES = [
    "plain.txt",
    "with space",
    "naïve 日本",
    "a'b\\c$d",
    "\x1b[2J\x07",
    "line\nend",
    os.fsdecode(b"caf\xe9"),
    "\u202etxt",
]


@in_any_time
@given(st.text(st.characters(), max_size=30))
def test_what_is_printable_does_nothing_to_a_terminal(text):
    assert printable(text).isprintable()
    assert printable(text, keep="\n").replace("\n", "").isprintable()
    assert printable(printable(text)) == printable(text)
    if text.isprintable():
        assert printable(text) == text


def test_printable_by_hand():
    assert printable("a\x1b[2J\x9b\r\n") == r"a\x1b[2J\x9b\r\n"
    assert printable("a\n\tb\x07", keep="\n\t") == "a\n\tb\\x07"
    assert printable(os.fsdecode(b"caf\xe9")) == r"caf\xe9"
    assert printable("\ud83d") == r"\ud83d"
    assert shown_path(Path("a\x1b]0;x\x07")) == r"a\x1b]0;x\x07"


@pytest.mark.skipif(os.name != "posix" or not shutil.which("bash"), reason="needs bash")
@pytest.mark.parametrize("name", NAMES)
def test_a_quoted_path_can_be_pasted(name):
    typed = quoted_path(Path(name))
    assert typed.isprintable()
    assert subprocess.run(["bash", "-c", f"printf %s {typed}"], capture_output=True, check=True).stdout == os.fsencode(
        name
    )
