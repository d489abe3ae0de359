"""Which kind of Python token each token of the model belongs to: indentation, keyword, name, ...

Python's own tokenizer gives every byte of a source file its kind, and a token of the model takes the kind of its first
byte that is not white space, else of its last byte. So training can report the loss per kind: names are hard, keywords
are easy.
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
    if not tokenizer.counts_bytes:
        return None
    tokens = val.tokens[max(0, start - LONGEST) : start + 1 + length]
    own = len(tokens) - length  # index of the first token in question
    ends = [*np.flatnonzero(tokens == tokenizer.end_of_text_id).tolist(), len(tokens)]
    first = max((end + 1 for end in ends if end < own), default=0)  # their document starts here
    if first == 0 and start > LONGEST:
        return None
    kinds = np.full(len(tokens), NO_KIND)
    for end in (end for end in ends if end >= own):  # more documents can follow in a block: each is Python by itself
        document = [tokenizer.token_bytes(token) for token in tokens[first:end]]
        by_byte = kinds_of_bytes(b"".join(document), whole=end < len(tokens))
        if by_byte is None:
            return None
        begin = 0
        for i, token in enumerate(document, first):
            space = len(token) - len(token.lstrip(b" \t\r\n\f"))
            kinds[i] = by_byte[begin + min(space, len(token) - 1)]
            begin += len(token)
        first = end + 1
    return kinds[own:]


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
    decoded = [*(line.decode("utf-8", errors="replace") for line in lines), ""]  # Python's last tokens are behind them
    end = 0
    try:
        for token in tokenize.generate_tokens(io.StringIO("".join(decoded), newline="").readline):
            positions = token.start, token.end  # (line from 1, column in characters)
            begin, end = (offsets[y - 1] + len(decoded[y - 1][:x].encode()) for y, x in positions)
            if (name := kind_name(token)) is not None:
                kinds[begin:end] = KINDS.index(name)
    except (tokenize.TokenError, SyntaxError, IndexError):
        if whole or end < len(text) - CUT_OFF:
            return None
        kinds[end:] = NO_KIND
    return kinds


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
