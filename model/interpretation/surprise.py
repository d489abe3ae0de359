"""The surprise of every token of a text, and where the tokens are: lines, columns, and spans of whole characters.
scripts/surprise_map.py shows them; its docstring has the rules."""

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from tqdm import tqdm

from model import metrics
from model.gpt import GPT
from model.tokenization.display import token_text
from model.tokenization.tokenizer import Tokenizer, code_points
from plumbing.text import cell_width, plural, visible

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
    block = min(model.block_size, len(ids))  # a stranger's block_size may be far above the text's length
    half = max(1, block // 2)
    later = -(-max(0, len(ids) - block) // half)  # windows after the first
    # <|endoftext|>, the text, then padding, which changes nothing: attention is causal.
    tokens = torch.full((block + later * half + 1,), end_of_text_id)
    tokens[1 : len(ids) + 1] = torch.from_numpy(ids.astype(np.int64))
    windows = tokens.unfold(0, block + 1, half)  # (1 + later, B + 1)

    batch_size = max(1, 4096 // block)
    rows = max(1, (1 << 24) // model.vocab_size)  # tokens whose logits are 64 MB
    batches = []
    with tqdm(total=len(ids), desc="reading", unit="token", unit_scale=True, delay=2, leave=False) as progress:
        for first in range(0, len(windows), batch_size):
            window = windows[first : first + batch_size].to(model.device)
            x = model.features(window[:, :-1])  # (windows, B, C)
            new, targets = x[:, -half:].flatten(0, 1), window[:, -half:].flatten()  # (scored, C), (scored,)
            if first == 0:
                new = torch.cat([x[0, :-half], new])
                targets = torch.cat([window[0, 1:-half], targets])
            for some, target in zip(new.split(rows), targets.split(rows), strict=True):
                log_p = model.head(some).float().log_softmax(dim=-1)  # (rows, V)
                own = log_p.gather(1, target[:, None])  # (rows, 1)
                top = log_p.topk(min(show, model.vocab_size))
                scores = own[:, 0], 1 + (log_p > own).sum(dim=-1), top.indices, top.values.exp()
                batches.append([score.cpu().numpy() for score in scores])
            progress.update(min(len(targets), len(ids) - progress.n))
    log_p, rank, expected, p = (np.concatenate(arrays)[: len(ids)] for arrays in zip(*batches, strict=True))
    # Sums of multiples of 2^-20 are exact, so the lines add up to the total. + 0.0 turns -0.0 into 0.0.
    bits = np.round(metrics.bits(-log_p.astype(np.float64)) * 2**20) / 2**20 + 0.0
    return TokenScores(bits, rank, expected, p)


# --- where the tokens are ---------------------------------------------------------------------------------------------

Line = list[tuple[int, str]]  # the parts of a line: (index of the span, its visible text in this line)


@dataclass(frozen=True)
class TokenLayout:
    """Where each of N tokens is. A span is the shortest run of tokens that covers whole characters, mostly one token.
    There are S of them."""

    line: np.ndarray  # (N,) the line in which the token starts, from 0
    column: np.ndarray  # (N,) the character of that line in which it starts, from 0
    lines: int
    first: np.ndarray  # (S + 1,) the first token of each span, then N
    starts: np.ndarray  # (S + 1,) the character at which each span starts, then the length of the text


def layout_tokens(tokenizer: Tokenizer, text: str, ids: np.ndarray) -> TokenLayout:
    """Lines, columns and spans of the tokens `ids` of a text. Only "\\n" ends a line."""
    characters = code_points(text)
    if tokenizer.kind == "char":  # one token per character, <|unk|> included
        at = np.arange(len(ids))  # the character in which each token starts
        whole = np.ones(len(ids), dtype=bool)  # whether it starts where the character does
    else:
        sizes = {token: len(tokenizer.token_bytes(token)) for token in set(ids.tolist())}
        byte = np.cumsum([0, *(sizes[token] for token in ids.tolist())])[:-1]  # at which each token starts
        ends = np.cumsum(1 + (characters > 0x7F) + (characters > 0x7FF) + (characters > 0xFFFF))  # of UTF-8 characters
        at = np.searchsorted(ends, byte, side="right")
        whole = byte == np.append(0, ends)[at]
    line_ends = np.flatnonzero(characters == ord("\n"))
    line = np.searchsorted(line_ends, at)
    column = at - np.append(0, line_ends + 1)[line]
    lines = len(line_ends) + (not text.endswith("\n"))
    return TokenLayout(line, column, lines, np.append(np.flatnonzero(whole), len(ids)), np.append(at[whole], len(text)))


def spans_by_line(text: str, layout: TokenLayout) -> Iterator[Line]:
    """Yield the parts of each line. "a\\n  b" in the spans "a", "\\n ", " b" gives [(0, "a"), (1, "↵")] and
    [(1, "·"), (2, "·b")]."""
    line = []
    for span, (start, end) in enumerate(pairwise(layout.starts.tolist())):
        for part in re.findall(r"[^\n]*\n|[^\n]+", text[start:end]):
            line.append((span, visible_span(part)))
            if part.endswith("\n"):
                yield line
                line = []
    if line:
        yield line


def visible_span(text: str) -> str:
    """A text with visible white space. A combining mark without its letter gets a dotted circle, as Unicode suggests:
    otherwise it would be drawn on its neighbour."""
    return ("◌" if cell_width(text[0]) == 0 else "") + visible(text)


# --- both together ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class TextSurprise:
    """A text with the scores of its tokens and where they are."""

    text: str
    ids: np.ndarray  # (N,)
    scores: TokenScores
    layout: TokenLayout

    def line_bits(self) -> list[float]:
        return np.bincount(self.layout.line, weights=self.scores.bits, minlength=self.layout.lines).tolist()

    def span_bits(self) -> list[float]:
        return np.add.reduceat(self.scores.bits, self.layout.first[:-1]).tolist()


def score_text(model: GPT, tokenizer: Tokenizer, text: str, show: int) -> TextSurprise:
    """Score the tokens of a text that is not empty, with `show` candidates for each."""
    ids = tokenizer.encode(text)
    scores = score_tokens(model, ids, tokenizer.end_of_text_id, show)
    return TextSurprise(text, ids, scores, layout_tokens(tokenizer, text, ids))


def summarize_surprise(name: str, tokenizer: Tokenizer, found: TextSurprise) -> list[str]:
    """What the surprise of a text adds up to, as lines for the terminal and the page."""
    size, tokens, total = len(found.text.encode()), len(found.ids), float(found.scores.bits.sum())
    loss = total / tokens * metrics.LN2
    counts = f"{plural(found.layout.lines, 'line')}, {plural(size, 'byte')}, {plural(tokens, 'token')}"
    facts = [
        f"{name}: {counts}, {total:,.1f} bits",
        f"{metrics.bits_per_byte(loss, tokens / size):.3f} bits per byte, mean surprise {metrics.bits(loss):.3f} bits "
        "per token",
        f"loss {loss:.4f} nats per token, perplexity {metrics.perplexity(loss):.2f}",
    ]
    if unknown := Counter(tokenizer.unknown(found.text, found.ids)):
        named = [f"{visible_span(character)} ({count:,})" for character, count in unknown.most_common(20)]
        named += ["..."] if len(unknown) > 20 else []
        count = plural(unknown.total(), "character")
        facts.append(f"{count} unknown to the model, read as <|unk|>: {', '.join(named)}")
    return facts


@dataclass(frozen=True)
class SurprisingToken:
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
        place = span, int(layout.line[i]) + 1, int(layout.column[i]) + 1
        rows.append(SurprisingToken(*place, token, float(scores.bits[i]), int(scores.rank[i]), instead))
    return rows
