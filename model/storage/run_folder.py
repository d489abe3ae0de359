"""The folder of a run: only one training at a time uses it, and --fresh moves an earlier run aside."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from plumbing.errors import UserError
from plumbing.files import try_lock
from plumbing.text import shown_path

WRITTEN = r"(step_\d+\.pt|log\.jsonl|gpt_model\.pt)(\.\d+\.tmp)?"  # names of the files of a run, finished or not


def belongs_to_run(path: Path) -> bool:
    """Whether training wrote this file of a run's folder, to judge by its name."""
    return path.is_file() and re.fullmatch(WRITTEN, path.name) is not None


@contextmanager
def only_training_in(folder: Path) -> Iterator[None]:
    """Hold the lock of a run's folder, so that no second training writes there, and delete what a killed one left.

    The lock file is beside the folder, because --fresh moves the folder. It is never deleted: the operating system
    releases the lock when the process ends, however it ends. Raises UserError if another process holds it.
    """
    folder = folder.absolute()  # "." has no name
    folder.parent.mkdir(parents=True, exist_ok=True)
    with open(folder.parent / f"{folder.name}.lock", "ab") as lock:
        if not try_lock(lock):
            raise UserError(
                f"Another training is using {shown_path(folder)}. Wait until it ends, stop it, "
                "or give this one another --checkpoint-dir."
            )
        for unfinished in folder.glob("*.tmp"):  # nobody else writes here while we hold the lock
            if belongs_to_run(unfinished):
                unfinished.unlink()
        yield


def move_aside(folder: Path) -> None:
    """Rename the folder of an earlier run, so that a new run starts with an empty one. Raises UserError if the folder
    contains anything else."""
    if not folder.exists() or not any(folder.iterdir()):
        return
    if foreign := sorted(path.name for path in folder.iterdir() if not belongs_to_run(path)):
        raise UserError(
            f"{shown_path(folder)} contains {foreign[0]}, which is not part of a run, so --fresh does not move the "
            "folder. Move that file elsewhere, or give another --checkpoint-dir."
        )
    number = 1
    while (aside := folder.with_name(f"{folder.name}-{number}")).exists():
        number += 1
    folder.rename(aside)
    print(f"Moved the earlier run to {shown_path(aside)}. Delete it when you no longer need it.")
