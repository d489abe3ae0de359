"""The contents of the page that scripts/surprise_map.py writes (scripts/pages/surprise_map.html). Text from the file or
the model is escaped here."""

from html import escape

import numpy as np

from model.interpretation.surprise import SurprisingToken, TextSurprise
from model.interpretation.surprise_terminal import RANGES, surprise_level
from model.interpretation.token_layout import Line
from model.tokenization.display import token_text
from model.tokenization.tokenizer import Tokenizer


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
