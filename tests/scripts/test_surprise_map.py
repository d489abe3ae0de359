"""The surprise map: what it prints in a terminal and into a pipe, its summary, and what it refuses."""

import math
import os
import re
import sys
from dataclasses import replace

import numpy as np
import pytest
from surprise import KNOWN, TOKENIZERS, layout, map_runner, score

from config import ROOT
from model.interpretation.surprise_map import (
    RANGES,
    print_map,
    surprise_mark,
    wrapped,
)
from model.tokenization.display import BORDERS, STYLES, surprise_level, token_text
from plumbing.errors import UsageError, UserError
from plumbing.text import cell_width, visible
from scripts import surprise_map


@pytest.fixture(params=["char", "bpe"])
def kind(request):
    return request.param


@pytest.fixture
def draw(tmp_path, monkeypatch, capsys):
    return map_runner(tmp_path, monkeypatch, capsys)


# --- the map ---


def test_levels_and_marks_by_hand():
    bits = [0.0, 0.999, 1.0, 2.0, 3.99, 4.0, 7.9, 8.0, 9.99, 10.0, 12.0, 30.0]
    assert [surprise_level(b) for b in bits] == [0, 0, 1, 2, 2, 3, 3, 4, 4, 4, 5, 5]
    assert [surprise_mark(b) for b in bits] == [" ", " ", "1", "2", "3", "4", "7", "8", "9", "+", "+", "+"]
    assert len(STYLES) == len(RANGES) == len(BORDERS) + 1


def test_wrapping_keeps_everything_within_the_width():
    line = [(0, "abc"), (1, "日本"), (2, "◌\u0301x"), (3, "yz")]
    rows = list(wrapped(line, 4))
    assert rows == [[(0, "abc")], [(1, "日本")], [(2, "◌\u0301x"), (3, "yz")]]
    assert list(wrapped(line, 5))[:2] == [[(0, "abc"), (1, "日")], [(1, "本"), (2, "◌\u0301x"), (3, "y")]]
    for width in range(2, 12):
        rows = list(wrapped(line, width))
        assert "".join(text for row in rows for _, text in row) == "".join(text for _, text in line)
        assert all(0 < cell_width("".join(text for _, text in row)) <= width for row in rows)


def test_the_plain_map_by_hand(capsys):
    lines = [[(0, "abc"), (1, "日"), (2, "↵")], [(2, "··"), (3, "def")]]
    print_map(lines, [0.5, 10.0, 2.7, 3.0], [13.24, 3.0], False, 17 + 3)
    assert capsys.readouterr().out.splitlines()[1:-1] == [
        "    1     13.2  abc",
        "                日↵",
        "                + 2",
        "    2      3.0  ··de",  # the token that crosses the line end is marked where it begins
        "                  3",
        "                f",
    ]


def test_the_plain_map_with_rows_of_four(capsys):
    print_map([[(0, "abcdefgh")]], [5.0], [5.0], False, 16 + 4)
    assert capsys.readouterr().out.splitlines()[1:-1] == [
        "    1      5.0  abcd",
        "                5",
        "                efgh",
    ]


def test_a_pipe_gets_no_colours_and_a_terminal_does(draw, monkeypatch):
    assert "\x1b" not in draw("bpe", KNOWN)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    coloured = draw("bpe", KNOWN)
    assert "\x1b[" in coloured
    assert coloured.count("\x1b[0m") == len(re.findall(r"\x1b\[[\d;]*[1-9]\d*m", coloured))
    assert all(f"\x1b[{style}m{name}\x1b[0m" in coloured for style, name in zip(STYLES[1:], RANGES[1:], strict=True))
    monkeypatch.setenv("NO_COLOR", "")  # which counts as not set
    assert draw("bpe", KNOWN) == coloured
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\x1b" not in draw("bpe", KNOWN)
    monkeypatch.delenv("NO_COLOR")
    monkeypatch.setenv("TERM", "dumb")
    assert "\x1b" not in draw("bpe", KNOWN)


def test_the_text_cannot_send_commands_to_the_terminal(draw, monkeypatch):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    out = draw("bpe", "a\x1b]0;title\x07b\x9b2J")
    assert out.count("\x1b") == out.count("\x1b[")  # the colours' own
    assert "\x07" not in out and "\x9b" not in out


