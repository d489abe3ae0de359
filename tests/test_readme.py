"""README.md and docs/: every command is run by a test (readme/chains.py says where), every path exists."""

import re

import pytest
from readme.chains import CHAINS, PAGES, script_of, sections
from sources import ROOT, SCRIPTS

README = PAGES["README.md"]


def test_every_section_with_commands_is_in_one_chain():
    """A section that is new or renamed belongs into CHAINS."""
    listed = [section for chain in CHAINS.values() for section in chain]
    assert sorted(listed) == sorted(sections())


def test_every_chain_has_a_test_file():
    files = {path.stem.removeprefix("test_readme_") for path in ROOT.glob("tests/readme/test_*.py")}
    assert files == set(CHAINS)


def test_every_script_is_among_the_commands():
    named = {script_of(command) for commands in sections().values() for command in commands}
    assert [script for script in SCRIPTS if script not in named] == []
    assert [script for script in named if not (ROOT / script).exists()] == []


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


@pytest.mark.parametrize("page", PAGES)
def test_no_placeholder_is_left(page):
    assert re.findall(r"^```text\n[A-Z0-9]+\n```", PAGES[page], re.MULTILINE) == []
