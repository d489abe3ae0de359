"""Text to token ids and back, for both kinds of tokenizer.

A tokenizer file is JSON of the `tokenizers` library. It holds a vocabulary, {token: id}, and for BPE the list of merges
in the order in which they were learned. The kind is in the file, as the type of its model: WordLevel or BPE.

- A character tokenizer has an id for each character of the corpus. Any other character becomes <|unk|>.
- A BPE tokenizer works on bytes. It starts with the 256 bytes and merges the most common neighbours into longer tokens,
  so it can write any text.

    >>> tokenizer.encode("hi\\n")          # characters: three ids
    array([75, 76, 2], dtype=uint16)
    >>> tokenizer.decode([75, 76, 2])
    'hi\\n'

Next: bpe_trainer_plain.py learns merges. bpe_encoder.py and character_encoder.py encode a whole corpus, fast.
"""

import hashlib
import json
import re
from collections import Counter
from collections.abc import Callable, Iterable
from functools import cached_property
from pathlib import Path

import numpy as np
import tokenizers
from tokenizers import decoders, models, pre_tokenizers

from model.tokenization.byte_letters import LETTER_TO_BYTE
from model.tokenization.file_check import check_content
from plumbing.corpus import END_OF_TEXT
from plumbing.errors import UserError
from plumbing.files import whole_file
from plumbing.text import shown_path

UNKNOWN = "<|unk|>"
KINDS = {"WordLevel": "char", "BPE": "bpe"}  # the type of the model in the file -> Tokenizer.kind
SPECIAL_TOKENS = {"char": [END_OF_TEXT, UNKNOWN], "bpe": [END_OF_TEXT]}  # their ids are 0, 1
PROMPT_TOKENS = 50_000  # enough to see what a text begins its lines with
# What transformers adds when it saves a tokenizer: a template that adds no token. It means the same as none.
EMPTY_TEMPLATE = {
    "type": "TemplateProcessing",
    "single": [{"Sequence": {"id": "A", "type_id": 0}}],
    "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
    "special_tokens": {},
}
MAX_FILE_SIZE = 12_000_000  # bytes; a file with 65,536 ids has about half of it


