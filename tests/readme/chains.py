"""The commands of README.md and docs/*.md, run as written, in chains that do not depend on each other.

Every section of a page that has commands is in one chain. The quickstart is the first: it is run once, and every other
chain starts from a copy of what it leaves behind, as a reader would. A command that is in several chains is run in the
first of them. One test file per chain lets pytest-xdist run them side by side.
"""

import os
import re
import shlex
import shutil
import subprocess
import time
import traceback
from pathlib import Path

import pytest
from filelock import FileLock
from fork_server import run_python
from readme.pasted import missing, pasted_block, pasted_outputs
from runs import folder_of_all_workers

from config import ROOT

PAGES = {
    path.relative_to(ROOT).as_posix(): path.read_text("utf-8") for path in (ROOT / "README.md", *ROOT.glob("docs/*.md"))
}

# chain -> its pages and sections, in the order in which they are run. A page stands for all of its sections that no
# chain names. Each chain has a test file, test_readme_CHAIN.py.
CHAINS = {
    "quickstart": ["README.md#TinyLittleGPT"],
    "pages": ["README.md", "docs/installing.md", "docs/reliability.md", "docs/exercises.md"],
    "data": ["docs/data.md", "docs/tokenizers.md"],
    "training": ["docs/training.md", "docs/scaling.md", "docs/performance.md"],
    "generating": ["docs/generating.md", "docs/exporting.md", "docs/html.md"],
    "inside": ["docs/looking-inside.md"],
}
NO_COMMANDS = ["docs/README.md", "docs/experiments.md", "docs/how-a-gpt-works.md"]

# What installs, or needs a network, is not run; and `uv run` and `python` are the Python that runs this test.
NOT_RUN = ("pip install uv", "uv venv", "uv pip install ", "source .venv/bin/activate", "uv run pytest")
SAME_PYTHON = ("uv run --no-sync ", "uv run ", "python ")
TIMEOUT = 300  # seconds for a command

# The quickstart's main(), then again after a file was lost. It starts the scripts of the data path and trainv2.py as it
# does for a user; the others, and in the second run all that it does not skip, start with torch imported: other tests
# start train.py and generate.py by themselves. Generating is left out of the second run.
QUICKSTART_TWICE = f"""
import os, shlex, sys
from pathlib import Path
sys.path[:0] = ["scripts", {str(Path(__file__).parents[1])!r}]
import quickstart
from fork_server import ForkServer
from plumbing.errors import run_script
server, start_alone, again = ForkServer(Path("..").resolve()), quickstart.run_command, False
def run(command):
    if not (again or command.startswith(("train.py", "generate", "scripts/export_html.py"))):
        return start_alone(command)
    if again and command.startswith("generate"):
        return 0
    done = server.run(shlex.split(command), Path.cwd(), os.environ | {{quickstart.IN_QUICKSTART: "1"}}, {TIMEOUT})
    print(done.stdout)
    print(done.stderr, file=sys.stderr)
    return done.returncode
def twice():
    global again
    if code := quickstart.main():
        return code
    Path("data/val_bpe.bin").unlink()
    print("AGAIN")
    again = True
    return quickstart.main()
quickstart.run_command = run
run_script(twice)
"""

# The copy's files, edited as a user would: a text, a model and runs that take seconds.
SHORTER = {
    "config.py": {
        r"max_steps: int = \d+": "max_steps: int = 30",
        r"block_size: int = \d+": "block_size: int = 32",
        r"n_layer: int = \d+": "n_layer: int = 1",
        r"n_embd: int = \d+": "n_embd: int = 32",
        r"vocab_size: int = \d+": "vocab_size: int = 1000",
        r"batch_size: int = \d+": "batch_size: int = 4",
        r"eval_tokens: int = [\d_]+": "eval_tokens: int = 2048",
        r"sample_tokens: int = \d+": "sample_tokens: int = 20",
    },
    "ingestion/ingest_folder.py": {  # a ninth of the standard library
        r'\[Path\(sysconfig.get_path\("stdlib"\)\)\]': '[Path(sysconfig.get_path("stdlib"), name) for name in '
        '("asyncio", "email", "http", "multiprocessing")]',
    },
    "scripts/benchmarks/generating.py": {
        r'"-c", "import torch"': '"-c", "0"'
    },  # the time of importing torch, for comparison
    "scripts/benchmarks/training.py": {r"LEAST_SECONDS = [\d.]+": "LEAST_SECONDS = 0.1"},
    "scripts/gpt_in_plain_python.py": {r'"n_embd": 8, "block_size": 8': '"n_embd": 4, "block_size": 4'},
    "scripts/quickstart.py": {
        r"type=float, default=[\d.]+": "type=float, default=1.0",
        r"LEAST_MINUTES = [\d.]+": "LEAST_MINUTES = 0.02",
    },
}


def sections() -> dict[str, list[str]]:
    """The commands of each section that has any: every line of its ```sh blocks, split at &&, except NOT_RUN."""
    found = {}
    for page, text in PAGES.items():
        headings = re.split(r"^#+ (.+)$", "# \n" + text, flags=re.MULTILINE)[1:]  # title, text, title, text, ...
        for title, body in zip(headings[::2], headings[1::2], strict=True):
            blocks = re.findall(r"^```sh\n(.*?)^```", body, re.MULTILINE | re.DOTALL)
            lines = [part.strip() for block in blocks for line in block.splitlines() for part in line.split("&&")]
            commands = [line for line in lines if line and not line.startswith(("#", *NOT_RUN))]
            if commands:
                found.setdefault(f"{page}#{title}", []).extend(commands)
    return found


