"""All scripts: --help and wrong flags. The scripts of steps 1 to 5: how they follow each other, what they print."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import tqdm
from data_scripts import (
    DOCUMENTS,
    EXTRACT,
    INGEST,
    PREPARE_BPE,
    PREPARE_CHAR,
    ROOT,
    SAMPLE,
    SCRIPTS,
    TRAIN_BPE,
    TRAIN_CHAR,
    M,
    damaged,
    refused,
    snapshot,
    write_corpus,
    write_parquet,
)

import config
from plumbing.corpus import (
    read_documents,
)


def test_help_and_wrong_flags_answer_at_once():
    """In one fresh interpreter, as if each were started by itself, and none of them imports torch for it."""
    code = """
import contextlib, io, json, runpy, sys
from pathlib import Path
root, scripts = Path(sys.argv[1]), sys.argv[2:]
ours = "config dataset ingestion model plumbing scripts".split()
outer, answers = list(sys.path[1:]), []
for script in scripts:
    arguments = {
        "sample": ["--fraction", "1"], "merge": ["a", "--output", "b"], "export": ["--output", "b"],
        **dict.fromkeys(("surprise", "novelty", "inspect_data", "ingest_dataset"), ["a"]),
    }  # fmt: skip
    needed = next((found for name, found in arguments.items() if name in script), [])
    for flags in (["--help"], ["--no-such-flag", *needed]):
        for name in [n for n in sys.modules if n.partition(".")[0] in ours]:
            del sys.modules[name]
        sys.path[:] = [str((root / script).parent), *outer]
        sys.argv = [str(root / script), *flags]
        out, err, code = io.TextIOWrapper(io.BytesIO()), io.TextIOWrapper(io.BytesIO()), None
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            try:
                runpy.run_path(str(root / script), run_name="__main__")
            except SystemExit as end:
                code = end.code
        out.flush(), err.flush()
        answers.append([script, code, out.buffer.getvalue().decode(), err.buffer.getvalue().decode()])
