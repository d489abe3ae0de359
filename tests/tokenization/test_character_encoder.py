"""model/tokenization/character_encoder.py: the ids of a plain loop over the characters."""

import random
from collections import Counter
from unittest.mock import patch

import numpy as np
import tokenizers
from encoder_texts import library_ids, our_ids, texts
from hypothesis import given, settings
from hypothesis import strategies as st

from model.tokenization import character_encoder
from model.tokenization.character_encoder import CharacterEncoder
from model.tokenization.pre_tokens import join_documents
from model.tokenization.tokenizer import UNKNOWN, Tokenizer, make_character_tokenizer


@settings(max_examples=200, deadline=None)
@given(documents=st.lists(texts, max_size=5), block=st.sampled_from([1, 5, 1 << 18]))
def test_characters_have_the_ids_of_a_plain_loop(documents, block):
    tokenizer = Tokenizer(make_character_tokenizer("abfo 1.'\né日🐍\0").to_str())
    vocab = tokenizer.library.get_vocab()
    expected = [i for document in documents for i in [*(vocab.get(c, vocab[UNKNOWN]) for c in document), 0]]
    encoder = CharacterEncoder(tokenizer)
    with patch.object(character_encoder, "BLOCK", block):
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
    ids = np.concatenate(list(encoder.encode(join_documents([text.encode()]))))[:-1]
    assert (ids == tokenizer.encode(text)).all()
    assert set(encoder.unknown) == set(text[40_000:])
