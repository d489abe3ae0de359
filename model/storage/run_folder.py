"""The folder of a run: one training at a time, and an earlier run moved aside."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from plumbing.errors import UserError
from plumbing.files import try_lock
from plumbing.text import shown_path


def is_of_a_run(path: Path) -> bool:
    """Whether a file of a run's folder is one that a training writes there, whole or unfinished, by its name."""
    return (
        path.is_file() and re.fullmatch(r"(step_\d+\.pt|log\.jsonl|gpt_model\.pt)(\.\d+\.tmp)?", path.name) is not None
    )


@contextmanager
def only_training_in(folder: Path) -> Iterator[None]:
    """Hold the lock of a run's folder, so that no second training writes there, and remove what a killed one has left.

    The lock lies beside the folder, which --fresh moves, and stays: the system frees it when its process ends, however
    it ends. Raises UserError where another process holds it.
    """
    folder = folder.absolute()  # "." has no name
    folder.parent.mkdir(parents=True, exist_ok=True)
    with open(folder.parent / f"{folder.name}.lock", "ab") as lock:
        if not try_lock(lock):
            raise UserError(
                f"Another training is at work in {shown_path(folder)}. Wait for its end or stop it, "
                "or give this one another --checkpoint-dir."
            )
        for unfinished in folder.glob("*.tmp"):  # under the lock nobody is writing them
            if is_of_a_run(unfinished):
                unfinished.unlink()
        yield


def move_aside(folder: Path) -> None:
    """Give the folder of an earlier run another name, so that a fresh run finds its place empty. Raises UserError for a
    folder that holds anything else."""
    if not folder.exists() or not any(folder.iterdir()):
        return
    if foreign := sorted(path.name for path in folder.iterdir() if not is_of_a_run(path)):
        raise UserError(
            f"{shown_path(folder)} holds {foreign[0]}, which is no part of a run, so --fresh does not move it aside. "
            "Take it out of there, or give another --checkpoint-dir."
        )
    number = 1
    while (aside := folder.with_name(f"{folder.name}-{number}")).exists():
        number += 1
    folder.rename(aside)
    print(f"The earlier run was moved to {shown_path(aside)}. Delete it when you no longer need it.")
