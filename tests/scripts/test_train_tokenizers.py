"""The scripts that train the tokenizers: what they show, write and refuse."""

import json
import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import tokenizers
from data_scripts import (
    DOCUMENTS,
    TRAIN_BPE,
    TRAIN_CHAR,
    M,
    refused,
    snapshot,
    write_corpus,
)

import config
from model.tokenization import bpe_trainer
from model.tokenization import tokenizer as tokenizer_file
from plumbing import corpus as corpus_file


def test_the_character_tokenizer_shows_its_work(run, project):
    write_corpus(config.CHAR.corpus)
    result = run(TRAIN_CHAR)
    assert (result.code, result.err) == (0, "")
    text = "".join(DOCUMENTS)
    counts, total = Counter(text), len(text)
    assert f"60 documents, {total:,} characters, {len(counts)} different ones" in result.out
    # The alphabet: twelve lines, with the right counts and shares.
    rows = re.findall(r"^  (\S+) +([\d,]+) [█▏▎▍▌▋▊▉ ]+ +([\d.]+)%$", result.out, re.MULTILINE)
    assert [int(count.replace(",", "")) for _, count, _ in rows] == [n for _, n in counts.most_common(12)]
    shown = {"·": " ", "↵": "\n"}
    for character, count, share in rows:
        assert counts[shown.get(character, character)] == int(count.replace(",", ""))
        assert float(share) == pytest.approx(100 * int(count.replace(",", "")) / total, abs=0.051)
    # The cut line: tokens above their ids.
    vocab = tokenizers.Tokenizer.from_file(str(config.CHAR.tokenizer_file)).get_vocab()
    lines = result.out.splitlines()
    at = lines.index("A line of it cut into tokens, with their ids:")
    tokens, ids = lines[at + 1].split(), lines[at + 2].split()
    assert "".join(tokens) == "import·os"
    assert [vocab[shown.get(token, token)] for token in tokens] == list(map(int, ids))
    assert "A character that it has not seen, such as \u03b1, becomes id 1 (<|unk|>)." in result.out
    size = len(text.encode())
    assert f"Reloaded and checked: {size:,} bytes came back unchanged, {size / total:.3f} bytes per token" in result.out
    assert f"{len(counts) + 2} ids, two of them special, in {Path('data') / 'tokenizer_char.json'}" in result.out


def test_the_character_tokenizer_is_the_list_of_characters(run, project):
    write_corpus(project / "c.txt", ["ba\n", "\u03b1 b"])
    result = run(TRAIN_CHAR, "--corpus", "c.txt", "--tokenizer-file", "t.json")
    vocab = tokenizers.Tokenizer.from_file("t.json").get_vocab()
    assert vocab == {M: 0, "<|unk|>": 1, "\n": 2, " ": 3, "a": 4, "b": 5, "\u03b1": 6}  # no character of the separator
    assert "such as β, becomes" in result.out  # alpha it has seen


def test_the_bpe_tokenizer_shows_its_work(run, project):
    write_corpus(config.BPE.corpus)
    result = run(TRAIN_BPE, "--vocab-size", "300")
    assert (result.code, result.err) == (0, "")
    content = json.loads(config.BPE.tokenizer_file.read_text("utf-8"))
    merges = content["model"]["merges"]
    assert len(merges) == 300 - 257
    rows = re.findall(r"^  id +(\d+): (.*) \+ (.*) = (.*)$", result.out, re.MULTILINE)
    assert [int(row[0]) for row in rows] == [*range(257, 269), *range(288, 300)]
    for number, left, right, whole in rows:
        pair = [piece.replace("Ġ", "·").replace("Ċ", "↵") for piece in merges[int(number) - 257]]
        assert [left, right] == pair or "<" in left + right
        assert whole == left + right
        assert content["model"]["vocab"]["".join(merges[int(number) - 257])] == int(number)
    assert result.out.count("\n  ...\n") == 1
    tokenizer = tokenizers.Tokenizer.from_file(str(config.BPE.tokenizer_file))
    size, tokens = (
        sum(map(len, part)) for part in zip(*((t.encode(), tokenizer.encode(t).ids) for t in DOCUMENTS), strict=True)
    )
    assert (
        f"Reloaded and checked: {size:,} bytes came back unchanged, {size / tokens:.3f} bytes per token" in result.out
    )
    assert f"300 ids in {Path('data') / 'tokenizer_bpe.json'}, learned in " in result.out
    assert "merges to offer" not in result.out
    assert "learning from a random" not in result.out
    at = result.out.splitlines().index("A line of the corpus cut into tokens, with their ids:")
    ids = [
        int(token) for line in result.out.splitlines()[at + 2 : at + 9 : 2] for token in line.split() if token.isdigit()
    ]
    assert any(tokenizer.decode(ids).strip() in text for text in DOCUMENTS)


