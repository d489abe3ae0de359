"""Whether the output that is pasted into a page still has the form of what its commands print.

A pasted line is looked for among the printed ones. Numbers and bars may differ, and up to half of the words, because
the models of the test have seen other texts. What has no form is left out: what a model writes, and rows of tokens.
"""

import re

# A block of commands, and directly after it one of output
PAIRS = re.compile(r"^```sh\n((?:(?!```).*\n)+)```\n\n```text\n((?:(?!```).*\n)+)```$", re.MULTILINE)
WRITES = re.compile(r"^python generate(v2)?\.py .*--quiet")
FREE = re.compile(
    r"\s*(\.\.\.)?"
    r"|  \S+(  +\S+)+"  # a row of tokens, or of their ids
    r"|[\d+ ]+"  # surprises below a line of text
    r"|def.{0,20}"  # the text of three tokens
    r"|   removed, of the model's probability: .*"  # by one filter, by several or by none
    r"|3\. Backward\. The whole gradient has a norm of [^ ]+"  # more is said where it is clipped
    r"|Gathering .*|  better than .*"  # the test gathers a part, and its models are worse
    r"|  and so on; characters that occur once: .*"  # there may be none,
    r"|    .* (bytes at|of the corpus, line) .*"  # and no passage that is in the corpus
)


def lines_with_form(output: str) -> list[str]:
    return [line for line in output.splitlines() if not FREE.fullmatch(line)]


def pasted_block(text: str, beginning: str) -> list[str]:
    """The lines of the block of output that begins in this way."""
    (block,) = re.findall(rf"^```text\n({re.escape(beginning)}(?:(?!```).*\n)+)```$", text, re.MULTILINE)
    return lines_with_form(block)


def pasted_outputs(text: str) -> list[tuple[list[str], list[str]]]:
    """(commands, pasted lines) for each block of commands that has its output after it."""
    pairs = [(commands.splitlines(), lines_with_form(output)) for commands, output in PAIRS.findall(text)]
    return [(commands, lines) for commands, lines in pairs if not all(map(WRITES.match, commands))]


def shape(line: str) -> list[str]:
    """The words of a line, without bars, and with 0 for every number."""
    line = re.sub(r"[▏▎▍▌▋▊▉█]+", "", line)
    line = re.sub(r"[-+]?\d[\d,]*(\.\d+)?(e[-+]?\d+)?", "0", line)
    return line.replace("0 min 0 s", "0 s").split()


def same_shape(pasted: list[str], printed: list[str]) -> bool:
    equal = sum(a == b for a, b in zip(pasted, printed, strict=False))
    return len(pasted) == len(printed) and 2 * equal >= len(pasted)


def missing(pasted: list[str], printed: str) -> list[str]:
    """The pasted lines that have the form of no printed one."""
    shapes = [shape(line) for line in printed.splitlines()]
    return [line for line in pasted if not any(same_shape(shape(line), other) for other in shapes)]
