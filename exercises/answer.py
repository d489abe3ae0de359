"""Help with an exercise: a hint of strength 1, 2 or 3, or the solution.

    python exercises/answer.py 4
    python exercises/answer.py 4 --hint 2
    python exercises/answer.py 4 --solution

Reads   exercises/answers/
Writes  nothing
Next    pytest exercises -k 04
"""

import os
import sys

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.realpath(__file__))))  # also with python -I
import plumbing.start

import re
from pathlib import Path

from plumbing.command_line import ScriptParser
from plumbing.errors import UsageError, run_script

ANSWERS = Path(__file__).resolve().parent / "answers"


def main(argv: list[str] | None = None) -> None:
    parser = ScriptParser(__doc__)
    parser.add_argument("number", type=int, help="the number of the exercise")
    parser.add_argument("--hint", type=int, default=1, choices=[1, 2, 3], help="how strong a hint [1]")
    parser.add_argument("--solution", action="store_true", help="show the solution")
    args = parser.parse_args(argv)
    files = {int(file.name[:2]): file for file in ANSWERS.glob("*.md")}
    if args.number not in files:
        raise UsageError(f"There is no exercise {args.number}: they are 1 to {len(files)}.")
    print(section(files[args.number].read_text("utf-8"), "Solution" if args.solution else f"Hint {args.hint}"))


def section(text: str, title: str) -> str:
    """A section of an answer, without the marks around its code."""
    found = re.search(rf"^## {title}\n\n(.*?)(?=\n\n## |\Z)", text, re.MULTILINE | re.DOTALL)[1]
    return re.sub(r"^```.*\n?", "", found, flags=re.MULTILINE).strip()


if __name__ == "__main__":
    run_script(main)