print(json.dumps({"answers": answers, "heavy": [n for n in ("torch", "datasets") if n in sys.modules]}))
"""
    assert len(SCRIPTS) >= 13
    env = os.environ | {"COLUMNS": "120", "PYTHONIOENCODING": "utf-8"}
    done = subprocess.run(
        [sys.executable, "-c", code, ROOT, *SCRIPTS], env=env, capture_output=True, text=True, encoding="utf-8"
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["heavy"] == []
    helps, wrongs = result["answers"][::2], result["answers"][1::2]
    for script, code, out, err in helps:
        assert (code, err) == (0, ""), script
        assert f"    python {script}" in out, f"{script} --help shows no worked example"
        assert "usage:" in out and "--help" in out
    for script, code, out, err in wrongs:
        assert (code, out) == (2, ""), script
        assert "--no-such-flag" in err and "Traceback" not in err, script


@pytest.mark.parametrize(
    ("script", "flags", "expected"),
    [
        (SAMPLE, ["--fraktion", "1"], "there is no flag --fraktion (did you mean --fraction?)"),
        (SAMPLE, ["--fraction=x"], "--fraction: invalid float value: 'x'"),
        (SAMPLE, [], "one of the arguments --megabytes --documents --fraction is required"),
        (TRAIN_BPE, ["--vocab-size", "1.5"], "--vocab-size: '1.5' is not a whole number"),
        (TRAIN_BPE, ["--megabytes", "1"], "there is no flag --megabytes (did you mean --tokenizer-megabytes?)"),
        (TRAIN_BPE, ["--xyzzy"], "there is no flag --xyzzy"),
        ("scripts/benchmark.py", ["data", "--megabites", "1"], "there is no flag --megabites (did you mean --meg"),
        ("scripts/benchmark.py", ["data", "--megabytes", "x"], "--megabytes: invalid float value: 'x'"),
        ("scripts/benchmark.py", ["data", "--rounds", "0"], "--rounds: must be at least 1, and it is 0"),
        ("scripts/novelty.py", ["a", "--most", "-3"], "--most: must be at least 1, and it is -3"),
        ("scripts/benchmark.py", ["datta"], "invalid choice: 'datta'"),
        ("scripts/export_huggingface.py", ["--ouput", "x"], "there is no flag --ouput (did you mean --output?)"),
    ],
)  # fmt: skip
def test_a_wrong_flag_is_a_line_that_names_the_right_one(run, script, flags, expected):
    result = run(script, *flags)
    assert (result.code, result.out) == (2, "")
    assert result.err.startswith(f"error: {'subject: ' if 'datta' in flags else ''}{expected}")
    assert result.err.endswith(". See --help.\n") and result.err.count("\n") == 1


def test_whole_numbers_may_be_written_as_floats(run, project):
    write_corpus(config.CHAR.corpus)
    assert run(TRAIN_BPE, "--vocab-size", "3e2", "--quiet").code == 0


def test_a_script_runs_from_any_folder_and_in_any_locale(tmp_path):
    """A process of its own, with relative paths, an output that is ASCII, and text that is not."""
    write_corpus(tmp_path / "c.txt", ["naïve 🐍\n", "日本語\n"])
    done = subprocess.run(
        [sys.executable, ROOT / SAMPLE, "--fraction", "1", "--corpus", "c.txt", "--output", "new/s.txt"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONIOENCODING": "ascii"},
        capture_output=True,
    )
    assert (done.returncode, done.stderr) == (0, b"")
    assert (tmp_path / "new" / "s.txt").read_bytes() == (tmp_path / "c.txt").read_bytes()
    assert f"in {Path('new') / 's.txt'}" in done.stdout.decode()
    assert "naïve·🐍↵" in done.stdout.decode()


def test_a_step_names_the_next_one_for_the_files_that_it_was_given(run, project):
    (project / "in").mkdir()
    for i, text in enumerate(DOCUMENTS):
        (project / "in" / f"{i}.py").write_text(text, "utf-8")
    char, bpe = ["--tokenizer-file", "c t.json"], ["--tokenizer-file", "b.json"]
    files = ["--train-file", "t.bin", "--val-file", "v.bin"]
    steps = [
        ([INGEST, "in", "--output", "p.parquet"], f"{EXTRACT} p.parquet"),
        ([EXTRACT, "p.parquet", "--corpus", "c.txt"], f"{TRAIN_CHAR} --corpus c.txt"),
        (["ingestion/ingest_dataset.py", "c.txt", "--output", "d.parquet"], f"{EXTRACT} d.parquet"),
        ([TRAIN_CHAR, "--corpus", "c.txt", *char], f"{PREPARE_CHAR} --corpus c.txt --tokenizer-file 'c t.json'"),
        ([TRAIN_BPE, "--corpus", "c.txt", *bpe], f"{PREPARE_BPE} --corpus c.txt {' '.join(bpe)}"),
        ([PREPARE_CHAR, "--corpus", "c.txt", *char, *files], f"train.py {' '.join(files)} --tokenizer-file 'c t.json'"),
        (["scripts/inspect_data.py", "c.txt"], f"{TRAIN_BPE} --corpus c.txt"),
        (["scripts/inspect_data.py", "t.bin"], "train.py --train-file t.bin"),
        ([PREPARE_BPE, "--corpus", "c.txt", *bpe], f"trainv2.py {' '.join(bpe)}"),
        (["scripts/inspect_data.py", "data/train_bpe.bin"], "trainv2.py"),
        (["scripts/inspect_data.py", "data/val_bpe.bin", *bpe], f"trainv2.py {' '.join(bpe)}"),
    ]
    for command, following in steps:
        result = run(*command)
        assert (result.code, result.err) == (0, "")
        assert result.out.endswith(f"Next: python {following}\n"), result.out


def test_no_step_replaces_what_it_reads(run, project):
    write_corpus(project / "c.txt")
    write_parquet(project / "p.parquet", DOCUMENTS)
    before = snapshot(project)
    for command in (
        [EXTRACT, "p.parquet", "--corpus", "p.parquet"],
        [TRAIN_CHAR, "--corpus", "c.txt", "--tokenizer-file", "c.txt"],
        [TRAIN_BPE, "--corpus", "c.txt", "--tokenizer-file", "c.txt"],
        ["ingestion/ingest_dataset.py", "c.txt", "--output", "c.txt"],
    ):
        refused(run(*command), f"{command[-2]} would replace {command[-1]}, which is read here", code=2)
    assert snapshot(project) == before


@pytest.mark.skipif(os.name != "posix", reason="pipes of a shell")
def test_a_reader_that_leaves_is_no_error(tmp_path):
    """As in `python script | head -1`."""
    write_corpus(tmp_path / "c.txt")
    command = [
        sys.executable,
        ROOT / TRAIN_CHAR,
        "--corpus",
        tmp_path / "c.txt",
        "--tokenizer-file",
        tmp_path / "t.json",
    ]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    process.stdout.close()
    assert process.stderr.read() == b""
    process.stderr.close()
    assert process.wait() == 1


def test_the_steps_follow_each_other_on_their_defaults(run, project):
    """Each script reads what the one before wrote, and names the script that is next."""
    sources = project / "sources"
    sources.mkdir()
    for i, text in enumerate(DOCUMENTS):
        (sources / f"{i:02d}.py").write_text(text, "utf-8")
    steps = [
        ([INGEST, sources], EXTRACT),
        ([EXTRACT], TRAIN_CHAR),  # so little text needs no sample
        ([SAMPLE, "--fraction", "0.5"], TRAIN_CHAR),
        ([TRAIN_CHAR], PREPARE_CHAR),
        ([PREPARE_CHAR], "train.py"),
        ([TRAIN_BPE, "--vocab-size", "300"], PREPARE_BPE),
        ([PREPARE_BPE], "trainv2.py"),
    ]
    for command, following in steps:
        result = run(*command)
        assert (result.code, result.err) == (0, "")
        assert f"Next: python {following}" in result.out
    assert list(read_documents(project / "data" / "corpus.txt")) == DOCUMENTS
    files = (
        "parquet/folder.parquet corpus.txt corpus_sample.txt tokenizer_char.json tokenizer_bpe.json train.bin val.bin "
    )
    files += "train_bpe.bin val_bpe.bin train.bin.json val.bin.json train_bpe.bin.json val_bpe.bin.json"
    assert set(snapshot(project / "data")) == set(files.split())


@pytest.mark.parametrize(
    "script",
    [
        INGEST,
        SAMPLE,
        TRAIN_CHAR,
        EXTRACT,
        PREPARE_CHAR,
    ],
)
def test_an_error_does_not_stand_behind_the_progress_bar(run, project, monkeypatch, script):
    """A bar leaves the cursor at its end. It has to be closed before the message is printed."""

    class Bar(tqdm.tqdm):
        def __init__(self, *args, **options):
            super().__init__(*args, **options | {"delay": 0, "mininterval": 0})

    write_corpus(config.CHAR.corpus)
    run(TRAIN_CHAR, "--tokenizer-file", "t.json")
    monkeypatch.setattr(tqdm, "tqdm", Bar)
    (project / "src").mkdir()
    (project / "src" / "a.py").write_bytes(b"")
    damaged(project / "p.parquet", "cut off")
    Path("latin.txt").write_bytes(f"good\n{M}\n".encode() * 2 + b"\xff")
    arguments = {
        INGEST: ["src"],
        EXTRACT: ["p.parquet"],
        SAMPLE: ["--corpus", "latin.txt", "--fraction", "1", "--output", "s.txt"],
        TRAIN_CHAR: ["--corpus", "latin.txt"],
        PREPARE_CHAR: ["--corpus", "latin.txt", "--tokenizer-file", "t.json"],
    }
    result = run(script, *arguments[script])
    assert result.code == 1
    assert "[00:00" in result.err  # there was a bar
    assert re.search(r"^error: ", result.err, re.MULTILINE)


QUIET = {
    INGEST: ["sources"],
    EXTRACT: [],
    SAMPLE: ["--documents", "20"],
    TRAIN_CHAR: [],
    TRAIN_BPE: ["--vocab-size", "300"],
    PREPARE_CHAR: [],
    PREPARE_BPE: [],
}


@pytest.mark.parametrize("script", QUIET)
def test_quiet_says_less_and_does_the_same(run, project, script):
    (project / "sources").mkdir()
    (project / "sources" / "a.py").write_text("x = 1\n")
    write_parquet(project / "data" / "parquet" / "a.parquet", DOCUMENTS)
    write_corpus(config.CHAR.corpus)
    run(TRAIN_CHAR, "--quiet")
    run(TRAIN_BPE, "--quiet", "--vocab-size", "300")
    loud = run(script, *QUIET[script])
    files = snapshot(project / "data")
    quiet = run(script, *QUIET[script], "--quiet")
    assert loud.code == quiet.code == 0
    assert snapshot(project / "data") == files
    assert 0 < len(quiet.out) < len(loud.out)
    figures = re.compile(r"\(?[\d.]+ (MB/s\)?|s)$", re.MULTILINE)  # times differ from run to run
    assert set(figures.sub("", quiet.out).splitlines()) <= set(figures.sub("", loud.out).splitlines())


def test_paths_in_messages_are_those_of_the_user(run, project, monkeypatch):
    """Relative to where the user stands if below it, else whole."""
    write_corpus(project / "here" / "c.txt")
    monkeypatch.chdir(project / "here")
    result = run(TRAIN_CHAR, "--corpus", "c.txt", "--tokenizer-file", project / "t.json")
    assert f"special, in {project / 't.json'}\n" in result.out
    refused(run(PREPARE_CHAR, "--corpus", "d.txt", "--tokenizer-file", "../t.json"), "There is no corpus d.txt")


def test_an_output_that_cannot_be_written_is_named(run, project):
    write_corpus(config.CHAR.corpus)
    Path("file").write_text("a file and no folder")
    for command in (
        [SAMPLE, "--documents", "5", "--output", "file/s.txt"],
        [TRAIN_CHAR, "--tokenizer-file", "file/t.json"],
        [INGEST, project, "--pattern", "*.txt", "--output", "file/f.parquet"],
    ):
        refused(run(*command), "file")
    Path("folder").mkdir()
    refused(run(SAMPLE, "--documents", "5", "--output", "folder"), "folder")
