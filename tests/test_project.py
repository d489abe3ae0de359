"""The project as a whole: no code twice, nothing that runs data, settings with comments, dependencies that agree.

Imports are tested in test_imports.py, the length of functions in test_limits.py.
"""

import argparse
import ast
import importlib.metadata
import re
import sys
import tomllib
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version
from sources import ROOT, SOURCES, file_of, imports, tree

import config
from plumbing import command_line, errors

NAMES = sorted(SOURCES)


# === machinery once ==================================================================================================


def bodies(source: str) -> Iterator[tuple[str, int, str]]:
    """Yield (name, lines, syntax tree as text) of each function's body, its docstring aside. Comments and line breaks
    do not count, names do."""
    for node in ast.walk(tree(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            body = node.body[1:] if ast.get_docstring(node, clean=False) is not None else node.body
            if body:
                lines = body[-1].end_lineno - body[0].lineno + 1
                yield node.name, lines, "\n".join(ast.dump(statement) for statement in body)


def copies(sources: dict[str, str]) -> list[list[str]]:
    """Groups of functions whose bodies of four lines or more are the same."""
    places = defaultdict(list)
    for name, source in sources.items():
        for function, lines, body in bodies(source):
            if lines >= 4:
                places[body].append(f"{name}: {function}")
    return [group for group in places.values() if len(group) > 1]


def test_no_function_body_is_there_twice():
    assert copies(SOURCES) == []


def test_a_copy_would_be_found():
    one = 'def f(a):\n    """One."""\n    b = a\n    x = b\n    d = x\n    return d\n'
    two = "class C:\n  async def g(self, a):\n    b = a  # comment\n\n    x = b\n    d = (\n      x)\n    return d\n"
    assert copies({"x.py": one, "y.py": two}) == [["x.py: f", "y.py: g"]]
    assert copies({"x.py": one, "y.py": two.replace("x", "z")}) == []  # another name
    assert copies({"x.py": "def f(a):\n    b = a\n    return b\n" * 2}) == []  # short


# === eleven places compute a block ====================================================================================


def test_the_places_that_compute_a_block_and_their_tests_exist():
    """The list above Attention in model/layers.py: "title: files", and below it the test, which imports those files;
    JavaScript is in the page that scripts/export_html.py writes, C is called by Python."""
    comment = re.search(r"((?:^#.*\n)+)\n*class Attention", SOURCES["model/layers.py"], re.MULTILINE)[1]
    places = re.findall(r"^#   \S[^:\n]*: (.+)\n#       (\S+)::(\w+)$", comment, re.MULTILINE)
    assert len(places) == 11
    for files, test_file, test in places:
        source = (ROOT / test_file).read_text("utf-8")
        assert f"\ndef {test}(" in source, f"{test_file} has no {test}"
        imported = {file_of(found.module, SOURCES) for found in imports(source)}
        files = {"scripts/export_html.py" if name.endswith(".js") else name for name in files.split(", ")}
        assert all((ROOT / name).exists() for name in files)
        files = {name for name in files if not name.endswith(".c")}
        assert files <= imported, f"{test_file} does not import {files}"


# === no data is run as code ===========================================================================================

RUNS_DATA = {"pickle", "marshal", "shelve", "dill"}


def dangers(source: str) -> set[str]:
    """Imports and calls that run data as code, or a shell. (Ruff's rules S look for them too, and for more.)"""
    found = set()
    for node in ast.walk(tree(source)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [alias.name for alias in node.names] + [getattr(node, "module", "") or ""]
            found |= RUNS_DATA & {name.partition(".")[0] for name in names}
        elif isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            shell = any(keyword.arg == "shell" for keyword in node.keywords)
            if name in ("eval", "exec", "compile", "os.system", "os.popen", "torch.load") or shell:
                found.add(name)
    return found


@pytest.mark.parametrize("name", NAMES)
def test_no_script_runs_data_as_code(name):
    allowed = {"pickle"} if name.startswith("scripts/benchmarks/") else set()  # writes a file for nanoGPT, reads none
    assert dangers(SOURCES[name]) <= allowed


def test_what_runs_data_would_be_found():
    source = "import pickle\nfrom shelve import open\neval('1')\nrun('ls', shell=True)\ntorch.load('x')\n"
    assert dangers(source) == {"pickle", "shelve", "eval", "run", "torch.load"}
    linter = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["tool"]["ruff"]["lint"]
    assert "S" in linter["select"] and [name for name in linter["ignore"] if name.startswith("S3")] == []
    free = [pattern for pattern, rules in linter["per-file-ignores"].items() if "S" in rules]
    assert free == ["tests/*", "exercises/test_*"]


# === settings ========================================================================================================


def test_every_setting_has_a_comment_that_becomes_its_help():
    source = SOURCES["config.py"]
    for field in fields(config.Settings):
        (comment,) = re.findall(rf"^    {field.name}: [^#\n]+  # (.+)$", source, re.MULTILINE)
        parser = argparse.ArgumentParser()
        command_line.add_flags(parser, config.CHAR, field.name)
        text = " ".join(parser.format_help().split())
        if field.name == "debug":
            assert "--quiet" in text
        else:
            assert "--" + field.name.replace("_", "-") in text
            # argparse breaks long lines at hyphens as well
            assert comment.replace(" ", "") in text.replace(" ", "")


@pytest.mark.parametrize("settings", [config.CHAR, config.BPE])
def test_every_setting_but_debug_can_be_given_as_a_flag(settings):
    """Flags are typed as their fields are, and what is not given stays as it is."""
    for field in fields(config.Settings):
        parser = argparse.ArgumentParser()
        command_line.add_flags(parser, settings, field.name)
        assert command_line.parse(parser, settings, [])[0] == settings
        flag = "--" + field.name.replace("_", "-")
        text = {"dtype": "float32", "compile": "off", "initial_weights": "bigram"}.get(field.name, "text")
        value = {bool: None, int: "777", float: "0.7", str: text, Path: "some/path"}[field.type]
        argv = ["--quiet"] if field.name == "debug" else [flag] if value is None else [flag, value]
        changed, _ = command_line.parse(parser, settings, argv)
        expected = field.name != "debug" if value is None else field.type(value)
        assert getattr(changed, field.name) == expected
        assert type(getattr(changed, field.name)) is type(getattr(settings, field.name))
        rest = [f.name for f in fields(config.Settings) if f.name != field.name]
        assert all(getattr(changed, name) == getattr(settings, name) for name in rest)


def test_default_paths_lie_in_the_project():
    for settings in (config.CHAR, config.BPE):
        for field in fields(settings):
            if field.type is Path:
                assert getattr(settings, field.name).is_relative_to(ROOT)


# === dependencies ====================================================================================================


def pins() -> dict[str, list[Requirement]]:
    """requirements.txt by name: the lines of a name, which differ in their markers."""
    found = defaultdict(list)
    for line in (ROOT / "requirements.txt").read_text("utf-8").splitlines():
        if line.strip() and not line.startswith("#"):
            requirement = Requirement(line)
            found[canonicalize_name(requirement.name)].append(requirement)
    return found


def applies(requirement: Requirement, extra: str = "") -> bool:
    """Whether a requirement's marker holds on this machine."""
    return requirement.marker is None or requirement.marker.evaluate({"extra": extra})


def test_requirements_are_exact_pins_without_an_address():
    for line in (ROOT / "requirements.txt").read_text("utf-8").splitlines():
        if not line.strip().startswith("#"):
            assert re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9.!+]+( ; .+)?", line), line
            assert "+" not in line.partition(";")[0], f"{line}: a version of one index only"
        assert "://" not in line and "index-url" not in line and "find-links" not in line


def test_every_dependency_is_pinned_inside_its_range():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    names = []
    for text in project["dependencies"]:
        dependency = Requirement(text)
        names.append(dependency.name)
        lines = pins()[canonicalize_name(dependency.name)]
        assert any(map(applies, lines)), f"{dependency.name} is not pinned for this machine"
        for pin in lines:
            assert dependency.specifier.contains(str(pin.specifier).removeprefix("=="), prereleases=True), str(pin)
    assert sorted(names) == sorted("torch datasets pyarrow tokenizers numpy tqdm".split())


def test_pins_cover_what_the_dependencies_depend_on():
    """The closure as the installed packages state it. One that is installed in another version than the pinned one says
    nothing about that one, so the walk ends there."""
    pinned, seen, walked = pins(), set(), 0
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    to_visit = [("pyproject.toml", Requirement(text)) for text in project["dependencies"]]
    while to_visit:
        parent, requirement = to_visit.pop()
        name = canonicalize_name(requirement.name)
        lines = [pin for pin in pinned.get(name, []) if applies(pin)]
        assert len(lines) == 1, f"{parent} needs {requirement}, which has {len(lines)} pins for this machine"
        version = str(lines[0].specifier).removeprefix("==")
        assert requirement.specifier.contains(version, prereleases=True), f"{parent} needs {requirement}, not {version}"
        if (name, *sorted(requirement.extras)) in seen:
            continue
        seen.add((name, *sorted(requirement.extras)))
        try:
            distribution = importlib.metadata.distribution(name)
        except importlib.metadata.PackageNotFoundError:
            continue  # a training machine without datasets, say
        if Version(distribution.version) != Version(version):
            continue
        walked += 1
        for text in distribution.requires or []:
            child = Requirement(text)
            if any(applies(child, extra) for extra in ("", *requirement.extras)):
                to_visit.append((name, child))
    if walked < 6:
        pytest.skip("other versions than the pinned ones are installed, so there is little to compare with")


def test_uv_lock_is_ignored_with_the_reason_beside_it():
    lines = (ROOT / ".gitignore").read_text("utf-8").splitlines()
    at = lines.index("uv.lock")
    assert lines[at - 1].startswith("#")


def test_what_the_scripts_write_is_ignored():
    lines = (ROOT / ".gitignore").read_text("utf-8").splitlines()
    for written in ("/data/*", "/checkpoints/*", "/gpt_model.pt", ".venv/", "__pycache__/"):
        assert written in lines


# === every system =============================================================================================


def without_encoding(source: str) -> list[str]:
    """Calls that read or write text in the encoding of the system, which differs from one to the other."""
    found = []
    for node in ast.walk(tree(source)):
        if not isinstance(node, ast.Call):
            continue
        name, keywords = ast.unparse(node.func), {keyword.arg: keyword.value for keyword in node.keywords}
        either = [part for a in node.args for part in ([a.body, a.orelse] if isinstance(a, ast.IfExp) else [a])]
        positional = [argument.value for argument in either if isinstance(argument, ast.Constant)]
        binary = any(isinstance(value, str) and re.fullmatch(r"[rwaxb+]*b[rwaxb+]*", value) for value in positional)
        text = name == "open" or name.endswith((".read_text", ".write_text")) or "text" in keywords
        if text and not binary and "encoding" not in keywords and "utf-8" not in positional:
            found.append(ast.unparse(node)[:60])
    return found


@pytest.mark.parametrize("name", NAMES)
def test_text_is_utf8_on_every_system(name):
    assert without_encoding(SOURCES[name]) == []


def test_a_missing_encoding_would_be_found():
    source = "open('a')\nopen('a', 'rb')\nopen('a', encoding='utf-8')\np.read_text()\np.write_text('a', 'utf-8')\n"
    source += "run(['a'], text=True)\nrun(['a'], text=True, encoding='utf-8')\n"
    assert without_encoding(source) == ["open('a')", "p.read_text()", "run(['a'], text=True)"]


@pytest.mark.parametrize("name", NAMES)
def test_nothing_forks(name):
    """Windows cannot, and on a Mac a forked process that has used the GPU dies: workers are spawned."""
    source = SOURCES[name]
    names = {ast.unparse(node) for node in ast.walk(tree(source)) if isinstance(node, ast.Attribute)}
    assert not {"os.fork", "multiprocessing.Process", "multiprocessing.Pool"} & names
    assert not re.search("[\"']fork[\"']", source)


def test_streams_that_are_closed_are_empty(monkeypatch):
    """As by `python generate.py >&-`, or where a service starts it."""
    for name in ("stdin", "stdout", "stderr"):
        monkeypatch.setattr(sys, name, None)

    def main():
        print("text" + sys.stdin.read())
        raise errors.UserError("a sentence")

    with pytest.raises(SystemExit, match="^1$"):
        errors.run_script(main)


def test_the_workflow_runs_the_readmes_test_command():
    workflow = (ROOT / ".github" / "workflows" / "tests.yml").read_text("utf-8")
    readme = (ROOT / "README.md").read_text("utf-8")
    (command,) = re.findall(r"run: (.*pytest.*)", workflow)
    assert f"```sh\n{command}\n```" in readme
    for wanted in ("ubuntu", "macos", "windows", '"3.11"', '"3.12"', '"3.13"', '"3.14"'):
        assert wanted in workflow
