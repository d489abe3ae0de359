"""Python processes that start with torch imported, or other slow packages: forked from one that imported them once, to
save two seconds each.

Each command is a process of its own, with its own folder, environment and output, as `python script.py` is. Only what
happens before and during this import is not as it would be, nor the end, where Python would take all of torch
apart for a second. So scripts are also started by themselves: all with --help, most with work to do.
Where there is no safe fork (Windows, macOS), every command is an ordinary subprocess.
"""

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

SERVER = """
import atexit, json, multiprocessing.process, os, runpy, sys, threading, traceback
for name in sys.argv[1:]:
    __import__(name)
for line in sys.stdin:
    request = json.loads(line)
    if not (child := os.fork()):
        break
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
else:
    os._exit(0)
os.environ.clear()
os.environ.update(request["env"])
os.chdir(request["cwd"])
multiprocessing.process.ORIGINAL_DIR = request["cwd"]
for number, (path, flags) in enumerate(request["streams"]):
    opened = os.open(path, flags)
    os.dup2(opened, number)
    os.close(opened)
sys.stdin = open(0, encoding="utf-8", closefd=False)
for stream in (sys.stdout, sys.stderr):
    encoding, _, errors = request["env"].get("PYTHONIOENCODING", "utf-8").partition(":")
    stream.reconfigure(encoding=encoding, errors=errors or stream.errors)
sys.argv, sys.path[0] = request["arguments"], os.path.dirname(os.path.abspath(request["arguments"][0]))
code = 0
try:
    runpy.run_path(sys.argv[0], run_name="__main__")
except SystemExit as end:
    code = end.code or 0
except BaseException:
    traceback.print_exc()
    code = 1
threading._shutdown()
atexit._run_exitfuncs()
sys.stdout.flush(), sys.stderr.flush()
os._exit(code)
"""


def run_python(arguments: list[str], cwd: Path, env: dict[str, str], timeout: float) -> subprocess.CompletedProcess:
    """`python ARGUMENTS` as an ordinary subprocess, without input."""
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=cwd,
        env=env,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=timeout,
    )


class ForkServer:
    """run() is run_python() for a script whose process starts with some modules imported. Needs a folder for the
    output."""

    def __init__(self, folder: Path, modules: Sequence[str] = ("torch",)):
        self.folder, self.modules, self.process = folder, modules, None

    def run(self, arguments: list[str], cwd: Path, env: dict[str, str], timeout: float) -> subprocess.CompletedProcess:
        if sys.platform != "linux":
            return run_python(arguments, cwd, env, timeout)
        if self.process is None:
            self.process = subprocess.Popen(
                [sys.executable, "-c", SERVER, *self.modules],
                cwd=self.folder,  # the folder of the test that comes first may be gone by the next one
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                encoding="utf-8",
                start_new_session=True,
            )
        out, err = self.folder / "stdout", self.folder / "stderr"
        out.write_bytes(b""), err.write_bytes(b"")  # for what is said of a command that never began
        write = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
        streams = [(os.devnull, os.O_RDONLY), (str(out), write), (str(err), write)]
        request = {"arguments": arguments, "cwd": str(cwd), "env": env, "streams": streams}
        too_late = threading.Timer(timeout, self.kill)
        too_late.start()
        try:
            print(json.dumps(request), file=self.process.stdin, flush=True)
            answer = self.process.stdout.readline()
        finally:
            too_late.cancel()
        if not answer:
            code = self.close()  # the next command starts another
            if code != -signal.SIGKILL:
                raise RuntimeError(f"The server ended with {code}, and what it says stands above.")
            raise subprocess.TimeoutExpired(arguments, timeout, out.read_bytes(), err.read_bytes())
        return subprocess.CompletedProcess(arguments, int(answer), out.read_text("utf-8"), err.read_text("utf-8"))

    def silently(self, command: list, folder: Path | None = None, **variables: str) -> subprocess.CompletedProcess:
        """run_silently() of scripts/benchmarks/common.py, for commands that run Python."""
        arguments, folder = [str(part) for part in command[1:]], folder or self.folder
        if arguments[0] == "-c":  # such lines find the modules of the folder, as a script there does
            (folder / "lines.py").write_text(arguments[1], "utf-8")
            arguments[:2] = [str(folder / "lines.py")]
        done = self.run(arguments, folder, os.environ | variables, 300)
        assert done.returncode == 0, done.stderr
        return done

    def kill(self) -> None:
        os.killpg(self.process.pid, signal.SIGKILL)  # the running command too: they are one session

    def close(self) -> int | None:
        """End the server, if there is one. Returns its exit code."""
        if self.process is None:
            return None
        self.process.communicate()  # the end of its input ends it
        process, self.process = self.process, None
        return process.returncode
