"""scripts/prepare_dataset.py and prepare_dataset_bpe.py: token files equal to a plain loop's, and what is refused."""

import hashlib
import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import tokenizers
from data_scripts import (
    DOCUMENTS,
    PREPARE_BPE,
    PREPARE_CHAR,
    TRAIN_BPE,
    TRAIN_CHAR,
    M,
    files_of,
    plain_ids,
    plain_split,
    refused,
    snapshot,
    write_corpus,
)

import config
import dataset
from model.tokenization.tokenizer import load_tokenizer
from plumbing.files import checksum


def test_token_files_are_what_a_plain_loop_gives(run, project, prepare):
    script, settings = prepare
    documents = [*DOCUMENTS, f"text that holds {M}, <|unk|> and\n {M}\n", "short"]
    write_corpus(settings.corpus, documents)
    run(TRAIN_CHAR)  # it has to know the new characters
    result = run(script, "--val-fraction", "0.3")
    assert (result.code, result.err) == (0, "")
    tokenizer_sha256 = hashlib.sha256(settings.tokenizer_file.read_bytes()).hexdigest()
    for split, path in files_of(settings).items():
        expected = [text for text in documents if plain_split(text, 0.3) == split]
        ids, size = plain_ids(settings, expected), sum(len(text.encode()) for text in expected)
        assert np.memmap(path, dtype=np.uint16, mode="r").tolist() == ids
        facts = json.loads(path.with_name(path.name + ".json").read_text())
        assert facts.pop("crc32") == checksum(facts)
        assert facts == {
            "format_version": 2,
            "tokenizer_kind": "char" if script == PREPARE_CHAR else "bpe",
            "tokenizer_sha256": tokenizer_sha256,
            "tokenizer_meaning": load_tokenizer(settings.tokenizer_file).meaning,
            "vocab_size": tokenizers.Tokenizer.from_file(str(settings.tokenizer_file)).get_vocab_size(),
            "end_of_text_id": 0,
            "source": str(Path("data") / "corpus.txt"),
            "val_fraction": 0.3,
            "pairs": [pair_of(settings)],
            "tokens": len(ids),
            "documents": len(expected),
            "utf8_bytes": size,
            "unknown_characters": 0,
            "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        }
        assert (
            f"{Path('data') / path.name}: {len(expected)} documents, {len(ids):,} tokens, {size:,} bytes, "
            f"{size / len(ids):.3f} bytes per token"
        ) in result.out
    assert "not in the tokenizer" not in result.out


def pair_of(settings) -> str:
    """The definition: a hash of both files' hashes."""
    both = b"".join(hashlib.sha256(path.read_bytes()).digest() for path in files_of(settings).values())
    return hashlib.sha256(both).hexdigest()[:16]


def test_debug_output_shows_tokens_and_reads_them_back(run, project, prepare):
    script, settings = prepare
    result = run(script)
    lines = result.out.splitlines()
    cuts = [re.fullmatch(r"(\d+) bytes for (train|val), (\d+) tokens: (.*?)(\|\.\.\.)?", line) for line in lines[:3]]
    for cut, text in zip(cuts, DOCUMENTS, strict=False):
        ids = plain_ids(settings, [text])[:-1]
        assert (int(cut[1]), cut[2], int(cut[3])) == (len(text.encode()), plain_split(text, 0.1), len(ids))
        assert text.replace(" ", "·").replace("\n", "↵").startswith(cut[4].replace("|", ""))
        assert cut[4].count("|") == min(28, len(ids)) - 1
        assert bool(cut[5]) == (len(ids) > 28)
    for split, path in files_of(settings).items():
        at = lines.index(f"The beginning of {Path('data') / path.name}, read back and decoded, above its source:")
        first = next(text for text in DOCUMENTS if plain_split(text, 0.1) == split)
        assert lines[at + 1] == lines[at + 2] == "  " + first[:70].replace(" ", "·").replace("\n", "↵")


@pytest.mark.parametrize("workers", [1, 2, 5])
def test_chunks_and_workers_make_no_difference(run, project, prepare, monkeypatch, workers):
    import scripts.prepare_dataset as script

    _, settings = prepare
    kind = "char" if settings is config.CHAR else "bpe"
    monkeypatch.setattr(sys, "argv", ["prepare_dataset.py", "--workers", str(workers), "--quiet"])
    files = []
    for size in (1, 100, 1 << 20):
        monkeypatch.setattr(script, "CHUNK_BYTES", size)
        script.main(settings, kind=kind)
        files.append([path.read_bytes() for path in files_of(settings).values()])
    assert files[0] == files[1] == files[2]
    ids = [np.frombuffer(data, "<u2").tolist() for data in files[0]]
    splits = [[text for text in DOCUMENTS if plain_split(text, 0.1) == split] for split in ("train", "val")]
    assert ids == [plain_ids(settings, split) for split in splits]


def test_one_document_is_cut_in_two(run, project, prepare):
    script, settings = prepare
    text = "".join(DOCUMENTS)
    write_corpus(settings.corpus, [text])
    assert run(script).code == 0
    cut = int((1 - 0.1) * len(text))
    assert np.fromfile(settings.train_file, np.uint16).tolist() == plain_ids(settings, [text[:cut]])
    assert np.fromfile(settings.val_file, np.uint16).tolist() == plain_ids(settings, [text[cut:]])


def test_a_tokenizer_of_other_text(run, project):
    write_corpus(config.CHAR.corpus)
    run(TRAIN_CHAR)
    write_corpus(config.CHAR.corpus, ["Ωμέγα " * 50, *DOCUMENTS[1:]])
    assert "Warning: so many that it was trained on other text." in run(PREPARE_CHAR, "--val-fraction", "0.3").out


def test_unknown_characters_are_counted_and_named(run, project):
    write_corpus(config.CHAR.corpus)
    run(TRAIN_CHAR)
    documents = ["Ω\x07Ω import os\n" * 9, *DOCUMENTS[1:]]
    write_corpus(config.CHAR.corpus, documents)
    result = run(PREPARE_CHAR, "--val-fraction", "0.3")
    assert (result.code, result.err) == (0, "")
    assert "27 characters are not in the tokenizer and became <|unk|>" in result.out
    assert "trained on other text" not in result.out
    assert "among them Ω (18 times), \\x07 (9 times)" in result.out
    facts = [json.loads(Path(f"{path}.json").read_text()) for path in files_of(config.CHAR).values()]
    assert sum(fact["unknown_characters"] for fact in facts) == 27
    ids = [token for path in files_of(config.CHAR).values() for token in np.fromfile(path, np.uint16).tolist()]
    assert ids.count(1) == 27
    splits = [[text for text in documents if plain_split(text, 0.3) == split] for split in ("train", "val")]
    assert ids == plain_ids(config.CHAR, [*splits[0], *splits[1]])


def test_bpe_knows_every_character(run, project):
    write_corpus(config.BPE.corpus)
    run(TRAIN_BPE, "--vocab-size", "300")
    write_corpus(config.BPE.corpus, ["Ω\x07 日本語\r\n" * 9, *DOCUMENTS[1:]])
    result = run(PREPARE_BPE, "--val-fraction", "0.3")
    assert result.code == 0
    assert "<|unk|>" not in result.out


def test_the_wrong_kind_of_tokenizer_is_named_with_the_right_script(run, project, prepare):
    script, settings = prepare
    char, bpe = config.CHAR.tokenizer_file, config.BPE.tokenizer_file
    wrong, kind, other = (
        (bpe, "bpe", "prepare_dataset_bpe.py") if script == PREPARE_CHAR else (char, "char", PREPARE_CHAR)
    )
    refused(run(script, "--tokenizer-file", wrong), wrong.name, f"is a {kind} tokenizer", other)
    assert not settings.train_file.exists()


def test_what_step_5_refuses(run, project, prepare):
    script, settings = prepare
    assert run(script).code == 0
    before = snapshot(project)
    corpus = str(Path("data") / "corpus.txt")
    refused(run(script, "--corpus", "nowhere.txt"), "There is no corpus nowhere.txt")
    refused(run(script, "--tokenizer-file", "nowhere.json"), "There is no tokenizer nowhere.json", "train_tokenizer")
    for fraction in ("0", "1", "-0.1", "1.5", "nan", "inf"):
        refused(run(script, "--val-fraction", fraction), "--val-fraction must be ", code=2)
    refused(run(script, "--val-fraction", "0.000001"), f"No document of {corpus} is in the val split")
    refused(run(script, "--val-fraction", "0.999999"), f"No document of {corpus} is in the train split")
    for taken in (corpus, settings.tokenizer_file):
        refused(run(script, "--train-file", taken), "--train-file would replace", "which is read here", code=2)
    refused(run(script, "--train-file", "t", "--val-file", "t"), "--val-file would", "--train-file writes", code=2)
    assert snapshot(project) == before
    for name, data in {"empty.txt": b"", "markers.txt": f"{M}\n{M}".encode(), "one.txt": b"x"}.items():
        Path(name).write_bytes(data)
        reason = f"No document of {name} is in the" if data == b"x" else f"{name} holds no document"
        refused(run(script, "--corpus", name), reason)
    Path("latin.txt").write_bytes(b"x" * 70_000 + f"\n{M}\ncaf\xe9\n".encode("latin-1"))
    refused(run(script, "--corpus", "latin.txt"), "latin.txt is not UTF-8 at byte 70,018 (0xe9)")
    Path("broken.json").write_text("{")
    refused(run(script, "--tokenizer-file", "broken.json"), "broken.json is not a tokenizer")
    after = snapshot(project)
    assert {name: after[name] for name in before} == before
    assert not [name for name in after if name.endswith(".tmp")]


def test_a_damaged_byte_in_a_later_batch_leaves_the_earlier_files(run, project, prepare):
    """The first documents are encoded and written by then."""
    script, settings = prepare
    assert run(script).code == 0
    before = {path: path.read_bytes() for path in files_of(settings).values()}
    good = f"\n{M}\n".join(f"x = {i}\n" * 1000 for i in range(150)).encode()
    Path("latin.txt").write_bytes(good + b"\xff")
    refused(run(script, "--corpus", "latin.txt"), f"latin.txt is not UTF-8 at byte {len(good):,} (0xff)")
    assert {path: path.read_bytes() for path in files_of(settings).values()} == before


def test_tokens_that_do_not_decode_to_their_source_are_noticed(run, project, prepare, monkeypatch):
    """And the earlier files stay."""
    script, _ = prepare
    assert run(script).code == 0
    before = snapshot(project / "data")
    extend = dataset.TokenWriter.extend
    monkeypatch.setattr(dataset.TokenWriter, "extend", lambda self, ids: extend(self, ids[::-1]))
    refused(run(script), "does not decode to its source")
    assert snapshot(project / "data") == before
