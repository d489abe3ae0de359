"""README.md and docs/: every command is run by a test (readme/chains.py says where), every path exists."""

import re

import pytest
from readme.chains import CHAINS, NO_COMMANDS, PAGES, script_of, sections, sections_of
from sources import ROOT, SCRIPTS

README = PAGES["README.md"]


def test_every_page_is_in_one_chain():
    """A page that is new belongs into CHAINS, or into NO_COMMANDS if it has none."""
    named = [entry.partition("#")[0] for entries in CHAINS.values() for entry in entries if "#" not in entry]
    assert sorted(named + NO_COMMANDS) == sorted(PAGES)
    run = [section for chain in CHAINS for section in sections_of(chain)]
    assert sorted(run) == sorted(sections())


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


def test_the_readme_is_short_and_in_order():
    assert README.count("\n") <= 250
    assert any(line.startswith("pip install uv && ") for line in README.splitlines()[:20])
    titles = re.findall(r"^## (.+)$", README, re.MULTILINE)
    wanted = ["Quick start", "Setup", "Preparing data", "Training", "Generating text", "Looking inside"]
    wanted += ["What you can rely on", "Repository structure", "Reading order", "Using your own text"]
    assert [title for title in titles if title in wanted] == wanted


def anchors(text: str) -> set[str]:
    """The anchors that GitHub gives to the headings of a page."""
    headings = re.findall(r"^#+ (.+)$", re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES)
def test_every_link_leads_somewhere(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", PAGES[page]):
        if target.startswith(("https://", "http://")):
            continue
        path, _, anchor = target.partition("#")
        file = ((ROOT / page).parent / path).resolve() if path else ROOT / page
        assert file.exists(), target
        if anchor:
            assert anchor in anchors(file.read_text("utf-8")), target


def test_anchors_are_those_of_github():
    assert anchors("# A b\n```sh\n# no\n```\n## Is it (really) `c.py`?\n") == {"a-b", "is-it-really-cpy"}


@pytest.mark.parametrize("page", PAGES)
def test_no_placeholder_is_left(page):
    assert re.findall(r"^```text\n@?[A-Z0-9]+@?\n```", PAGES[page], re.MULTILINE) == []
