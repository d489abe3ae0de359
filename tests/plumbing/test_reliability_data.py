"""The steps that make data leave no half result, and none hides what it left out: kills, full disks, damaged inputs.

The full numbers: uv run pytest -m soak
"""

import contextlib
import errno
import os
import random
import re
import runpy
import signal
import sys
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from data_scripts import (
    EXTRACT,
    INGEST,
    PREPARE_BPE,
    PREPARE_CHAR,
    ROOT,
    SAMPLE,
    TRAIN_BPE,
    TRAIN_CHAR,
    M,
    move_defaults,
    refused,
    snapshot,
    write_corpus,
)
from faults import Faults, end_of, left_over, runs, start

import dataset
from dataset import open_tokens
from plumbing import corpus as corpus_file
from plumbing import files
from plumbing.corpus import read_documents
from plumbing.errors import UserError

pytestmark = pytest.mark.skipif(os.name != "posix", reason="forks and kills processes")

STEPS = {
    INGEST: ["source", "--output", "data/parquet/folder.parquet"],
    EXTRACT: [],
    SAMPLE: ["--fraction", "0.7", "--seed", "3"],
    TRAIN_CHAR: [],
    TRAIN_BPE: ["--vocab-size", "300"],
    PREPARE_CHAR: ["--val-fraction", "0.3"],
    PREPARE_BPE: ["--val-fraction", "0.3"],
}


def step(script: str, *more: str):
    """A function that runs a script with its arguments above, as the command line does."""

    def run_it():
        sys.argv = [str(ROOT / script), *STEPS[script], *more]
        null = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115 (until the end of the process)
        sys.stdout = null
        runpy.run_path(str(ROOT / script), run_name="__main__")

    return run_it


@pytest.fixture(scope="module", autouse=True)
def imported():
    """What pyarrow and tokenizers import when they are used, most of a second of it: once here, not in every fork."""
    import pyarrow.compute  # noqa: F401

    with contextlib.suppress(ImportError):  # a guest of theirs, which they do without
        import pandas  # noqa: F401


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The files of a folder in which every step has worked on a small source folder."""
    folder = tmp_path_factory.mktemp("made")
    rng = random.Random(5)
    for i in range(40):
        path = folder / "source" / f"m{i:02}.py"
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"# {i} naïve\nimport os\n" + f"x{i} = {rng.random()}\n" * rng.randrange(1, 40), "utf-8")
    with pytest.MonkeyPatch.context() as patch:
        move_defaults(folder, patch)
        for script in STEPS:
            assert end_of(start(step(script))) == 0, script
    return snapshot(folder)


@pytest.fixture
def whole(made, project):
    """The same files in this test's folder, which a step that runs again makes byte for byte the same."""
    for name, data in made.items():
        (project / name).parent.mkdir(parents=True, exist_ok=True)
        (project / name).write_bytes(data)


# --- kills and full disks ---------------------------------------------------------------------------------------------


def sound(files: dict, before: dict, after: dict, both: set[str]) -> bool:
    """Whether each file is the one before or the one after the step, none of them half, and those of a pair that are
    complete are of the same time."""
    named = {name: data for name, data in files.items() if not name.endswith(".tmp")}
    if any(data not in (before.get(name), after.get(name)) for name, data in named.items()):
        return False
    lost = set(before) - set(named)
    return all(name.endswith(".bin.json") for name in lost) and not mixed(named, before, after, both)


def mixed(named: dict, before: dict, after: dict, pair: set[str]) -> bool:
    """Whether the files of a pair, each with its description, are there from two different times."""
    if not all(name in named and f"{name}.json" in named for name in pair):
        return False
    times = [
        [named[n] == when.get(n) and named[f"{n}.json"] == when.get(f"{n}.json") for n in pair]
        for when in (before, after)
    ]
    return not any(all(time) for time in times)


PAIRS = {PREPARE_CHAR: {"train.bin", "val.bin"}, PREPARE_BPE: {"train_bpe.bin", "val_bpe.bin"}}
OTHERWISE = {
    EXTRACT: ["other", "--corpus", "data/corpus.txt"],
    SAMPLE: ["--seed", "4"],
    PREPARE_CHAR: ["--val-fraction", "0.6"],
    PREPARE_BPE: ["--val-fraction", "0.6"],
}


