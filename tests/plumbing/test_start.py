"""The first moments of every script: another Python, no packages, no path, and consoles that are no terminals."""

import ast
import os
import subprocess
import sys

import pytest
from sources import ENTRY_POINTS, ROOT, SCRIPTS, SOURCES

FIXTURES = ROOT / "tests" / "fixtures" / "before_rooms"


def python(*arguments, **environment) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, *map(str, arguments)],
        cwd=ROOT / "docs",
        env=os.environ | environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
    )


# === which Python =====================================================================================================


@pytest.mark.parametrize("name", [*SCRIPTS, "plumbing/__init__.py", "plumbing/interrupts.py", "plumbing/start.py"])
def test_an_old_python_can_read_what_tells_it_that_it_is_too_old(name):
    ast.parse(SOURCES[name], feature_version=(3, 8))


@pytest.mark.parametrize("name", SCRIPTS)
def test_the_start_is_the_first_import(name):
    """Before any package that may be missing, and with the project's folder on the path, which python -I leaves out."""
    body = ast.parse(SOURCES[name]).body
    folder = "os.path.dirname(os.path.realpath(__file__))"
    folder = folder if name in ENTRY_POINTS else f"os.path.dirname({folder})"
    expected = f"import os\nimport sys\nsys.path.insert(0, {folder})\n"
    assert "\n".join(map(ast.unparse, body[1:5])) == expected + "import plumbing.start"


def test_an_older_python_is_told_which_one_it_takes():
    code = "import runpy, sys; sys.version_info = (3, 8, 18); sys.argv = ['../train.py']; "
    done = python("-c", code + "runpy.run_path('../train.py', run_name='__main__')")
    assert (done.returncode, done.stdout) == (1, b"")
    assert done.stderr.startswith(b"error: this is Python 3.8, ")
    assert b"needs 3.11 or newer. Type `" in done.stderr and b"`uv run ../train.py`" in done.stderr
    assert done.stderr.count(b"\n") == 1


@pytest.mark.parametrize("name", SCRIPTS)
def test_without_the_packages_a_script_says_what_to_type(name):
    """-S leaves site-packages out, as the system's own Python does."""
    arguments = {"scripts/surprise_map.py": ["x"], "scripts/inspect_data.py": ["x"], "scripts/benchmark.py": ["train"]}
    arguments |= {"scripts/merge_token_files.py": ["x", "--output", "y"], "scripts/plot_training.py": ["x"]}
    arguments |= {"scripts/novelty.py": [ROOT / "README.md"], "ingestion/ingest_dataset.py": ["x"]}
    arguments |= {"scripts/export_huggingface.py": ["--output", "x"], "scripts/export_onnx.py": ["--output", "x"]}
    done = python("-S", ROOT / name, *arguments.get(name, []))
    assert (done.returncode, done.stdout) == (1, b"")
    assert done.stderr.startswith(b"error: the package ") and done.stderr.count(b"\n") == 1
    assert f"is not installed for this Python, {sys.executable}. Type `".encode() in done.stderr


@pytest.mark.parametrize("name", ["train.py", "generatev2.py", "scripts/prepare_dataset_bpe.py", "ingestion/ingest.py"])
def test_scripts_find_their_own_modules_in_isolation(name):
    done = python("-I", ROOT / name, "--help")
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout.startswith(b"usage: ")


def test_a_module_of_the_project_says_that_it_is_no_script():
    for name in ("model/gpt.py", "model/layers.py", "dataset.py"):
        stderr = python(ROOT / name).stderr
        assert stderr.endswith(b"and no script: python train.py trains a model.\n") and stderr.count(b"\n") == 1


# === which console ====================================================================================================


@pytest.mark.parametrize("encoding", ["ascii", "cp437", "cp1252"])
def test_help_is_readable_in_any_encoding(encoding):
    for name in ("train.py", "generatev2.py", "scripts/surprise_map.py", "scripts/merge_token_files.py"):
        done = python(ROOT / name, "--help", PYTHONIOENCODING=encoding)
        assert (done.returncode, done.stderr) == (0, b""), name
        assert done.stdout.decode("utf-8").startswith("usage: ")


WINDOW = """
import io, runpy, sys
class Window(io.TextIOBase):  # as in IDLE, Spyder and Jupyter: text alone
    encoding = "utf-8"
    def __init__(self): self.text = ""
    def write(self, text): self.text += text; return len(text)
    def readline(self): return ""
    def isatty(self): return False
terminal = sys.stdout
sys.stdin, sys.stdout, sys.stderr = Window(), Window(), Window()
sys.argv = sys.argv[1:]
code = "none"
try:
    runpy.run_path(sys.argv[0], run_name="__main__")
except SystemExit as end:
    code = end.code
print(code, ascii(sys.stdout.text), ascii(sys.stderr.text), sep="\\n", file=terminal)
"""


@pytest.fixture(scope="module")
def in_window(tmp_path_factory, torch_server):
    """in_window(script, *arguments): the exit code, stdout and stderr of a script that runs in such a window."""
    folder = tmp_path_factory.mktemp("window")
    (folder / "window.py").write_text(WINDOW, "utf-8")

    def run(script, *arguments) -> tuple[int, str, str]:
        line = [str(folder / "window.py"), str(ROOT / script), *map(str, arguments)]
        done = torch_server.run(line, ROOT / "docs", dict(os.environ), 60)
        assert done.returncode == 0, done.stderr
        code, out, err = map(ast.literal_eval, done.stdout.splitlines())
        return code, out, err

    return run


@pytest.mark.parametrize("name", ["train.py", "generatev2.py", "scripts/quickstart.py", "ingestion/ingest.py"])
def test_a_window_is_console_enough(in_window, name):
    code, out, err = in_window(name, "--help")
    assert (code, err) == (0, "") and out.startswith("usage: ")


def test_training_and_generation_run_in_a_window(in_window, tmp_path):
    files = [f"--{name}-file={FIXTURES / name}.bin" for name in ("train", "val")]
    model, small = tmp_path / "m.pt", ["--n-layer", 1, "--n-embd", 16, "--max-steps", 2, "--block-size", 8]
    flags = [*files, f"--tokenizer-file={FIXTURES / 'tokenizer_char.json'}", "--model-file", model, *small]
    code, out, err = in_window("train.py", *flags, "--checkpoint-dir", tmp_path / "run", "--sample-tokens", 3)
    assert (code, err) == (0, "") and "validation at step 2: " in out
    code, out, err = in_window("generate.py", "--model", model, "--prompt", "d", "--tokens", 4, "--readable")
    assert code == 0 and out.startswith("d") and "step 4: chose" in err
    code, out, err = in_window("generate.py", "--model", model, "--interactive")
    assert code == 0 and "Each line is a prompt" in err
