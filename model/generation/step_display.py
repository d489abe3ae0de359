"""One step of generation as people read it, in short or with every setting explained, and as data.

Everything shown stands in the Step that sampling.choose() made; nothing is computed anew. `shown` gives an id as text.
"""

import math
from collections.abc import Callable

from model import metrics
from model.generation.sampling import Step
from model.tokenization.display import token_text
from plumbing.text import bar

BARS = [bar(eighths / 160) for eighths in range(161)]  # every bar there is, 20 cells of 8 eighths
ROW = " %s id %5d  %-14s %s drawn with %6.2f%%  model %6.2f%%"  # the quickest of Python's ways to format


def show_step(name: str, step: Step, show: int, shown: Callable) -> str:
    """One step: the candidates with both probabilities, an arrow at the chosen one."""
    lines = [
        f"{name}: chose {shown(step.token)} (id {step.token}), rank {step.rank}, "
        f"surprise {metrics.surprise(step.p):.2f} bits"
    ]
    n = step.rank  # the candidates are in lists as far as they are needed: Python formats its own numbers faster
    ids, drawn, own = (column[: max(show, n)].tolist() for column in (step.ids, step.sampled_p, step.model_p))
    for i in rows_to_show(step, show):
        mark = ">" if i == n - 1 else " "
        lines.append(ROW % (mark, ids[i], shown(ids[i]), BARS[round(drawn[i] * 160)], 100 * drawn[i], 100 * own[i]))
    return "\n".join(lines)


def rows_to_show(step: Step, show: int) -> list[int]:
    """The places of the first `show` candidates, and of the chosen one if it is not among them."""
    rows = list(range(min(show, len(step.ids))))
    return rows if step.rank <= len(rows) else [*rows, step.rank - 1]


def removed_by(step: Step, i: int) -> str:
    """Which setting removed a candidate from what is drawn from; empty where none did."""
    filters = zip(("top-k", "top-p", "min-p"), step.kept, strict=True)
    if step.tempered[i] == -math.inf and i > 0:
        return "temperature"
    return next((name for name, kept in filters if i >= kept), "")


def explain_step(name: str, step: Step, show: int, shown: Callable) -> str:
    """One step as a table of the candidates through every setting, in the order in which they act.

    The probabilities, laid end to end, fill the stretch from 0 to 1, each from `from` to `to`. The chosen token is the
    one in whose part the random number falls. Candidates without a row of their own are summed up where they stand.
    """
    lines = [
        f"{name}: the random number is {step.number:.6f}",
        f"      id  token                   logit   penalised    tempered  removed by   "
        f"probability      from        to   (of {step.vocab_size:,} tokens)",
    ]
    done = 0  # candidates in the lines so far

    def start(i: int) -> float:
        return float(step.ends[i - 1]) if i > 0 else 0.0

    def others(up_to: int, count: int) -> None:
        if count > 0:
            p = float(step.sampled_p[done:up_to].sum())
            title = f"{count:,} other{'s'[: count > 1]}"
            lines.append(f"          {title:62}{p:14.6f}  {start(done):.6f}  {start(up_to):.6f}")

    for i in rows_to_show(step, show):
        others(i, i - done)
        lines.append(
            f" {'>' if step.ids[i] == step.token else ' '} {step.ids[i]:>5}  {shown(int(step.ids[i])):18} "
            f"{step.logits[i]:10.4f}  {step.penalised[i]:10.4f}  {step.tempered[i]:10.4f}  {removed_by(step, i):11} "
            f"{step.sampled_p[i]:13.6f}  {start(i):.6f}  {step.ends[i]:.6f}"
        )
        done = i + 1
    others(len(step.ids), step.vocab_size - done)
    lines.append(
        f"   {step.number:.6f} falls to id {step.token}, {shown(step.token)}: rank {step.rank}, "
        f"surprise {metrics.surprise(step.p):.2f} bits"
    )
    return "\n".join(lines)


def trace_step(sample: int, number: int, step: Step, show: int, tokenizer) -> dict:
    """A step as plain data: what explain_step shows, and every candidate that could be drawn."""
    rows = max(show, step.kept[-1], step.rank)
    columns = ("ids", "logits", "penalised", "tempered", "model_p", "sampled_p", "ends")
    candidates = {name: getattr(step, name)[:rows].tolist() for name in columns}
    candidates["tempered"] = [x if math.isfinite(x) else None for x in candidates["tempered"]]  # JSON has no infinity
    candidates["removed_by"] = [removed_by(step, i) for i in range(len(candidates["ids"]))]
    candidates["texts"] = [token_text(tokenizer, token) for token in candidates["ids"]]
    return {
        "sample": sample, "step": number, "number": step.number, "token": step.token,
        "text": token_text(tokenizer, step.token), "rank": step.rank,
        "surprise_bits": metrics.surprise(step.p), "vocab_size": step.vocab_size, **candidates,
    }  # fmt: skip