class Tokenizer:
    """A tokenizer, from the JSON text of its file. Raises UserError for one that this project did not write. kind is
    "char" or "bpe", sha256 the hash of the JSON text, meaning a hash of the vocabulary and merges, which stays the same
    however the file is written; unknown_id is None for BPE, which knows every byte."""

    counts_bytes = True  # ids stand for text, so that bits per byte can be computed

    def __init__(self, json_text: str, name: str = "the tokenizer"):
        try:
            content = json.loads(json_text)
            self.kind = KINDS[content["model"]["type"]]
            content |= {"padding": None, "truncation": None}  # where transformers notes what it was last asked for
            if content.get("post_processor") == EMPTY_TEMPLATE:
                content["post_processor"] = None
            empty = make_character_tokenizer("") if self.kind == "char" else make_bpe_tokenizer()
            check_content(content, json.loads(empty.to_str()), SPECIAL_TOKENS[self.kind])
            # From the checked content, not from json_text: in JSON, a key can have a second value.
            self.library = tokenizers.Tokenizer.from_str(json.dumps(content))
        except (KeyboardInterrupt, SystemExit):
            raise
        except UserError as error:
            raise UserError(f"{name} {error}") from None
        except BaseException as error:  # a panic in the library's Rust code is not an Exception
            raise UserError(f"{name} is not a tokenizer of this project: {error!r}"[:300]) from None
        self.library.encode_special_tokens = True  # <|endoftext|> in a text is text; the file cannot hold this setting
        self.json_text = json_text
        self.sha256 = hashlib.sha256(json_text.encode()).hexdigest()
        vocab = self.library.get_vocab()
        parts = [self.kind, sorted(vocab, key=vocab.get), content["model"].get("merges")]
        self.meaning = hashlib.sha256(json.dumps(parts).encode()).hexdigest()
        self.vocab_size = self.library.get_vocab_size()
        self.end_of_text_id = self.library.token_to_id(END_OF_TEXT)
        self.unknown_id = self.library.token_to_id(UNKNOWN) if self.kind == "char" else None

    @cached_property
    def character_to_id(self) -> np.ndarray:
        """The id of every character of Unicode, (1,114,112,) uint16, so that encoding characters is one look-up."""
        table = np.full(0x110000, self.unknown_id, np.uint16)
        for character, token in self.library.get_vocab().items():
            if len(character) == 1:  # the special tokens are longer
                table[ord(character)] = token
        return table

    def is_named(self, sha256: str) -> bool:
        """Whether this is the hash of the tokenizer's file, or of the file as this project wrote it."""
        return sha256 in (self.sha256, hashlib.sha256(self.library.to_str(pretty=True).encode()).hexdigest())

    def made(self, facts: dict) -> bool:
        """Whether a token file with these facts was made with this tokenizer. Old files do not have its meaning."""
        return facts.get("tokenizer_meaning") == self.meaning or self.is_named(facts["tokenizer_sha256"])

    def encode(self, text: str) -> np.ndarray:
        """The ids of a text, (tokens,) uint16. Text never becomes a special token, except for <|unk|>."""
        if self.kind == "char":
            return self.character_to_id[code_points(text)]
        return np.array(self.library.encode(text, add_special_tokens=False).ids, np.uint16)

    def decode(self, ids) -> str:
        """The text of ids, special tokens written out. Bytes that are not UTF-8 (half a character) become U+FFFD."""
        ids = list(map(int, ids))
        known = {token: self.token_bytes(token) for token in set(ids)}  # looked up once, however often it occurs
        return b"".join(map(known.__getitem__, ids)).decode("utf-8", errors="replace")

    def token_string(self, token: int) -> str:
        """A token as the file writes it. For BPE, a letter stands for each byte: " def" is "Ġdef"."""
        return self.library.id_to_token(int(token))

    def token_bytes(self, token: int) -> bytes:
        """The bytes of text that a token stands for. A BPE token can hold half a character."""
        string = self.token_string(token)
        return string.encode() if self.kind == "char" else bytes(LETTER_TO_BYTE[letter] for letter in string)

    def unknown(self, text: str, ids: np.ndarray) -> list[str]:
        """The characters of a text that became <|unk|>, in order; empty for BPE."""
        return [text[i] for i in np.flatnonzero(ids == self.unknown_id)] if self.kind == "char" else []

    def ends_document(self, token: int) -> bool:
        return token == self.end_of_text_id

    def prompt_from(self, ids) -> str:
        """A prompt to try, for a model of such ids: "def" if they are Python, else the word that begins most lines."""
        text = self.decode(ids[:PROMPT_TOKENS])
        words = Counter(re.findall(r"^\s*([^\W\d_]{2,})", text, re.MULTILINE))
        return "def" if words["def"] else max(words, key=words.get, default=(text.strip() or text)[:1])


class BareIds:
    """Takes the place of a Tokenizer where there are only ids: a token's text is its id and a space, "17 4 ". No id is
    known to end a document. A text without a prompt starts with id 0."""

    kind, end_of_text_id, unknown_id = "none", 0, None
    counts_bytes = False  # the text is unknown, and so is its number of bytes

    def __init__(self, vocab_size: int):
        self.vocab_size = vocab_size
        self.json_text = json.dumps({"ids": vocab_size})
        self.sha256 = hashlib.sha256(self.json_text.encode()).hexdigest()

    def is_named(self, sha256: str) -> bool:
        return sha256 == self.sha256

    def encode(self, text: str) -> np.ndarray:
        """The ids that a text lists, (tokens,) uint16: "17 4" gives [17, 4]. Raises UserError for anything else."""
        ids = text.split()
        if not all(id.isascii() and id.isdecimal() and int(id[:9]) < self.vocab_size and len(id) < 9 for id in ids):
            raise UserError(
                f"This model has no tokenizer: its texts are ids from 0 to {self.vocab_size - 1:,}, such as 17 4."
            )
        return np.array([int(id) for id in ids], np.uint16)

    def prompt_from(self, ids) -> str:
        return str(int(ids[0]))

    def decode(self, ids) -> str:
        return "".join(f"{token} " for token in ids)

    def token_string(self, token: int) -> str:
        return str(token)

    def token_bytes(self, token: int) -> bytes:
        return f"{token} ".encode()

    def unknown(self, text: str, ids: np.ndarray) -> list[str]:
        return []

    def ends_document(self, token: int) -> bool:
        return False


