"""scripts/inspect_data.py: its counts of a corpus, a token file and a folder."""

import json
import re
from collections import Counter
from pathlib import Path

import numpy as np
from data_scripts import (
    INSPECT,
    MERGE,
    PREPARE_BPE,
    TRAIN_BPE,
    VARIED,
    files_of,
    refused,
    write_corpus,
)

import config
import dataset
from model.tokenization.tokenizer import load_tokenizer


def test_the_counts_of_a_corpus_are_right(run, project):
    documents = [*VARIED, VARIED[3], "x" * 500 + "\n", "\r\0"]
    write_corpus(project / "c.txt", documents)
    run(TRAIN_BPE, "--corpus", "c.txt", "--vocab-size", "300")
    result = run(INSPECT, "c.txt")
    assert (result.code, result.err) == (0, "")
    size = sum(len(d.encode()) for d in documents)
    assert f"c.txt is a corpus: {len(documents)} documents, {size:,} bytes of text" in result.out
    assert "Exact duplicates: 1 document (0.5%)" in result.out
    white = sum(d.count(c) for d in documents for c in " \t\n\r\v\f")
    assert f"White space: {white / size:.1%} of the bytes" in result.out
    assert "1 carriage return, 1 NUL character\n" in result.out
    assert "  500 bytes in document 202: xxx" in result.out
    lengths = sorted(len(d.encode()) for d in documents)
    assert (
        f"smallest {lengths[0]}, " in result.out
        and f"largest {lengths[-1]}; mean {np.mean(lengths):,.0f}" in result.out
    )
    rows = re.findall(r"^  from +([\d,]+) .*? ([\d,]+) +[\d.]+%$", result.out, re.MULTILINE)
    assert {int(a): int(n) for a, n in rows if n != "0"} == Counter(1 << (n.bit_length() - 1) for n in lengths)
    refused(run(INSPECT, "nothing.txt"), "There is no corpus nothing.txt")
    refused(run(INSPECT, write_corpus(project / "e.txt", [""])), "holds no document")


def test_a_corpus_of_one_document(run, project, prepare):
    write_corpus(project / "c.txt", ["one, two, three " * 40])
    assert run(TRAIN_BPE, "--corpus", "c.txt", "--vocab-size", "300").code == 0
    out = run(INSPECT, "c.txt").out
    assert "It is one document, of 640 bytes\n" in out and "in the first" not in out
    assert run(PREPARE_BPE, "--corpus", "c.txt").code == 0
    out = run(INSPECT, config.BPE.train_file).out
    assert "It is one document, of " in out and out.count(" | ...") == 1


def test_the_counts_of_a_token_file_are_right(run, project, prepare):
    script, settings = prepare
    write_corpus(settings.corpus, [*VARIED, *VARIED[:5]])
    run(script, "--val-fraction", "0.3")
    result = run(INSPECT, settings.train_file)
    assert (result.code, result.err) == (0, "")
    ids = np.fromfile(settings.train_file, "<u2")
    facts = json.loads(Path(f"{settings.train_file}.json").read_text())
    assert f"has {len(ids):,} tokens of {facts['documents']} documents" in result.out
    assert f"Its tokenizer is {Path('data') / settings.tokenizer_file.name}: the hash matches." in result.out
    assert f"Unused ids: {facts['vocab_size'] - len(set(ids.tolist()))} of {facts['vocab_size']}" in result.out
    documents = [part.tobytes() for part in np.split(ids, np.flatnonzero(ids == 0))[:-1]]
    duplicates = len(documents) - len({part.lstrip(b"\0") for part in documents})
    assert f"Exact duplicates: {duplicates} documents ({duplicates / len(documents):.1%})" in result.out
    _, count = Counter(ids.tolist()).most_common(1)[0]
    at = result.out.splitlines().index("The most common tokens:")
    assert f"{count:,}" in result.out.splitlines()[at + 1]
    border = int(np.flatnonzero(ids == 0)[0])
    tokenizer = load_tokenizer(settings.tokenizer_file)
    shown = tokenizer.decode(ids[border + 1 : border + 5]).replace("\n", "↵").replace(" ", "·")
    assert f" | {shown[:4]}" in result.out
    # Another tokenizer than the one that made it.
    settings.tokenizer_file.unlink()
    result = run(INSPECT, settings.train_file)
    assert result.code == 0
    assert "is none of" in result.out and "id " in result.out


def test_a_folder_gives_the_counts_of_its_merged_file(run, project, prepare, monkeypatch):
    script, settings = prepare
    write_corpus(settings.corpus, VARIED)
    run(script)
    Path("m").mkdir()
    train, val = files_of(settings).values()
    assert run(MERGE, train, val, "--output", "m/m.bin").code == 0
    opened = []
    real = dataset.open_tokens
    monkeypatch.setattr(dataset, "open_tokens", lambda path, *a, **k: (opened.append(path), real(path, *a, **k))[1])
    result = run(INSPECT, "m/m.bin")
    assert opened == [Path("m/m.bin")]  # the checksum of a large file takes its time
    (project / "data" / "corpus.txt").unlink()
    both = run(INSPECT, "data")
    assert both.code == 0
    for line in result.out.splitlines()[2:-6]:
        assert line in both.out


def test_numbers_are_not_taken_for_text(run, project, prepare):
    script, settings = prepare
    write_corpus(settings.corpus, VARIED)
    run(script)
    Path("t.bin").write_bytes(settings.train_file.read_bytes())
    refused(run(INSPECT, "t.bin"), "t.bin is no", "It holds NUL bytes, as token files")
    np.arange(1, 100, dtype="<u2").tofile("ascii.bin")  # which is UTF-8
    refused(run(INSPECT, "ascii.bin"), "ascii.bin is not text. It holds NUL bytes")


def test_a_token_file_without_an_end_of_text_id_is_told_of(run, project):
    facts = {"tokenizer_sha256": "x", "vocab_size": 9, "end_of_text_id": 0}
    with dataset.token_writer(project / "t.bin", facts) as writer:
        writer.extend(np.uint16([3, 1, 4]))
        writer.count(1, 3, 0)
    refused(run(INSPECT, "t.bin"), "t.bin has no end-of-text id")
