"""One step of generation as text: short, or as a table that explains every setting.

All figures are those of the Step that sampling.choose() returned; nothing is computed again. `token_text` turns an id
into text.
"""

import math
from collections.abc import Callable

from model import metrics
from model.generation.sampling import Step
from plumbing.text import bar, plural

BARS = [bar(eighths / 160) for eighths in range(161)]  # every bar there is, 20 cells of 8 eighths
ROW = " %s id %5d  %-14s %s drawn with %6.2f%%  model %6.2f%%"  # % is Python's fastest way to format


def show_step(name: str, step: Step, show: int, token_text: Callable[[int], str]) -> str:
    """One step: the candidates with both probabilities, an arrow at the chosen one."""
    lines = [
        f"{name}: chose {token_text(step.token)} (id {step.token}), rank {step.rank}, "
        f"surprise {metrics.surprise(step.p):.2f} bits"
    ]
    # as lists, because Python formats its own numbers faster than numpy's
    ids, drawn, own = (column[: max(show, step.rank)].tolist() for column in (step.ids, step.sampled_p, step.model_p))
    for i in rows_to_show(step, show):
        mark = ">" if i == step.rank - 1 else " "
        drawn_bar = BARS[round(drawn[i] * 160)]
        lines.append(ROW % (mark, ids[i], token_text(ids[i]), drawn_bar, 100 * drawn[i], 100 * own[i]))
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


def explain_step(name: str, step: Step, show: int, token_text: Callable[[int], str]) -> str:
    """One step as a table: each candidate after every setting, in the order in which the settings act.

    The probabilities, laid end to end, fill the interval from 0 to 1, each `from` to `to`. The random number selects
    the token whose interval it falls into. Candidates without a row of their own are summed up in their place.
    """
    lines = [
        f"{name}: the random number is {step.random_number:.6f}",
        f"      id  token                   logit   penalised    tempered  removed by   "
        f"probability      from        to   (of {step.vocab_size:,} tokens)",
    ]
    done = 0  # candidates in the lines so far
    for i in rows_to_show(step, show):
        lines += other_candidates(step, done, i, i - done)
        lines.append(
            f" {'>' if step.ids[i] == step.token else ' '} {step.ids[i]:>5}  {token_text(int(step.ids[i])):18} "
            f"{step.logits[i]:10.4f}  {step.penalised[i]:10.4f}  {step.tempered[i]:10.4f}  {removed_by(step, i):11} "
            f"{step.sampled_p[i]:13.6f}  {start_of(step, i):.6f}  {step.ends[i]:.6f}"
        )
        done = i + 1
    lines += other_candidates(step, done, len(step.ids), step.vocab_size - done)
    lines.append(
        f"   {step.random_number:.6f} selects id {step.token}, {token_text(step.token)}: rank {step.rank}, "
        f"surprise {metrics.surprise(step.p):.2f} bits"
    )
    return "\n".join(lines)


def start_of(step: Step, i: int) -> float:
    """Where the interval of candidate i starts."""
    return float(step.ends[i - 1]) if i > 0 else 0.0


def other_candidates(step: Step, first: int, end: int, count: int) -> list[str]:
    """A row for candidates `first` to `end` together, or none. `count` includes those that the step did not record."""
    if count == 0:
        return []
    p = float(step.sampled_p[first:end].sum())
    return [f"          {plural(count, 'other'):62}{p:14.6f}  {start_of(step, first):.6f}  {start_of(step, end):.6f}"]