@pytest.mark.parametrize("width", [40, 100])
def test_both_forms_show_the_whole_text(draw, kind, monkeypatch, width):
    """Every line's text, put together from its rows, in either form; and no row is wider than the terminal."""
    monkeypatch.setenv("COLUMNS", str(width))
    for terminal in (False, True):
        monkeypatch.setattr(sys.stdout, "isatty", lambda terminal=terminal: terminal)
        out = re.sub(r"\x1b\[[\d;]*m", "", draw(kind, KNOWN * 2)).splitlines()
        rows = out[out.index(" line     bits  text: · space, ↵ line end, → tab") + 1 :]
        rows = rows[: next(i for i, row in enumerate(rows) if row.startswith(("surprise in", "Below the")))]
        assert all(cell_width(row) <= width for row in rows)
        text = "".join(row[16:] for row in rows if not re.fullmatch("[ 1-9+]+", row))
        assert text == visible(KNOWN * 2)


def test_the_plain_map_shows_every_cost(draw, kind):
    """Numbers of the printed map against the scores: the cost of each line, and the mark under each span."""
    text = KNOWN * 3
    _, scores = score(kind, text)
    found = layout(kind, text)
    out = draw(kind, text).splitlines()
    shown = [float(row.split()[1]) for row in out if re.match(r" {0,4}\d+ +[\d.]+  ", row)]
    costs = [scores.bits[found.line == line].sum() for line in range(found.lines)]
    assert shown == pytest.approx(costs, abs=0.051)
    assert sum(costs) == scores.bits.sum()  # exactly
    marks = "".join(row.replace(" ", "") for row in out if re.fullmatch(" {16}[ 1-9+]+", row))
    span_bits = [scores.bits[a:b].sum() for a, b in zip(found.first, found.first[1:], strict=False)]
    assert marks == "".join(surprise_mark(bits) for bits in span_bits).replace(" ", "")


# --- the summary ---


def test_the_summary_adds_up(draw, kind):
    text = KNOWN * 3
    ids, scores = score(kind, text, show=5)
    total = scores.bits.sum()
    out = draw(kind, text, "--quiet")
    size = len(text.encode())
    assert out.startswith(f"text.py: 6 lines, {size} bytes, {len(ids)} tokens, {total:,.1f} bits\n")
    found = re.search(
        r"([\d.]+) bits per byte, mean surprise ([\d.]+) bits per token loss ([\d.]+) .*perplexity ([\d.]+)",
        " ".join(out.split()),
    )
    per_byte, mean, loss, perplexity = map(float, found.groups())
    assert per_byte == pytest.approx(total / size, abs=6e-4)
    assert mean == pytest.approx(total / len(ids), abs=6e-4)
    assert loss == pytest.approx(mean * math.log(2), abs=6e-4)
    assert perplexity == pytest.approx(2**mean, rel=1e-3)


def test_the_ten_most_surprising_tokens(draw, kind):
    """Each with its line, column and rank, and with the likeliest tokens other than itself."""
    text = KNOWN * 3
    tokenizer = TOKENIZERS[kind]
    ids, scores = score(kind, text, show=2)
    found = layout(kind, text)
    out = draw(kind, text, "--quiet", "--show", 2)
    rows = re.findall(r"  line (\d+), column (\d+): (.*)  ([\d.]+) bits, rank (\d+)\n    instead: (.*)\n", out)
    assert len(rows) == 10
    order = sorted(range(len(ids)), key=lambda i: (-scores.bits[i], i))[:10]
    for i, (line, column, token, bits, rank, instead) in zip(order, rows, strict=True):
        assert (int(line), int(column)) == (found.line[i] + 1, found.column[i] + 1)
        assert token.partition(" (in ")[0] == token_text(tokenizer, ids[i])
        assert (float(bits), int(rank)) == (pytest.approx(scores.bits[i], abs=0.006), scores.rank[i])
        assert ids[i] not in scores.expected[i]
        expected = zip(scores.expected[i], scores.p[i], strict=True)
        assert instead == "  ".join(f"{token_text(tokenizer, token)} {p:.1%}" for token, p in expected)


def test_what_was_expected_instead_is_not_the_token_itself(draw):
    """In a text of one token all its vocabulary is a candidate, and it is left out."""
    vocab_size = TOKENIZERS["char"].vocab_size
    instead = re.search("instead: (.*)", draw("char", "d", "--show", vocab_size))[1]
    shown = [part.rpartition(" ")[0] for part in instead.split("  ")]
    assert sorted(shown) == sorted(
        token_text(TOKENIZERS["char"], token)
        for token in range(vocab_size)
        if token != TOKENIZERS["char"].encode("d")[0]
    )


