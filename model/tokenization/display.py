"""Tokens in a form that people read, and the colours of their surprise."""

from bisect import bisect_right

from plumbing.text import readable

# Surprise has six levels. These are their borders in bits: probability 1/2, 1/4, 1/16, 1/256, 1/4096.
BORDERS = [1, 2, 4, 8, 12]
# How a terminal shows each level (SGR parameters, ECMA-48): the light colours of scripts/pages/levels.css, as
# near as xterm's 256 come to them. Each brings its own letters, so the terminal's background does not matter; underline
# and bold tell the highest levels apart without any colour.
STYLES = ["", "38;5;16;48;5;230", "38;5;16;48;5;222", "38;5;16;48;5;208", "38;5;231;48;5;124;4", "38;5;231;48;5;53;1;4"]


def token_text(tokenizer, token: int, as_text: bool = True) -> str:
    """A token to print: as visible text, or as the string of the vocabulary, in quotes."""
    return readable(tokenizer.token_bytes(token)) if as_text else repr(tokenizer.token_string(token))


def cut_line(tokenizer, ids, as_text: bool = True) -> str:
    """Token ids as text with a bar between tokens: "def·|main|():"."""
    return "|".join(token_text(tokenizer, token, as_text) for token in ids)


def token_rows(tokenizer, ids, per_row: int = 10) -> list[str]:
    """Token ids as pairs of lines: the tokens above their ids, in columns."""
    rows = []
    for first in range(0, len(ids), per_row):
        numbers = [str(token) for token in ids[first : first + per_row]]
        texts = [token_text(tokenizer, token) for token in ids[first : first + per_row]]
        widths = [max(len(text), len(number)) for text, number in zip(texts, numbers, strict=True)]
        for row in (texts, numbers):
            rows.append("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    return rows


def surprise_level(bits: float) -> int:
    """The level of a surprise, 0 to 5: the number of borders that it reaches."""
    return bisect_right(BORDERS, bits)


def painted(text: str, bits: float) -> str:
    """A text in the style of a surprise."""
    style = STYLES[surprise_level(bits)]
    return f"\x1b[{style}m{text}\x1b[0m" if style else text
