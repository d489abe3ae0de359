"""Several texts from one prompt, prompts from files, and conversations."""

# ruff: noqa: F401, F811 (imported fixtures)

import io
import json
import os
import subprocess
import sys

import pytest
from generators import interrupt_once, trained, write
from sources import ROOT

from model.generation import writer
from plumbing.errors import UserError

# --- several texts, and prompts that come otherwise -------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["char", "bpe"])
def test_samples_are_the_texts_of_successive_seeds(write, tmp_path, kind):
    file, flags = tmp_path / "out.txt", ["--prompt", "def é", "--tokens", 50, "--temperature", 1.5, "--stop", "\n\n"]
    out, err = write(*flags, "--samples", 3, "--seed", 7, "--output-file", file, kind=kind)
    alone = [write(*flags, "--seed", 7 + i, kind=kind)[0] for i in range(3)]
    assert out == file.read_bytes() == b"\n<|endoftext|>\n".join(alone)
    assert len(set(alone)) == 3
    assert err.count("Stopped after") == 3
    assert "sample 2, step 1: chose" in err
    assert write(*flags, "--samples", 3, "--seed", 7, "--quiet", kind=kind) == (out, "")


def test_the_prompt_can_come_from_a_file(write, tmp_path):
    file = tmp_path / "prompt.txt"
    file.write_bytes("def é\r\n\n".encode())
    out, _ = write("--prompt-file", file, "--tokens", 5)
    assert out.startswith("def é\r\n\n".encode())
    assert out == write("--prompt", "def é\r\n\n", "--tokens", 5)[0]
    with pytest.raises(UserError, match="There is no prompt file .*nowhere.txt"):
        write("--prompt-file", tmp_path / "nowhere.txt")
    file.write_bytes(b"caf\xe9")
    with pytest.raises(UserError, match="prompt.txt is not UTF-8 at byte 3"):
        write("--prompt-file", file)


@pytest.fixture
def talk(write, monkeypatch):
    """Run a generator with --interactive and this as its standard input."""

    def run(text: str, *flags):
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(text.encode("utf-8", "surrogateescape"))))
        return write("--interactive", "--tokens", 12, "--temperature", 0, *flags)

    return run


def test_a_conversation(write, talk):
    out, err = talk("def add\nimport \n/tokens 3.0\n/temperature 1.5\n/seed 4\nimport \n//x\n\n", "--quiet")
    flags = ["--tokens", 3, "--temperature", 1.5, "--seed", 4]
    expected = [
        write("--prompt", "def add", "--tokens", 12, "--temperature", 0)[0],
        write("--prompt", "import ", "--tokens", 12, "--temperature", 0)[0],
        *(write("--prompt", prompt, *flags)[0] for prompt in ("import ", "/x", "")),
    ]
    assert out == b"".join(text + b"\n" for text in expected)
    assert "error" not in err


def test_the_trace_of_a_conversation_tells_completions_apart(talk, tmp_path):
    talk("def add\n/tokens 2\nimport \n", "--quiet", "--tokens", 3, "--trace", tmp_path / "steps.jsonl")
    lines = map(json.loads, (tmp_path / "steps.jsonl").read_text("utf-8").splitlines())
    assert [(line["completion"], line["step"]) for line in lines] == [(1, 1), (1, 2), (1, 3), (2, 1), (2, 2)]


def test_a_conversation_survives_mistakes(write, talk):
    out, err = talk("/temperature cold\n/temperature -1\n/colour red\n/device cpu\ncaf\udce9\n/\nimport \n")
    assert "temperature: 'cold' is not a number" in err
    assert "--temperature must be 0" in err
    assert err.count("There is no setting") == 2
    assert "not UTF-8" in err
    assert "temperature 0.0  top_k 50" in err and "tokens 12" in err
    assert out.startswith(b"import ")


def test_ctrl_c_in_a_conversation_ends_one_completion_only(write, talk, monkeypatch):
    interrupt_once(monkeypatch, writer.Completion, "take", call=4)
    out, err = talk("import \nimport \n")
    whole = write("--prompt", "import ", "--tokens", 12, "--temperature", 0)[0]
    assert out == whole[: len("import ") + 3] + b"\n" + whole + b"\n"
    assert err.count("you stopped it") == 1


@pytest.mark.skipif(sys.platform == "win32", reason="needs a terminal")
def test_the_arrow_up_brings_the_line_before(trained):
    """In a terminal, as a shell does."""
    import pty

    terminal, other = pty.openpty()
    command = [sys.executable, "generate.py", "--model", trained["char"], "--interactive", "--tokens", "2", "--quiet"]
    environment = os.environ | {"TERM": "xterm"}
    process = subprocess.Popen(
        [*map(str, command)], cwd=ROOT, env=environment, stdin=other, stdout=other, stderr=subprocess.PIPE
    )
    os.close(other)

    def read_until(text: bytes) -> bytes:
        found = b""
        while text not in found:
            found += os.read(terminal, 1000)
        return found

    read_until(b"> ")
    os.write(terminal, b"def one\n")
    read_until(b"> ")
    os.write(terminal, b"\x1b[A\n")  # arrow up, return
    assert b"def one" in read_until(b"> ")
    os.write(terminal, b"\x04")  # Ctrl-D
    assert process.wait(60) == 0
    assert b"Traceback" not in process.stderr.read()
    os.close(terminal)


@pytest.mark.parametrize(
    ("kind", "prompt", "said"),
    [("bpe", "def ", True), ("bpe", "def", False), ("bpe", "x\n", False), ("char", "def ", False)],
)
def test_a_bpe_prompt_that_ends_with_a_space_is_pointed_out(write, kind, prompt, said):
    _, err = write("--prompt", prompt, "--tokens", 1, kind=kind)
    assert ("the prompt ends with a space" in err) == said
