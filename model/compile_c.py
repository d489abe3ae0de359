"""Compiles the project's C files with the machine's C compiler on first use, and finds them again in the user's cache
folder: generation/one_token.c for generating, by_hand.c for training.

Imports no torch: generate.py starts it while torch is imported, which takes longer than compiling.
"""

import ctypes
import functools
import hashlib
import os
import platform
import shutil
import stat
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

from plumbing.errors import UserError
from plumbing.files import rename

ONE_TOKEN, BY_HAND = (Path(__file__).parent / name for name in ("generation/one_token.c", "by_hand.c"))
# Sums may be taken in another order, which vector instructions need. Not -ffast-math: compilers would then forget that
# there is NaN, and older ones let the library round denormal numbers to 0, in all of the process.
NATIVE = "-mcpu=native" if platform.machine() in ("arm64", "aarch64") else "-march=native"
ORDER = "-fassociative-math -fno-signed-zeros -fno-trapping-math -fno-math-errno"
FLAGS = f"-O3 {NATIVE} {ORDER} -shared -fPIC -pthread".split()
LOCK = threading.Lock()


def start_compiling(source: Path) -> None:
    """Compile in the background, if that was not done before."""
    threading.Thread(target=compiled_library, args=[source]).start()


def compiled_library(source: Path, *arguments: str) -> ctypes.PyDLL | None:
    """The library made of a C file, with further arguments for the compiler; None without a C compiler, and with a line
    on stderr if it cannot be made. Its functions hold Python's lock, so two threads of Python do not meet in its
    memory."""
    with LOCK:  # who comes second waits for the first
        return load_or_compile(source, *arguments)


@functools.cache
def load_or_compile(source: Path, *arguments: str) -> ctypes.PyDLL | None:
    compiler = c_compiler()
    if compiler is None:
        return None
    try:
        return ctypes.PyDLL(str(library_file(compiler, source, *arguments)))
    except (OSError, RuntimeError, UserError, subprocess.SubprocessError) as error:
        detail = getattr(error, "stderr", None) or str(error) or repr(error)
        reason = detail.strip().splitlines()[0]
        print(f"{source.name} cannot be used here, so computing is slower: {reason}", file=sys.stderr)
        return None


def c_compiler() -> str | None:
    """The path of a C compiler for POSIX threads."""
    if os.name != "posix":
        return None
    if sys.platform == "darwin" and subprocess.run(["xcode-select", "-p"], capture_output=True).returncode:  # noqa: S607
        return None  # there, cc would open a window that offers to install a compiler
    return next(filter(None, map(shutil.which, ("cc", "gcc", "clang"))), None)


def library_file(compiler: str, source: Path, *arguments: str) -> Path:
    """The library from the cache folder, or compiled into it. Its name has a hash of all that it is made of, and one
    of its own bytes, so that a damaged file is noticed."""
    version = subprocess.run([compiler, "--version"], capture_output=True, check=True).stdout  # noqa: S603
    made_of = source.read_bytes(), version, " ".join([*FLAGS, *arguments]).encode(), processor().encode()
    name, folder = f"{source.stem}-{digest(*made_of)}", cache_folder()
    for path in folder.glob(f"{name}-*.so"):
        if path.stem == f"{name}-{digest(path.read_bytes())}":
            return path
    with tempfile.TemporaryDirectory(dir=folder) as temporary:  # several processes may be at this at once
        output = Path(temporary, "library.so")
        command = [compiler, *FLAGS, "-o", output, source, *arguments, "-lm"]
        subprocess.run(command, capture_output=True, check=True, encoding="utf-8", errors="replace")  # noqa: S603
        path = folder / f"{name}-{digest(output.read_bytes())}.so"
        rename(output, path)
    return path


def cache_folder() -> Path:
    """tinylittlegpt in XDG_CACHE_HOME or ~/.cache. Nobody but the user may write to it: what it holds is run."""
    parent = Path(os.environ.get("XDG_CACHE_HOME", ""))
    folder = (parent if parent.is_absolute() else Path.home() / ".cache") / "tinylittlegpt"
    folder.parent.mkdir(parents=True, exist_ok=True)
    folder.mkdir(mode=0o700, exist_ok=True)
    status = folder.lstat()
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid() or status.st_mode & 0o022:
        raise UserError(f"{folder} is not a folder that you alone can write to.")
    return folder


def processor() -> str:
    """What the processor is: -march=native compiles for this one, and a home folder can be that of several machines."""
    try:
        lines = set(Path("/proc/cpuinfo").read_text("utf-8", errors="replace").splitlines())
        return "\n".join(sorted(line for line in lines if line.startswith(("model name", "flags", "Features", "CPU"))))
    except OSError:  # not Linux
        return platform.node() + platform.machine() + platform.processor()


def digest(*parts: bytes) -> str:
    return hashlib.sha256(b"\0".join(parts)).hexdigest()[:16]