def test_unknown_characters_are_counted_named_and_shown(draw):
    out = draw("char", "def ΩΩ(Ψ)\n")
    assert "3 characters unknown to the model, read as <|unk|>: Ω (2), Ψ (1)\n" in out
    assert "def·ΩΩ(Ψ)↵" in out
    assert re.search(r"line 1, column 5: Ω \(read as <\|unk\|>\)", out)
    assert "unknown" not in draw("bpe", "def ΩΩ(Ψ)\n")


def test_parts_of_characters_are_shown_as_bytes(draw):
    out = draw("bpe", "Ω🙂")
    assert "Ω🙂" in out.splitlines()[2]
    assert re.search(r"line 1, column 1: <ce> \(in Ω\)", out)
    assert re.search(r"line 1, column 2: <99> \(in 🙂\)", out)
    assert "\N{REPLACEMENT CHARACTER}" not in out


def test_quiet_says_only_the_summary(draw):
    loud, quiet = draw("bpe", KNOWN), draw("bpe", KNOWN, "--quiet")
    assert loud.endswith(quiet)
    assert quiet.startswith("text.py: 2 lines")


# --- what it refuses ---


def test_files_that_cannot_be_read(draw, tmp_path):
    with pytest.raises(UserError, match=r"text.py is empty"):
        draw("char", "")
    with pytest.raises(UserError, match=r"text.py is not UTF-8 at byte 3 \(0xe9\)"):
        draw("char", b"caf\xe9")
    argv = ["nowhere.py", "--model", str(tmp_path / "char.pt")]
    with pytest.raises(UserError, match=r"no file nowhere.py"):
        surprise_map.main(argv)
    with pytest.raises(UserError, match=r"no file"):
        surprise_map.main([str(tmp_path)])
    (tmp_path / "text.py").write_text("a")
    with pytest.raises(UserError, match=r"no model none.pt"):
        surprise_map.main(["text.py", "--model", "none.pt"])


def test_flags_that_cannot_be_used(draw, tmp_path):
    with pytest.raises(UsageError, match="--show"):
        draw("char", "a", "--show", -1)
    with pytest.raises(UsageError, match="--html would replace text.py"):
        draw("char", "a", "--html", "./text.py")
    assert (tmp_path / "text.py").read_text() == "a"
    with pytest.raises(UsageError, match="--html would replace char.pt"):
        draw("char", "a", "--html", "char.pt")
    with pytest.raises(UserError, match="not a file that can be replaced"):
        draw("char", "a", "--html", tmp_path)
    for ids in (range(100), range(200, 999)):  # UTF-8 or not
        np.array(ids, "<u2").tofile(tmp_path / "t.bin")
        with pytest.raises(UserError, match=r"t\.bin is no.*It holds NUL bytes, as token files"):
            surprise_map.read_text(tmp_path / "t.bin")
    assert "    instead:" not in draw("char", "a", "--show", 0)


def test_the_next_step_can_be_pasted(draw, tmp_path, monkeypatch):
    assert draw("char", "a").endswith("surprise_map.py text.py --model char.pt --html data/surprise.html\n")
    (tmp_path / "my text.py").write_text("a")
    monkeypatch.setattr(surprise_map, "CHAR", replace(surprise_map.CHAR, model_file=tmp_path / "char.pt"))
    out = draw("char", "a", file="my text.py")
    assert out.endswith("Next: python scripts/surprise_map.py 'my text.py' --html data/surprise.html\n")


def test_a_name_that_is_no_text(draw, tmp_path):
    name = os.fsdecode(b"caf\xe9.py")
    try:
        (tmp_path / name).write_text("a")
    except OSError:
        pytest.skip("this file system has no such names")
    sys.stdout.reconfigure(errors="backslashreplace")  # as run_script does
    draw("char", "a", "--html", "page.html", file=name)
    assert "caf\\udce9.py" in (tmp_path / "page.html").read_text("utf-8")


def test_it_runs_as_a_script(draw, tmp_path, torch_server):
    """On a console that would encode its output as ASCII."""
    draw("bpe", KNOWN)
    command = [str(ROOT / "scripts" / "surprise_map.py"), "text.py", "--model", "bpe.pt", "--device", "cpu"]
    done = torch_server.run(command, tmp_path, os.environ | {"PYTHONIOENCODING": "ascii"}, 300)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == draw("bpe", KNOWN)
