"""The page of the surprise map: it shows the text and only the text, its colours, and its program in a browser."""

import html
import html.parser
import json
import re
import subprocess

import numpy as np
import pytest
from browser import BROWSER
from surprise import KNOWN, TOKENIZERS, layout, map_runner, score

from model.interpretation.surprise import SurprisingToken
from model.interpretation.surprise_map import legend_html, ranking_html, text_html
from model.tokenization.display import STYLES, surprise_level, token_text
from plumbing.page import PAGES, fill_page
from plumbing.text import visible


@pytest.fixture(params=["char", "bpe"])
def kind(request):
    return request.param


@pytest.fixture
def draw(tmp_path, monkeypatch, capsys):
    return map_runner(tmp_path, monkeypatch, capsys)


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
    template = PageReader((PAGES / "surprise_map.html").read_text("utf-8"))
    assert set(page.tags) == set(template.tags) | OWN_TAGS
    # It names no address, and what it links to is in itself.
    assert "://" not in source
    assert all(re.fullmatch(r"#t\d+", place) and int(place[2:]) in page.levels for place in page.loads)
    assert re.search(r"Content-Security-Policy\"\s+content=\"default-src 'none'", source)
    assert not re.search("%%(facts|legend|ranking|lines|data)", source)
    assert not list(tmp_path.rglob("*.tmp"))


def test_the_page_escapes_all_that_is_put_into_it():
    evil = "<u>&amp;</script><!--"
    row = SurprisingToken(span=0, line=1, column=1, token=evil, bits=9.0, rank=5, instead=[(evil, 0.5)])
    lines = [[(0, "x"), (1, evil)], [(1, evil)]]  # the second span is in two lines
    data = {"texts": {"1": evil}}
    ranking, text = ranking_html([row]), text_html(lines, [0.0, 9.0], [9.0, 0.0])
    source = fill_page(
        "surprise_map.html", [evil], data, name=html.escape(evil), legend=legend_html(), ranking=ranking, lines=text
    )
    page = PageReader(source)
    assert "u" not in page.tags
    assert page.tags.count("script") == 2
    assert json.loads(page.data) == {"texts": {"1": evil}}
    assert page.lines == [evil, evil, "x" + evil, evil]  # the row's token and the one instead, and two lines
    assert source.count("&lt;u&gt;&amp;amp;&lt;/script&gt;&lt;!--") == 7  # and the title, the heading, the fact
    assert (source.count("id=t1"), source.count("data-of=t1")) == (1, 1)


def test_the_page_holds_the_figures_of_every_token(draw, kind, tmp_path):
    text = KNOWN * 2
    tokenizer = TOKENIZERS[kind]
    ids, scores = score(kind, text, show=34)
    found = layout(kind, text)
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
            assert details["texts"][str(word)] == token_text(tokenizer, word)
    assert (scores.p < 0.0005).any()  # some are left out
    span_bits = [scores.bits[a:b].sum() for a, b in zip(found.first, found.first[1:], strict=False)]
    assert page.levels == {span: surprise_level(bits) for span, bits in enumerate(span_bits)}
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
        re.findall(r":root \{.*?\}", (PAGES / name).read_text("utf-8"), re.DOTALL)
        for name in ("page.css", "levels.css")
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
    found = layout("bpe", text)
    span = int(np.flatnonzero(found.starts == text.index("🙂"))[0])  # four tokens
    dom = browse(tmp_path / "page.html", f"#t{span}")
    panel = dom[dom.index('<div id="panel"') :].partition("</div>")[0]
    shown = re.findall(r"<p><code>(.*?)</code><span> id (\d+): surprise ([\d.]+) bits", panel)
    tokens = range(found.first[span], found.first[span + 1])
    assert len(shown) == len(tokens) == 4
    for i, (token, number, bits) in zip(tokens, shown, strict=True):
        assert html.unescape(token) == token_text(TOKENIZERS["bpe"], ids[i])
        assert (int(number), float(bits)) == (ids[i], pytest.approx(scores.bits[i], abs=0.0051))
    first = panel.partition("<ul>")[2].partition("</ul>")[0]
    assert html.unescape(re.search("<code>(.*?)</code>", first)[1]) == token_text(
        TOKENIZERS["bpe"], scores.expected[tokens[0], 0]
    )
    assert f'<span id="t{span}" class="l5 here" tabindex="0"' in dom
    assert dom.count('tabindex="0"') == 1


def test_the_keyboard_walks_through_the_text(draw, tmp_path):
    """Keys pressed by a script, and the token that has the focus after each."""
    text = "ab\n\ncd = 1\n    x\n"
    page = tmp_path / "page.html"
    draw("bpe", text, "--html", page)
    found = layout("bpe", text)
    line = found.line[found.first[:-1]].tolist()  # of each span
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
