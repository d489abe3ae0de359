"""One step of generation as text, short or as a table that explains every setting, and as data, for --trace.

All figures are those of the Step that sampling.choose() returned; nothing is computed again. `text_of` turns an id into
text, `show` is the number of candidates to show.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from model import metrics
from model.generation.sampling import Step
from model.tokenization.display import token_text
from model.tokenization.tokenizer import BareIds, Tokenizer
from plumbing.files import whole_file
from plumbing.text import bar, plural

COLUMNS = ("ids", "logits", "penalised", "tempered", "model_p", "sampled_p", "ends")  # of a Step; keys in a trace too
BARS = [bar(eighths / 160) for eighths in range(161)]  # every bar there is, 20 cells of 8 eighths
ROW = " %s id %5d  %-14s %s drawn with %6.2f%%  model %6.2f%%"  # % is Python's fastest way to format


def show_step(name: str, step: Step, show: int, text_of: Callable[[int], str]) -> str:
    """One step: the candidates with both probabilities, an arrow at the chosen one."""
    surprise = f"surprise {metrics.surprise(step.p):.2f} bits"
    lines = [f"{name}: chose {text_of(step.token)} (id {step.token}), rank {step.rank}, {surprise}"]
    # as lists, because Python formats its own numbers faster than numpy's
    ids, drawn, own = (column[: max(show, step.rank)].tolist() for column in (step.ids, step.sampled_p, step.model_p))
    for i in rows_to_show(step, show):
        mark, drawn_bar = ">" if i == step.rank - 1 else " ", BARS[round(drawn[i] * 160)]
        lines.append(ROW % (mark, ids[i], text_of(ids[i]), drawn_bar, 100 * drawn[i], 100 * own[i]))
    return "\n".join(lines)


def rows_to_show(step: Step, show: int) -> list[int]:
    """Indices of the first `show` candidates, and of the chosen one if it is not among them."""
    rows = list(range(min(show, len(step.ids))))
    return rows if step.rank <= len(rows) else [*rows, step.rank - 1]


def removed_by(step: Step, i: int) -> str:
    """The setting that removed candidate i, or an empty string."""
    if step.tempered[i] == -math.inf and i > 0:
        return "temperature"
    filters = zip(("top-k", "top-p", "min-p"), step.kept, strict=True)
    return next((name for name, kept in filters if i >= kept), "")


def explain_step(name: str, step: Step, show: int, text_of: Callable[[int], str]) -> str:
    """One step as a table: each candidate after every setting, in the order in which the settings act. The
    probabilities, laid end to end, fill the interval from 0 to 1, each `from` to `to`. The random number selects the
    token whose interval it falls into. Candidates without a row of their own are summed up in their place."""
    lines = [
        f"{name}: the random number is {step.random_number:.6f}",
        f"      id  token                   logit   penalised    tempered  removed by   "
        f"probability      from        to   (of {step.vocab_size:,} tokens)",
    ]
    done = 0  # candidates in the lines so far
    for i in rows_to_show(step, show):
        lines += other_candidates(step, done, i, i - done)
        lines.append(
            f" {'>' if step.ids[i] == step.token else ' '} {step.ids[i]:>5}  {text_of(int(step.ids[i])):18} "
            f"{step.logits[i]:10.4f}  {step.penalised[i]:10.4f}  {step.tempered[i]:10.4f}  {removed_by(step, i):11} "
            f"{step.sampled_p[i]:13.6f}  {start_of(step, i):.6f}  {step.ends[i]:.6f}"
        )
        done = i + 1
    lines += other_candidates(step, done, len(step.ids), step.vocab_size - done)
    chosen = f"id {step.token}, {text_of(step.token)}: rank {step.rank}, surprise {metrics.surprise(step.p):.2f} bits"
    return "\n".join([*lines, f"   {step.random_number:.6f} selects {chosen}"])


def start_of(step: Step, i: int) -> float:
    return float(step.ends[i - 1]) if i > 0 else 0.0


def other_candidates(step: Step, first: int, end: int, count: int) -> list[str]:
    """A row for candidates `first` to `end` together, or none. `count` includes those that the step did not record."""
    if count == 0:
        return []
    p = float(step.sampled_p[first:end].sum())
    return [f"          {plural(count, 'other'):62}{p:14.6f}  {start_of(step, first):.6f}  {start_of(step, end):.6f}"]


def trace_step(sample: int, number: int, step: Step, show: int, tokenizer: Tokenizer | BareIds) -> dict:
    """A step as plain data: what explain_step() shows, for the first `show` candidates and all that could be drawn."""
    rows = max(show, step.kept[-1], step.rank)
    candidates = {name: getattr(step, name)[:rows].tolist() for name in COLUMNS}
    candidates["tempered"] = [x if math.isfinite(x) else None for x in candidates["tempered"]]  # JSON has no infinity
    candidates["removed_by"] = [removed_by(step, i) for i in range(len(candidates["ids"]))]
    candidates["texts"] = [token_text(tokenizer, token) for token in candidates["ids"]]
    return {
        "sample": sample, "step": number, "number": step.random_number, "token": step.token,
        "text": token_text(tokenizer, step.token), "rank": step.rank,
        "surprise_bits": metrics.surprise(step.p), "vocab_size": step.vocab_size, **candidates,
    }  # fmt: skip


@contextmanager
def trace_file(path: Path) -> Iterator[BinaryIO]:
    """Open a file for --trace. Unlike with whole_file() alone, the file appears also after Ctrl-C or an error."""
    failure = None
    with whole_file(path) as file:
        try:
            yield file
        except BaseException as error:
            failure = error
    if failure is not None:
        raise failure
