"""The surprise map: its figures against plain PyTorch and by hand, what it prints, the page, and what it refuses."""

import html
import html.parser
import json
import math
import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from config import ROOT
from model.gpt import GPT
from model.storage.model_file import save_model
from model.tokenization.bpe_trainer import train_bpe_tokenizer
from model.tokenization.display import token_text
from model.tokenization.tokenizer import Tokenizer, make_character_tokenizer
from plumbing.errors import UsageError, UserError
from plumbing.text import visible
from scripts import surprise_map
from scripts.surprise_map import RANGES, STYLES

KNOWN = "def add(a, b):\n\treturn a + b  # naïve 日本 🙂 & <b>\n"
TOKENIZERS = {
    "char": Tokenizer(make_character_tokenizer(KNOWN + "'\"/~|\\").to_str()),
    # Of the merges that this text has, some hold a part of a character, and some a line end with what follows it.
    "bpe": Tokenizer(train_bpe_tokenizer(["x = '日本'\n\n    y = '日曜日'\n\n" * 3], vocab_size=280).to_str()),
}
BLOCK = 12


def make_model(kind: str, block_size: int = BLOCK) -> GPT:
    """A model whose weights are drawn large, so that its predictions depend on all that it sees."""
    torch.manual_seed(7)
    model = GPT(TOKENIZERS[kind].vocab_size, block_size=block_size, n_layer=2, n_head=2, n_embd=16)
    for weight in model.parameters():
        torch.nn.init.normal_(weight, std=0.5)
    torch.nn.init.normal_(model.head.weight, std=2.0)
    return model.eval()


@pytest.fixture(params=["char", "bpe"])
def kind(request):
    return request.param


