"""The surprise of every token of a text, as scripts/surprise_map.py shows it; its docstring has the rules."""

from collections import Counter
from dataclasses import dataclass

import numpy as np
import torch
from tqdm import tqdm

from model import metrics
from model.gpt import GPT
from model.interpretation.token_layout import TokenLayout, layout_tokens, visible_span
from model.tokenization.display import token_text
from model.tokenization.tokenizer import Tokenizer
from plumbing.text import plural

MOST_SURPRISING = 10  # tokens in the ranking


@dataclass(frozen=True)
class TokenScores:
    """What a model predicted for a text of N tokens, with K candidates for each."""

    bits: np.ndarray  # (N,) float64, the surprise of the token
    rank: np.ndarray  # (N,) its rank in the vocabulary, 1 for the likeliest token
    expected: np.ndarray  # (N, K) the ids of the likeliest tokens, likeliest first
    p: np.ndarray  # (N, K) their probabilities


@torch.inference_mode()
def score_tokens(model: GPT, ids: np.ndarray, end_of_text_id: int, show: int) -> TokenScores:
    """Score each of N >= 1 tokens once, with K = `show` candidates.

    Window w holds the tokens from w * (B // 2) on, where B is block_size: B tokens to read, each with the next one as
    its target. All targets of the first window are new, and the last B // 2 targets of each later one.
    """
    block, half = model.block_size, max(1, model.block_size // 2)
    later = -(-max(0, len(ids) - block) // half)  # windows after the first
    # <|endoftext|>, the text, then padding, which changes nothing: attention is causal.
    tokens = torch.full((block + later * half + 1,), end_of_text_id)
    tokens[1 : len(ids) + 1] = torch.from_numpy(ids.astype(np.int64))
    windows = tokens.unfold(0, block + 1, half)  # (1 + later, B + 1)

    # About 4,096 tokens per batch, but at most 64 MB of logits (or one window).
    batch_size = max(1, min(4096, (1 << 24) // model.vocab_size) // block)
    bits, rank, expected, p = [], [], [], []
    with tqdm(total=len(ids), desc="reading", unit="token", unit_scale=True, delay=2, leave=False) as progress:
        for first in range(0, len(windows), batch_size):
            window = windows[first : first + batch_size].to(model.device)
            logits = model(window[:, :-1]).float()  # (windows, B, V)
            new, targets = logits[:, -half:].flatten(0, 1), window[:, -half:].flatten()  # (scored, V), (scored,)
            if first == 0:
                new = torch.cat([logits[0, :-half], new])
                targets = torch.cat([window[0, 1:-half], targets])
            log_p = new.log_softmax(dim=-1)
            own = log_p.gather(1, targets[:, None])  # (scored, 1)
            top = log_p.topk(min(show, model.vocab_size))
            bits.append(metrics.bits(-own[:, 0].cpu().double()).numpy())
            rank.append(1 + (log_p > own).sum(dim=-1).cpu().numpy())
            expected.append(top.indices.cpu().numpy())
            p.append(top.values.exp().cpu().numpy())
            progress.update(min(len(targets), len(ids) - progress.n))
    bits, rank, expected, p = (np.concatenate(arrays)[: len(ids)] for arrays in (bits, rank, expected, p))
    # Sums of multiples of 2^-20 are exact, so the lines add up to the total. + 0.0 turns -0.0 into 0.0.
    return TokenScores(np.round(bits * 2**20) / 2**20 + 0.0, rank, expected, p)


@dataclass(frozen=True)
class TextSurprise:
    """A text with the scores of its tokens and where they are."""

    text: str
    ids: np.ndarray  # (N,)
    scores: TokenScores
    layout: TokenLayout

    def line_bits(self) -> list[float]:
        """The surprise of each line."""
        return np.bincount(self.layout.line, weights=self.scores.bits, minlength=self.layout.lines).tolist()

    def span_bits(self) -> list[float]:
        """The surprise of each span."""
        return np.add.reduceat(self.scores.bits, self.layout.first[:-1]).tolist()


def score_text(model: GPT, tokenizer: Tokenizer, text: str, show: int) -> TextSurprise:
    """Score the tokens of a text that is not empty, with `show` candidates for each."""
    ids = tokenizer.encode(text)
    scores = score_tokens(model, ids, tokenizer.end_of_text_id, show)
    return TextSurprise(text, ids, scores, layout_tokens(tokenizer, text, ids))


def summarize_surprise(name: str, tokenizer: Tokenizer, found: TextSurprise) -> list[str]:
    """What the surprise of a text adds up to, as lines for the terminal and the page."""
    utf8_bytes, tokens, total = len(found.text.encode()), len(found.ids), float(found.scores.bits.sum())
    loss = total / tokens * metrics.LN2
    facts = [
        f"{name}: {plural(found.layout.lines, 'line')}, {plural(utf8_bytes, 'byte')}, {plural(tokens, 'token')}, "
        f"{total:,.1f} bits",
        f"{metrics.bits_per_byte(loss, tokens / utf8_bytes):.3f} bits per byte, mean surprise "
        f"{metrics.bits(loss):.3f} bits per token, loss {loss:.4f} nats per token, perplexity "
        f"{metrics.perplexity(loss):.2f}",
    ]
    if unknown := Counter(tokenizer.unknown(found.text, found.ids)):
        named = [f"{visible_span(character)} ({count:,})" for character, count in unknown.most_common(20)]
        if len(unknown) > 20:
            named.append("...")
        facts.append(
            f"{plural(unknown.total(), 'character')} unknown to the model, read as <|unk|>: {', '.join(named)}"
        )
    return facts


@dataclass(frozen=True)
class SurprisingToken:
    """One of the most surprising tokens."""

    span: int
    line: int  # from 1
    column: int  # from 1
    token: str
    bits: float
    rank: int
    instead: list[tuple[str, float]]  # the likeliest other tokens, with their probabilities


def most_surprising(tokenizer: Tokenizer, found: TextSurprise) -> list[SurprisingToken]:
    """The MOST_SURPRISING tokens with the highest surprise, highest first; among equals, the earlier one first."""
    text, ids, scores, layout, rows = found.text, found.ids, found.scores, found.layout, []
    for i in np.argsort(-scores.bits, kind="stable")[:MOST_SURPRISING].tolist():
        span = int(np.searchsorted(layout.first, i, side="right")) - 1
        (first, after), (start, end) = layout.first[span : span + 2], layout.starts[span : span + 2]
        token = token_text(tokenizer, ids[i])
        if ids[i] == tokenizer.unknown_id:
            token = f"{visible_span(text[start:end])} (read as {token})"
        elif after - first > 1:
            token = f"{token} (in {visible_span(text[start:end])})"
        candidates = zip(scores.expected[i].tolist(), scores.p[i].tolist(), strict=True)
        instead = [(token_text(tokenizer, other), p) for other, p in candidates if other != ids[i]]
        line, column = int(layout.line[i]) + 1, int(layout.column[i]) + 1
        bits, rank = float(scores.bits[i]), int(scores.rank[i])
        rows.append(SurprisingToken(span, line, column, token, bits, rank, instead))
    return rows
