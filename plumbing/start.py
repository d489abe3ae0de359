"""The first import of every script: says in a sentence if this Python, its packages or config.py cannot be used.

Python 3.8 must be able to read this file, the two that are imported before it, and each script.
"""

import os
import sys
import traceback

from plumbing.interrupts import ROOT

PACKAGES = {"torch", "datasets", "huggingface_hub", "pyarrow", "tokenizers", "numpy", "tqdm"}


def way_out():
    """What to type so that the script runs in the right Python."""
    script = os.path.relpath(os.path.abspath(sys.argv[0])).replace(os.sep, "/")
    windows = os.name == "nt"
    if os.path.exists(os.path.join(ROOT, ".venv")):
        activate = ".venv\\Scripts\\activate" if windows else "source .venv/bin/activate"
        return f"Type `{activate}` first, in the project's folder, or `uv run {script}`."
    return f"Type `pip install uv`, then `uv run {script}`, which gets all that is needed."


def explain_missing(kind, error, trace):
    """sys.excepthook: a sentence instead of a traceback for a package or setting that is missing."""
    name = (getattr(error, "name", None) or "").partition(".")[0] if isinstance(error, ImportError) else ""
    if name in PACKAGES and isinstance(error, ModuleNotFoundError):
        text = f"the package {name} is not installed for this Python, {sys.executable}. {way_out()}"
        print(f"error: {text}", file=sys.stderr)
    elif name == "config":
        print(f"error: config.py is incomplete: {error.msg.partition(' (')[0]}. {UNDO}", file=sys.stderr)
    else:
        sys.__excepthook__(kind, error, trace)


UNDO = "`git diff config.py` shows what has changed."

if sys.version_info < (3, 11):  # noqa: UP036 (those who have not read which one it needs)
    version = ".".join(map(str, sys.version_info[:2]))
    sys.exit(f"error: this is Python {version}, {sys.executable}, and TinyLittleGPT needs 3.11 or newer. {way_out()}")
sys.excepthook = explain_missing

try:
    import config
except Exception as error:  # whatever somebody typed there
    frames = traceback.extract_tb(error.__traceback__)
    lines = [frame.lineno for frame in frames if frame.filename.endswith("config.py")]
    line = error.lineno if isinstance(error, SyntaxError) else lines[-1]
    reason = error.msg if isinstance(error, SyntaxError) else error
    print(f"error: config.py, line {line}: {reason}. {UNDO}", file=sys.stderr)
    sys.exit(2)

from plumbing import settings
from plumbing.errors import UsageError

try:
    config.CHAR, config.BPE = settings.checked(config.CHAR, "CHAR"), settings.checked(config.BPE, "BPE")
except UsageError as error:
    print(f"error: {error}", file=sys.stderr)
    sys.exit(2)
