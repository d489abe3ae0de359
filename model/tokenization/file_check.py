"""Refuses tokenizer files that this project did not write, before the `tokenizers` library sees them.

The library panics on some files (BPE with a continuing_subword_prefix, for example), and a file can carry a regular
expression that never ends. So a file may differ from an empty tokenizer of its kind only in its vocabulary and merges,
and these must be consistent. Tokenizer calls check_content(); each check raises an error that says what is wrong.
"""

from dataset import MAX_VOCAB_SIZE
from model.tokenization.byte_letters import LETTER_TO_BYTE
from plumbing.errors import UserError


def check_content(content: dict, expected: dict, special: list[str]) -> None:
    """Check a tokenizer file. `expected` is the content of an empty tokenizer of its kind."""
    model = content["model"]
    check_ids(model["vocab"], special)
    check_keys(content, expected, {"model"})
    check_keys(model, expected["model"], {"vocab", "merges"})
    tokens = [token for token in model["vocab"] if token not in special]
    "".join(tokens).encode()  # raises UnicodeEncodeError for half a surrogate pair
    if "merges" in expected["model"]:
        check_byte_pairs(tokens, model["merges"])
    elif "merges" in model or any(len(token) != 1 for token in tokens):
        raise ValueError("a token is not one character")


def check_ids(vocab: dict[str, int], special: list[str]) -> None:
    if not all(type(token) is int and 0 <= token < 2**64 for token in vocab.values()):
        raise ValueError("an id is not a whole number, or is far too large")
    if any(token not in vocab for token in special):
        raise UserError(f"lacks a special token, {' or '.join(special)}. Train it again.")
    if (largest := max(vocab.values())) >= MAX_VOCAB_SIZE:
        raise UserError(f"has the id {largest:,}, which does not fit uint16. Train a smaller one.")
    if sorted(vocab.values()) != list(range(len(vocab))):
        raise ValueError("its ids are not 0, 1, 2, ...")


def check_keys(content: dict, expected: dict, free: set[str]) -> None:
    """Every key must have the value that the library writes for us, except for those that are free."""
    for key in (content.keys() | expected.keys()) - free:
        if key not in content or key not in expected or content[key] != expected[key]:
            raise ValueError(f"its {key[:40]} differs from that of this project's tokenizers")


def check_byte_pairs(tokens: list[str], merges: list[list[str]]) -> None:
    """Every byte must be a token, every token must be made of bytes, and every merge must join tokens to a token."""
    letters, known = LETTER_TO_BYTE.keys(), set(tokens)
    if not all(token and letters >= set(token) for token in tokens) or not known >= letters:
        raise ValueError("its tokens are not made of the 256 bytes")
    for left, right in merges:
        if not {left, right, left + right} <= known:
            raise ValueError("a merge has no id")
