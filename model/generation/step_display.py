"""One step of generation as text, short or as a table that explains every setting, and as data, for --trace.

All figures are those of the Step that sampling.choose() returned; nothing is computed again. A StepTable says how wide
the text is, which columns it has and how an id becomes text.
"""

import functools
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from config import Settings
from model import metrics
from model.generation.sampling import Step
from model.tokenization.display import painted, token_text
from model.tokenization.tokenizer import BareIds, Tokenizer
from plumbing.files import whole_file
from plumbing.text import bar, cell_width, fitted, plural, shortened

COLUMNS = ("ids", "logits", "penalised", "tempered", "model_p", "sampled_p", "ends")  # of a Step; keys in a trace too
BARS = [bar(eighths / 160) for eighths in range(161)]  # every bar there is, 20 cells of 8 eighths
ROW = " %s %5d  %s %6.2f%% %9.2f%%  %s"  # % is Python's fastest way to format
SHORT_TITLES = f"   {'id':>5}  {'token':14} {'model':>7} {'drawn with':>10}"
INVISIBLE = 0.00005  # a smaller probability is shown as 0.00%


class StepTable:
    """How to show the steps of a text that is written with these settings, in so many columns of a terminal, with
    `text_of` for the text of an id. A column of a setting that is off is left out."""

    def __init__(self, settings: Settings, text_of: Callable[[int], str], width: int = 80, colours: bool = False):
        self.show, self.text_of, self.width, self.colours = settings.show, text_of, width, colours
        self.bars = max(0, min(20, width - 45))  # cells
        self.cell = functools.cache(lambda token: fitted(text_of(token), 14))
        on = {"top-k": settings.top_k > 0, "top-p": settings.top_p < 1, "min-p": settings.min_p > 0}
        self.filters = [(name, i) for i, name in enumerate(on) if on[name]]  # with their index in Step.kept
        columns = {
            "logit": True, "penalised": settings.repetition_penalty != 1, "tempered": settings.temperature != 1,
            "removed": bool(self.filters) or settings.temperature == 0, "drawn": True, "from": True, "to": True,
        }  # fmt: skip
        self.columns = {name: max(9, len(name) + 1) for name, wanted in columns.items() if wanted}  # name: its width
        self.token_cells = max(6, min(18, width - 9 - sum(self.columns.values())))

    def painted(self, text: str, bits: float) -> str:
        return painted(text, bits) if self.colours else text

    def titles(self, explain: bool) -> str:
        """The titles of the columns, to be shown once."""
        if not explain:
            return SHORT_TITLES
        return self.explained("", "id", "token", {name: name for name in self.columns})

    def explained(self, mark: str, token: str, text: str, values: dict[str, str]) -> str:
        """A row of the table that explains."""
        cells = "".join(values.get(name, "").rjust(width) for name, width in self.columns.items())
        return f"{mark:1}{token:>6}  {fitted(text, self.token_cells)}{cells}"


def step_head(name: str, step: Step, table: StepTable) -> str:
    """The first line of a step: what was chosen, the surprise of it, and how uncertain the model was before."""
    bits = metrics.surprise(step.p)
    before, surprise, after = f"{name}: chose ", f"{bits:.2f}", f" bits, entropy {step.entropy:.2f} bits"
    middle = f", rank {step.rank}, surprise "
    left = table.width - len(before) - len(middle) - len(surprise) - len(after)
    if left < 4:
        middle, left = f", rank {step.rank},\n   surprise ", table.width - len(before) - 20
    token = shortened(table.text_of(step.token), max(4, left))
    return before + token + middle + table.painted(surprise, bits) + after


def text_so_far(pieces: list[tuple[str, float]], end: int, table: StepTable) -> str:
    """The end of the first `end` tokens of a text, (text, surprise in bits) each, with a bar before the newest one."""
    begin, row, left = "   text  ", [], table.width - 11  # columns: the margin, the bar, and one for what is left out
    for i in range(end - 1, -1, -1):
        text, bits = pieces[i]
        if (cells := piece_cells(text)) > left:
            row.append("…" if row else shortened(text, left))
            break
        left -= cells
        row.append(table.painted(text, bits))
        if i == end - 1:
            row.append("|")
    return begin + "".join(reversed(row))


