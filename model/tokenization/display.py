"""Tokens in a form that people read."""

from plumbing.text import readable


def token_text(tokenizer, token: int, as_text: bool = True) -> str:
    """How to show a token: as visible text, or as the tokenizer's raw piece in quotes."""
    return readable(tokenizer.token_bytes(token)) if as_text else repr(tokenizer.piece(token))


def cut_line(tokenizer, ids, as_text: bool = True) -> str:
    """Token ids as text with a bar between tokens: "def·|main|():"."""
    return "|".join(token_text(tokenizer, token, as_text) for token in ids)


def token_rows(tokenizer, ids, per_row: int = 10) -> list[str]:
    """Token ids as lines of pairs: the tokens above their ids, in columns."""
    rows = []
    for first in range(0, len(ids), per_row):
        part = [int(token) for token in ids[first : first + per_row]]
        texts = [token_text(tokenizer, token) for token in part]
        widths = [max(len(text), len(str(token))) for text, token in zip(texts, part, strict=True)]
        rows.append("  ".join(text.ljust(width) for text, width in zip(texts, widths, strict=True)).rstrip())
        rows.append("  ".join(str(token).ljust(width) for token, width in zip(part, widths, strict=True)).rstrip())
    return rows