def sections_of(chain: str) -> list[str]:
    """The sections of a chain that have commands, in their order."""
    named = {entry for entries in CHAINS.values() for entry in entries}
    found = []
    for entry in CHAINS[chain]:
        found += [
            section
            for section in sections()
            if section == entry or (section.partition("#")[0] == entry and section not in named)
        ]
    return found


def commands_of(chain: str) -> list[str]:
    """The commands of a chain that no chain before it has. What the others make, if the chain reads it at all, the
    quickstart has made already."""
    found = {name: [command for section in sections_of(name) for command in sections()[section]] for name in CHAINS}
    earlier = {command for name in [*CHAINS][: [*CHAINS].index(chain)] for command in found[name]}
    return [command for command in found[chain] if command not in earlier]


def arguments_of(command: str) -> list[str]:
    """The arguments of a command to Python: "uv run train.py" gives ["train.py"]."""
    command = re.sub("^torchrun ", "python -m torch.distributed.run ", command)  # which is what torchrun is
    prefix = next((prefix for prefix in SAME_PYTHON if command.startswith(prefix)), None)
    assert prefix, f"the test does not know how to run {command!r}"
    return shlex.split(command.removeprefix(prefix))


def script_of(command: str) -> str:
    return next(argument for argument in arguments_of(command) if argument.endswith(".py"))


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
            assert count == 1, f"{pattern} is {count} times in {name}"
        (folder / name).write_text(text, "utf-8")
    return folder


def environment(**variables: str) -> dict[str, str]:
    return {k: v for k, v in os.environ.items() if not k.startswith("HF_")} | variables


def check(done: subprocess.CompletedProcess, command: str) -> subprocess.CompletedProcess:
    assert done.returncode == 0, f"{command}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"
    assert "Traceback" not in done.stderr
    return done


def refuses_files_of_others(project: Path, command: str) -> None:
    """The quickstart's own file, started as written: beside a file that somebody made by hand it ends at once."""
    mine = project / "data" / "corpus_sample.txt"
    mine.parent.mkdir(exist_ok=True)
    mine.write_text("mine", "utf-8")
    done = run_python(arguments_of(command), project, environment(), TIMEOUT)
    assert done.returncode == 1 and "corpus_sample.txt is not the quickstart's" in done.stderr, done.stderr
    assert mine.read_text("utf-8") == "mine"
    mine.unlink()


def quickstart(folder: Path) -> Path:
    """A project in which the quickstart has been run, and run again after a file was lost."""
    project = copy_project(folder)
    (command,) = sections()["README.md#TinyLittleGPT"]
    refuses_files_of_others(project, command)
    twice = ["-c", QUICKSTART_TWICE, *arguments_of(command)[1:]]
    first, again = check(run_python(twice, project, environment(), 2 * TIMEOUT), command).stdout.split("\nAGAIN\n")
    assert "skipped" not in first
    assert first.count("bits per byte of validation text") == 2
    assert re.findall("^Next: .*$", first, re.MULTILINE) == re.findall("^Next: .*README.*$", first, re.MULTILINE)
    for page, beginning in (
        ("README.md", "=== 1."), ("README.md", "Baselines"), ("docs/training.md", "Computing on"),
    ):  # fmt: skip
        changed = missing(pasted_block(PAGES[page], beginning), first)
        assert not changed, f"{page}: the quickstart prints nothing of the form of {changed}"
    assert again.count("skipped:") == 6
    assert not re.search("skipped: .*val_bpe.bin", again)
    assert again.count("This run is finished") == 2
    return project


def after_quickstart(tmp_path_factory) -> Path:
    """The folder that quickstart() made for all workers: by the first to ask, while the others wait."""
    shared = folder_of_all_workers(tmp_path_factory, "readme")
    with FileLock(shared / "lock"):
        if not (shared / "result").exists():
            try:
                quickstart(shared / "project")
                (shared / "result").write_text("", "utf-8")
            except BaseException:
                (shared / "result").write_text(traceback.format_exc(), "utf-8")
    if error := (shared / "result").read_text("utf-8"):
        pytest.fail(f"The quickstart, with which each chain starts, failed:\n{error}", pytrace=False)
    return shared / "project"


def run_chain(name: str, tmp_path_factory, request) -> None:
    """Run the commands of a chain in a copy of what the quickstart left."""
    folder = tmp_path_factory.mktemp(name)
    project = folder / "project"
    shutil.copytree(after_quickstart(tmp_path_factory), project)
    commands = commands_of(name)
    variables = {}
    if any("ingestion/ingest.py" in command for command in commands):
        hub = request.getfixturevalue("hub")
        variables = {"HF_ENDPOINT": hub.url, "HF_HOME": str(folder / "hf"), "HF_HUB_DISABLE_TELEMETRY": "1"}
    server = request.getfixturevalue("torch_server")  # importing torch for each command would take most of the time
    printed = {}
    for command in commands:
        arguments, start = arguments_of(command), time.perf_counter()
        run = run_python if arguments[0] == "-m" else server.run
        done = check(run(arguments, project, environment(**variables), TIMEOUT), command)
        printed[command] = f"{done.stdout}\n{done.stderr}"
        print(f"{time.perf_counter() - start:5.1f} s  {command}")
    changed = []
    for page, text in PAGES.items():
        for block, lines in pasted_outputs(text):
            if block[-1] in printed:
                now = "\n".join(printed.get(command, "") for command in block)
                changed += [f"{page}: {line}" for line in missing(lines, now)]
    assert not changed, "\n".join(["these lines have the form of nothing that their commands print now:", *changed])
