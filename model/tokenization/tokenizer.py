"""Text to token ids and back, for both kinds of tokenizer, from one file of the `tokenizers` library.

A character tokenizer gives every character an id of its own. A BPE tokenizer works on bytes: it starts from the 256
bytes and merges the commonest neighbours into longer pieces, so it can write any text. Which kind a file holds stands
in the file itself (its model is called WordLevel or BPE).

    >>> tokenizer.encode("hi\\n")          # characters: three ids
    array([75, 76, 2], dtype=uint16)
    >>> tokenizer.decode([75, 76, 2])
    'hi\\n'
"""

import hashlib
import json
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import tokenizers
from tokenizers import decoders, models, pre_tokenizers

from dataset import MAX_VOCAB_SIZE
from plumbing.corpus import END_OF_TEXT
from plumbing.errors import UserError
from plumbing.files import whole_file
from plumbing.text import shown_path

UNKNOWN = "<|unk|>"
MAX_FILE_SIZE = 12_000_000  # bytes; 65,536 ids take about half of it
KINDS = {"WordLevel": "char", "BPE": "bpe"}  # how the file's model is called -> what we call it


class Tokenizer:
    """A tokenizer read from its JSON text. Raises UserError for one that this project cannot use.

    kind "char" or "bpe"; sha256 of the JSON text; vocab_size; end_of_text_id; unknown_id (None for BPE, which knows
    every byte).
    """

    def __init__(self, json_text: str, name: str = "the tokenizer"):
        try:
            self.kind, content = check_tokenizer(json_text)
            # Written anew, so that the library reads what was checked and not, say, a key's second value.
            self.library = tokenizers.Tokenizer.from_str(json.dumps(content))
        except (KeyboardInterrupt, SystemExit):
            raise
        except UserError as error:
            raise UserError(f"{name} {error}") from None
        except BaseException as error:  # a panic of the library's Rust code is no Exception
            raise UserError(f"{name} is not a tokenizer of this project: {error!r}"[:300]) from None
        # Text that reads <|endoftext|> is text. The library does not save this setting, so it has its place here.
        self.library.encode_special_tokens = True
        self.json_text = json_text
        self.sha256 = hashlib.sha256(json_text.encode()).hexdigest()
        self.vocab_size = self.library.get_vocab_size()
        self.end_of_text_id = self.library.token_to_id(END_OF_TEXT)
        self.unknown_id = self.library.token_to_id(UNKNOWN) if self.kind == "char" else None
        if self.kind == "char":
            self.character_to_id = character_table(self.library.get_vocab(), self.unknown_id)

    def encode(self, text: str) -> np.ndarray:
        """The ids of a text, (tokens,) uint16. Special tokens never come out of text."""
        return self.encode_batch([text])[0]

    def encode_batch(self, texts: list[str]) -> list[np.ndarray]:
        """The ids of each text. For BPE, the library spreads a batch over the cores."""
        if self.kind == "bpe":
            return [np.array(e.ids, np.uint16) for e in self.library.encode_batch_fast(texts, add_special_tokens=False)]
        return [self.character_to_id[code_points(text)] for text in texts]

    def unknown(self, text: str, ids: np.ndarray) -> list[str]:
        """The characters of a text that became <|unk|>, in order; empty for BPE."""
        return [text[i] for i in np.flatnonzero(ids == self.unknown_id)] if self.kind == "char" else []

    def decode(self, ids) -> str:
        """The text of ids, special tokens written out. Bytes that are not UTF-8 (half a character) become U+FFFD."""
        return b"".join(map(self.token_bytes, ids)).decode("utf-8", errors="replace")

    def piece(self, token: int) -> str:
        """A token as the tokenizer's file writes it: for BPE, bytes stand as visible letters ("Ġdef" for " def")."""
        return self.library.id_to_token(int(token))

    def token_bytes(self, token: int) -> bytes:
        """The bytes of text that a token stands for. A BPE token can hold half a character."""
        piece = self.piece(token)
        if self.kind == "char":
            return piece.encode()
        return bytes(LETTER_TO_BYTE[letter] for letter in piece)


