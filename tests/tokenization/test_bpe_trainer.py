"""model/tokenization/bpe_trainer.py: the merges of its plain twin and of the `tokenizers` library."""

import inspect
import json
import sysconfig
import textwrap
from pathlib import Path

from encoder_texts import texts
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import pre_tokenizers, trainers

from model.tokenization.bpe_trainer import train_bpe_tokenizer
from model.tokenization.bpe_trainer_plain import learn_merges_plainly, merge_pair
from model.tokenization.tokenizer import Tokenizer, make_bpe_tokenizer
from plumbing.corpus import END_OF_TEXT

STDLIB = sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))
CODE = [path.read_bytes().decode() for path in STDLIB[::9] if path.stat().st_size]


def merges_of(documents: list[str], vocab_size: int) -> list[tuple[str, str]]:
    library = train_bpe_tokenizer(documents, vocab_size)
    return [(left, right) for left, right in json.loads(library.to_str())["model"]["merges"]]


# === against the plain twin ===========================================================================================

few_letters = st.lists(st.sampled_from(["a", "b", "c", "ab", "aa", " ", "é"]), max_size=40).map("".join)


@settings(max_examples=200, deadline=None)
@given(documents=st.lists(few_letters | texts, max_size=6), vocab_size=st.integers(257, 300))
@example(documents=["aaaa aaa aa aaaaaaa", "abababa bababab"], vocab_size=300)
@example(documents=["ab cd ef"], vocab_size=259)  # pairs that are equally common: the lowest ids first
@example(documents=["xabc " * 9 + "abc " * 5 + "bc " * 30 + "ab " * 20], vocab_size=300)
def test_merges_are_those_of_the_plain_twin(documents, vocab_size):
    assert merges_of(documents, vocab_size) == learn_merges_plainly(documents, vocab_size)


def test_merging_goes_from_left_to_right():
    assert merge_pair(("a", "a", "a"), "a", "a") == ("aa", "a")
    assert merge_pair(("h", "u", "g", "u"), "u", "g") == ("h", "ug", "u")
    assert merge_pair(("a", "ab", "b"), "a", "b") == ("a", "ab", "b")


# === against the library ==============================================================================================


def library_training(documents: list[str], vocab_size: int) -> str:
    library = make_bpe_tokenizer()
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


# === what is learned ==================================================================================================


def test_merges_known_answer():
    """Words are cut before merging, a space staying with the word behind it: ab, Ġab, Ġab, Ġabc. The pairs in them:
    a+b 4 times, Ġ+a 3 times, b+c once. So a+b is first. Then Ġ+ab 3 times, ab+c once; then Ġab+c once. No pair is left,
    for merges do not join words, and the vocabulary ends at 257 + 3 ids.
    """
    library = train_bpe_tokenizer(["ab ab ab abc"], 1000)
    assert json.loads(library.to_str())["model"]["merges"] == [["a", "b"], ["Ġ", "ab"], ["Ġab", "c"]]
    tokenizer = Tokenizer(library.to_str())
    assert tokenizer.vocab_size == 260
    # " abc" was merged to the end; without the space there is no ab+c.
    assert [tokenizer.token_string(token) for token in tokenizer.encode("abc abc")] == ["ab", "c", "Ġabc"]
    assert tokenizer.encode(" abc").tolist() == [259]


def test_training_stops_at_the_vocabulary_asked_for():
    library = train_bpe_tokenizer(["ab ab ab abc"], 258)
    assert json.loads(library.to_str())["model"]["merges"] == [["a", "b"]]


def test_training_is_repeatable():
    documents = inspect.getsource(textwrap).split("\n\n")
    assert train_bpe_tokenizer(documents, 400).to_str() == train_bpe_tokenizer(iter(documents), 400).to_str()


def test_no_merge_crosses_a_document():
    """Each document is cut by itself. As one text, "ab" would be a word."""
    assert train_bpe_tokenizer(["a", "b"] * 50, 1000).get_vocab_size() == 257