def killed_steps(project: Path, script: str, number: int, rng: random.Random, until_wrong=False) -> tuple[list, int]:
    """Kill a step, which is to replace earlier results, at random calls, or only until something is wrong. Returns
    (what was wrong, kills)."""
    table = pa.table({"content": [f"another text {i}" for i in range(300)]})
    (project / "other").mkdir(exist_ok=True)
    pq.write_table(table, project / "other" / "x.parquet")
    before = {name: data for name, data in snapshot(project / "data").items() if not name.endswith(".tmp")}

    def put_back():
        for path in (project / "data").rglob("*"):
            if path.is_file():
                path.unlink()
        for name, data in before.items():
            (project / "data" / name).write_bytes(data)

    def faulty(fault: Faults):
        def function():
            with fault():
                step(script, *OTHERWISE[script])()

        return function

    assert end_of(start(step(script, *OTHERWISE[script]))) == 0
    after, wrong, killed = snapshot(project / "data"), [], 0
    assert before != after
    reading, writing = os.pipe()
    put_back()

    def count_calls():
        fault = Faults(at_call=10**9)
        try:
            faulty(fault)()
        except SystemExit:
            os.write(writing, f"{fault.calls} {fault.bytes}".encode())

    end_of(start(count_calls))
    calls, size = map(int, os.read(reading, 100).split())
    while killed < number and not (until_wrong and wrong):
        put_back()
        at = {"at_call": rng.randrange(1, calls + 1)} if rng.random() < 0.7 else {"at_byte": rng.randrange(size)}
        code = end_of(start(faulty(Faults(**at))))
        assert code in (0, -signal.SIGKILL)
        killed += code != 0
        if not sound(snapshot(project / "data"), before, after, PAIRS.get(script, set())):
            wrong.append(at)
        if sum(not path.name.endswith(".lock.tmp") for path in left_over(project)) > 2:  # prepare writes two at once
            wrong.append(left_over(project))
        if killed % 7 == 0:
            assert end_of(start(step(script, *OTHERWISE[script]))) == 0
            if snapshot(project / "data") != after:
                wrong.append((at, "not the same after the next start"))
    put_back()
    return wrong, killed


