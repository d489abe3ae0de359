"""Ctrl-C never ends a script with a traceback. Imported before all else: while a script still imports, and again when
its main() is done, Ctrl-C ends the process at once. In between, run_script() turns it into a sentence."""

import os
import signal
import sys

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
FOLDERS = [ROOT, os.path.join(ROOT, "scripts"), os.path.join(ROOT, "ingestion")]  # of scripts


def is_script() -> bool:
    """Whether this process runs one of our scripts and nothing else: no test, and no window that runs it beside others,
    as IDLE, Spyder and Jupyter do."""
    file = getattr(sys.modules["__main__"], "__file__", None)
    beside_others = sys.flags.interactive or {"IPython", "idlelib"} & sys.modules.keys()
    return bool(file) and not beside_others and os.path.dirname(os.path.abspath(file)) in FOLDERS


def end_at_once() -> None:
    """From now on, Ctrl-C ends the process as the system does it, without a word."""
    if is_script():
        signal.signal(signal.SIGINT, signal.SIG_DFL)


def raise_interrupt() -> None:
    """From now on, Ctrl-C raises KeyboardInterrupt; or ends the process, where that would become something else: in a
    function that frees an object, Python prints and forgets it, and an import of torch can make another error of it."""
    signal.signal(signal.SIGINT, interrupt if is_script() else signal.default_int_handler)
    if is_script():
        sys.unraisablehook = end_after_interrupt


def interrupt(number, frame) -> None:
    """SIGINT's handler: KeyboardInterrupt, or the end while something is imported."""
    while frame is not None:
        if "importlib._bootstrap" in frame.f_code.co_filename:
            say_stopped()
        frame = frame.f_back
    raise KeyboardInterrupt


def end_after_interrupt(unraisable) -> None:
    if unraisable.exc_type is not KeyboardInterrupt:
        return sys.__unraisablehook__(unraisable)
    say_stopped()


def say_stopped() -> None:
    """End the process now."""
    try:
        os.write(2, b"\nstopped\n")
    finally:  # also where nobody reads it: the same Ctrl-C ends `2>&1 | tee`
        os._exit(130)


end_at_once()
