"""Which kind of Python token each id of a text belongs to."""

import io
import keyword
import tokenize

import numpy as np

from dataset import TokenFile
from model.tokenization.tokenizer import Tokenizer

KINDS = ["indentation", "keyword", "name", "operator", "number", "string", "comment", "line end"]

LONGEST = 50_000  # tokens of a document that are read to know what kind of token stands at a place


def kinds_of(val: TokenFile, tokenizer: Tokenizer, start: int, length: int) -> np.ndarray | None:
    """The kinds (length,) of the tokens start + 1, ... of a file, as places in KINDS; -1 for none of these. None where
    their document is no Python up to there, or begins too far before them."""
    if tokenizer.kind == "none":
        return None
    tokens = val.tokens[max(0, start - LONGEST) : start + 1 + length]
    own = len(tokens) - length  # the first of the tokens in question
    ends = np.flatnonzero(tokens[:own] == tokenizer.end_of_text_id)
    if len(ends):
        tokens, own = tokens[ends[-1] + 1 :], own - int(ends[-1]) - 1
    elif start > LONGEST:
        return None
    pieces = [b"" if t == tokenizer.end_of_text_id else tokenizer.token_bytes(t) for t in tokens.tolist()]
    kinds, first = np.full(length, -1), 0
    # A block can hold the end of one document and the beginning of others: each is Python by itself.
    while first < len(tokens):
        ends = np.flatnonzero(tokens[first:] == tokenizer.end_of_text_id)
        last = first + int(ends[0]) if len(ends) else len(tokens)
        by_byte = kinds_of_bytes(b"".join(pieces[first:last]), whole=bool(len(ends)))
        if by_byte is None:
            return None
        place = 0
        for i in range(first, last):
            if i >= own and pieces[i]:
                kinds[i - own] = kind_of(pieces[i], by_byte[place : place + len(pieces[i])])
            place += len(pieces[i])
        first = last + 1
    return kinds


def kind_of(piece: bytes, kinds: np.ndarray) -> int:
    """The kind of a token: of its first byte that is no white space, else of its last one."""
    visible = [i for i, byte in enumerate(piece) if byte not in b" \t\r\n\f"]
    return int(kinds[visible[0] if visible else -1])


def kinds_of_bytes(text: bytes, whole: bool) -> np.ndarray | None:
    """The kind of every byte of a Python source, by Python's own tokenizer; -1 for spaces between tokens. Of a text
    that is not `whole`, what stands behind its last token is open. None where it is no Python."""
    lines = text.splitlines(keepends=True)
    offsets = np.cumsum([0, *map(len, lines)])
    kinds = np.full(len(text), -1)
    for offset, line in zip(offsets.tolist(), lines, strict=False):
        kinds[offset : offset + len(line) - len(line.lstrip(b" \t\f"))] = KINDS.index("indentation")
        if line.endswith(b"\n"):
            kinds[offset + len(line) - 1] = KINDS.index("line end")
    decoded = [line.decode("utf-8", errors="replace") for line in lines]
    end = 0
    try:
        for token in tokenize.generate_tokens(io.StringIO("".join(decoded), newline="").readline):
            name = kind_name(token)
            begin, end = (
                int(offsets[min(row - 1, len(lines))])
                + (len(decoded[row - 1][:column].encode()) if row <= len(lines) else 0)
                for row, column in (token.start, token.end)
            )
            if name is not None:
                kinds[begin:end] = KINDS.index(name)
    except (tokenize.TokenError, SyntaxError, IndexError):
        if whole or end < len(text) - 4000:  # what is cut off may end in the midst of a string
            return None
        kinds[end:] = -1
    return kinds


def kind_name(token: tokenize.TokenInfo) -> str | None:
    """The name of a token's kind, one of KINDS; None where it has none of its own. Raises TokenError for what is no
    Python."""
    if token.type == tokenize.ERRORTOKEN and not token.string.isspace():
        raise tokenize.TokenError(token.string)
    if token.type == tokenize.NAME:
        return "keyword" if keyword.iskeyword(token.string) else "name"
    kind = tokenize.tok_name[token.type]
    if kind.startswith(("FSTRING", "TSTRING")):
        return "string"
    return {"OP": "operator", "NUMBER": "number", "STRING": "string", "COMMENT": "comment"}.get(kind)
