"""scripts/merge_token_files.py: merged shards are the file of a run without --shard."""

import json
from pathlib import Path

import pytest
from data_scripts import (
    MERGE,
    PREPARE_BPE,
    TRAIN_BPE,
    TRAIN_CHAR,
    VARIED,
    files_of,
    refused,
    write_corpus,
)

import dataset
from plumbing import corpus as corpus_file
from plumbing.errors import UserError


def test_merged_shards_are_the_file_of_one_run(run, project, prepare):
    script, settings = prepare
    write_corpus(settings.corpus, VARIED)
    assert run(script, "--val-fraction", "0.3").code == 0
    whole = {path.name: path.read_bytes() for path in files_of(settings).values()}
    facts = {name: json.loads((project / "data" / f"{name}.json").read_text()) for name in whole}
    for i in (1, 2, 3):
        assert run(script, "--val-fraction", "0.3", "--shard", f"{i}/3").code == 0
    for path in files_of(settings).values():
        path.unlink()
        result = run(MERGE, f"data/{path.stem}.*-of-3.bin", "--output", path)
        assert (result.code, result.err) == (0, "")
        assert path.read_bytes() == whole[path.name]
        merged = json.loads(Path(f"{path}.json").read_text())
        assert merged.pop("crc32") != facts[path.name].pop("crc32")  # because of "pairs"
        sidecars = [json.loads(Path(f"data/{path.stem}.{i}-of-3.bin.json").read_text()) for i in (1, 2, 3)]
        assert merged == facts[path.name] | {"pairs": sorted(shard["pairs"][0] for shard in sidecars)}
    refused(
        run(MERGE, f"data/{path.stem}.1-of-3.bin", f"data/{path.stem}.3-of-3.bin", "--output", "x.bin"), "missing [2]"
    )


@pytest.mark.parametrize("missing", ["train", "val"])
def test_a_shard_with_an_empty_split_can_be_merged(run, project, prepare, missing):
    script, settings = prepare
    split_of = {d: corpus_file.split_of(d.encode(), 0.3) for d in VARIED}
    few = [next(d for d in VARIED if split_of[d] == missing)] * 2
    write_corpus(settings.corpus, [d for d in VARIED if split_of[d] != missing][:20] + few)
    fraction = ("--val-fraction", "0.3")
    assert run(script, *fraction).code == 0
    whole = {path.name: path.read_bytes() for path in files_of(settings).values()}
    for i in (1, 2):
        result = run(script, *fraction, "--shard", f"{i}/2")
        assert (result.code, result.err) == (0, "")
        assert (f"this shard has no document in the {missing} split" in result.out) == (i == 1)
    for path in files_of(settings).values():
        assert run(MERGE, f"data/{path.stem}.*-of-2.bin", "--output", path).code == 0
        assert path.read_bytes() == whole[path.name]
    # A folder of shards is used as their merged file; an empty shard by itself is refused.
    empty = files_of(settings)[missing]
    (project / "folder").mkdir()
    for shard in (project / "data").glob(f"{empty.stem}.*-of-2.bin*"):
        shard.rename(project / "folder" / shard.name)
    assert dataset.open_tokens(project / "folder").tokens[:].tobytes() == whole[empty.name]
    empty = project / "folder" / f"{empty.stem}.1-of-2.bin"
    with pytest.raises(UserError, match="holds no tokens"):
        dataset.open_tokens(empty)
    refused(run(MERGE, empty, "--output", "x.bin"), "not all shards of the same split")
    (project / "folder" / f"{empty.name}.json").rename("e.bin.json")
    empty.rename("e.bin")
    refused(run(MERGE, "e.bin", "--output", "x.bin"), "hold no tokens")


def test_shards_of_different_files_are_not_merged(run, project):
    refused(run(MERGE, "train.1-of-2.bin", "val.2-of-2.bin", "--output", "x.bin"), "different files: train, val")


def test_what_merging_refuses(run, project, prepare):
    script, settings = prepare
    run(script)
    train, val = files_of(settings).values()
    refused(run(MERGE, train, val, "--output", train), "--output would replace", code=2)
    run(TRAIN_BPE if script == PREPARE_BPE else TRAIN_CHAR, "--corpus", write_corpus(project / "o", [*VARIED, "Ω"]))
    run(script, "--train-file", "t.bin", "--val-file", "v.bin")
    refused(run(MERGE, train, "t.bin", "--output", "x.bin"), "t.bin", "another tokenizer")
    refused(run(MERGE, "nothing.bin", "--output", "x.bin"), "There is no token file nothing.bin")
    result = run(MERGE, train, val, "--output", "x.bin")
    assert result.code == 0
    assert Path("x.bin").read_bytes() == train.read_bytes() + val.read_bytes()
