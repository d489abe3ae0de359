"""The product's source files, and what they import: for the tests that read code instead of running it."""

import ast
from functools import cache
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
SOURCES = {
    path.relative_to(ROOT).as_posix(): path.read_text("utf-8")
    for pattern in ("*.py", "model/**/*.py", "plumbing/**/*.py", "ingestion/**/*.py", "scripts/**/*.py")
    for path in sorted(ROOT.glob(pattern))
    if "__pycache__" not in path.parts
}
ENTRY_POINTS = ["train.py", "trainv2.py", "generate.py", "generatev2.py"]
SCRIPTS = ENTRY_POINTS + [
    name
    for name in SOURCES
    if name.count("/") == 1 and name.startswith(("scripts/", "ingestion/")) and "/_" not in name
]  # all that is run by hand


@cache
def tree(source: str) -> ast.Module:
    """The syntax tree of a file. Many tests look at all of them, and parsing takes longer than looking."""
    return ast.parse(source)


class Import(NamedTuple):
    line: int
    module: str
    in_function: bool


@cache
def imports(source: str) -> list[Import]:
    """All imports in a file. "import a.b" gives a.b; "from a.b import c" gives a.b and a.b.c, which may be a module."""
    found, waiting = [], [(tree(source), False)]
    while waiting:
        node, in_function = waiting.pop()
        if isinstance(node, ast.Import):
            found += [Import(node.lineno, alias.name, in_function) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: relative imports do not work in a script"
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
            found += [Import(node.lineno, name, in_function) for name in names]
        in_function = in_function or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        waiting += [(child, in_function) for child in ast.iter_child_nodes(node)]
    return found


def packages(source: str) -> set[str]:
    """The top-level packages that a file imports, in functions too."""
    return {found.module.partition(".")[0] for found in imports(source)}


def file_of(module: str, sources: dict[str, str]) -> str | None:
    """The file of one of our modules: model.gpt is model/gpt.py, model.storage is model/storage/__init__.py."""
    path = module.replace(".", "/")
    return next((name for name in (f"{path}.py", f"{path}/__init__.py") if name in sources), None)
