"""The exercises: every stub fails its test, every solution passes it, and nothing of them is collected here."""

import os
import re
import shutil
import tomllib

import pytest
from fork_server import run_python
from sources import ROOT

from exercises.answer import main, section
from plumbing.errors import UsageError

FILES = sorted((ROOT / "exercises").glob("test_*.py"))
ANSWERS = sorted((ROOT / "exercises" / "answers").glob("*.md"))
STUB = re.compile(r"^def .*?^    raise NotImplementedError\n", re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory, torch_server) -> dict[str, dict[str, set[str]]]:
    """Run the exercises once as they are, once with their solutions, once with mistakes, in one process: the folder
    ("exercises", "solutions" or "mistakes") -> file -> the outcomes of its tests, and the errors that ended them."""
    folder = tmp_path_factory.mktemp("run")
    shutil.copytree(ROOT / "exercises", folder / "exercises", ignore=shutil.ignore_patterns("__pycache__"))
    write_solutions(folder / "solutions")
    write_solutions(folder / "mistakes", planted)
    options = "-p no:cacheprovider -n 0 -q -rA --tb=line --import-mode=importlib -c".split()
    (folder / "run.py").write_text("import sys\nimport pytest\n\nsys.exit(pytest.main())\n", "utf-8")
    arguments = [str(folder / "run.py"), *options, str(ROOT / "pyproject.toml"), "--rootdir", str(folder)]
    done = torch_server.run(arguments, folder, dict(os.environ), 300)
    found = {"exercises": {}, "solutions": {}, "mistakes": {}}
    for outcome, kind, name in re.findall(
        r"^(PASSED|FAILED|ERROR) (\w+)/(test_\d\d_\w+)\.py", done.stdout, re.MULTILINE
    ):
        found[kind].setdefault(name, set()).add(outcome)
    assert all(found.values()), done.stdout + done.stderr
    return found


def write_solutions(folder, change=lambda name, solution: solution):
    folder.mkdir()
    for file, answer in zip(FILES, ANSWERS, strict=True):
        solution = change(file.stem, section(answer.read_text("utf-8"), "Solution"))
        text, count = STUB.subn(lambda _, solution=solution: solution + "\n", file.read_text("utf-8"), count=1)
        assert count == 1, file.name
        (folder / file.name).write_text(text, "utf-8")


def test_there_are_twelve_and_each_has_three_hints_and_a_solution():
    assert [file.stem.removeprefix("test_") for file in FILES] == [answer.stem for answer in ANSWERS]
    assert [int(answer.name[:2]) for answer in ANSWERS] == list(range(1, 13))
    for file, answer in zip(FILES, ANSWERS, strict=True):
        source, text = file.read_text("utf-8"), answer.read_text("utf-8")
        assert source.startswith(f'"""{int(answer.name[:2])}. ') and len(STUB.findall(source)) == 1
        named = re.findall(r"[\w/]+\.py", source[source.index("Where the project does it:") : source.index('"""', 3)])
        assert named and all((ROOT / path).exists() for path in named)
        hints = [section(text, f"Hint {i}") for i in (1, 2, 3)]
        assert len(set(hints)) == 3 and all(hints)


def test_every_stub_fails(outcomes):
    assert outcomes["exercises"] == {file.stem: {"FAILED"} for file in FILES}


def test_every_solution_passes(outcomes):
    assert outcomes["solutions"] == {file.stem: {"PASSED"} for file in FILES}


WRONG = {
    "test_01_bpe_merge": ("i += 2", "i += 1"),
    "test_02_encode": ("min(known, key=rank.get)", "known[0]"),
    "test_03_cross_entropy": ("highest = max(logits)", "highest = 0"),
    "test_04_attention": ("triu(1)", "triu(2)"),
    "test_05_rotary": ("-2 *", "-1 *"),
    "test_06_rms_norm_backward": ("normed * (g * normed)", "0 * (g * normed)"),
    "test_07_top_p": ("total >= limit", "total + p[i] > limit"),
    "test_08_kv_cache": ('cache["values"])', 'cache["keys"])'),
    "test_09_adamw": (" / (1 - BETA1 ** state", " / (1 - BETA2 ** state"),
    "test_10_bits_per_byte": ("text.encode()", "text"),
    "test_12_surprise_map": ("lines[line] += surprise\n", "lines[line] = surprise\n"),
}
BROKEN_STEP = """def train_step(model, optimizer, tokens):
    tokens = tokens[:, 1:]
    logits = model(tokens)
    loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), tokens.flatten())
    loss.backward()
    optimizer.step()
    return loss.item()"""


def planted(name, solution):
    """A mistake of the sort that people make."""
    right, wrong = WRONG.get(name, (solution, BROKEN_STEP))
    assert right in solution, name
    return solution.replace(right, wrong)


def test_a_mistake_is_noticed(outcomes):
    found = outcomes["mistakes"]
    assert [name for name, outcome in found.items() if "FAILED" not in outcome] == []
    assert len(found) == 12


def test_the_ordinary_command_does_not_collect_them():
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["tool"]["pytest"]["ini_options"]
    assert settings["testpaths"] == ["tests"]


def test_help_is_one_command_away(capsys):
    main(["4", "--hint", "3"])
    assert "minus infinity" in capsys.readouterr().out
    main(["4", "--solution"])
    out = capsys.readouterr().out
    assert out.startswith("def attend(") and "```" not in out
    with pytest.raises(UsageError, match="they are 1 to 12"):
        main(["13"])
    done = run_python(["exercises/answer.py", "--help"], ROOT, None, 100)
    assert done.returncode == 0 and "python exercises/answer.py 4" in done.stdout
