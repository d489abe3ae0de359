"""The data of inspect_model.py's page: how BPE merges are replayed, and that it stays small."""

import json
from itertools import pairwise

import torch

from model.gpt import GPT
from model.interpretation.forward_pass import trace_forward
from model.interpretation.inspect_page import inspect_page_data, replay_merges
from model.tokenization.bpe_trainer import train_bpe_tokenizer
from model.tokenization.display import token_text
from model.tokenization.tokenizer import Tokenizer, make_character_tokenizer
from plumbing.page import PAGES, json_in_html
from plumbing.text import visible

TEXT = "def add(a, b):\n\treturn a + b  # naïve 日本 & </script><b>\n"
CHAR = Tokenizer(make_character_tokenizer(TEXT).to_str())
BPE = Tokenizer(train_bpe_tokenizer([TEXT * 2, "return added, adding"], vocab_size=300).to_str())


def test_merges_end_where_the_tokenizer_does():
    tokenizer = BPE
    for prompt in (TEXT, "returned", "日本", "addaddadd  \n\n x", ""):
        words = replay_merges(tokenizer, prompt)
        ends = [symbol for rows in words for symbol in rows[-1]]
        assert ends == [token_text(tokenizer, token) for token in tokenizer.encode(prompt)]
        for rows in words:
            assert all(len(visible(symbol)) >= 1 for symbol in rows[0])
            for before, after in pairwise(rows):
                assert len(after) < len(before)
    assert replay_merges(CHAR, "def") == []


def test_the_merge_that_was_learned_first_comes_first():
    tokenizer = Tokenizer(train_bpe_tokenizer(["ab ab ab bc bc abc"] * 3, vocab_size=259).to_str())
    merges = json.loads(tokenizer.json_text)["model"]["merges"]
    (rows,) = replay_merges(tokenizer, "abcabc")
    assert merges[0] == ["a", "b"]
    assert rows[0] == list("abcabc") and rows[1][:1] == ["ab"] and rows[1].count("ab") == 2  # everywhere at once


def test_the_page_stays_small():
    """128 tokens, 6 layers of 8 heads, and the largest default vocabulary: below 3 MB."""
    torch.manual_seed(0)
    tokenizer = BPE
    model = GPT(4096, block_size=128, n_layer=6, n_head=8, n_embd=64).eval()
    ids = torch.randint(tokenizer.vocab_size, (128,)).tolist()
    data = inspect_page_data(model, Names(tokenizer), trace_forward(model, ids), ids, "")
    shared = sum((PAGES / name).stat().st_size for name in ("page.css", "page.js", "inspect_model.html"))
    assert 1e6 < len(json_in_html(data)) + shared < 3e6


class Names:
    """A tokenizer that has a text for ids beyond its vocabulary."""

    def __init__(self, tokenizer):
        self.kind, self.library, self.json_text = tokenizer.kind, tokenizer.library, tokenizer.json_text

    def token_bytes(self, token):
        return f"token{token}".encode()
