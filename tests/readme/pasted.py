"""Whether the output that is pasted into a page still has the form of what its commands print.

A pasted line is looked for among the printed ones. Numbers and bars may differ, and up to half of the words, because
the models of the test have seen other texts. What a model writes has no form at all, and is left out.
"""

import re

# A block of commands, and directly after it one of output
PAIRS = re.compile(r"^```sh\n((?:(?!```).*\n)+)```\n\n```text\n((?:(?!```).*\n)+)```$", re.MULTILINE)
WRITES = re.compile(r"^python generate(v2)?\.py .*--quiet")
LEFT_OUT = ("", "...")


def pasted_outputs(text: str) -> list[tuple[list[str], list[str]]]:
    """(commands, pasted lines) for each block of commands that has its output after it."""
    pairs = [(commands.splitlines(), output.splitlines()) for commands, output in PAIRS.findall(text)]
    return [
        (commands, [line for line in output if line.strip() not in LEFT_OUT])
        for commands, output in pairs
        if not all(map(WRITES.match, commands))
    ]


def shape(line: str) -> list[str]:
    """The words of a line, without bars, and with 0 for every number."""
    line = re.sub(r"[▏▎▍▌▋▊▉█]+", "", line)
    return re.sub(r"[-+]?\d[\d,]*(\.\d+)?(e[-+]?\d+)?", "0", line).split()


def same_shape(pasted: list[str], printed: list[str]) -> bool:
    equal = sum(a == b for a, b in zip(pasted, printed, strict=False))
    return len(pasted) == len(printed) and 2 * equal >= len(pasted)


def missing(pasted: list[str], printed: str) -> list[str]:
    """The pasted lines that have the form of no printed one."""
    shapes = [shape(line) for line in printed.splitlines()]
    return [line for line in pasted if not any(same_shape(shape(line), other) for other in shapes)]
