"""Ctrl-C is never a traceback, from a script's first line to its end."""

import os
import signal
import subprocess
import sys
import time

import pytest
from faults import runs
from sources import ROOT

pytestmark = pytest.mark.skipif(os.name != "posix", reason="sends Ctrl-C as a signal")


def in_script(tmp_path, code: str) -> subprocess.CompletedProcess:
    """Run lines as one of our scripts, in a copy of what it needs."""
    for folder in ("plumbing", "scripts"):
        (tmp_path / folder).mkdir()
    for name in ("config.py", *(f"plumbing/{file.name}" for file in (ROOT / "plumbing").glob("*.py"))):
        (tmp_path / name).write_bytes((ROOT / name).read_bytes())
    (tmp_path / "scripts" / "x.py").write_text(
        "import os, signal, sys\nsys.path.insert(0, os.path.dirname(sys.path[0]))\nimport plumbing.interrupts\n" + code,
        "utf-8",
    )
    command = [sys.executable, tmp_path / "scripts" / "x.py"]
    return subprocess.run(command, capture_output=True, text=True, encoding="utf-8", timeout=60)


INTERRUPT = "os.kill(os.getpid(), signal.SIGINT)"
RUN = "from plumbing.errors import UserError, run_script\n"
SWALLOWED = f"""
class Freed:
    def __del__(self):
        {INTERRUPT}
        [i for i in range(1000)]
def main():
    Freed()
    import time; time.sleep(30)
"""


IMPORTED = f"""
try:
    {INTERRUPT}
    [i for i in range(1000)]
except BaseException:
    raise RuntimeError("as an import of torch makes one of it")
"""
IMPORTING = f"""
def main():
    open(os.path.join(sys.path[0], "imported.py"), "w").write('import os, signal' + {IMPORTED!r})
    import imported
"""


@pytest.mark.parametrize(
    ("code", "end", "said"),
    [
        (f"{INTERRUPT}\n{RUN}run_script(lambda: 0)", -2, ""),  # while it imports
        (f"{RUN}run_script(lambda: {INTERRUPT})", 130, "\nstopped\n"),
        (f"{RUN}import atexit; atexit.register(lambda: {INTERRUPT})\nrun_script(lambda: 0)", -2, ""),  # at its end
        (f"{RUN}{SWALLOWED}run_script(main)", 130, "\nstopped\n"),  # where Python prints and forgets it
        (f"{RUN}{IMPORTING}run_script(main)", 130, "\nstopped\n"),  # while main() imports
        (f"{RUN}def main():\n try: raise UserError('x')\n finally: {INTERRUPT}\nrun_script(main)", 130, "\nstopped\n"),
        ("import plumbing.errors as e\nclass B(e.UserError):\n  def __str__(self):\n    "  # while it says an error
         f"{INTERRUPT}\n    return 'x'\ndef main(): raise B\ne.run_script(main)", -2, ""),
    ],
)  # fmt: skip
def test_ctrl_c_at_each_stage_of_a_script(tmp_path, code, end, said):
    result = in_script(tmp_path, code)
    assert (result.returncode, result.stderr) == (end, said)


# Nothing can be said of the interpreter's own start: this says "ready" when the first of our own lines has run.
PREPARED = f"""
import runpy, sys
__file__ = sys.argv[1]
sys.argv = sys.argv[1:]
sys.path.insert(0, {str(ROOT)!r})
import plumbing.interrupts
print("ready", flush=True)
runpy.run_path(__file__, run_name="__main__")
"""


@runs(3, 200)
def test_ctrl_c_at_any_moment(tmp_path, number):
    """Two scripts that were once caught: while they import and in main(), or at moments spread over their whole runs,
    whose length takes a run of its own to measure."""
    (tmp_path / "a.py").write_text("x = 1\n", "utf-8")
    log = b"".join(b'{"step": %d, "loss": 1.0}\n' % step for step in range(1, 50))
    (tmp_path / "log.jsonl").write_bytes(log)
    for script, *words in (
        ("ingestion/ingest_folder.py", ".", "--output", "p.parquet"),
        ("scripts/plot_training.py", ".", "--html", "p.html"),
    ):
        command = [sys.executable, "-c", PREPARED, ROOT / script, *words]
        moments, interrupted = [0.05, 0.35, 0.9], 0
        if number > len(moments):
            begin = time.perf_counter()
            assert subprocess.run(command, cwd=tmp_path, capture_output=True).returncode == 0
            longest = time.perf_counter() - begin
            moments = [longest * i / number for i in range(number)]
        for moment in moments:
            process = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
            assert process.stdout.readline() == b"ready\n"
            time.sleep(moment)
            process.send_signal(signal.SIGINT)
            _, err = process.communicate(timeout=60)
            assert b"Traceback" not in err and b"Exception ignored" not in err, err
            assert process.returncode in (0, 130, -signal.SIGINT)
            interrupted += process.returncode != 0
        assert interrupted
