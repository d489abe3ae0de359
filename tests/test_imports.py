"""Who imports whom: one way through the rooms, no circles, no torch before --help has answered."""

import ast
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache

import pytest
from sources import ENTRY_POINTS, ROOT, SCRIPTS, SOURCES, file_of, imports, packages, tree

# === the rooms ========================================================================================================

BELOW_MODEL = {"config", "plumbing", "dataset"}
MAY_IMPORT = {  # besides itself
    "config": set(),
    "plumbing": {"config"},
    "dataset": {"config", "plumbing"},
    "model": BELOW_MODEL,
    "model/tokenization": {*BELOW_MODEL, "model"},
    "model/storage": {*BELOW_MODEL, "model", "model/tokenization"},
    "model/training": {*BELOW_MODEL, "model", "model/tokenization", "model/storage"},
    "model/generation": {*BELOW_MODEL, "model", "model/tokenization"},
    "model/interpretation": {*BELOW_MODEL, "model", "model/tokenization", "model/storage", "model/training"},
}
MAY_IMPORT["model/monitoring"] = {*BELOW_MODEL, *(room for room in MAY_IMPORT if room.startswith("model"))}
EVERYTHING_BELOW_SCRIPTS = set(MAY_IMPORT)
# A script is a room of its own and may import all of the rooms above, but other scripts only where it is listed here.
SCRIPT_IMPORTS_SCRIPT = {
    "trainv2.py": {"train.py"},
    "generatev2.py": {"generate.py"},
    "scripts/prepare_dataset_bpe.py": {"scripts/prepare_dataset.py"},
    "scripts/benchmark.py": {"scripts/benchmarks"},
    "scripts/inspect_step.py": {"train.py"},  # train_step itself
}


def room_of(name: str) -> str:
    """model/gpt.py is in the room model, model/storage/checkpoint.py in model/storage; a script is its own room."""
    folder = name.rpartition("/")[0]
    if name in ("config.py", "dataset.py"):
        return name.removesuffix(".py")
    if not folder or folder in ("scripts", "ingestion"):
        return name
    return folder


def edges(sources: dict[str, str]) -> Iterator[tuple[str, int, str]]:
    """(importer, line, imported) for each import of one of our files, those inside functions included. A package's
    __init__.py counts only if it is imported by itself: importing model.gpt is an edge to model/gpt.py alone."""
    for importer, source in sources.items():
        for found in imports(source):
            imported = file_of(found.module, sources)
            if imported and imported != importer and not imported.endswith("__init__.py"):
                yield importer, found.line, imported


def wrong_ways(sources: dict[str, str]) -> list[str]:
    """Imports that the table above does not allow."""
    found = set()
    for importer, line, imported in edges(sources):
        room, other = room_of(importer), room_of(imported)
        allowed = MAY_IMPORT.get(room, EVERYTHING_BELOW_SCRIPTS | SCRIPT_IMPORTS_SCRIPT.get(room, set()))
        if other != room and other not in allowed:
            found.add(f"{importer}:{line} imports {imported}, but {room} must not import {other}")
    return sorted(found)


def circles(sources: dict[str, str]) -> list[str]:
    """Circles of imports, each as "a.py -> b.py -> a.py"."""
    graph = {name: [] for name in sources}
    for importer, _, imported in edges(sources):
        graph[importer].append(imported)
    found, done = set(), set()

    def visit(name: str, path: list[str]) -> None:
        if name in path:
            circle = path[path.index(name) :]
            first = circle.index(min(circle))  # one name for a circle, wherever the walk entered it
            found.add(" -> ".join([*circle[first:], *circle[:first], min(circle)]))
        elif name not in done:
            for imported in graph[name]:
                visit(imported, [*path, name])
            done.add(name)

    for name in graph:
        visit(name, [])
    return sorted(found)


def test_imports_run_one_way():
    assert len(SOURCES) > 50
    assert {room for room in map(room_of, SOURCES) if room.startswith("model")} <= set(MAY_IMPORT)
    assert not wrong_ways(SOURCES), "\n".join(wrong_ways(SOURCES))


def test_imports_run_in_no_circle():
    assert not circles(SOURCES), "\n".join(circles(SOURCES))


