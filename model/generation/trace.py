"""--trace: every step as a line of JSON."""

import json
import math
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import BinaryIO

from model import metrics
from model.generation.sampling import Step
from model.generation.step_display import removed_by
from model.tokenization.display import token_text
from model.tokenization.tokenizer import BareIds, Tokenizer
from plumbing.files import whole_file

COLUMNS = ("ids", "logits", "penalised", "tempered", "model_p", "sampled_p", "ends")  # of a Step; keys of the JSON too


@contextmanager
def trace_file(path: Path):
    """Yield a function that appends a line of JSON to FILE.tmp at once. FILE.tmp becomes FILE at the end of the block,
    also after Ctrl-C or an error. Only a kill leaves the lines in FILE.tmp.
    """
    failure = None
    with whole_file(path) as file:
        try:
            yield partial(write_line, file)
        except BaseException as error:
            failure = error
    if failure is not None:
        raise failure


def write_line(file: BinaryIO, entry: dict) -> None:
    """Append an entry as a line of JSON, for others to read at once."""
    file.write(json.dumps(entry, ensure_ascii=False).encode() + b"\n")
    file.flush()


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
