"""The quickstart: how long it takes, what it says about its steps. tests/readme/ runs all of it."""

import re
import sys

import pytest
from data_scripts import DOCUMENTS, TRAIN_CHAR, write_corpus
from sources import ROOT

import config
from ingestion import ingest_folder
from plumbing.text import IN_QUICKSTART
from scripts import quickstart


@pytest.fixture
def commands(monkeypatch, capsys):
    """Run the quickstart with flags, but none of its scripts: (its commands, what it printed)."""

    def run(*flags):
        found = []
        monkeypatch.setattr(sys, "argv", ["quickstart.py", *flags])
        monkeypatch.setattr(quickstart, "up_to_date", lambda stage: False)
        monkeypatch.setattr(quickstart, "run_command", lambda command: found.append(command) or 7 * (len(found) == 14))
        assert quickstart.main() == 7  # the last one fails, so that no log is read
        return found, capsys.readouterr().out

    return run


@pytest.mark.parametrize(
    ("flags", "each", "whole"), [([], 2, 5), (["--minutes", "15"], 7, 15), (["--minutes", "1"], 0.5, 2)]
)
def test_each_training_has_time_to_learn(commands, flags, each, whole):
    found, out = commands(*flags)
    assert [c for c in found if c.startswith("train")] == [
        f"{s} --minutes {each:g}" for s in ("train.py", "trainv2.py")
    ]
    assert out.startswith(f"From source files to two trained models in about {whole} minutes.")
    assert ("In less than 2 minutes a model learns nothing." in out) == (whole == 2)


def test_every_step_says_why_it_exists(commands):
    found, out = commands()
    blocks = re.findall(r"^=== (\d)\. .*\n(.*\.)\n\$ python (.*)$", out, re.MULTILINE)
    assert [command for _, _, command in blocks] == found
    assert len({why for _, why, _ in blocks}) == len(blocks) == 14


def test_a_script_that_the_quickstart_runs_leaves_next_to_it(run, project, monkeypatch):
    write_corpus(config.CHAR.corpus, DOCUMENTS)
    assert "\nNext: python scripts/prepare_dataset.py" in run(TRAIN_CHAR).out
    monkeypatch.setenv(IN_QUICKSTART, "1")
    assert "Next:" not in run(TRAIN_CHAR).out


def test_its_scripts_are_told_that_it_runs_them(monkeypatch, tmp_path):
    file = tmp_path / "script.py"
    file.write_text(f"import os, sys; sys.exit(3 * (os.environ[{IN_QUICKSTART!r}] == '1'))")
    assert quickstart.run_command(str(file)) == 3


def test_tables_of_characters_are_left_out_by_default_only(run, project, monkeypatch):
    for name in ("encodings/cp437.py", "html/entities.py", "test/test_a.py", "json/tool.py"):
        (project / "lib" / name).parent.mkdir(parents=True, exist_ok=True)
        (project / "lib" / name).write_text(f"name = {name!r}\n")
    monkeypatch.setattr(ingest_folder.sysconfig, "get_path", lambda name: str(project / "lib"))
    assert "\n1 file, " in run("ingestion/ingest_folder.py").out
    assert "\n4 files, " in run("ingestion/ingest_folder.py", project / "lib").out


def test_the_next_lines_of_all_its_scripts_go_through_one_function():
    """A print of its own would contradict what the quickstart runs."""
    scripts = {stage.command.split()[0] for stage in quickstart.STAGES}
    for script in scripts:
        assert not re.search(r'print\(f?"Next: ', (ROOT / script).read_text("utf-8")), script
