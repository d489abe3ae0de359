"""model/words.py and model/bpe.py: the ids and merges of the `tokenizers` library, on every text; and characters."""

import random
import sysconfig
import threading
from collections import Counter
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest
import tokenizers
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import pre_tokenizers, trainers

from model.tokenization import bpe_encoder as words
from model.tokenization.bpe_encoder import END, WordEncoder, blocks, distinct_words
from model.tokenization.bpe_trainer import train_bpe_tokenizer
from model.tokenization.character_encoder import CharacterEncoder
from model.tokenization.tokenizer import UNKNOWN, Tokenizer, byte_pairs, make_character_tokenizer
from plumbing.corpus import END_OF_TEXT

STDLIB = sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))
CODE = [path.read_bytes().decode() for path in STDLIB[::9] if path.stat().st_size]

# What the pattern of words makes a difference of, in every order: suffixes, blanks, line ends, white space that is not
# ASCII (or not white in every library), letters with and without case, digits, marks, NUL, control characters.
SUFFIXES = "' 's 't 're 've 'll 'd 'm 'S 'r s".split(" ")
WHITE = [
    " ",
    "  ",
    "\n",
    "\n\n",
    "\t",
    "\r\n",
    "\v",
    "\f",
    "\x85",
    "\xa0",
    "\u2028",
    "\u3000",
    " " * 17,
    "\n" + " " * 12,
]
OTHERS = ["a", "foo", "Bar_", "1", "23", ".", "((", "==", "\0", "\x1c", "\x1f", "\x7f", "x" * 20, END_OF_TEXT]
NOT_ASCII = ["é", "\u017f", "İ", "日本", "🐍", "²", "\u0661", "\u0301", "\ufeff"]
pieces = st.sampled_from([*SUFFIXES, *WHITE, *OTHERS, *NOT_ASCII])
texts = st.lists(pieces | st.characters(codec="utf-8"), min_size=1, max_size=14).map("".join)


@pytest.fixture(scope="module")
def bpe() -> Tokenizer:
    return Tokenizer(train_bpe_tokenizer(CODE[::3], 600).to_str())


def joined(documents: list[str]) -> bytes:
    return b"".join(document.encode() + bytes([END]) for document in documents)


def library_ids(tokenizer: Tokenizer, documents: list[str]) -> list[int]:
    found = (tokenizer.library.encode(document, add_special_tokens=False).ids for document in documents)
    return [token for ids in found for token in [*ids, tokenizer.end_of_text_id]]


def our_ids(encoder, documents: list[str]) -> list[int]:
    return [token for ids in encoder.encode(joined(documents)) for token in ids.tolist()]


# === byte pairs =======================================================================================================


@settings(max_examples=400, deadline=None)
@given(documents=st.lists(texts, max_size=5), block=st.sampled_from([1, 7, 1 << 20]))
@example(documents=["don't 's x'll'd b'text' ''s ' 's"], block=1)
@example(documents=["a\xa0'sé b", "日本  x \u3000 y'sé's 's"], block=1)
@example(documents=["x  ", "  y", "\n", "a\n \n  b\n\n"], block=1)
def test_any_text_has_the_ids_of_the_library(bpe, documents, block):
    with patch.object(words, "WORD_BLOCK", block):
        assert our_ids(WordEncoder(bpe), documents) == library_ids(bpe, documents)


def test_every_short_text_of_the_kinds_that_matter(bpe):
    """All of four pieces: 10,000 texts."""
    alphabet = [" ", "\n", "a", "1", ".", "'", "s", "é", "\xa0", "\0"]
    every = [a + b + c + d for a in alphabet for b in alphabet for c in alphabet for d in alphabet]
    assert our_ids(WordEncoder(bpe), every) == library_ids(bpe, every)


def test_every_byte_that_is_ascii_has_the_kind_that_the_library_sees(bpe):
    """Between letters, blanks, digits and others, so that a wrong kind would show."""
    every = [
        f"{a}{chr(i)}{b}" for i in range(128) for a in ("x", " ", "1", ".", "\n") for b in ("x", " ", "1", ".", "")
    ]
    assert our_ids(WordEncoder(bpe), every) == library_ids(bpe, every)


@pytest.mark.parametrize("step", [9, pytest.param(1, marks=pytest.mark.slow)], ids=["a ninth", "all"])
def test_the_standard_library_has_the_ids_of_the_library(bpe, step):
    paths = [path for path in sorted(STDLIB[0].parent.rglob("*.py")) if "site-packages" not in path.parts]
    documents = []
    for path in paths[::step] if step == 1 else STDLIB[::step]:
        with_text = path.read_bytes().decode(errors="ignore")
        documents += [with_text] if with_text else []
    assert our_ids(WordEncoder(bpe), documents) == library_ids(bpe, documents)