@cache
def names_in(source: str) -> set[str]:
    """What a module defines or imports, blocks such as `if` and `try` included."""
    nodes = list(ast.walk(tree(source)))
    stored = {node.id for node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}
    defined = {node.name for node in nodes if isinstance(node, ast.FunctionDef | ast.ClassDef)}
    return stored | defined | {found.module.rpartition(".")[2] for found in imports(source)}


def broken(sources: dict[str, str]) -> list[str]:
    """Imports of our own modules and names that do not exist. Inside a function they would show only when it runs."""
    ours, found = {name.partition("/")[0].removesuffix(".py") for name in sources}, []
    for importer, source in sources.items():
        for node in ast.walk(tree(source)):
            if isinstance(node, ast.ImportFrom) and node.module.partition(".")[0] in ours:
                file = file_of(node.module, sources)
                names = names_in(sources[file]) if file else set()
                found += [
                    f"{importer}:{node.lineno} imports {alias.name} from {node.module}, which does not exist"
                    for alias in node.names
                    if alias.name not in names and not file_of(f"{node.module}.{alias.name}", sources)
                ]
    return found


def test_what_is_imported_exists():
    assert not broken(SOURCES), "\n".join(broken(SOURCES))


PLANTED = {
    "config.py": "from pathlib import Path\nCHAR = 1\n",
    "plumbing/files.py": "import config\n",
    "dataset.py": "from plumbing import files\ndef draw(): pass\n",
    "model/__init__.py": "",
    "model/gpt.py": "from dataset import draw\nfrom model import layers\nclass GPT: pass\n",
    "model/layers.py": "import torch\n",
    "model/storage/files.py": "from model.gpt import GPT\ndef load(): pass\n",
    "model/training/optimizer.py": "def f():\n    from model.storage.files import load\n",
    "model/monitoring/log.py": "import model.training.optimizer as o\nclass Log: pass\n",
    "train.py": "from model.monitoring.log import Log\nfrom config import CHAR\n",
    "trainv2.py": "import train\n",
    "scripts/tool.py": "from model.gpt import GPT\n",
}


def test_a_good_graph_passes():
    assert wrong_ways(PLANTED) == circles(PLANTED) == broken(PLANTED) == []


@pytest.mark.parametrize(
    ("name", "line", "expected"),
    [
        ("config.py", "import dataset", "config.py:3 imports dataset.py, but config must not import dataset"),
        ("plumbing/files.py", "from model import gpt", "plumbing must not import model"),
        ("dataset.py", "from model.gpt import GPT", "dataset must not import model"),
        ("model/gpt.py", "def f():\n    from model.storage import files", "gpt.py:5 imports model/storage/files.py"),
        ("model/storage/files.py", "import model.training.optimizer", "model/storage must not import model/training"),
        ("model/training/optimizer.py", "from model.monitoring import log", "must not import model/monitoring"),
        ("model/monitoring/log.py", "import train", "model/monitoring must not import train.py"),
        ("train.py", "import trainv2", "train.py must not import trainv2.py"),
        ("scripts/tool.py", "import train", "scripts/tool.py must not import train.py"),
    ],
)
def test_an_import_the_wrong_way_would_be_found(name, line, expected):
    (found,) = wrong_ways({**PLANTED, name: PLANTED[name] + line + "\n"})
    assert expected in found


def test_a_circle_would_be_found():
    planted = PLANTED["model/layers.py"] + "def f():\n    from model.gpt import GPT\n"
    assert circles({**PLANTED, "model/layers.py": planted}) == ["model/gpt.py -> model/layers.py -> model/gpt.py"]
    longer = {**PLANTED, "config.py": "class A:\n    from model import gpt\n"}
    assert circles(longer) == [
        "config.py -> model/gpt.py -> dataset.py -> plumbing/files.py -> config.py",
    ]


def test_a_broken_import_would_be_found():
    lines = "from model.gtp import GPT\n", "from model.gpt import GPTS\n", "from model import gtp\n"
    for line in lines:
        (found,) = broken({**PLANTED, "train.py": "def f():\n    " + line})
        assert found.startswith("train.py:2 imports ")


# === other packages ===================================================================================================


def test_config_imports_only_the_standard_library():
    assert packages(SOURCES["config.py"]) <= sys.stdlib_module_names