def test_the_bpe_tokenizer_learns_from_documents_and_not_across_them(run, project):
    write_corpus(project / "c.txt", ["a", "b"] * 50)
    result = run(TRAIN_BPE, "--corpus", "c.txt", "--tokenizer-file", "t.json")
    assert result.code == 0
    assert "The text had only 0 merges to offer." in result.out
    assert tokenizers.Tokenizer.from_file("t.json").get_vocab_size() == 257


@pytest.mark.parametrize(("size", "fitting"), [(5_000, 512), (800_000, 1024)])
def test_a_vocabulary_too_large_for_the_text(run, project, size, fitting):
    words = np.random.default_rng(0).integers(97, 123, (400, 6), dtype=np.uint8)
    text = "".join(f"{word.tobytes().decode()} " for word in np.resize(words, (size // 7, 6)))
    write_corpus(project / "c.txt", [text])
    flags = ["--corpus", "c.txt", "--tokenizer-file", "t.json", "--vocab-size"]
    out = run(TRAIN_BPE, *flags, "1200").out
    tokens = len(tokenizers.Tokenizer.from_file("t.json").encode(text).ids)
    assert f"each id occurs {tokens / 1200:.0f} times on average" in out
    assert f"Try --vocab-size {fitting}, or characters." in out
    if fitting == 512:
        assert "Warning" not in run(TRAIN_BPE, *flags, "512").out


def test_characters_that_occur_once_are_told_apart(run, project):
    for text, said in (("aab\tc", "characters that occur once: 3, such as b → c"), ("aa", "once: 0")):
        write_corpus(project / "c.txt", [text])
        assert f"{said}\n" in run(TRAIN_CHAR, "--corpus", "c.txt", "--tokenizer-file", "t.json").out


def test_a_small_text_gives_a_smaller_vocabulary(run, project):
    write_corpus(project / "c.txt", ["ab ab ab abc"])
    result = run(TRAIN_BPE, "--corpus", "c.txt", "--tokenizer-file", "t.json")
    assert "The text had only 3 merges to offer." in result.out
    assert "260 ids in t.json" in result.out
    assert "Warning" not in result.out  # a smaller vocabulary would not be recommended
    assert "  id   257: a + b = ab" in result.out and "  id   259: ·ab + c = ·abc" in result.out


def test_the_text_to_learn_merges_from_is_capped(run, project):
    corpus = write_corpus(config.BPE.corpus)
    assert corpus.stat().st_size > 3000
    result = run(TRAIN_BPE, "--vocab-size", "300", "--tokenizer-megabytes", "0.003")
    assert "learning from a random 0.003 MB of it" in result.out
    sample = corpus_file.sample_documents(corpus, config.BPE.seed, megabytes=0.003)
    expected = bpe_trainer.train_bpe_tokenizer(sample, 300).to_str(pretty=True)
    assert config.BPE.tokenizer_file.read_text("utf-8") == expected


@pytest.mark.parametrize("size", ["0", "-5", "256", "65537"])
def test_vocabularies_out_of_range(run, project, size):
    write_corpus(config.BPE.corpus)
    refused(run(TRAIN_BPE, "--vocab-size", size), "--vocab-size must be from 257 to 65,536", code=2)
    assert not config.BPE.tokenizer_file.exists()


def test_more_characters_than_ids(run, project):
    characters = "".join(map(chr, range(0x10000, 0x10000 + 65_535)))
    write_corpus(config.CHAR.corpus, [characters])
    refused(run(TRAIN_CHAR), "65,535 different characters", "65,536", "train_tokenizer_bpe.py")
    assert not config.CHAR.tokenizer_file.exists()


@pytest.mark.parametrize("script", [TRAIN_CHAR, TRAIN_BPE])
def test_a_corpus_that_cannot_be_learned_from(run, project, script):
    file = config.CHAR.tokenizer_file if script == TRAIN_CHAR else config.BPE.tokenizer_file
    file.parent.mkdir()
    file.write_text("earlier")
    corpus = str(Path("data") / "corpus.txt")
    refused(run(script), "There is no corpus", corpus)
    for empty in (b"", f"{M}\n{M}\n".encode()):
        config.CHAR.corpus.write_bytes(empty)
        refused(run(script), corpus, "holds no document")
    config.CHAR.corpus.write_bytes(f"good\n{M}\ncaf\xe9".encode("latin-1"))
    refused(run(script), corpus, "is not UTF-8 at byte 22 (0xe9)")
    assert file.read_text() == "earlier"
    assert {path.name for path in file.parent.iterdir()} == {"corpus.txt", file.name}


@pytest.mark.parametrize("script", [TRAIN_CHAR, TRAIN_BPE])
def test_a_tokenizer_that_does_not_give_the_text_back_is_noticed(run, project, monkeypatch, script):
    """And the earlier one stays."""
    write_corpus(config.CHAR.corpus)
    assert run(script).code == 0
    before = snapshot(project / "data")
    decode = tokenizer_file.Tokenizer.decode
    monkeypatch.setattr(tokenizer_file.Tokenizer, "decode", lambda self, ids: decode(self, ids)[:-1])
    refused(run(script), "does not give back the text that begins 'import os")
    assert snapshot(project / "data") == before


def test_a_tokenizer_that_would_be_too_large_to_read_back_is_not_written(run, project, monkeypatch):
    """A very long word, such as a picture in base64, becomes tokens that are as long."""
    write_corpus(config.BPE.corpus)
    assert run(TRAIN_BPE).code == 0
    before = config.BPE.tokenizer_file.read_bytes()
    monkeypatch.setattr(tokenizer_file, "MAX_FILE_SIZE", 40_000)
    write_corpus(config.BPE.corpus, ["x" * 10_000])
    refused(run(TRAIN_BPE), "can be read back", "its longest token has 10,000 bytes", "--vocab-size")
    assert config.BPE.tokenizer_file.read_bytes() == before


@pytest.mark.parametrize("script", [TRAIN_CHAR, TRAIN_BPE])
def test_a_corpus_of_white_space(run, project, script):
    write_corpus(config.CHAR.corpus, [" \n\n \t\n"])
    assert run(script).code in (0, 1)


@pytest.mark.parametrize("documents", [1, 2])
def test_of_documents_that_are_all_above_the_cap_the_beginning_is_learned(run, project, documents):
    text = "é" + "def f(x):\n    return x\n" * 100
    write_corpus(config.BPE.corpus, [text] * documents)
    result = run(TRAIN_BPE, "--vocab-size", "300", "--tokenizer-megabytes", "0.000050")
    assert result.code == 0 and "learning from the first 5e-05 MB of it" in result.out
    expected = bpe_trainer.train_bpe_tokenizer([text.encode()[:50].decode()], 300).to_str(pretty=True)
    assert config.BPE.tokenizer_file.read_text("utf-8") == expected
    assert run(TRAIN_BPE, "--tokenizer-megabytes", "0.000001").code == 0  # half a character
    for size in ("0", "-1"):
        refused(run(TRAIN_BPE, "--tokenizer-megabytes", size), "--tokenizer-megabytes must be above 0", code=2)


def test_two_ids_are_not_for_characters(run, project):
    """65,536 ids, of which <|endoftext|> and <|unk|> have one each."""
    some = [chr(code) for code in range(0x10000, 0x10000 + 65_535)]
    write_corpus(config.CHAR.corpus, ["".join(some)])
    refused(run(TRAIN_CHAR), "65,535 different characters and two special tokens are more than the 65,536 ids")
    write_corpus(config.CHAR.corpus, ["".join(some[1:])])
    assert "65,536 ids, two of them special" in run(TRAIN_CHAR, "--quiet").out