@runs(20, 500)
def test_killed_steps_leave_the_earlier_results_or_the_new_ones(whole, project, number):
    rng = random.Random(number)
    for script in OTHERWISE:
        wrong, killed = killed_steps(project, script, -(-number // len(OTHERWISE)), rng)
        assert wrong == [], script
        assert killed >= number // len(OTHERWISE)


def test_without_the_protection_killed_steps_are_noticed(whole, project, monkeypatch):
    """The controls: files under their own names, and descriptions that are taken away one by one."""
    with monkeypatch.context() as patch:
        patch.setattr(corpus_file, "whole_file", lambda path: files.open_early(path, "wb"))
        assert killed_steps(project, SAMPLE, 15, random.Random(1), until_wrong=True)[0] != []
    with monkeypatch.context() as patch:
        real = dataset.remove_sidecars
        patch.setattr(dataset, "remove_sidecars", lambda *paths: real(*paths) if len(paths) == 1 else None)
        assert killed_steps(project, PREPARE_CHAR, 40, random.Random(1), until_wrong=True)[0] != []


@runs(3, 100)
def test_steps_killed_by_the_clock_come_out_the_same(whole, project, number):
    """At random moments, with no hand in how the files are written."""
    rng = random.Random(number)
    scripts = list(STEPS)
    for i in range(number):
        script = scripts[i % len(scripts)]
        before = snapshot(project / "data")
        pid = start(step(script))
        time.sleep(rng.uniform(0, 0.15))
        os.kill(pid, signal.SIGKILL)
        assert end_of(pid) in (0, -signal.SIGKILL)
        assert sound(snapshot(project / "data"), before, before, set())
        assert end_of(start(step(script))) == 0
        assert snapshot(project / "data") == before


SOME_CALLS, MORE_CALLS = [1, 2, 3, 4, 6, 9, 13, 18, 24, 31, 39, 60, 100], [*range(1, 40), 60, 100]


@pytest.mark.parametrize("calls", [SOME_CALLS, pytest.param(MORE_CALLS, marks=pytest.mark.soak)], ids=["some", "more"])
@pytest.mark.parametrize("script", STEPS)
def test_a_full_disk_is_one_sentence_and_the_earlier_results_stay(whole, project, script, calls):
    before = snapshot(project / "data")
    failed = 0
    for n in calls:

        def full(n=n):
            with Faults(at_call=n, error=errno.ENOSPC)():
                step(script)()

        code = end_of(start(full, errors=project / "errors"))
        said = (project / "errors").read_text("utf-8")
        if code == 0:
            break
        failed += 1
        (line,) = re.findall("error: .*", said)
        assert code == 1 and "No space left on device, with" in line and "MB free" in line and "data" in line, said
        assert "Traceback" not in said
        assert left_over(project) == []
        assert sound(snapshot(project / "data"), before, before, set())
    assert failed >= 3
    assert end_of(start(step(script))) == 0
    assert snapshot(project / "data") == before


# --- damaged and hostile inputs ---------------------------------------------------------------------------------------


@runs(100, 3000)
def test_every_damaged_parquet_is_named_and_the_good_ones_are_used(run, project, number):
    """Ten damaged files at a time, between good ones. Of what no checksum covers, a change may go unnoticed where it
    changes no text; rows are never lost without a word."""
    rng = random.Random(number)
    rows = [f"{i} {rng.random()} é" for i in range(300)]
    table = pa.table({"content": rows, "size": list(range(300))})
    (project / "in").mkdir()
    good = project / "in" / "good.parquet"
    pq.write_table(table, good, row_group_size=100, write_page_checksum=True)
    data = good.read_bytes()
    pq.write_table(pa.table({"content": ["the last one"]}), project / "in" / "zzz.parquet")
    changed = 0
    for _ in range(number // 10):
        for i in range(10):
            bad, kind = bytearray(data), rng.randrange(4)
            if kind == 0:
                bad = bad[: rng.randrange(len(bad))]
            elif kind == 1:
                for _ in range(rng.choice([1, 3, 30])):
                    bad[rng.randrange(len(bad))] = rng.randrange(256)
            elif kind == 2:
                at = rng.randrange(len(bad))
                bad[at : at + 200] = bytes(len(bad[at : at + 200]))
            else:
                bad[rng.randrange(len(bad))] ^= 1 << rng.randrange(8)
            (project / "in" / f"p{i}.parquet").write_bytes(bad)
        result = run(EXTRACT, "in", "--corpus", "c.txt", "--skip-bad", "--quiet")
        documents = list(read_documents(Path("c.txt")))
        named = set(re.findall(r"p\d\.parquet", result.err))
        assert result.code == (3 if named else 0)
        assert documents[:300] == rows and documents[-1] == "the last one"
        for i in range(10):
            if f"p{i}.parquet" not in named:
                changed += (project / "in" / f"p{i}.parquet").read_bytes() != data
        silent = [d for d in documents if d not in set(rows) and d != "the last one"]
        assert silent == []
        complete = 11 - len(named)  # the good file, and those of the ten that are not named
        assert len(documents) >= 300 * complete + 1
    assert changed < 0.35 * number  # damages that made no difference to the column that is read


def test_without_checksums_text_would_change_without_a_word(tmp_path):
    """The control: the same damages, read as pyarrow reads by default."""
    rng, silent = random.Random(1), 0
    rows = [f"{i} {rng.random()}" for i in range(300)]
    pq.write_table(pa.table({"content": rows}), tmp_path / "p.parquet", compression="none", use_dictionary=False)
    data = (tmp_path / "p.parquet").read_bytes()
    for _ in range(100):
        bad = bytearray(data)
        bad[rng.randrange(4, len(bad) - 800)] ^= 1
        (tmp_path / "p.parquet").write_bytes(bad)
        with contextlib.suppress(pa.ArrowException, OSError, UnicodeDecodeError):
            silent += pq.read_table(tmp_path / "p.parquet")["content"].to_pylist() != rows
    assert silent > 50


@runs(200, 5000)
def test_hostile_text_is_used_or_named(run, project, number):
    """Corpora of random bytes and characters: every step takes what is text, byte for byte, and names what is not."""
    rng = random.Random(number)
    fragments = [
        "\0",
        "\ufeff",
        "\r",
        "\r\n",
        "\n",
        M,
        f"\n{M}\n",
        "é",
        "日",
        "🐍",
        "x" * 5000,
        "\u2028",
        "a b\n",
        "\x85",
    ]
    broken = [b"\xff", b"\xed\xa0\x80", b"\xc3", b"\xf4\x90\x80\x80", b"\xc0\x80"]
    for i in range(number):
        data = "".join(rng.choices(fragments, k=rng.randrange(12))).encode()
        bad = i % 4 == 0
        if bad:
            at = len(data[: rng.randrange(len(data) + 1)].decode(errors="ignore").encode())
            data = data[:at] + rng.choice(broken) + data[at:]
        write_corpus(project / "c.txt", []).write_bytes(data)
        if bad:
            with pytest.raises(UserError, match=rf"c\.txt is not UTF-8 at byte {at:,} "):
                list(read_documents(project / "c.txt"))
            continue
        documents = list(read_documents(project / "c.txt"))
        lines = data.decode().split("\n")
        expected, current = [], []
        for line in [*lines, M]:
            if line == M:
                expected.append("\n".join(current))
                current = []
            else:
                current.append(line)
        assert documents == [text for text in expected if text]
        if i % 50 == 1 and documents:
            (project / "data").mkdir(exist_ok=True)
            assert run(TRAIN_CHAR, "--corpus", "c.txt", "--quiet").code == 0
            assert run(TRAIN_BPE, "--corpus", "c.txt", "--vocab-size", "260", "--quiet").code == 0
            for script, name in ((PREPARE_CHAR, "train.bin"), (PREPARE_BPE, "train_bpe.bin")):
                result = run(script, "--corpus", "c.txt", "--val-fraction", "0.5", "--quiet")
                if result.code == 0:
                    parts = [open_tokens(project / "data" / name.replace("train", part)) for part in ("train", "val")]
                    total = sum(part.facts["utf8_bytes"] for part in parts)
                    assert total == sum(len(text.encode()) for text in documents)
                else:
                    refused(result, "No document of c.txt is in the")


def test_text_that_is_repaired_without_a_word_is_noticed(project, monkeypatch):
    """The control of the test above."""
    write_corpus(project / "c.txt", []).write_bytes(b"a\xffb")
    with pytest.raises(UserError):
        list(read_documents(project / "c.txt"))
    monkeypatch.setattr(corpus_file, "decode_text", lambda data, path, offset: data.decode(errors="replace"))
    assert list(corpus_file.read_document_bytes(project / "c.txt")) == [b"a\xffb"]


@pytest.mark.parametrize("megabytes", [1.2, pytest.param(100, marks=pytest.mark.soak)])
def test_one_very_long_line(run, project, megabytes):
    """Longer than what is read at once."""
    word = "".join(random.Random(1).choices("abcdefgh ", k=1000))
    line = word * round(megabytes * 1000)
    assert len(line) > files.CHUNK
    write_corpus(project / "c.txt", [line, "a second document\n"])
    (project / "data").mkdir()
    assert list(read_documents(project / "c.txt")) == [line, "a second document\n"]
    for script, *more in ((TRAIN_CHAR,), (TRAIN_BPE, "--vocab-size", "300"), (PREPARE_CHAR,), (PREPARE_BPE,)):
        split = ["--val-fraction", "0.5"] if "prepare" in script else []
        result = run(script, "--corpus", "c.txt", "--quiet", *more, *split)
        if result.code:  # both documents may be in one split
            refused(result, "No document of c.txt is in the")


def test_the_counts_of_ingestion_add_up(run, project):
    """Files of every hostile kind in one folder: each is taken or counted as left out, and the good ones are whole."""
    kinds = {
        "good.py": b"x = 1\n",
        "nul.py": b"x = '\0'\n",
        "bom.py": "\ufeffx = 2\n".encode(),
        "cr.py": b"x = 3\ry = 4\r",
        "latin.py": "# -*- coding: latin-1 -*-\nx = 'é'\n".encode("latin-1"),
        "wrong.py": b"x = '\xff'\n",
        "surrogate.py": b"x = '\xed\xa0\x80'\n",
        "unknown.py": b"# -*- coding: klingon -*-\nx = 1\n",
        "empty.py": b"",
        "blank.py": b"\n\n\n",
        "marker.py": f"a = 1\n{M}\nb = 2\n".encode(),
        "long.py": b"x = '" + b"y" * 2_000_000 + b"'\n",
        "copy.py": b"x = 1\n",
    }
    for name, data in kinds.items():
        (project / "in").mkdir(exist_ok=True)
        (project / "in" / name).write_bytes(data)
    result = run(INGEST, "in", "--output", "p.parquet")
    left_out = sum(int(n) for n in re.findall(r"left out, [^:]+: (\d+)", result.out))
    taken = int(re.search(r"^(\d+) files", result.out, re.MULTILINE)[1])
    assert taken + left_out == len(kinds)
    rows = {row["path"]: row["content"] for row in pq.read_table("p.parquet").to_pylist()}
    assert len(rows) == taken
    assert rows["bom.py"] == "x = 2\n" and rows["latin.py"].endswith("x = 'é'\n")
    result = run(EXTRACT, "p.parquet", "--corpus", "c.txt")
    assert "a line <|endoftext|>, which splits them: 1" in result.out
    assert len(list(read_documents(Path("c.txt")))) == taken + 1
