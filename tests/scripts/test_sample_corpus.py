"""scripts/sample_corpus_subset.py: sizes, seeds, and what it refuses."""

from pathlib import Path

import pytest
from data_scripts import (
    SAMPLE,
    refused,
    write_corpus,
)

import config
from plumbing import corpus as corpus_file
from plumbing.corpus import (
    read_documents,
)
from plumbing.text import byte_size


@pytest.mark.parametrize("wanted", [["--megabytes", "0.002"], ["--documents", "20"], ["--fraction", "0.25"]])
def test_a_sample_is_written_and_described(run, project, wanted):
    corpus = write_corpus(config.CHAR.corpus)
    result = run(SAMPLE, *wanted, "--output", "s.txt")
    assert (result.code, result.err) == (0, "")
    taken = list(read_documents(Path("s.txt")))
    expected = corpus_file.sample_documents(corpus, config.CHAR.seed, **{wanted[0][2:]: float(wanted[1])})
    assert taken == list(expected)
    if wanted[0] == "--megabytes":
        assert 1800 < sum(len(text.encode()) for text in taken) <= 2000
    else:
        assert len(taken) == {"--documents": 20, "--fraction": 15}[wanted[0]]
    sizes = [byte_size(path.stat().st_size) for path in (Path("s.txt"), corpus)]
    assert f"{len(taken)} documents, {sizes[0]} of {sizes[1]}, in s.txt\n" in result.out
    assert result.out.count("takes a document of ") == 3
    assert result.out.endswith("Next: python scripts/train_tokenizer_character_level.py --corpus s.txt\n")


def test_the_same_seed_gives_the_same_sample(run, project):
    write_corpus(config.CHAR.corpus)
    files = []
    for seed in ("1", "1", "2"):
        run(SAMPLE, "--documents", "10", "--seed", seed, "--output", "s.txt")
        files.append(Path("s.txt").read_bytes())
    assert files[0] == files[1] != files[2]


def test_wrong_sizes_of_a_sample(run, project):
    write_corpus(config.CHAR.corpus)
    for wanted in (["--megabytes", "0"], ["--documents", "-1"], ["--fraction", "0"], ["--fraction", "1.01"]):
        refused(run(SAMPLE, *wanted), "above 0", "--fraction at most 1", code=2)
    for wanted in ([], ["--documents", "1", "--fraction", "1"], ["--documents", "1.5"], ["--megabytes", "ten"]):
        assert run(SAMPLE, *wanted).code == 2
    assert list(project.rglob("*sample*")) == []


@pytest.mark.parametrize("wanted", [["--megabytes", "nan"], ["--megabytes", "inf"], ["--fraction", "nan"]])
def test_sizes_that_are_no_numbers(run, project, wanted):
    write_corpus(config.CHAR.corpus)
    assert run(SAMPLE, *wanted).code == 2


@pytest.mark.parametrize("wanted", [["--megabytes", "0.000001"], ["--fraction", "0.0001"]])
def test_a_sample_too_small_for_any_document(run, project, wanted):
    write_corpus(config.CHAR.corpus)
    result = run(SAMPLE, *wanted)
    refused(result, "fits into so small a sample")
    write_corpus(config.CHAR.corpus, ["a text of one document"])
    refused(run(SAMPLE, "--fraction", "0.1"), "if it is a single one, divide it by lines <|endoftext|>")
    write_corpus(config.CHAR.corpus, [""])
    refused(run(SAMPLE, *wanted), "holds no document")


def test_a_sample_never_replaces_its_source(run, project):
    corpus = write_corpus(config.CHAR.corpus)
    before = corpus.read_bytes()
    (project / "link.txt").symlink_to(corpus)
    for output in (corpus, "link.txt", Path("data") / ".." / "data" / "corpus.txt"):
        refused(run(SAMPLE, "--documents", "5", "--output", output), "--output would replace", code=2)
    assert corpus.read_bytes() == before


def test_a_corpus_that_is_missing_or_damaged_leaves_the_earlier_sample(run, project):
    (project / "s.txt").write_text("earlier")
    refused(
        run(SAMPLE, "--documents", "5", "--output", "s.txt"), "There is no corpus", str(Path("data") / "corpus.txt")
    )
    (project / "c.txt").write_bytes(b"good\n\xff")
    refused(run(SAMPLE, "--documents", "5", "--corpus", "c.txt", "--output", "s.txt"), "c.txt is not UTF-8 at byte 5")
    assert (project / "s.txt").read_text() == "earlier"