class BareIds:
    """Stands in where ids came without their tokenizer: a token's text is its number and a space, "17 4 ".

    No id is known to end a document. Texts that begin without a prompt begin with id 0.
    """

    kind, end_of_text_id, unknown_id = "none", 0, None

    def __init__(self, vocab_size: int):
        self.vocab_size = vocab_size
        self.json_text = json.dumps({"ids": vocab_size})
        self.sha256 = hashlib.sha256(self.json_text.encode()).hexdigest()

    def encode(self, text: str) -> np.ndarray:
        """The ids that a text lists, (tokens,) uint16: "17 4" gives [17, 4]. Raises UserError for anything else."""
        ids = text.split()
        if not all(id.isascii() and id.isdecimal() and int(id[:9]) < self.vocab_size and len(id) < 9 for id in ids):
            raise UserError(
                f"This model has no tokenizer: its texts are ids from 0 to {self.vocab_size - 1:,}, as 17 4."
            )
        return np.array([int(id) for id in ids], np.uint16)

    def encode_batch(self, texts: list[str]) -> list[np.ndarray]:
        return [self.encode(text) for text in texts]

    def unknown(self, text: str, ids: np.ndarray) -> list[str]:
        return []

    def decode(self, ids) -> str:
        return "".join(f"{token} " for token in ids)

    def piece(self, token: int) -> str:
        return str(token)

    def token_bytes(self, token: int) -> bytes:
        return f"{token} ".encode()


def encode_prompt(
    tokenizer: Tokenizer | BareIds, prompt: str, block_size: int, say: Callable[[str], None] = print
) -> list[int]:
    """The token ids to start from: those of the prompt, the last block_size at most, or <|endoftext|> where it has
    none. What the user should know of them is handed to `say`."""
    try:
        prompt.encode()
    except UnicodeEncodeError:
        raise UserError("The prompt is not valid text: it holds bytes that are not UTF-8.") from None
    ids = tokenizer.encode(prompt)
    if unknown := tokenizer.unknown(prompt, ids):
        say(f"Never seen in training, so read as {UNKNOWN}: {', '.join(map(repr, dict.fromkeys(unknown)))}")
    if len(ids) > block_size:
        say(f"The prompt has {len(ids):,} tokens. The model sees {block_size}: the last {block_size} count.")
    return ids[-block_size:].tolist() or [tokenizer.end_of_text_id]


def check_tokenizer(json_text: str) -> tuple[str, dict]:
    """The kind and the content of a tokenizer's JSON text. Raises an error for one that this project does not write.

    Before the library sees it, which panics on some files (BPE with a continuing_subword_prefix, say) and runs regular
    expressions that never come to an end. So a file may differ from what make_character_tokenizer() and
    train_bpe_tokenizer() write in its vocabulary and its merges alone, and there only in what makes sense.
    """
    content = json.loads(json_text)
    model = content["model"]
    kind, vocab = KINDS[model["type"]], model["vocab"]
    special = [END_OF_TEXT, UNKNOWN] if kind == "char" else [END_OF_TEXT]
    if not all(type(token) is int and 0 <= token < 2**64 for token in vocab.values()):
        raise ValueError("an id is no whole number, or no sensible one")
    if any(token not in vocab for token in special):
        raise UserError(f"lacks the special token {END_OF_TEXT} or {UNKNOWN}. Train it again.")
    if (largest := max(vocab.values())) >= MAX_VOCAB_SIZE:
        raise UserError(f"has the id {largest:,}, more than uint16 can hold. Train a smaller one.")
    if sorted(vocab.values()) != list(range(len(vocab))):
        raise ValueError("its ids are not 0, 1, 2, ...")

    # --- all but vocabulary and merges is as the library writes it for us ---------------------------------------------
    library = make_character_tokenizer("") if kind == "char" else byte_pairs()
    library.add_special_tokens(special)
    ours = json.loads(library.to_str())
    for theirs, expected, free in ((content, ours, {"model"}), (model, ours["model"], {"vocab", "merges"})):
        for key in {**theirs, **expected}:
            if key not in free and not (key in theirs and key in expected and theirs[key] == expected[key]):
                raise ValueError(f"its {key[:40]} is not the one of this project's {kind} tokenizers")

    # --- tokens and merges --------------------------------------------------------------------------------------------
    tokens = [token for token in vocab if token not in special]
    "".join(tokens).encode()  # raises an error for half a surrogate pair
    if kind == "char":
        if "merges" in model or any(len(token) != 1 for token in tokens):
            raise ValueError("a token is not one character")
        return kind, content
    letters, known = LETTER_TO_BYTE.keys(), set(tokens)
    if not all(token and letters >= set(token) for token in tokens) or not known >= letters:
        raise ValueError("its tokens are not made of the 256 bytes")
    for left, right in model["merges"]:
        if not {left, right, left + right} <= known:
            raise ValueError("it merges what has no id")
    return kind, content


