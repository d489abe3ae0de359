"""Where the tokens of a text are: lines, columns, and spans of whole characters."""

import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from model.tokenization.tokenizer import Tokenizer, code_points
from plumbing.text import visible

Line = list[tuple[int, str]]  # the parts of a line: (index of the span, its visible text in this line)


@dataclass(frozen=True)
class TokenLayout:
    """Where each of N tokens is. A span is the shortest run of tokens that covers whole characters, mostly one token.
    There are S of them."""

    line: np.ndarray  # (N,) the line in which the token starts, from 0
    column: np.ndarray  # (N,) the character of that line in which it starts, from 0
    lines: int
    first: np.ndarray  # (S + 1,) the first token of each span, then N
    starts: np.ndarray  # (S + 1,) the character at which each span starts, then the length of the text


def layout_tokens(tokenizer: Tokenizer, text: str, ids: np.ndarray) -> TokenLayout:
    """Lines, columns and spans of the tokens `ids` of a text. Only "\\n" ends a line."""
    characters = code_points(text)
    if tokenizer.kind == "char":  # one token per character, <|unk|> included
        at = np.arange(len(ids))  # the character in which each token starts
        whole = np.ones(len(ids), dtype=bool)  # whether it starts where the character does
    else:
        sizes = {token: len(tokenizer.token_bytes(token)) for token in set(ids.tolist())}
        byte = np.cumsum([0, *(sizes[token] for token in ids.tolist())])[:-1]  # at which each token starts
        ends = np.cumsum(1 + (characters > 0x7F) + (characters > 0x7FF) + (characters > 0xFFFF))  # of UTF-8 characters
        at = np.searchsorted(ends, byte, side="right")
        whole = byte == np.append(0, ends)[at]
    line_ends = np.flatnonzero(characters == ord("\n"))
    line = np.searchsorted(line_ends, at)
    column = at - np.append(0, line_ends + 1)[line]
    lines = len(line_ends) + (not text.endswith("\n"))
    return TokenLayout(line, column, lines, np.append(np.flatnonzero(whole), len(ids)), np.append(at[whole], len(text)))


def spans_by_line(text: str, layout: TokenLayout) -> Iterator[Line]:
    """Yield the parts of each line.

    "a\\n  b" in the spans "a", "\\n ", " b" gives [(0, "a"), (1, "↵")] and [(1, "·"), (2, "·b")].
    """
    line = []
    for span, (start, end) in enumerate(pairwise(layout.starts.tolist())):
        for part in re.findall(r"[^\n]*\n|[^\n]+", text[start:end]):
            line.append((span, visible_span(part)))
            if part.endswith("\n"):
                yield line
                line = []
    if line:
        yield line


def visible_span(text: str) -> str:
    """A text with visible white space. A combining mark without its letter gets a dotted circle, as Unicode suggests:
    otherwise it would be drawn on its neighbour."""
    return ("◌" if cell_width(text[0]) == 0 else "") + visible(text)


def cell_width(text: str) -> int:
    """Columns that a text takes in a terminal: two for East Asian wide characters, none for combining marks."""
    wide = sum(unicodedata.east_asian_width(c) in "WF" for c in text)
    return len(text) + wide - sum(unicodedata.category(c) in ("Mn", "Me") for c in text)
