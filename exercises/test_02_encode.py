"""2. Encode a word by its merges.

A BPE tokenizer is a list of merges in the order in which they were learned. To encode a word, start with its letters
and replay: of all pairs of neighbours that have a merge, join the one that was learned first, everywhere, until there
is none left.

    encode("abcab", [("a", "b"), ("ab", "c")])  gives  ["abc", "ab"]

Where the project does it: replay_merges() in model/interpretation/inspect_page.py, and fast in
model/tokenization/bpe_encoder.py
"""

import json

from model.tokenization.bpe_trainer import train_bpe_tokenizer
from model.tokenization.tokenizer import Tokenizer


def encode(word: str, merges: list[tuple[str, str]]) -> list[str]:
    raise NotImplementedError


# === the test: it passes when you are done ============================================================================


def test_encode():
    assert encode("abcab", [("a", "b"), ("ab", "c")]) == ["abc", "ab"]
    assert encode("abc", [("b", "c"), ("a", "b")]) == ["a", "bc"], "the merge that was learned first comes first"
    assert encode("xyz", [("a", "b")]) == ["x", "y", "z"]
    assert encode("aaaa", [("a", "a"), ("aa", "aa")]) == ["aaaa"]
    assert encode("", [("a", "b")]) == []


def test_encode_as_the_tokenizers_library_does():
    tokenizer = Tokenizer(train_bpe_tokenizer(["the other mother bothers the others"] * 3, vocab_size=275).to_str())
    merges = [tuple(pair) for pair in json.loads(tokenizer.json_text)["model"]["merges"]]
    for word in ("other", "mothers", "thethe", "q"):
        assert encode(word, merges) == [tokenizer.token_string(token) for token in tokenizer.encode(word)]
