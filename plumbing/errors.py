"""Errors that a user can put right, and run_script(), which turns them into plain sentences."""

import os
import sys
from collections.abc import Callable

from plumbing.interrupts import end_at_once, raise_interrupt
from plumbing.terminal import open_streams, outlive_output
from plumbing.text import printable


class UserError(Exception):
    """Something that the person at the keyboard can put right. Its text says what is wrong, and the way out."""


class UsageError(UserError):
    """A flag or setting that cannot be used."""


def reason(error: Exception) -> str:
    """The first line of what a library says, or its type where it says nothing."""
    return (str(error).strip() or repr(error)).splitlines()[0]


def run_script(main: Callable[[], int | None], when_unread: str = "end") -> None:
    """Run a script's main(). A UserError becomes a line on stderr and exit code 1 (2 for wrong usage), Ctrl-C 130. When
    the reader of stdout has gone, the script ends; or it goes on, its text lost ("go on") or put on stderr ("stderr").
    """
    open_streams()
    if when_unread != "end":
        outlive_output(on_stderr=when_unread == "stderr")
    try:
        try:
            raise_interrupt()
            code = main() or 0
            sys.stdout.flush()
        finally:
            end_at_once()  # a second Ctrl-C, and one that comes when all is done
    except UserError as error:
        sys.stdout.flush()
        print("error: " + printable(str(error), keep="\n"), file=sys.stderr)
        code = 2 if isinstance(error, UsageError) else 1
    except KeyboardInterrupt:
        print("\nstopped", file=sys.stderr)
        code = 130
    except BrokenPipeError:  # the reader of our output has gone (`... | head`)
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 1
    except OSError as error:  # no permission, disk full, a folder where a file should be
        text = f"error: {error.strerror or error}" + (f": {error.filename}" if error.filename else "")
        print(printable(text, keep="\n"), file=sys.stderr)
        code = 1
    sys.exit(code)
