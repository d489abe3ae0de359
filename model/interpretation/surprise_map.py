"""The surprise map in a terminal, coloured or with the surprise below the text, and the contents of its page
(scripts/pages/surprise_map.html)."""

from collections.abc import Iterator
from html import escape
from itertools import pairwise

import numpy as np

from model.interpretation.surprise import Line, SurprisingToken, TextSurprise
from model.tokenization.display import BORDERS, painted, surprise_level, token_text
from model.tokenization.tokenizer import Tokenizer
from plumbing.text import cell_width

RANGES = ["below 1", *(f"{a} to {b}" for a, b in pairwise(BORDERS)), f"{BORDERS[-1]} and more"]


def surprise_mark(bits: float) -> str:
    """A surprise as one character, where there are no colours: whole bits, "+" from 10, nothing below 1."""
    return " " if bits < 1 else "+" if bits >= 10 else str(int(bits))


def wrapped(line: Line, width: int) -> Iterator[Line]:
    """Break a line into rows of at most `width` cells, inside spans where necessary."""
    row, used = [], 0
    for span, text in line:
        start = 0
        for i, character in enumerate(text):
            if used + cell_width(character) > width:
                if start < i:
                    row.append((span, text[start:i]))
                yield row
                row, used, start = [], 0, i
            used += cell_width(character)
        row.append((span, text[start:]))
    yield row


def print_map(lines: list[Line], span_bits: list[float], line_bits: list[float], colours: bool, width: int) -> None:
    """Print each line with its number and its bits: coloured, or with a mark below the start of each span."""
    print(" line     bits  text: · space, ↵ line end, → tab")
    last = -1
    for number, (line, bits) in enumerate(zip(lines, line_bits, strict=True), 1):
        gutter = f"{number:>5} {bits:>8.1f}  "
        for row in wrapped(line, width - len(gutter)):
            print(gutter + "".join(painted(text, span_bits[span]) if colours else text for span, text in row))
            gutter, marks = " " * len(gutter), ""
            for span, text in row:
                marks += (surprise_mark(span_bits[span]) if span != last else "").ljust(cell_width(text))
                last = span
            if marks.strip() and not colours:
                print(gutter + marks.rstrip())
    if colours:
        print("surprise in bits: " + "  ".join(map(painted, RANGES, [0, *BORDERS])))
    else:
        print("Below the start of each token: its surprise in whole bits. Nothing: below 1 bit. +: 10 or more.")


def surprise_page_data(tokenizer: Tokenizer, found: TextSurprise) -> dict:
    """What the page shows for each token: {"texts": {id: text}, "first": the first token of each span, "tokens": [[id,
    surprise in bits, rank, id of the likeliest, its probability, id of the second, ...], ...]}."""
    ids, scores, tokens = found.ids, found.scores, []
    for i, token in enumerate(ids.tolist()):
        row = [token, round(float(scores.bits[i]), 2), int(scores.rank[i])]
        for candidate, p in zip(scores.expected[i].tolist(), scores.p[i].tolist(), strict=True):
            if p >= 0.0005:  # the page would show less as 0.0%
                row += [candidate, round(p, 3)]
        tokens.append(row)
    texts = {token: token_text(tokenizer, token) for token in np.union1d(ids, scores.expected).tolist()}
    return {"texts": texts, "first": found.layout.first.tolist(), "tokens": tokens}


def text_html(lines: list[Line], span_bits: list[float], line_bits: list[float]) -> str:
    """The text in the colours of its surprise. The first element of a span has an id, later ones refer to it."""
    rows, seen = [], set()
    for number, (line, bits) in enumerate(zip(lines, line_bits, strict=True), 1):
        elements = []
        for span, text in line:
            reference = f"data-of=t{span}" if span in seen else f"id=t{span}"
            seen.add(span)
            level = surprise_level(span_bits[span])
            style = f" class=l{level}" if level else ""
            elements.append(f"<span {reference}{style}>{escape(text)}</span>")
        rows.append(f"<div class=line><b>{number}</b><i>{bits:.1f}</i><code>{''.join(elements)}</code></div>")
    return "\n".join(rows)


def ranking_html(ranking: list[SurprisingToken]) -> str:
    """The most surprising tokens as rows of a table."""
    rows = []
    for row in ranking:
        instead = ", ".join(f"<code>{escape(text)}</code> {p:.1%}" for text, p in row.instead)
        rows.append(
            f"<tr><td><a href=#t{row.span}>line {row.line}, column {row.column}</a><td>{row.bits:.2f}"
            f"<td>{row.rank:,}<td><code>{escape(row.token)}</code><td>{instead}"
        )
    return "\n".join(rows)


def legend_html() -> str:
    return "".join(f"<li><span class=l{i}>{text}</span>" for i, text in enumerate(RANGES))