def test_a_full_memory_changes_nothing(bpe):
    """Words for which there is no room are encoded whenever they come; two texts at a time, three words remembered."""
    expected = library_ids(bpe, CODE[:6])
    for name, value in (("WORDS", 3), ("LONGEST", 2), ("TOGETHER", 2)):
        with patch.object(words, name, value), patch.object(words, "WORD_BLOCK", 500):
            encoder = WordEncoder(bpe)
            assert our_ids(encoder, CODE[:6]) == expected
            assert our_ids(encoder, CODE[:6]) == expected
            assert name != "WORDS" or len(encoder.known) < 200


def test_words_that_are_not_remembered_take_no_memory(bpe):
    encoder = WordEncoder(bpe)
    for i in range(5):
        document = f"日本{i}" * 200 + " a"  # white space is what ends such a word
        assert our_ids(encoder, [document]) == library_ids(bpe, [document])
    assert len(encoder.known) == 2 and encoder.used == sum(span & 0xFFFFFFFF for span in encoder.known.values())


def test_threads_share_an_encoder(bpe):
    encoder, found = WordEncoder(bpe), {}
    with patch.object(words, "WORD_BLOCK", 1000):
        threads = [
            threading.Thread(target=lambda i=i: found.update({i: our_ids(encoder, CODE[i % 3 :: 3])})) for i in range(6)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert [found[i] for i in range(6)] == [library_ids(bpe, CODE[i % 3 :: 3]) for i in range(6)]


@settings(max_examples=100, deadline=None)
@given(documents=st.lists(texts, max_size=4), size=st.integers(1, 40))
def test_blocks_leave_words_whole(documents, size):
    data = joined(documents)
    assert b"".join(blocks(data, size)) == data
    whole = [distinct_words(data)[0][i] for i in distinct_words(data)[1]]
    cut = [found[i] for block in blocks(data, size) for found, index in [distinct_words(block)] for i in index]
    assert cut == whole


# === learning merges ==================================================================================================


def library_training(documents: list[str], vocab_size: int) -> str:
    library = byte_pairs()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=[END_OF_TEXT], initial_alphabet=alphabet, show_progress=False
    )
    library.train_from_iterator(documents, trainer)
    return library.to_str()


@settings(max_examples=150, deadline=None)
@given(
    documents=st.lists(
        st.lists(st.sampled_from(["a", "b", "ab", "aa", " ", "é"]), max_size=30).map("".join), max_size=6
    )
)
@example(documents=["aaaa aaa aa aaaaaaa", "abababa bababab"])
def test_merges_are_those_of_the_library(documents):
    assert train_bpe_tokenizer(documents, 300).to_str() == library_training(documents, 300)


def test_merges_of_code_are_those_of_the_library():
    documents = [*CODE, "日本語 日本 é", "\0\0 \0x", "don't"]
    assert train_bpe_tokenizer(documents, 3000).to_str() == library_training(documents, 3000)


# === characters =======================================================================================================


@settings(max_examples=200, deadline=None)
@given(documents=st.lists(texts, max_size=5), block=st.sampled_from([1, 5, 1 << 18]))
def test_characters_have_the_ids_of_a_plain_loop(documents, block):
    tokenizer = Tokenizer(make_character_tokenizer("abfo 1.'\né日🐍\0").to_str())
    vocab = tokenizer.library.get_vocab()
    expected = [i for document in documents for i in [*(vocab.get(c, vocab[UNKNOWN]) for c in document), 0]]
    encoder = CharacterEncoder(tokenizer)
    with patch.object(words, "BLOCK", block):
        assert our_ids(encoder, documents) == expected
    assert encoder.unknown == Counter(c for document in documents for c in document if c not in vocab)


def test_character_ids_that_do_not_fit_a_byte():
    """Other tools may number the characters as they like."""
    library = make_character_tokenizer(map(chr, range(32, 700)))
    vocab = library.get_vocab()
    order = sorted(vocab, key=vocab.get)
    turned = {token: i for i, token in enumerate([*order[:2], *order[:1:-1]])}  # a is one of the last
    model = tokenizers.models.WordLevel(turned, unk_token=UNKNOWN)
    library.model = model
    tokenizer = Tokenizer(library.to_str())
    documents = ["abc é\n", "zzz"]
    assert turned["a"] > 255
    assert our_ids(CharacterEncoder(tokenizer), documents) == library_ids(tokenizer, documents)


def test_all_characters_of_every_length():
    rng = random.Random(2)
    every = [chr(i) for i in range(0x110000) if not 0xD800 <= i < 0xE000]
    text = "".join(rng.sample(every, 60_000))
    tokenizer = Tokenizer(make_character_tokenizer(text[:40_000]).to_str())
    encoder = CharacterEncoder(tokenizer)
    ids = np.concatenate(list(encoder.encode(joined([text]))))[:-1]
    assert (ids == tokenizer.encode(text)).all()
    assert set(encoder.unknown) == set(text[40_000:])