def test_plumbing_and_dataset_import_torch_only_in_functions():
    """They are imported before --help answers."""
    for name, source in SOURCES.items():
        if name == "dataset.py" or name.startswith("plumbing/"):
            top_level = {found.module for found in imports(source) if not found.in_function}
            assert "torch" not in {module.partition(".")[0] for module in top_level}, name


def test_only_ingestion_imports_datasets():
    assert [n for n, source in SOURCES.items() if "datasets" in packages(source) and room_of(n) != n] == []
    hub = {"datasets", "huggingface_hub"}  # the one brings the other
    assert {n.partition("/")[0] for n, source in SOURCES.items() if hub & packages(source)} == {"ingestion"}


@pytest.mark.parametrize("script", ENTRY_POINTS)
def test_training_and_generation_need_four_packages(script):
    """All that they import, and what that imports in turn, comes from Python, this project, or these."""
    waiting, seen, needed = [script], set(), set()
    while waiting:
        seen.add(name := waiting.pop())
        needed |= packages(SOURCES[name])
        files = {file_of(found.module, SOURCES) for found in imports(SOURCES[name])}
        waiting += [file for file in files if file and file not in seen]
    assert "model/layers.py" in seen
    needed -= {"config", "dataset", "model", "plumbing", "train", "generate", *sys.stdlib_module_names}
    needed -= {"safetensors"}  # the extra `export`: --init-from imports it, and says so where it is missing
    needed -= {"triton"}  # comes with torch where it is built for NVIDIA's GPUs, and is imported where there is one
    assert {"torch", "numpy", "tokenizers"} <= needed <= {"torch", "numpy", "tokenizers", "tqdm"}


# === --help ===========================================================================================================

SHOW_HELP = """
import contextlib, io, json, runpy, sys
for package in ("torch", "datasets", "transformers"):
    sys.modules[package] = None  # importing it raises ImportError
answers = {}
for script in sys.argv[1:]:
    output, sys.argv, path = io.TextIOWrapper(io.BytesIO(), "utf-8"), [script, "--help"], list(sys.path)
    sys.path.insert(0, script.rpartition("/")[0] or ".")
    try:
        with contextlib.redirect_stdout(output), contextlib.redirect_stderr(io.TextIOWrapper(io.BytesIO())):
            runpy.run_path(script, run_name="__main__")
        answers[script] = "it ran on after --help"
    except SystemExit as error:
        output.flush()
        answers[script] = output.buffer.getvalue().decode() if not error.code else f"exit code {error.code}"
    except ImportError as error:
        answers[script] = repr(error)
    sys.path[:] = path
print(json.dumps(answers))
"""


def help_of(scripts: list[str]) -> dict[str, str]:
    """What each script answers to --help, all in one process in which the slow packages cannot be imported."""
    done = subprocess.run(
        [sys.executable, "-c", SHOW_HELP, *scripts], cwd=ROOT, capture_output=True, text=True, encoding="utf-8"
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_help_answers_without_torch():
    """And with an example to copy."""
    answers = help_of(SCRIPTS)
    assert set(answers) == set(SCRIPTS)
    assert len(SCRIPTS) >= 20
    wrong = [f"{name}: {text[-300:]}" for name, text in answers.items() if not text.startswith("usage: ")]
    assert not wrong, "\n".join(wrong)
    assert [name for name, text in answers.items() if f"python {name}" not in text] == []


def test_a_script_that_imports_torch_first_would_be_found(tmp_path):
    lines = "import argparse", "argparse.ArgumentParser().parse_args()"
    slow, fast = tmp_path / "slow.py", tmp_path / "fast.py"
    slow.write_text("\n".join(["import torch", *lines]), "utf-8")
    fast.write_text("\n".join([*lines, "import torch"]), "utf-8")
    answers = help_of([str(slow), str(fast)])
    assert "import of torch halted" in answers[str(slow)]
    assert answers[str(fast)].startswith("usage: fast.py")


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_script_ends_with_its_only_guard(name):
    """The four entry points have a second one, which answers --help before they import torch."""
    guards = SOURCES[name].count('\nif __name__ == "__main__":\n')
    assert guards == (2 if name in ENTRY_POINTS else 1)
    assert re.search(r'\nif __name__ == "__main__":\n    run_script\(.+\)\n$', SOURCES[name])