piece_cells = functools.cache(cell_width)


def removed_shares(step: Step, table: StepTable) -> list[str]:
    """A line that says which part of the model's probability each filter removed, or none."""
    before, shares = step.vocab_size, []
    for name, i in table.filters:
        kept = step.kept[i]
        share = 1 - step.model_p[:kept].sum() if before == step.vocab_size else step.model_p[kept:before].sum()
        before = kept
        if share >= INVISIBLE:
            shares.append(f"{name} {share:.2%}")
    return [f"   removed, of the model's probability: {', '.join(shares)}"] if shares else []


def show_step(name: str, step: Step, table: StepTable, *lines: str) -> str:
    """One step: the candidates with both probabilities, an arrow at the chosen one. `lines` come after the first."""
    rows = [step_head(name, step, table), *lines]
    # as lists, because Python formats its own numbers faster than numpy's
    most = max(table.show, step.rank)
    ids, drawn, own = (column[:most].tolist() for column in (step.ids, step.sampled_p, step.model_p))
    for i in rows_to_show(step, table.show):
        chosen = i == step.rank - 1
        if chosen or drawn[i] >= INVISIBLE or own[i] >= INVISIBLE:
            drawn_bar = BARS[round(drawn[i] * 160)] if table.bars == 20 else bar(drawn[i], table.bars)
            mark = ">" if chosen else " "
            rows.append((ROW % (mark, ids[i], table.cell(ids[i]), 100 * own[i], 100 * drawn[i], drawn_bar)).rstrip())
    return "\n".join(rows + removed_shares(step, table))


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


def explain_step(name: str, step: Step, table: StepTable, *lines: str) -> str:
    """One step as a table: each candidate after every setting, in the order in which the settings act. The
    probabilities, laid end to end, fill the interval from 0 to 1, each `from` to `to`. The random number selects the
    token whose interval it falls into. Candidates without a row of their own are summed up in their place."""
    rows = [f"{name}: the random number is {step.random_number:.6f}, for {step.vocab_size:,} tokens", *lines]
    done = 0  # candidates in the rows so far
    for i in rows_to_show(step, table.show):
        rows += other_candidates(step, table, (done, i), i - done)
        values = {
            "logit": f"{step.logits[i]:.4f}", "penalised": f"{step.penalised[i]:.4f}",
            "tempered": f"{step.tempered[i]:.4f}", "removed": removed_by(step, i).replace("temperature", "temp=0"),
            "drawn": f"{step.sampled_p[i]:.6f}", "from": f"{start_of(step, i):.6f}", "to": f"{step.ends[i]:.6f}",
        }  # fmt: skip
        token = int(step.ids[i])
        rows.append(table.explained(">" if token == step.token else "", str(token), table.text_of(token), values))
        done = i + 1
    rows += other_candidates(step, table, (done, len(step.ids)), step.vocab_size - done)
    bits = metrics.surprise(step.p)
    rows.append(
        f"   {step.random_number:.6f} selects id {step.token}: rank {step.rank}, surprise "
        f"{table.painted(f'{bits:.2f}', bits)} bits, entropy {step.entropy:.2f} bits"
    )
    return "\n".join(rows + removed_shares(step, table))


def start_of(step: Step, i: int) -> float:
    return float(step.ends[i - 1]) if i > 0 else 0.0


def other_candidates(step: Step, table: StepTable, between: tuple[int, int], count: int) -> list[str]:
    """A row for the candidates `between` two indices together, or none. `count` includes those that the step did not
    record."""
    if count == 0:
        return []
    first, end = between
    numbers = float(step.sampled_p[first:end].sum()), start_of(step, first), start_of(step, end)
    values = {name: f"{x:.6f}" for name, x in zip(("drawn", "from", "to"), numbers, strict=True)}
    text = f"{'':9}{plural(count, 'other')}"
    return [text + table.explained("", "", "", values)[len(text) :]]


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
        "surprise_bits": metrics.surprise(step.p), "entropy_bits": step.entropy,
        "vocab_size": step.vocab_size, **candidates,
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