def load_tokenizer(path: Path) -> Tokenizer:
    """Read a tokenizer file. Raises UserError where it is missing, unreadable, or not of this project."""
    path = Path(path)
    if not path.is_file():
        raise UserError(
            f"There is no tokenizer {shown_path(path)}. Train one with scripts/train_tokenizer_character_level.py "
            "or scripts/train_tokenizer_bpe.py."
        )
    if path.stat().st_size > MAX_FILE_SIZE:
        raise UserError(f"{shown_path(path)} is not a tokenizer file: it is too large to be one.")
    try:
        return Tokenizer(path.read_bytes().decode("utf-8"), shown_path(path))
    except UnicodeDecodeError:
        raise UserError(f"{shown_path(path)} is not a tokenizer file: it is not UTF-8.") from None


def save_tokenizer(library: tokenizers.Tokenizer, path: Path) -> None:
    """Write a tokenizer of the library to its JSON file."""
    with whole_file(path) as file:
        file.write(library.to_str(pretty=True).encode())


# --- making one -------------------------------------------------------------------------------------------------------


def make_character_tokenizer(characters: Iterable[str]) -> tokenizers.Tokenizer:
    """A tokenizer that gives each of the characters an id, in the order of their Unicode numbers, after the special ids
    0 (<|endoftext|>) and 1 (<|unk|>): "ab" gives {"<|endoftext|>": 0, "<|unk|>": 1, "a": 2, "b": 3}.
    """
    vocab = {token: i for i, token in enumerate([END_OF_TEXT, UNKNOWN, *sorted(set(characters))])}
    library = tokenizers.Tokenizer(models.WordLevel(vocab, unk_token=UNKNOWN))
    library.add_special_tokens([END_OF_TEXT, UNKNOWN])
    library.pre_tokenizer = pre_tokenizers.Split(tokenizers.Regex(r"[\s\S]"), "isolated")  # every character is a word
    library.decoder = decoders.Fuse()  # and words follow each other without a space
    return library


def byte_pairs(model: models.BPE | None = None) -> tokenizers.Tokenizer:
    """A byte-level BPE tokenizer; without a model, one that has learned nothing yet."""
    library = tokenizers.Tokenizer(model or models.BPE())
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # a space of its own would change code
    library.decoder = decoders.ByteLevel()
    return library


def check_round_trip(tokenizer: Tokenizer, texts: Iterable[str]) -> tuple[int, int]:
    """Encode and decode each text and compare. Returns (tokens, UTF-8 bytes); raises UserError where they differ."""
    tokens = utf8_bytes = 0
    for text in texts:
        ids = tokenizer.encode(text)
        if tokenizer.decode(ids) != text:
            raise UserError(f"The tokenizer does not give back the text that begins {text[:60]!r}. Train it again.")
        tokens, utf8_bytes = tokens + len(ids), utf8_bytes + len(text.encode())
    return tokens, utf8_bytes


# --- tables -----------------------------------------------------------------------------------------------------------


def code_points(text: str) -> np.ndarray:
    """The Unicode numbers of a text's characters, (characters,) uint32."""
    return np.frombuffer(text.encode("utf-32-le", errors="surrogatepass"), dtype="<u4")


def character_table(vocab: dict[str, int], unknown_id: int) -> np.ndarray:
    """(1,114,112,) uint16: the id of every character that Unicode can name, so that encoding is one look-up."""
    table = np.full(0x110000, unknown_id, np.uint16)
    for character, token in vocab.items():
        if len(character) == 1:  # the special tokens are longer and never match a character
            table[ord(character)] = token
    return table


def byte_letters() -> dict[int, str]:
    """The letter that byte-level BPE writes for each byte, so that its file is readable text (as GPT-2 does).

    Bytes that print as one Latin-1 character stand for themselves; the other 68, white space and control characters
    among them, take the letters from U+0100 on, in order: a space is "Ġ", a newline "Ċ".
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {byte: chr(byte) for byte in printable} | {byte: chr(0x100 + i) for i, byte in enumerate(others)}


LETTERS = byte_letters()
LETTER_TO_BYTE = {letter: byte for byte, letter in LETTERS.items()}
