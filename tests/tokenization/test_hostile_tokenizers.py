"""A damaged tokenizer file is never used, and a stranger's cannot crash the process, hang it or use up the memory.

Each test has its control: what the library alone would have done. The full numbers: uv run pytest -m soak
"""

import hashlib
import json
import os
import random
from pathlib import Path

import pytest
from faults import damaged, end_of, runs, start
from stored_runs import LINUX, check_all_refused

from model.storage.safe_load import load, save
from model.tokenization.bpe_trainer import train_bpe_tokenizer
from model.tokenization.tokenizer import EMPTY_TEMPLATE, Tokenizer, load_tokenizer, make_character_tokenizer
from plumbing.errors import UserError


def tokenizer_texts(char: str, bpe: str) -> dict[str, str]:
    """JSON texts of tokenizers that must not be used: they crash or hang the library, or would do something else."""

    def changed(text: str, model: dict | None = None, **top) -> str:
        content = json.loads(text)
        content["model"] |= model or {}
        return json.dumps(content | top)

    vocab = json.loads(char)["model"]["vocab"]
    pieces = json.loads(bpe)["model"]["vocab"]
    split = {"type": "Split", "behavior": "Isolated", "invert": False}
    added = json.loads(bpe)["added_tokens"][0]
    return {
        "a prefix for continuing words": changed(bpe, {"continuing_subword_prefix": "é"}),
        "a suffix": changed(bpe, {"end_of_word_suffix": "</w>"}),
        "dropout": changed(bpe, {"dropout": 0.5}),
        "a charsmap": changed(bpe, normalizer={"type": "Precompiled", "precompiled_charsmap": "AAAA"}),
        "a normalizer": changed(bpe, normalizer={"type": "Lowercase"}),
        "a normalizer that grows": changed(
            bpe, normalizer={"type": "Replace", "pattern": {"String": "a"}, "content": "a" * 10**6}
        ),
        "a pattern without end": changed(char, pre_tokenizer=split | {"pattern": {"Regex": "(a|aa)+$"}}),
        "a prefix space": changed(bpe, pre_tokenizer={"type": "ByteLevel", "add_prefix_space": True}),
        "no pre-tokenizer": changed(bpe, pre_tokenizer=None),
        "another decoder": changed(bpe, decoder=None),
        "a template that adds tokens": changed(
            bpe,
            post_processor=EMPTY_TEMPLATE
            | {"special_tokens": {"x": {"id": "x", "ids": [5], "tokens": ["a"]}}}
            | {"single": [{"SpecialToken": {"id": "x", "type_id": 0}}]},
        ),
        "an added token": changed(bpe, added_tokens=[added, added | {"id": 2**31, "content": "x"}]),
        "an id of 2^31": changed(char, {"vocab": vocab | {"\u1234": 2**31}}),
        "an id of 10^400": changed(char, {"vocab": vocab | {"\u1234": 10**400}}),
        "an id below 0": changed(char, {"vocab": vocab | {"\u1234": -1}}),
        "an id that is a fraction": changed(char, {"vocab": vocab | {"\u1234": 2.5}}),
        "an id twice": changed(char, {"vocab": vocab | {"\u1234": 5}}),
        "a gap": changed(char, {"vocab": vocab | {"\u1234": 5000}}),
        "a long character": changed(char, {"vocab": vocab | {"ab": len(vocab)}}),
        "half a surrogate pair": changed(char, {"vocab": vocab | {"\ud800": len(vocab)}}),
        "a token not of bytes": changed(bpe, {"vocab": pieces | {"日": len(pieces)}}),
        "a merge of nothing": changed(bpe, {"merges": [["nowhere", "b"]]}),
        "merges of three": changed(bpe, {"merges": [["a", "b", "c"]]}),
        "merges of numbers": changed(bpe, {"merges": 5}),
        "a byte missing": changed(
            bpe, {"vocab": {piece: i for i, piece in enumerate(pieces) if i < 200}, "merges": []}
        ),
        "no vocabulary": changed(bpe, {"vocab": {}}),
        "a list as vocabulary": changed(char, {"vocab": []}),
        "deep": "[" * 1_000_000,
        "deep inside": changed(bpe)[:-1] + ', "x": ' + "[" * 100_000 + "]" * 100_000 + "}",
        "a number of a million digits": '{"model": ' + "1" * 1_000_000 + "}",
        "two models": changed(bpe)[:-1] + ', "model": {"type": "Unigram"}}',
        "empty": "",
        "null": "null",
        "NaN": "NaN",
    }


@pytest.fixture(scope="module")
def texts():
    char = make_character_tokenizer("abc\n def").to_str()
    bpe = train_bpe_tokenizer(["ab ab ab abc def def"] * 3, 262).to_str()
    return tokenizer_texts(char, bpe)


@LINUX
def test_hostile_tokenizers_in_model_files_are_refused(finished_run, texts, tmp_path):
    model_content = load(finished_run.settings.model_file)
    for name, text in texts.items():
        tokenizer = {"kind": "bpe", "json": text, "sha256": hashlib.sha256(text.encode()).hexdigest()}
        save(tmp_path / f"{name}.pt", model_content | {"tokenizer": tokenizer})
    paths = sorted(tmp_path.iterdir())
    assert len(paths) > 30
    check_all_refused(paths, tmp_path / "errors")


def test_hostile_tokenizers_are_refused(texts, tmp_path, capfd):
    for name, text in texts.items():
        (tmp_path / "t.json").write_bytes(text.encode(errors="surrogatepass"))
        with pytest.raises(UserError) as refused:
            load_tokenizer(tmp_path / "t.json")
        assert "\n" not in str(refused.value) and "t.json" in str(refused.value) and len(str(refused.value)) < 500, name
    assert capfd.readouterr().err == ""  # no panic of the library
    (tmp_path / "t.json").write_bytes(b" " * 13_000_000)
    with pytest.raises(UserError, match="too large"):
        load_tokenizer(tmp_path / "t.json")


def test_the_library_alone_would_crash_or_accept(texts):
    """The control. The prefix aborts the process: in this version of the library, at least it ends in some error."""
    import tokenizers

    def aborts():
        tokenizers.Tokenizer.from_str(texts["a prefix for continuing words"])

    assert end_of(start(aborts, errors=Path(os.devnull))) != 0
    for name in (
        "a normalizer that grows",
        "a pattern without end",
        "an id twice",
        "a byte missing",
    ):
        tokenizers.Tokenizer.from_str(texts[name])


@runs(200, 5000)
def test_no_damaged_tokenizer_passes_under_the_hash_of_the_good_one(tmp_path, capfd, number):
    """Some damages make another valid tokenizer. Its hash is another one, which all that depends on it compares."""
    rng, refused, others = random.Random(number), 0, 0
    goods = [make_character_tokenizer("abc\n def é日").to_str(pretty=True)]
    goods += [train_bpe_tokenizer(["ab ab ab abc def def"] * 3, 262).to_str(pretty=True)]
    sums = {Tokenizer(good).sha256 for good in goods}
    for i in range(number):
        good = goods[i % 2].encode()
        bad = damaged(good, goods[1 - i % 2].encode(), rng)
        (tmp_path / "t.json").write_bytes(bad)
        try:
            tokenizer = load_tokenizer(tmp_path / "t.json")
            assert bad in (good, goods[1 - i % 2].encode()) or tokenizer.sha256 not in sums
            others += bad != good
            tokenizer.decode(range(tokenizer.vocab_size))
        except UserError as error:
            assert "\n" not in str(error)
            refused += 1
    assert refused > 0.7 * number
    assert capfd.readouterr().err == ""
    assert others < 0.3 * number
