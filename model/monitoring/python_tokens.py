"""Which kind of Python token each token of the model belongs to: indentation, keyword, name, ...

Python's own tokenizer gives every byte of a source file its kind, and a token of the model takes the kind of its first
byte that is not white space. So the loss can be told by kind: names are hard, keywords are easy.
"""

import io
import keyword
import tokenize

import numpy as np

from dataset import TokenFile
from model.tokenization.tokenizer import BareIds, Tokenizer

KINDS = ["indentation", "keyword", "name", "operator", "number", "string", "comment", "line end"]
NO_KIND = -1  # spaces between tokens, <|endoftext|>
LONGEST = 50_000  # tokens of a document that are read before the ones in question
CUT_OFF = 4_000  # bytes at the end of an unfinished text that may be inside a string


def kinds_of(val: TokenFile, tokenizer: Tokenizer | BareIds, start: int, length: int) -> np.ndarray | None:
    """The kinds (length,) of the tokens start + 1, start + 2, ... of a file, as indices of KINDS or NO_KIND. None if
    their document is not Python, or starts too long before them."""
    if tokenizer.kind == "none":
        return None
    tokens = val.tokens[max(0, start - LONGEST) : start + 1 + length]
    own = len(tokens) - length  # index of the first token in question
    ends = np.flatnonzero(tokens[:own] == tokenizer.end_of_text_id)
    if len(ends):  # their document starts here
        tokens, own = tokens[ends[-1] + 1 :], own - int(ends[-1]) - 1
    elif start > LONGEST:
        return None
    kinds = []  # a block can hold the end of one document and the start of others: each is Python by itself
    borders = [*np.flatnonzero(tokens == tokenizer.end_of_text_id).tolist(), len(tokens)]
    first = 0
    for end in borders:
        document = kinds_in_document([tokenizer.token_bytes(t) for t in tokens[first:end]], end < len(tokens))
        if document is None:
            return None
        kinds += [*document, NO_KIND]  # <|endoftext|>
        first = end + 1
    return np.array(kinds[own : len(tokens)])


def kinds_in_document(tokens: list[bytes], whole: bool) -> list[int] | None:
    """The kind of each token of a document, or of the start of one that is not `whole`. None if it is not Python."""
    by_byte = kinds_of_bytes(b"".join(tokens), whole)
    if by_byte is None:
        return None
    ends = np.cumsum([len(token) for token in tokens]).tolist()
    return [kind_of(token, by_byte[end - len(token) : end]) for token, end in zip(tokens, ends, strict=True)]


def kind_of(token: bytes, kinds: np.ndarray) -> int:
    """The kind of a token's first byte that is not white space, else of its last byte."""
    visible = [i for i, byte in enumerate(token) if byte not in b" \t\r\n\f"]
    return int(kinds[visible[0] if visible else -1])


def kinds_of_bytes(text: bytes, whole: bool) -> np.ndarray | None:
    """The kind of every byte of a Python source file, (bytes,). None if it is not Python. The end of a text that is
    not `whole` has NO_KIND, because its last token is unfinished."""
    lines = text.splitlines(keepends=True)
    offsets = np.cumsum([0, *map(len, lines)]).tolist()
    kinds = np.full(len(text), NO_KIND)
    for offset, line in zip(offsets, lines, strict=False):
        kinds[offset : offset + len(line) - len(line.lstrip(b" \t\f"))] = KINDS.index("indentation")
        if line.endswith(b"\n"):
            kinds[offset + len(line) - 1] = KINDS.index("line end")
    decoded = [line.decode("utf-8", errors="replace") for line in lines]
    end = 0
    try:
        for token in tokenize.generate_tokens(io.StringIO("".join(decoded), newline="").readline):
            begin, end = (byte_offset(position, decoded, offsets) for position in (token.start, token.end))
            if (name := kind_name(token)) is not None:
                kinds[begin:end] = KINDS.index(name)
    except (tokenize.TokenError, SyntaxError, IndexError):
        if whole or end < len(text) - CUT_OFF:
            return None
        kinds[end:] = NO_KIND
    return kinds


def byte_offset(position: tuple[int, int], lines: list[str], offsets: list[int]) -> int:
    """Where a position of Python's tokenizer, (line from 1, column in characters), is in the bytes of the text."""
    line, column = position
    if line > len(lines):
        return offsets[-1]
    return offsets[line - 1] + len(lines[line - 1][:column].encode())


def kind_name(token: tokenize.TokenInfo) -> str | None:
    """The name in KINDS of a token of Python; None if it has none. Raises TokenError for what is not Python."""
    if token.type == tokenize.ERRORTOKEN and not token.string.isspace():
        raise tokenize.TokenError(token.string)
    if token.type == tokenize.NAME:
        return "keyword" if keyword.iskeyword(token.string) else "name"
    name = tokenize.tok_name[token.type]
    if name.startswith(("FSTRING", "TSTRING")):
        return "string"
    return {"OP": "operator", "NUMBER": "number", "STRING": "string", "COMMENT": "comment"}.get(name)
