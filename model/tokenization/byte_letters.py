"""How a byte-level BPE file writes bytes: one visible letter per byte, as GPT-2 does, so that the file is text.

A byte that prints as one Latin-1 character is that character. The other 68, white space and control characters among
them, get the letters from U+0100 on, in order: a space is "Ġ", a newline "Ċ", and " def" is "Ġdef".
"""


def byte_letters() -> dict[int, str]:
    """The letter of each of the 256 bytes."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {byte: chr(byte) for byte in printable} | {byte: chr(0x100 + i) for i, byte in enumerate(others)}


BYTE_TO_LETTER = byte_letters()
LETTER_TO_BYTE = {letter: byte for byte, letter in BYTE_TO_LETTER.items()}
