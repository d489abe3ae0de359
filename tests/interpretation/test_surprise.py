"""The surprise of a text: its figures against plain PyTorch, and the most surprising tokens."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from stored_runs import LINUX, peak_growth
from surprise import BLOCK, KNOWN, TOKENIZERS, layout, make_model, score

from model.gpt import GPT
from model.interpretation.surprise import TextSurprise, TokenScores, most_surprising, score_tokens


@pytest.fixture(params=["char", "bpe"])
def kind(request):
    return request.param


def texts(tokenizer):
    """Texts of many lengths in tokens: within a block, exactly one, one more, several windows, the last one short."""
    return [KNOWN[:n] for n in (1, 5, BLOCK, BLOCK + 1, BLOCK * 3 // 2, BLOCK * 3 // 2 + 1)] + [KNOWN * 4]


def one_by_one(model, tokenizer, ids):
    """The log-probabilities (V,) after what precedes each token, one token at a time, by the rule that is stated:
    all that precedes it within the first block; then what the last window of half steps shows of it."""
    tokens = [tokenizer.end_of_text_id, *ids.tolist()]
    block, half = model.block_size, max(1, model.block_size // 2)
    for i in range(1, len(tokens)):
        start = 0
        while start + block < i:
            start += half
        assert start == 0 or i - start >= block / 2  # tokens of context
        with torch.no_grad():
            yield F.log_softmax(model(torch.tensor([tokens[start:i]]))[0, -1].double(), dim=-1)


@pytest.mark.parametrize("block", [BLOCK, 7, 1])
def test_scores_are_those_of_one_token_at_a_time(block):
    """Scores are of ids, whichever tokenizer made them."""
    model = make_model("bpe", block)
    for text in texts(TOKENIZERS["bpe"]):
        ids, scores = score("bpe", text, model)
        direct = list(one_by_one(model, TOKENIZERS["bpe"], ids))
        assert len(scores.bits) == len(ids) == len(direct)
        for i, log_p in enumerate(direct):
            own = log_p[ids[i]]
            assert scores.bits[i] == pytest.approx(-float(own) / math.log(2), abs=1e-4)
            assert scores.rank[i] == 1 + int((log_p > own + 1e-6).sum())
            top = log_p.topk(3)
            assert scores.expected[i].tolist() == top.indices.tolist()
            assert scores.p[i] == pytest.approx(top.values.exp().numpy(), abs=1e-5)


@LINUX
def test_memory_follows_the_text_and_not_what_a_model_asks_for():
    """A stranger's small model with the largest block and vocabulary: not a block of 65,536 for a few tokens, nor the
    logits of a whole window at once."""
    torch.manual_seed(0)
    model = GPT(65_536, block_size=65_536, n_layer=1, n_head=1, n_embd=2).eval()
    for count, limit in ((23, 64), (1_000, 350)):
        ids = np.arange(count, dtype=np.uint16)
        assert peak_growth(lambda ids=ids: score_tokens(model, ids, 0, 3)) < limit


def test_mean_surprise_is_the_cross_entropy_of_the_same_tokens(kind):
    """Over the windows as they lie in the text, without the padding and the batches of the script."""
    model, tokenizer = make_model(kind), TOKENIZERS[kind]
    ids, scores = score(kind, KNOWN * 5, model)
    tokens = torch.tensor([tokenizer.end_of_text_id, *ids.tolist()])
    total, scored = 0.0, 0
    for start in range(0, len(ids), BLOCK // 2):
        stop = min(start + BLOCK, len(ids))
        if stop > scored:
            new = scored - start  # the first position of this window that is scored
            with torch.no_grad():
                logits = model(tokens[None, start:stop])[0, new:]
            total += F.cross_entropy(logits, tokens[scored + 1 : stop + 1], reduction="sum").item()
            scored = stop
    assert scored == len(ids)
    assert scores.bits.mean() * math.log(2) == pytest.approx(total / scored, abs=1e-5)


def test_the_batches_make_no_difference(monkeypatch):
    """A vocabulary so large that the logits of three tokens are all that fit, against all of them at once."""
    model = make_model("char")
    _, scores = score("char", KNOWN * 6, model)
    calls = []
    forward = model.head.forward
    monkeypatch.setattr(model.head, "forward", lambda x: (calls.append(len(x)), forward(x))[1])
    monkeypatch.setattr(model, "vocab_size", (1 << 24) // 3)
    _, alone = score("char", KNOWN * 6, model)
    assert max(calls) == 3
    assert len(calls) > 20
    assert alone.bits == pytest.approx(scores.bits, abs=1e-4)


def test_sums_of_surprises_are_exact_in_any_order(kind):
    _, scores = score(kind, KNOWN * 5)
    assert (scores.bits * 2**20 == np.round(scores.bits * 2**20)).all()
    shuffled = np.random.default_rng(0).permutation(scores.bits)
    assert scores.bits.sum() == shuffled.sum() == math.fsum(scores.bits)


def test_what_is_certain_is_no_surprise_and_not_minus_zero():
    model = make_model("char")
    with torch.no_grad():
        model.head.weight.mul_(1000)
    _, scores = score("char", KNOWN * 5, model)
    assert (scores.bits == 0).any()
    assert not np.signbit(scores.bits).any()
    assert np.isfinite(scores.bits).all()


def test_there_are_no_more_candidates_than_tokens():
    vocab_size = TOKENIZERS["char"].vocab_size
    _, scores = score("char", KNOWN, show=10_000)
    assert scores.p.shape == (len(KNOWN), vocab_size)
    assert scores.p.sum(axis=1) == pytest.approx(1, abs=1e-5)


def test_of_equally_surprising_tokens_the_earlier_ones_are_named():
    text = "ab" * 100
    ids = TOKENIZERS["char"].encode(text)
    n = len(ids)
    scores = TokenScores(np.arange(n) % 7.0, np.ones(n, int), np.zeros((n, 0), int), np.zeros((n, 0)))
    rows = most_surprising(TOKENIZERS["char"], TextSurprise(text, ids, scores, layout("char", text)))
    assert [row.column for row in rows] == list(range(7, 77, 7))
