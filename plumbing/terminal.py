"""The console that a script runs in: a terminal, a file, a pipe, nothing at all, or the window of IDLE, Spyder and
Jupyter, whose streams have no bytes, no file number and no encoding to change."""

import io
import os
import shutil
import sys
from contextlib import suppress


def open_streams() -> None:
    """Make stdout and stderr take any text, whatever encoding the terminal has."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:  # closed by whoever started this (`>&-`)
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115 (until the end)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(encoding="utf-8", errors="backslashreplace", line_buffering=True)


class LastingFile(io.FileIO):
    """An open output by its number that can be lost without an error: when its reader has gone, its terminal is closed
    or its disk is full, what is written to it goes to the output `instead`, and when that is lost too, nowhere."""

    def __init__(self, number: int, *instead: int):
        super().__init__(number, "w", closefd=False)
        self.instead = list(instead)

    def write(self, data) -> int:
        try:
            return super().write(data)
        except OSError:
            other = self.instead.pop() if self.instead else os.open(os.devnull, os.O_WRONLY)
            os.dup2(other, self.fileno())
            return self.write(data)


def outlive_output(on_stderr: bool) -> None:
    """From now on, what a lost stdout does not take goes to stderr, or nowhere, and what a lost stderr does not take
    goes nowhere."""
    for name, instead in (("stdout", [sys.stderr] if on_stderr else []), ("stderr", [])):
        buffer = getattr(getattr(sys, name), "buffer", None)
        if type(getattr(buffer, "raw", buffer)) is io.FileIO:  # no notebook, and no console of Windows
            file = io.BufferedWriter(LastingFile(buffer.fileno(), *(other.fileno() for other in instead)))
            options = {"encoding": "utf-8", "errors": "backslashreplace", "line_buffering": True}
            setattr(sys, name, io.TextIOWrapper(file, **options))


def write_exactly(text: str) -> None:
    """Write to stdout what a file or a pipe is to receive byte for byte, line ends included."""
    if hasattr(sys.stdout, "buffer"):
        sys.stdout.buffer.write(text.encode())
        sys.stdout.buffer.flush()
    else:
        sys.stdout.write(text)
        sys.stdout.flush()


def ask_line(prompt: str) -> str | None:
    """The next line of stdin, None at its end. In a terminal with the prompt, and with the keys of a shell: the arrow
    up brings the line before."""
    if sys.stdin.isatty() and sys.stdout.isatty():
        with suppress(ImportError):  # Windows: the console does it
            import readline  # noqa: F401 (from then on, input() uses it)
        try:
            return input(prompt)
        except EOFError:
            return None
    if sys.stdin.isatty():
        print(prompt, end="", file=sys.stderr, flush=True)
    line = sys.stdin.readline()
    return line.removesuffix("\n") if line else None


def one_screen() -> bool:
    """Whether stdout and stderr go to one and the same place."""
    try:
        return os.path.sameopenfile(sys.stdout.fileno(), sys.stderr.fileno())
    except (AttributeError, OSError, ValueError):  # a window
        return True


def colours(stream) -> bool:
    """Whether to write colours to a stream: a terminal, unless NO_COLOR is set (https://no-color.org)."""
    return stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def width() -> int:
    """Columns of the terminal; COLUMNS sets them; 80 where there is none."""
    return shutil.get_terminal_size((80, 24)).columns
