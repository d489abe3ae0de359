"""config.py edited by hand: what is wrong is said in a sentence that names the file and the field."""

import os
import shutil
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest
from sources import ROOT, SOURCES

import config
from plumbing import settings
from plumbing.errors import UsageError


@pytest.fixture(scope="module")
def copy(tmp_path_factory):
    """The project's own modules, with a config.py to edit."""
    folder = tmp_path_factory.mktemp("project")
    for name in SOURCES:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, folder / name)
    return folder


def run(folder: Path, *edits: tuple[str, str], script: str = "train.py", flags=("--help",)):
    """`python SCRIPT FLAGS` after these replacements in config.py: (exit code, stdout, stderr)."""
    text = SOURCES["config.py"]
    for old, new in edits:
        assert old in text
        text = text.replace(old, new, 1)
    (folder / "config.py").write_text(text, "utf-8")
    environment = os.environ | {"COLUMNS": "200", "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(
        [sys.executable, folder / script, *flags], env=environment, capture_output=True, text=True, encoding="utf-8"
    )
    return done.returncode, done.stdout, done.stderr


def test_the_tables_agree_with_config():
    annotated = {field.name: field.type for field in fields(config.Settings)}
    assert annotated == settings.TYPE_OF
    limited = [name for names, *_ in settings.LIMITS for name in names.split()]
    assert len(limited) == len(set(limited)) and set(limited) <= set(annotated)
    without = {name for name, kind in annotated.items() if kind in (int, float)} - set(limited)
    assert without == {"max_steps"}  # which may be anything with --minutes
    for name in ("CHAR", "BPE"):
        assert settings.checked(getattr(config, name), name) == getattr(config, name)


STEPS = "max_steps: int = 2000"


@pytest.mark.parametrize(
    ("edit", "expected"),
    [
        (("temperature: float = 0.8", "temperature: float = 0,5"), "temperature in config.py must be a number, and it "
         "is (0, 5). Decimals have a point"),
        ((STEPS, "max_steps: int = 300.5"), "max_steps in config.py must be a whole number, and it is 300.5."),
        ((STEPS, 'max_steps: int = "300"'), "max_steps in config.py must be a whole number, and it is '300'."),
        ((STEPS, "max_steps: int = True"), "max_steps in config.py must be a whole number, and it is True."),
        ((STEPS, "max_steps: int = 1e400"), "max_steps in config.py must be a whole number, and it is inf."),
        (("float = 0.8", 'float = "hot"'), "temperature in config.py must be a number, and it is 'hot'."),
        (("float = 0.8", "float = -1"), "temperature in config.py must be 0 (the most likely token) or above"),
        (("debug: bool = True", 'debug: bool = "False"'), "debug in config.py must be True or False, and it is 'F"),
        (("debug: bool = True", "debug: bool = 0"), "debug in config.py must be True or False, and it is 0."),
        (('dtype: str = "auto"', 'dtype: str = "float16"'), "dtype in config.py must be auto, float32 or bfloat16"),
        (('device: str = "auto"', "device: str = None"), "device in config.py must be a text in quotes, and"),
        (('device: str = "auto"', "device: str = cuda"), "config.py, line LINE: name 'cuda' is not defined."),
        ((f"    {STEPS}", "    # "), "config.py lacks the setting max_steps"),
        ((STEPS, "max_steps = 500"), "config.py lacks the setting max_steps"),
        ((STEPS, f"max_stepz: int = 5\n    {STEPS}"), "max_stepz, which is no setting (did you mean max_steps?)"),
        ((STEPS, f"max_stepz = 5\n    {STEPS}"), "max_stepz, which is no setting (did you mean max_steps?)"),
        (("CHAR,\n    tok", "CHAR,\n    n_layers=3,\n    tok"), "unexpected keyword argument 'n_layers'"),
        (("    n_layer=3", "    n_layer=0"), "n_layer of BPE in config.py must be above 0, and it is 0."),
        (("n_head: int = 4", "n_head: int"), "non-default argument"),
        (("n_head: int = 4", "n_head: int = "), "config.py, line LINE: invalid syntax"),
        (("/ MODEL_NAME", "/ NAME_OF_MODEL"), "config.py, line LINE: name 'NAME_OF_MODEL' is not defined"),
        (("\nCHAR = Settings", "\nCHAR = Setting"), "config.py, line LINE: name 'Setting' is not defined"),
        (('MODEL_NAME = "gpt_model.pt"', "MODEL = 1"), "config.py, line"),
        (("DATA = ROOT", "DATA: Path = ROOT"), ""),
    ],
)  # fmt: skip
def test_a_value_that_cannot_be_used_is_named(copy, edit, expected):
    line = SOURCES["config.py"].replace(*edit).partition(edit[1])[0].count("\n") + 1 + edit[1].startswith("\n")
    expected = expected.replace("LINE", str(line))
    for script in ("train.py", "generatev2.py", "scripts/merge_token_files.py") if "hot" in edit[1] else ("train.py",):
        code, out, err = run(copy, edit, script=script)
        if not expected:
            assert (code, err) == (0, "")
            continue
        assert (code, out, err.count("\n")) == (2, "", 1), err
        assert err.startswith("error: ") and expected in err and "--" not in err


def test_what_can_be_meant_in_one_way_is_taken(copy):
    """Whole floats are ints, ints floats, texts paths; comments are optional; a changed type does not matter."""
    edits = [
        (STEPS, "max_steps: int = 1e3"),
        ("batch_size: int = 16  # sequences", "batch_size: float = 16.0 # SEQUENCES"),
        ("temperature: float = 0.8  # below 1: safer; above 1: wilder; 0: always the most likely token", "temperature: "
         "float = 1"),
        ('corpus: Path = DATA / "corpus.txt"', 'corpus: Path = "mine.txt"'),
    ]  # fmt: skip
    code, out, err = run(copy, *edits)
    assert (code, err) == (0, "")
    assert "learning rate decays towards this end [1000]" in out and "SEQUENCES of block_size" in out
    assert "[1.0]" in out.partition("\n  --temperature")[2].partition("\n  --top-k")[0]
    code, out, err = run(copy, *edits, script="scripts/sample_corpus_subset.py", flags=["--fraction", "1"])
    assert (code, out) == (1, "") and "mine.txt" in err


def test_config_says_what_it_is(copy):
    code, out, err = run(copy, script="config.py", flags=[])
    assert (code, err) == (0, "") and f"{len(settings.TYPE_OF)} settings" in out


@pytest.mark.parametrize(("text", "number"), [("7", 7), ("1e3", 1000), ("16.0", 16), (str(2**63 + 1), 2**63 + 1)])
def test_whole_numbers(text, number):
    assert settings.whole_number(text) == number


@pytest.mark.parametrize("text", ["1.5", "inf", "nan", "", "x"])
def test_other_texts_are_no_whole_numbers(text):
    with pytest.raises(ValueError):
        settings.whole_number(text)


def test_a_class_of_settings_that_is_gone_is_named():
    class Fewer(config.Generation):
        pass

    with pytest.raises(UsageError, match=r"lacks the setting parquet_dir. A line of it looks so: parquet_dir: Path"):
        settings.checked(Fewer(), "CHAR")
