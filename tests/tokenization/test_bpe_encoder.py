"""model/tokenization/bpe_encoder.py and pre_tokens.py: the ids of the `tokenizers` library, on every text."""

import subprocess
import sys
import sysconfig
import threading
from pathlib import Path
from unittest.mock import patch

import pytest
from encoder_texts import library_ids, our_ids, texts
from hypothesis import example, given, settings
from hypothesis import strategies as st
from sources import ROOT

from model.tokenization import bpe_encoder
from model.tokenization.bpe_encoder import BPEEncoder
from model.tokenization.bpe_trainer import train_bpe_tokenizer
from model.tokenization.pre_tokens import cut_blocks, distinct_pre_tokens, join_documents
from model.tokenization.tokenizer import Tokenizer

STDLIB = sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))
CODE = [path.read_bytes().decode() for path in STDLIB[::9] if path.stat().st_size]


@pytest.fixture(scope="module")
def bpe() -> Tokenizer:
    return Tokenizer(train_bpe_tokenizer(CODE[::3], 600).to_str())


@settings(max_examples=130, deadline=None)
@given(documents=st.lists(texts, max_size=5), block=st.sampled_from([1, 7, 1 << 20]))
@example(documents=["don't 's x'll'd b'text' ''s ' 's"], block=1)
@example(documents=["a\xa0'sé b", "日本  x \u3000 y'sé's 's"], block=1)
@example(documents=["x  ", "  y", "\n", "a\n \n  b\n\n"], block=1)
def test_any_text_has_the_ids_of_the_library(bpe, documents, block):
    with patch.object(bpe_encoder, "WORD_BLOCK", block):
        assert our_ids(BPEEncoder(bpe), documents) == library_ids(bpe, documents)


def test_every_short_text_of_the_kinds_that_matter(bpe):
    """All of four pieces: 10,000 texts."""
    alphabet = [" ", "\n", "a", "1", ".", "'", "s", "é", "\xa0", "\0"]
    every = [a + b + c + d for a in alphabet for b in alphabet for c in alphabet for d in alphabet]
    assert our_ids(BPEEncoder(bpe), every) == library_ids(bpe, every)


def test_every_byte_that_is_ascii_has_the_kind_that_the_library_sees(bpe):
    """Between letters, blanks, digits and others, so that a wrong kind would show."""
    every = [
        f"{a}{chr(i)}{b}" for i in range(128) for a in ("x", " ", "1", ".", "\n") for b in ("x", " ", "1", ".", "")
    ]
    assert our_ids(BPEEncoder(bpe), every) == library_ids(bpe, every)


@pytest.mark.parametrize("step", [9, pytest.param(1, marks=pytest.mark.slow)], ids=["a ninth", "all"])
def test_the_standard_library_has_the_ids_of_the_library(bpe, step):
    paths = [path for path in sorted(STDLIB[0].parent.rglob("*.py")) if "site-packages" not in path.parts]
    documents = []
    for path in paths[::step] if step == 1 else STDLIB[::step]:
        with_text = path.read_bytes().decode(errors="ignore")
        documents += [with_text] if with_text else []
    assert our_ids(BPEEncoder(bpe), documents) == library_ids(bpe, documents)


def test_a_full_memory_changes_nothing(bpe):
    """Words for which there is no room are encoded whenever they come; two texts at a time, three words remembered."""
    expected = library_ids(bpe, CODE[:6])
    for name, value in (("MAX_KNOWN", 3), ("MAX_LENGTH", 2), ("BATCH", 2)):
        with patch.object(bpe_encoder, name, value), patch.object(bpe_encoder, "WORD_BLOCK", 500):
            encoder = BPEEncoder(bpe)
            assert our_ids(encoder, CODE[:6]) == expected
            assert our_ids(encoder, CODE[:6]) == expected
            assert name != "MAX_KNOWN" or len(encoder.known) < 200


def test_words_that_are_not_remembered_take_no_memory(bpe):
    encoder = BPEEncoder(bpe)
    for i in range(5):
        document = f"日本{i}" * 200 + " a"  # white space is what ends such a word
        assert our_ids(encoder, [document]) == library_ids(bpe, [document])
    assert len(encoder.known) == 2 and encoder.used == sum(span & 0xFFFFFFFF for span in encoder.known.values())


def test_threads_share_an_encoder(bpe):
    encoder, found = BPEEncoder(bpe), {}
    with patch.object(bpe_encoder, "WORD_BLOCK", 1000):
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
    data = join_documents(document.encode() for document in documents)
    assert b"".join(cut_blocks(data, size)) == data
    whole = [distinct_pre_tokens(data)[0][i] for i in distinct_pre_tokens(data)[1]]
    cut = [found[i] for block in cut_blocks(data, size) for found, index in [distinct_pre_tokens(block)] for i in index]
    assert cut == whole


def test_pandas_is_not_imported():
    """Arrow takes it for some conversions, which makes a command half a second longer."""
    code = """
import sys
from model.tokenization.bpe_encoder import BPEEncoder
from model.tokenization.bpe_trainer import train_bpe_tokenizer
from model.tokenization.tokenizer import Tokenizer
list(BPEEncoder(Tokenizer(train_bpe_tokenizer(["a b ab"], 260).to_str())).encode(b"a b\\xff"))
print(*sys.modules)
"""
    modules = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert "pyarrow" in modules.split() and "pandas" not in modules.split()
