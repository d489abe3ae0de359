"""Tokens in a form that people read."""

from plumbing.text import readable


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
