"""The README's commands, as written and in its order, in a copy of the project whose trainings are short."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

from config import ROOT

README = (ROOT / "README.md").read_text("utf-8")

# What installs, or needs a network, is not run; and `uv run` and `python` are the Python that runs this test.
NOT_RUN = ("pip install uv", "uv venv", "uv pip install ", "source .venv/bin/activate", "uv run pytest")
SAME_PYTHON = ("uv run --no-sync ", "uv run ", "python ")

# The copy's config.py and quickstart, edited as a user would: a model and a run that take seconds.
SHORTER = {
    "config.py": {
        r"max_steps: int = \d+": "max_steps: int = 30",
        r"block_size: int = \d+": "block_size: int = 32",
        r"n_layer: int = \d+": "n_layer: int = 1",
        r"n_embd: int = \d+": "n_embd: int = 32",
        r"vocab_size: int = \d+": "vocab_size: int = 1000",
    },
    "scripts/quickstart.py": {r"type=float, default=[\d.]+": "type=float, default=1.1"},
}


def commands() -> list[str]:
    """Every line of every ```sh block, split at &&."""
    blocks = re.findall(r"^```sh\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
    return [part.strip() for block in blocks for line in block.splitlines() for part in line.split("&&")]


def copy_project(folder: Path) -> Path:
    """The files that git would clone, with the edits above."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        check=True,
    )
    for name in listed.stdout.decode().split("\0"):
        if name and (ROOT / name).is_file() and not name.startswith("tests/"):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / name)
    for name, edits in SHORTER.items():
        text = (folder / name).read_text("utf-8")
        for pattern, replacement in edits.items():
            text, count = re.subn(pattern, replacement, text)
            assert count == 1, f"{pattern} stands {count} times in {name}"
        (folder / name).write_text(text, "utf-8")
    return folder


def run(command: str, cwd: Path, **variables: str) -> subprocess.CompletedProcess:
    arguments = shlex.split(command)
    env = {k: v for k, v in os.environ.items() if not k.startswith("HF_")} | variables
    done = subprocess.run(
        [sys.executable, *arguments], cwd=cwd, env=env, capture_output=True, text=True, encoding="utf-8", timeout=120
    )
    assert done.returncode == 0, f"{command}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"
    assert "Traceback" not in done.stderr
    return done


def test_every_command_runs_as_written(tmp_path, hub, files):
    project = copy_project(tmp_path / "project")
    environment = {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "hf"), "HF_HUB_DISABLE_TELEMETRY": "1"}
    outputs = {}
    for command in commands():
        if command.startswith(NOT_RUN):
            continue
        command = re.sub("^torchrun ", "python -m torch.distributed.run ", command)  # which is what it is
        prefix = next((prefix for prefix in SAME_PYTHON if command.startswith(prefix)), None)
        assert prefix, f"the test does not know how to run {command!r}"
        outputs[command] = run(command.removeprefix(prefix), project, **environment)
        if "quickstart" in command:
            assert "skipped" not in outputs[command].stdout
            assert outputs[command].stdout.count("bits per byte of validation text") == 2
            # Run again, it does what is missing, and says what it skips and why.
            (project / "data" / "val_bpe.bin").unlink()
            again = run(command.removeprefix(prefix), project, **environment).stdout
            assert again.count("skipped:") == 6
            assert not re.search("skipped: .*val_bpe.bin", again)
            assert again.count("This run is finished") == 2

    for script in {re.search(r"\S+\.py", command)[0] for command in outputs}:
        assert (ROOT / script).exists()
    # Every step of the pipeline is among the commands.
    steps = {*(ROOT / "scripts").glob("*.py"), *(ROOT / "ingestion").glob("*.py"), *ROOT.glob("train*.py")}
    steps |= set(ROOT.glob("generate*.py"))
    named = " ".join(outputs)
    assert [path.name for path in sorted(steps) if path.name not in named] == []


def test_every_path_named_in_the_tables_exists():
    for path in re.findall(r"^\| (`[^|]*`) \|", README, re.MULTILINE):
        for name in re.findall(r"`([^`]+)`", path):
            if name not in ("data/", "checkpoints/", "gpt_model.pt"):
                assert (ROOT / name).exists(), name


def test_every_section_is_there_in_order():
    titles = re.findall(r"^## (.+)$", README, re.MULTILINE)
    wanted = ["Quick start", "Setup", "Preparing data", "Training", "Generating text", "Looking inside"]
    wanted += ["What you can rely on", "Repository structure", "Reading order for the curious", "Using your own code"]
    assert [title for title in titles if title in wanted] == wanted


def test_no_placeholder_is_left():
    assert re.findall(r"^```text\n[A-Z0-9]+\n```", README, re.MULTILINE) == []