def encode_prompt(tokenizer: Tokenizer | BareIds, prompt: str, block_size: int, say: Callable = print) -> list[int]:
    """The ids to generate from: the last block_size of the prompt, or <|endoftext|> if the prompt is empty. Calls say()
    with a line for the user if the prompt has unknown characters, ends with a space or is too long."""
    try:
        prompt.encode()
    except UnicodeEncodeError:
        raise UserError("The prompt is not valid text: it has bytes that are not UTF-8.") from None
    ids = tokenizer.encode(prompt)
    if unknown := tokenizer.unknown(prompt, ids):
        say(f"Never seen in training, so read as {UNKNOWN}: {', '.join(map(repr, dict.fromkeys(unknown)))}")
    if tokenizer.kind == "bpe" and prompt.endswith(" "):
        say(
            "Note: the prompt ends with a space. A BPE token includes the space before a word, so this model has "
            "seldom seen one alone. Leave it out."
        )
    if len(ids) > block_size:
        say(f"The prompt has {len(ids):,} tokens. The model sees {block_size}: the last {block_size} count.")
    return ids[-block_size:].tolist() or [tokenizer.end_of_text_id]


def check_round_trip(tokenizer: Tokenizer, texts: Iterable[str]) -> tuple[int, int]:
    """Encode and decode each text and compare. Returns (tokens, UTF-8 bytes); raises UserError if a text differs."""
    tokens = utf8_bytes = 0
    for text in texts:
        ids = tokenizer.encode(text)
        if tokenizer.decode(ids) != text:
            raise UserError(f"The tokenizer does not give back the text that begins {text[:60]!r}. Train it again.")
        tokens, utf8_bytes = tokens + len(ids), utf8_bytes + len(text.encode())
    return tokens, utf8_bytes


def load_tokenizer(path: Path) -> Tokenizer:
    """Read a tokenizer file. Raises UserError if it is missing or unreadable, or if this project did not write it."""
    if not path.is_file():
        raise UserError(
            f"There is no tokenizer {shown_path(path)}. Train one with scripts/train_tokenizer_character_level.py "
            "or scripts/train_tokenizer_bpe.py."
        )
    if path.stat().st_size > MAX_FILE_SIZE:
        raise UserError(f"{shown_path(path)} is not a tokenizer file: it is too large.")
    try:
        return Tokenizer(path.read_bytes().decode("utf-8"), shown_path(path))
    except UnicodeDecodeError:
        raise UserError(f"{shown_path(path)} is not a tokenizer file: it is not UTF-8.") from None


def reloaded(library: tokenizers.Tokenizer) -> Tokenizer:
    """The tokenizer as load_tokenizer() will read it from the file that save_tokenizer() writes. Raises UserError if it
    would refuse the file."""
    text = library.to_str(pretty=True)
    if (size := len(text.encode())) > MAX_FILE_SIZE:
        longest = max(map(len, library.get_vocab()))
        raise UserError(
            f"The tokenizer's file would have {size:,} bytes, and {MAX_FILE_SIZE:,} is the most that can be read back: "
            f"its longest token has {longest:,} bytes. Nothing was written. Take such long words out of the text, or "
            "use a smaller --vocab-size."
        )
    return Tokenizer(text, "the new tokenizer")


def save_tokenizer(tokenizer: Tokenizer, path: Path) -> None:
    """Write a tokenizer file: of a new tokenizer, what reloaded() gives."""
    with whole_file(path) as file:
        file.write(tokenizer.json_text.encode())


def make_character_tokenizer(characters: Iterable[str]) -> tokenizers.Tokenizer:
    """A tokenizer with an id for each of the characters, in Unicode order, after the special tokens: "ab" gives
    {"<|endoftext|>": 0, "<|unk|>": 1, "a": 2, "b": 3}."""
    vocab = {token: i for i, token in enumerate([*SPECIAL_TOKENS["char"], *sorted(set(characters))])}
    library = tokenizers.Tokenizer(models.WordLevel(vocab, unk_token=UNKNOWN))
    library.add_special_tokens(SPECIAL_TOKENS["char"])
    library.pre_tokenizer = pre_tokenizers.Split(tokenizers.Regex(r"[\s\S]"), "isolated")  # into single characters
    library.decoder = decoders.Fuse()  # joins tokens without a space between them
    return library


def make_bpe_tokenizer(model: models.BPE | None = None) -> tokenizers.Tokenizer:
    """A byte-level BPE tokenizer with this vocabulary and these merges; without them, one that has yet to learn."""
    library = tokenizers.Tokenizer(model or models.BPE())
    library.add_special_tokens(SPECIAL_TOKENS["bpe"])
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # a space before the text would change it
    library.decoder = decoders.ByteLevel()
    return library


def code_points(text: str) -> np.ndarray:
    """The Unicode numbers of a text's characters, (characters,) uint32."""
    return np.frombuffer(text.encode("utf-32-le", errors="surrogatepass"), dtype="<u4")