@pytest.fixture
def draw(tmp_path, monkeypatch, capsys):
    """Run the script on a text: draw(kind, text, *flags). Returns what it printed."""
    for name in ("NO_COLOR", "TERM"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.chdir(tmp_path)

    def run(kind, text, *flags, file="text.py"):
        model_file = tmp_path / f"{kind}.pt"
        if not model_file.exists():
            save_model(model_file, make_model(kind), TOKENIZERS[kind], {"steps": 3, "val_bits_per_byte": 1.5})
        (tmp_path / "text.py").write_bytes(text if isinstance(text, bytes) else text.encode())
        argv = [file, "--model", str(model_file), "--device", "cpu", *map(str, flags)]
        capsys.readouterr()
        surprise_map.main(*surprise_map.command_line(argv))
        return capsys.readouterr().out

    return run


def texts(tokenizer):
    """Texts of many lengths in tokens: within a block, exactly one, one more, several windows, the last one short."""
    return [KNOWN[:n] for n in (1, 5, BLOCK, BLOCK + 1, BLOCK * 3 // 2, BLOCK * 3 // 2 + 1)] + [KNOWN * 4]


def score(kind, text, model=None, show=3):
    tokenizer = TOKENIZERS[kind]
    ids = tokenizer.encode(text)
    return ids, surprise_map.score(model or make_model(kind), ids, tokenizer.end_of_text_id, show)


# --- the figures ------------------------------------------------------------------------------------------------------


def one_by_one(model, tokenizer, ids):
    """The log-probabilities (V,) after what precedes each token, one token at a time, by the rule that is stated:
    all that precedes it within the first block; then what the last window of half steps shows of it."""
    tokens = [tokenizer.end_of_text_id, *ids.tolist()]
    block, half = model.block_size, max(1, model.block_size // 2)
    for i in range(1, len(tokens)):
        start = 0
        while start + block < i:
            start += half
        assert start == 0 or i - start >= block / 2  # tokens of context
        with torch.no_grad():
            yield F.log_softmax(model(torch.tensor([tokens[start:i]]))[0, -1].double(), dim=-1)


@pytest.mark.parametrize("block", [BLOCK, 7, 1])
def test_scores_are_those_of_one_token_at_a_time(kind, block):
    model = make_model(kind, block)
    for text in texts(TOKENIZERS[kind]):
        ids, scores = score(kind, text, model)
        direct = list(one_by_one(model, TOKENIZERS[kind], ids))
        assert len(scores.bits) == len(ids) == len(direct)
        for i, log_p in enumerate(direct):
            own = log_p[ids[i]]
            assert scores.bits[i] == pytest.approx(-float(own) / math.log(2), abs=1e-4)
            assert scores.rank[i] == 1 + int((log_p > own + 1e-6).sum())
            top = log_p.topk(3)
            assert scores.expected[i].tolist() == top.indices.tolist()
            assert scores.p[i] == pytest.approx(top.values.exp().numpy(), abs=1e-5)


def test_mean_surprise_is_the_cross_entropy_of_the_same_tokens(kind):
    """Over the windows as they lie in the text, without the padding and the batches of the script."""
    model, tokenizer = make_model(kind), TOKENIZERS[kind]
    ids, scores = score(kind, KNOWN * 5, model)
    tokens = torch.tensor([tokenizer.end_of_text_id, *ids.tolist()])
    total, scored = 0.0, 0
    for start in range(0, len(ids), BLOCK // 2):
        stop = min(start + BLOCK, len(ids))
        if stop > scored:
            new = scored - start  # the first position of this window that is scored
            with torch.no_grad():
                logits = model(tokens[None, start:stop])[0, new:]
            total += F.cross_entropy(logits, tokens[scored + 1 : stop + 1], reduction="sum").item()
            scored = stop
    assert scored == len(ids)
    assert scores.bits.mean() * math.log(2) == pytest.approx(total / scored, abs=1e-5)


def test_the_batches_make_no_difference(monkeypatch):
    """A vocabulary so large that windows come one by one, against all of them at once."""
    model = make_model("char")
    _, scores = score("char", KNOWN * 6, model)
    calls = []
    forward = model.forward
    monkeypatch.setattr(model, "forward", lambda idx: (calls.append(len(idx)), forward(idx))[1])
    monkeypatch.setattr(model, "vocab_size", (1 << 24) // BLOCK)
    _, alone = score("char", KNOWN * 6, model)
    assert set(calls) == {1}
    assert len(calls) > 20
    assert alone.bits == pytest.approx(scores.bits, abs=1e-4)


def test_sums_of_surprises_are_exact_in_any_order(kind):
    _, scores = score(kind, KNOWN * 5)
    assert (scores.bits * 2**20 == np.round(scores.bits * 2**20)).all()
    shuffled = np.random.default_rng(0).permutation(scores.bits)
    assert scores.bits.sum() == shuffled.sum() == math.fsum(scores.bits)


def test_what_is_certain_is_no_surprise_and_not_minus_zero():
    model = make_model("char")
    with torch.no_grad():
        model.head.weight.mul_(1000)
    _, scores = score("char", KNOWN * 5, model)
    assert (scores.bits == 0).any()
    assert not np.signbit(scores.bits).any()
    assert np.isfinite(scores.bits).all()


def test_there_are_no_more_candidates_than_tokens():
    vocab_size = TOKENIZERS["char"].vocab_size
    _, scores = score("char", KNOWN, show=10_000)
    assert scores.p.shape == (len(KNOWN), vocab_size)
    assert scores.p.sum(axis=1) == pytest.approx(1, abs=1e-5)


# --- where the tokens stand -------------------------------------------------------------------------------------------


def places(kind, text):
    return surprise_map.find_places(TOKENIZERS[kind], text, TOKENIZERS[kind].encode(text))


def bpe_of(*pieces: str):
    """A stand-in for a BPE tokenizer that cuts a text into just these tokens, given as bytes in Latin-1."""
    return SimpleNamespace(kind="bpe", token_bytes=lambda token: pieces[token].encode("latin-1"))


def test_places_by_hand():
    text = "a\n  b\n\nc"
    tokenizer = bpe_of("a", "\n ", " b", "\n\n", "c")
    found = surprise_map.find_places(tokenizer, text, np.arange(5))
    assert found.line.tolist() == [0, 0, 1, 1, 3]  # a token belongs to the line in which it begins
    assert found.column.tolist() == [0, 1, 1, 3, 0]
    assert found.lines == 4
    assert list(surprise_map.text_by_line(text, found)) == [
        [(0, "a"), (1, "↵")],
        [(1, "·"), (2, "·b"), (3, "↵")],
        [(3, "↵")],
        [(4, "c")],
    ]


def test_only_a_newline_ends_a_line():
    text = "a\r\nb\x0cc\u2028d\re"
    tokenizer = bpe_of("a\r\n", "b\x0cc\xe2\x80\xa8d\re")
    found = surprise_map.find_places(tokenizer, text, np.arange(2))
    assert (found.lines, found.line.tolist()) == (2, [0, 1])
    assert list(surprise_map.text_by_line(text, found)) == [[(0, "a␍↵")], [(1, r"b\x0cc\u2028d␍e")]]


def test_a_character_of_several_tokens_is_one_piece():
    text = "xé🙂y"  # x c3 a9 f0 9f 99 82 y
    tokenizer = bpe_of("x\xc3", "\xa9\xf0", "\x9f", "\x99\x82", "y")
    found = surprise_map.find_places(tokenizer, text, np.arange(5))
    assert found.first.tolist() == [0, 4, 5]
    assert found.cuts.tolist() == [0, 3, 4]
    assert found.column.tolist() == [0, 1, 2, 2, 3]  # the character that a token begins in
    assert list(surprise_map.text_by_line(text, found)) == [[(0, "xé🙂"), (1, "y")]]


@pytest.mark.parametrize("text", ["a", "\n", "a\n", "\n\n", "a\nb", "a\r\nb\x0cc\u2028d\x85e\n", "日本\n🙂", KNOWN * 3])
def test_lines_pieces_and_tokens_fit_the_text(kind, text):
    """Nothing is lost and nothing stands twice, and only a newline ends a line."""
    ids = TOKENIZERS[kind].encode(text)
    found = places(kind, text)
    parts = text.split("\n")
    lines = list(surprise_map.text_by_line(text, found))
    assert found.lines == len(lines) == len(parts) - (parts[-1] == "")
    assert found.first[0] == found.cuts[0] == 0
    assert (found.first[-1], found.cuts[-1]) == (len(ids), len(text))
    assert (np.diff(found.first) > 0).all()
    assert (np.diff(found.cuts) > 0).all()
    for a, b, begin, end in zip(found.first, found.first[1:], found.cuts, found.cuts[1:], strict=False):
        data = text[begin:end].encode()
        if kind == "bpe":
            assert b"".join(TOKENIZERS["bpe"].token_bytes(token) for token in ids[a:b]) == data
        start = len(parts[found.line[a]]) - found.column[a]
        assert start >= 0
        assert text[: int(begin)].count("\n") == found.line[a]


def test_a_combining_mark_of_its_own_stands_on_a_dotted_circle():
    text = "e\u0301a\u0301"
    found = surprise_map.find_places(bpe_of("e", "\xcc\x81", "a\xcc\x81"), text, np.arange(3))
    assert list(surprise_map.text_by_line(text, found)) == [[(0, "e"), (1, "◌\u0301"), (2, "a\u0301")]]


def test_cells_by_hand():
    assert [surprise_map.cells(text) for text in ("", "a·↵", "日本", "🙂", "a\u0301", "◌\u0301")] == [0, 3, 4, 2, 1, 1]


# --- the terminal -----------------------------------------------------------------------------------------------------


def test_levels_and_marks_by_hand():
    bits = [0.0, 0.999, 1.0, 2.0, 3.99, 4.0, 7.9, 8.0, 9.99, 10.0, 12.0, 30.0]
    assert [surprise_map.level(b) for b in bits] == [0, 0, 1, 2, 2, 3, 3, 4, 4, 4, 5, 5]
    assert [surprise_map.mark(b) for b in bits] == [" ", " ", "1", "2", "3", "4", "7", "8", "9", "+", "+", "+"]
    assert len(surprise_map.STYLES) == len(surprise_map.RANGES) == len(surprise_map.BORDERS) + 1


def test_wrapping_keeps_everything_within_the_width():
    line = [(0, "abc"), (1, "日本"), (2, "◌\u0301x"), (3, "yz")]
    rows = list(surprise_map.wrapped(line, 4))
    assert rows == [[(0, "abc")], [(1, "日本")], [(2, "◌\u0301x"), (3, "yz")]]
    assert list(surprise_map.wrapped(line, 5))[:2] == [[(0, "abc"), (1, "日")], [(1, "本"), (2, "◌\u0301x"), (3, "y")]]
    for width in range(2, 12):
        rows = list(surprise_map.wrapped(line, width))
        assert "".join(text for row in rows for _, text in row) == "".join(text for _, text in line)
        assert all(0 < surprise_map.cells("".join(text for _, text in row)) <= width for row in rows)


def test_the_plain_map_by_hand(capsys):
    lines = [[(0, "abc"), (1, "日"), (2, "↵")], [(2, "··"), (3, "def")]]
    surprise_map.print_map(lines, [0.5, 10.0, 2.7, 3.0], [13.24, 3.0], False, 17 + 3)
    assert capsys.readouterr().out.splitlines()[1:-1] == [
        "    1     13.2  abc",
        "                日↵",
        "                + 2",
        "    2      3.0  ··de",  # the token that crosses the line end is marked where it begins
        "                  3",
        "                f",
    ]


def test_the_plain_map_with_rows_of_four(capsys):
    surprise_map.print_map([[(0, "abcdefgh")]], [5.0], [5.0], False, 16 + 4)
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
        rows = rows[: next(i for i, row in enumerate(rows) if row.startswith(("surprise in", "Under the")))]
        assert all(surprise_map.cells(row) <= width for row in rows)
        text = "".join(row[16:] for row in rows if not re.fullmatch("[ 1-9+]+", row))
        assert text == visible(KNOWN * 2)


def test_the_plain_map_shows_every_cost(draw, kind):
    """Numbers of the printed map against the scores: the cost of each line, and the mark under each piece."""
    text = KNOWN * 3
    _, scores = score(kind, text)
    found = places(kind, text)
    out = draw(kind, text).splitlines()
    shown = [float(row.split()[1]) for row in out if re.match(r" {0,4}\d+ +[\d.]+  ", row)]
    costs = [scores.bits[found.line == line].sum() for line in range(found.lines)]
    assert shown == pytest.approx(costs, abs=0.051)
    assert sum(costs) == scores.bits.sum()  # exactly
    marks = "".join(row.replace(" ", "") for row in out if re.fullmatch(" {16}[ 1-9+]+", row))
    pieces = [scores.bits[a:b].sum() for a, b in zip(found.first, found.first[1:], strict=False)]
    assert marks == "".join(surprise_map.mark(bits) for bits in pieces).replace(" ", "")


# --- the summary ------------------------------------------------------------------------------------------------------


def test_the_summary_adds_up(draw, kind):
    text = KNOWN * 3
    ids, scores = score(kind, text, show=5)
    total = scores.bits.sum()
    out = draw(kind, text, "--quiet")
    size = len(text.encode())
    assert out.startswith(f"text.py: 6 lines, {size} bytes, {len(ids)} tokens, {total:,.1f} bits\n")
    found = re.search(r"([\d.]+) bits per byte, mean surprise ([\d.]+) bits a token, loss ([\d.]+) .* ([\d.]+)\n", out)
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
    found = places(kind, text)
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


def test_of_equally_surprising_tokens_the_earlier_ones_are_named():
    text = "ab" * 100
    ids = TOKENIZERS["char"].encode(text)
    n = len(ids)
    scores = surprise_map.Scores(np.arange(n) % 7.0, np.ones(n, int), np.zeros((n, 0), int), np.zeros((n, 0)))
    rows = surprise_map.most_surprising(TOKENIZERS["char"], text, ids, scores, places("char", text))
    assert [row.column for row in rows] == list(range(7, 77, 7))


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
    assert "3 characters are unknown to the model and were read as <|unk|>: Ω (2), Ψ (1)\n" in out
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


# --- the page ---------------------------------------------------------------------------------------------------------


class PageReader(html.parser.HTMLParser):
    """What a browser sees: the text of each line, the elements by id, and every attribute that could load something."""

    def __init__(self, page):
        super().__init__()
        self.lines, self.levels, self.loads, self.tags, self.data, self.open = [], {}, [], [], "", []
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.tags.append(tag)
        self.loads += [attributes[name] for name in ("src", "href", "action", "data", "srcset") if name in attributes]
        if tag == "code":
            self.lines.append("")
        if tag == "span" and re.fullmatch(r"t\d+", attributes.get("id", "")):
            self.levels[int(attributes["id"][1:])] = int((attributes.get("class") or "l0")[1:])
        self.open.append((tag, attributes))

    def handle_endtag(self, tag):
        while self.open and self.open.pop()[0] != tag:
            pass

    def handle_data(self, data):
        tags = [tag for tag, _ in self.open]
        if "code" in tags:
            self.lines[-1] += data
        if self.open and self.open[-1][1].get("id") == "data":
            self.data += data


OWN_TAGS = {"span", "b", "i", "code", "li", "tr", "td", "a"}  # what the script itself adds
EVIL = "a</script><script>alert(1)</script>&amp;<!-- \"'> %%name ${x} <b>\\u003c\n</div></code>é\n"


@pytest.mark.parametrize("text", [KNOWN * 2, EVIL])
def test_the_page_shows_the_text_and_only_the_text(draw, kind, tmp_path, text):
    out = draw(kind, text, "--html", "new/page.html")
    assert out.endswith("Next: open new/page.html in a browser; it needs no network.\n")
    source = (tmp_path / "new" / "page.html").read_text("utf-8")
    page = PageReader(source)
    assert "".join(page.lines[-text.count("\n") :]) == visible(text)
    assert page.tags.count("script") == 2  # its data and its program
    template = PageReader((ROOT / "scripts" / "pages" / "surprise_map.html").read_text("utf-8"))
    assert set(page.tags) == set(template.tags) | OWN_TAGS
    # It names no address, and what it links to is in itself.
    assert "://" not in source
    assert all(re.fullmatch(r"#t\d+", place) and int(place[2:]) in page.levels for place in page.loads)
    assert re.search(r"Content-Security-Policy\"\s+content=\"default-src 'none'", source)
    assert not re.search("%%(facts|legend|worst|lines|details)", source)
    assert not list(tmp_path.rglob("*.tmp"))


def test_the_page_escapes_all_that_is_put_into_it():
    evil = "<u>&amp;</script><!--"
    row = surprise_map.Row(piece=0, line=1, column=1, token=evil, bits=9.0, rank=5, instead=[(evil, 0.5)])
    lines = [[(0, "x"), (1, evil)], [(1, evil)]]  # the second piece stands in two lines
    source = surprise_map.make_page(evil, [evil], [row], lines, [0.0, 9.0], [9.0, 0.0], {"words": {"1": evil}})
    page = PageReader(source)
    assert "u" not in page.tags
    assert page.tags.count("script") == 2
    assert json.loads(page.data) == {"words": {"1": evil}}
    assert page.lines == [evil, evil, "x" + evil, evil]  # the row's token and the one instead, and two lines
    assert source.count("&lt;u&gt;&amp;amp;&lt;/script&gt;&lt;!--") == 7  # and the title, the heading, the fact
    assert (source.count("id=t1"), source.count("data-of=t1")) == (1, 1)


def test_the_page_holds_the_figures_of_every_token(draw, kind, tmp_path):
    text = KNOWN * 2
    tokenizer = TOKENIZERS[kind]
    ids, scores = score(kind, text, show=34)
    found = places(kind, text)
    draw(kind, text, "--html", "page.html", "--show", 34, "--quiet")
    source = (tmp_path / "page.html").read_text("utf-8")
    page = PageReader(source)
    details = json.loads(page.data)
    assert details["first"] == found.first.tolist()
    assert len(details["tokens"]) == len(ids)
    for i, (token, bits, rank, *expected) in enumerate(details["tokens"]):
        assert (token, rank) == (ids[i], scores.rank[i])
        assert bits == pytest.approx(scores.bits[i], abs=0.0051)
        kept = int((scores.p[i] >= 0.0005).sum())
        assert expected[::2] == scores.expected[i, :kept].tolist()
        assert expected[1::2] == pytest.approx(scores.p[i, :kept].tolist(), abs=0.00051)
        for word in (token, *expected[::2]):
            assert details["words"][str(word)] == token_text(tokenizer, word)
    assert (scores.p < 0.0005).any()  # some are left out
    pieces = [scores.bits[a:b].sum() for a, b in zip(found.first, found.first[1:], strict=False)]
    assert page.levels == {piece: surprise_map.level(bits) for piece, bits in enumerate(pieces)}
    costs = re.findall(r"<div class=line><b>\d+</b><i>([\d.]+)</i>", source)
    assert list(map(float, costs)) == pytest.approx(
        [scores.bits[found.line == line].sum() for line in range(found.lines)], abs=0.051
    )


def luminance(colour: str) -> float:
    """Relative luminance of "#rrggbb". WCAG 2.1, definition of relative luminance."""
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    r, g, b = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts)
    return 0.2126 * r + 0.7152 * g + 0.0722 * b


def contrast(one: str, other: str) -> float:
    """WCAG 2.1, definition of contrast ratio: 1 to 21. Text should have 4.5."""
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def test_the_colours_of_the_page_can_be_read_and_ordered():
    """In either scheme letters stand out from their background, and backgrounds go one way in brightness, away from the
    page's own, which every eye and a grey print can see."""
    shared, own = (
        re.findall(r":root \{.*?\}", (ROOT / "scripts" / "pages" / name).read_text("utf-8"), re.DOTALL)
        for name in ("page.css", "surprise_map.html")
    )
    assert len(own) == 2
    directions = []
    for schemes in zip(shared[:2], own, strict=True):
        colour = dict(re.findall(r"--([\w-]+): (#\w{6});", "".join(schemes)))
        colour |= {"b0": colour["page"], "f0": colour["ink"]}
        backgrounds = [colour[f"b{i}"] for i in range(len(STYLES))]
        assert all(contrast(colour[f"b{i}"], colour[f"f{i}"]) >= 4.5 for i in range(len(STYLES)))
        assert contrast(colour["b0"], colour["faint"]) >= 4.5
        steps = np.diff([luminance(b) for b in backgrounds])
        assert (steps > 0).all() or (steps < 0).all()
        directions.append(np.sign(steps[0]))
    assert directions == [-1, 1]  # light, then dark


def xterm(number: int) -> str:
    """The colour of a number of xterm's palette: a cube of 6 x 6 x 6 from 16 on."""
    levels = [0, 95, 135, 175, 215, 255]
    number -= 16
    return "#" + "".join(f"{levels[i]:02x}" for i in (number // 36, number // 6 % 6, number % 6))


def test_the_colours_of_the_terminal_can_be_read():
    """Letters against their own background, or against both a black and a white terminal."""
    for style in STYLES[1:]:
        letters = xterm(int(re.search(r"38;5;(\d+)", style)[1]))
        own = re.search(r"48;5;(\d+)", style)
        for background in [xterm(int(own[1]))] if own else ["#000000", "#ffffff"]:
            assert contrast(letters, background) >= 4.5
    assert len(set(STYLES)) == len(STYLES)


BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


def browse(page, fragment: str) -> str:
    """The page as a browser has it after its scripts have run."""
    if BROWSER is None:
        pytest.skip("no Chromium on this machine to open the page with")
    flags = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={page.parent / 'profile'}"]
    flags += ["--virtual-time-budget=2000", "--dump-dom"]
    done = subprocess.run([BROWSER, *flags, f"file://{page}{fragment}"], capture_output=True, timeout=60)
    return done.stdout.decode()


def test_a_browser_shows_what_was_expected_at_a_token(draw, tmp_path):
    """The page's own script, run: a link to a token focuses it and fills the panel."""
    text = EVIL + KNOWN
    draw("bpe", text, "--html", "page.html")
    ids, scores = score("bpe", text, show=5)
    found = places("bpe", text)
    piece = int(np.flatnonzero(found.cuts == text.index("🙂"))[0])  # four tokens
    dom = browse(tmp_path / "page.html", f"#t{piece}")
    panel = dom[dom.index('<div id="panel"') :].partition("</div>")[0]
    shown = re.findall(r"<p><code>(.*?)</code><span> id (\d+): surprise ([\d.]+) bits", panel)
    tokens = range(found.first[piece], found.first[piece + 1])
    assert len(shown) == len(tokens) == 4
    for i, (token, number, bits) in zip(tokens, shown, strict=True):
        assert html.unescape(token) == token_text(TOKENIZERS["bpe"], ids[i])
        assert (int(number), float(bits)) == (ids[i], pytest.approx(scores.bits[i], abs=0.0051))
    first = panel.partition("<ul>")[2].partition("</ul>")[0]
    assert html.unescape(re.search("<code>(.*?)</code>", first)[1]) == token_text(
        TOKENIZERS["bpe"], scores.expected[tokens[0], 0]
    )
    assert f'<span id="t{piece}" class="l5 here" tabindex="0"' in dom
    assert dom.count('tabindex="0"') == 1


def test_the_keyboard_walks_through_the_text(draw, tmp_path):
    """Keys pressed by a script, and the token that has the focus after each."""
    text = "ab\n\ncd = 1\n    x\n"
    page = tmp_path / "page.html"
    draw("bpe", text, "--html", page)
    found = places("bpe", text)
    line = found.line[found.first[:-1]].tolist()  # of each piece
    keys = "ArrowLeft End ArrowRight ArrowDown Home ArrowRight ArrowUp ArrowDown ArrowDown ArrowDown".split()
    keys += ["End", "ArrowRight"]
    at, expected = 0, []
    for key in keys:
        same = [i for i in range(len(line)) if line[i] == line[at]]
        above = [i for i in range(len(line)) if line[i] == line[max(0, same[0] - 1)]]
        at = {
            "ArrowLeft": max(at - 1, 0),
            "ArrowRight": min(at + 1, len(line) - 1),
            "Home": same[0],
            "End": same[-1],
            "ArrowDown": min(same[-1] + 1, len(line) - 1),
            "ArrowUp": above[0],
        }[key]
        expected.append(f"t{at}")
    assert len(set(expected)) > 5
    press = f"""<script>document.title = {keys}.map((key) => {{
        area.dispatchEvent(new KeyboardEvent("keydown", {{key, cancelable: true}}));
        return document.activeElement.id;
    }}).join(" ");</script>"""
    page.write_text(page.read_text("utf-8").replace("</body>", press + "</body>"), "utf-8")
    assert re.search("<title>(.*?)</title>", browse(page, ""))[1] == " ".join(expected)


# --- what it refuses --------------------------------------------------------------------------------------------------


def test_files_that_cannot_be_read(draw, tmp_path):
    with pytest.raises(UserError, match=r"text.py is empty"):
        draw("char", "")
    with pytest.raises(UserError, match=r"text.py is not UTF-8 at byte 3 \(0xe9\)"):
        draw("char", b"caf\xe9")
    argv = ["nowhere.py", "--model", str(tmp_path / "char.pt")]
    with pytest.raises(UserError, match=r"no file nowhere.py"):
        surprise_map.main(*surprise_map.command_line(argv))
    with pytest.raises(UserError, match=r"no file"):
        surprise_map.main(*surprise_map.command_line([str(tmp_path)]))
    (tmp_path / "text.py").write_text("a")
    with pytest.raises(UserError, match=r"no model none.pt"):
        surprise_map.main(*surprise_map.command_line(["text.py", "--model", "none.pt"]))


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


def test_it_runs_as_a_script(draw, tmp_path):
    draw("bpe", KNOWN)
    script = ROOT / "scripts" / "surprise_map.py"
    done = subprocess.run(
        [sys.executable, script, "text.py", "--model", "bpe.pt", "--device", "cpu"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONIOENCODING": "ascii"},
        capture_output=True,
    )
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout.decode() == draw("bpe", KNOWN)
