"""Characters of a corpus to ids, fast: one table over pairs of bytes, and one over code points for what is not ASCII.

The plain twin is Tokenizer.encode(), one look-up per character. tests/tokenization/test_character_encoder.py compares
the two on any text.
"""

from collections.abc import Iterator
from itertools import pairwise

import numpy as np

from model.tokenization.pre_tokens import BLOCK, END

OPEN = 0xFFFF  # in the table over bytes: the byte alone does not decide the id


class CharacterEncoder:
    """Encodes documents with a character tokenizer. Each thread needs its own, because it counts unknown characters."""

    def __init__(self, tokenizer):
        self.table, self.unknown_id = tokenizer.character_to_id, tokenizer.unknown_id
        self.end_of_text_id = tokenizer.end_of_text_id
        # The ids of two neighbouring bytes at a time: twice as fast as one by one.
        ids = np.full(256, OPEN, "<u4")
        ids[:128] = np.where(self.table[:128] == self.unknown_id, OPEN, self.table[:128])
        self.pairs = (ids | ids[:, None] << 16).ravel()  # (65536,), by the first byte + 256 times the second
        self.unknown: dict[str, int] = {}  # characters without an id: how often they came

    def encode(self, data: bytes) -> Iterator[np.ndarray]:
        """Yield the ids of a text, (characters,) uint16, block by block. The text is documents with an END after each,
        which becomes the end-of-text id."""
        begin = 0
        while begin < len(data):
            end = begin + BLOCK
            while end < len(data) and data[end] & 0xC0 == 0x80:  # no character is cut in two
                end += 1
            yield self.encode_block(np.frombuffer(data, np.uint8)[begin:end])
            begin = end

    def encode_block(self, text: np.ndarray) -> np.ndarray:
        two = (np.append(text, np.uint8(0)) if len(text) % 2 else text).view("<u2")
        ids = self.pairs.take(two, mode="clip").view("<u2")[: len(text)]  # all are in range; "clip" is the fast way
        positions = np.flatnonzero(ids == OPEN)
        byte = text[positions]
        ids[positions[byte == END]] = self.end_of_text_id
        first = positions[(byte & 0xC0 != 0x80) & (byte != END)]  # where characters start
        characters = decode_utf8(text, first)
        ids[first] = found = self.table[characters]
        missing = characters[found == self.unknown_id]
        for character, count in zip(*np.unique(missing, return_counts=True), strict=True):
            self.unknown[chr(character)] = self.unknown.get(chr(character), 0) + int(count)
        rest = positions[byte & 0xC0 == 0x80]  # the other bytes of characters, which get no id
        if len(rest) * 200 > len(ids):
            return ids[(text & 0xC0) != 0x80]
        cuts = [-1, *rest.tolist(), len(ids)]  # few: copying the runs between them is faster than a mask
        return np.concatenate([ids[a + 1 : b] for a, b in pairwise(cuts)]) if len(rest) else ids


def decode_utf8(text: np.ndarray, first: np.ndarray) -> np.ndarray:
    """The Unicode numbers of the characters that start at `first`, in valid UTF-8 (RFC 3629)."""
    # After a short character, some of these bytes belong to the next ones; they are not used.
    b0, b1, b2, b3 = (text.take(first + i, mode="clip").astype(np.uint32) for i in range(4))
    b1, b2, b3 = b1 & 0x3F, b2 & 0x3F, b3 & 0x3F
    two, three = (b0 & 0x1F) << 6 | b1, (b0 & 0x0F) << 12 | b1 << 6 | b2
    four = (b0 & 0x07) << 18 | b1 << 12 | b2 << 6 | b3
    return np.select([b0 < 0x80, b0 < 0xE0, b0 < 0xF0], [b0, two, three], four)
