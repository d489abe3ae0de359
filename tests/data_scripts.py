"""What the tests of the data path share: its scripts run in this process on defaults in a temporary folder, and small
inputs for them."""

import functools
import hashlib
import random
import re
import runpy
import sys
from dataclasses import dataclass, fields, replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tokenizers
from hypothesis import strategies as st

import config
from model.tokenization.bpe_trainer import train_bpe_tokenizer
from model.tokenization.tokenizer import make_character_tokenizer, reloaded
from plumbing import command_line

ROOT = Path(__file__).resolve().parents[1]


M = "<|endoftext|>"


INGEST = "ingestion/ingest_folder.py"


EXTRACT = "scripts/extract_parquets_to_text.py"


SAMPLE = "scripts/sample_corpus_subset.py"


TRAIN_CHAR = "scripts/train_tokenizer_character_level.py"


TRAIN_BPE = "scripts/train_tokenizer_bpe.py"


PREPARE_CHAR = "scripts/prepare_dataset.py"


PREPARE_BPE = "scripts/prepare_dataset_bpe.py"


INSPECT, MERGE = "scripts/inspect_data.py", "scripts/merge_token_files.py"


SCRIPTS = sorted(
    path.relative_to(ROOT).as_posix()
    for pattern in ("train*.py", "generate*.py", "ingestion/*.py", "scripts/*.py")
    for path in ROOT.glob(pattern)
)


DOCUMENTS = [f"import os\n\n\ndef f{i}(x):\n    return x + {i}  # naïve {'ab' * (i % 7)}\n" for i in range(60)]


VARIED = [f"import os\n\n\ndef f{i}(x):\n    return x + {i}  # naïve {'ab' * (i % 7)}\n" for i in range(200)]


# Fragments that stand next to each other in every order: markers, parts of one, line ends, characters of 1 to 4 bytes.
fragments = st.sampled_from(
    ["\n", M, f"\n{M}\n", f"{M}\n", f"\n{M}", M[:-1], M[1:], "\r\n", "\r", " ", "a", "é", "日", "🐍"]
)


texts = st.lists(fragments | st.characters(codec="utf-8"), max_size=12).map("".join)


@dataclass
class Result:
    code: int
    out: str
    err: str


def move_defaults(folder: Path, patch: pytest.MonkeyPatch) -> None:
    """Every default path in another folder, so that no test can touch the project's own data."""

    def moved(settings):
        paths = {f.name: getattr(settings, f.name) for f in fields(settings) if f.type is Path}
        return replace(settings, **{name: folder / path.relative_to(ROOT) for name, path in paths.items()})

    patch.setattr(config, "CHAR", moved(config.CHAR))
    patch.setattr(config, "BPE", moved(config.BPE))
    patch.setattr(config, "DATA", folder / "data")
    patch.setattr(command_line, "CHAR", config.CHAR)  # bound at import
    patch.setenv("HF_HOME", str(folder / "no-such-cache"))
    patch.delenv("HF_HUB_CACHE", raising=False)
    patch.chdir(folder)


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A temporary folder as the project's."""
    move_defaults(tmp_path, monkeypatch)
    return tmp_path


@pytest.fixture
def run(project, capsys, monkeypatch):
    """Run a script in this process. An exception that it lets through, which a user would see as a traceback, fails."""

    def run_script(script, *args) -> Result:
        monkeypatch.setattr(sys, "argv", [str(ROOT / script), *map(str, args)])
        monkeypatch.setattr(sys, "path", list(sys.path))
        capsys.readouterr()
        with pytest.raises(SystemExit) as end:
            runpy.run_path(str(ROOT / script), run_name="__main__")
        captured = capsys.readouterr()
        result = Result(end.value.code, captured.out, captured.err)
        assert "Traceback" not in captured.err
        assert result.code == 0 or captured.err  # a failure says something
        return result

    return run_script


@functools.cache
def tokenizer_files() -> tuple[str, str]:
    """The tokenizer files of both kinds that the scripts of step 4 make of DOCUMENTS."""
    char, bpe = make_character_tokenizer("".join(DOCUMENTS)), train_bpe_tokenizer(DOCUMENTS, 300)
    return reloaded(char).json_text, reloaded(bpe).json_text


@pytest.fixture(params=[PREPARE_CHAR, PREPARE_BPE])
def prepare(request, project):
    """A script of step 5, its settings, and the tokenizers, trained on DOCUMENTS."""
    settings = config.CHAR if request.param == PREPARE_CHAR else config.BPE
    write_corpus(settings.corpus)
    for each, text in zip((config.CHAR, config.BPE), tokenizer_files(), strict=True):
        each.tokenizer_file.write_bytes(text.encode())
    return request.param, settings


def refused(result: Result, *parts: str, code: int = 1) -> None:
    """The script ended with a plain sentence or two that hold each of the parts."""
    assert result.code == code
    (message,) = re.findall(r"error: [^\r\n]*", result.err)
    for part in parts:
        assert part in message, message
    assert len(message) < 600


def write_corpus(path: Path, documents=DOCUMENTS) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(f"\n{M}\n".join(documents).encode())
    return path


def write_parquet(path: Path, texts: list, column: str = "content", **options) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    table = pa.table({"id": list(range(len(texts))), column: pa.array(texts, pa.string())})
    pq.write_table(table, path, **options)
    return path


def snapshot(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


KINDS = ["empty", "cut off", "no parquet", "second half"]


def damaged(path: Path, kind: str) -> Path:
    """A parquet file of two row groups of 300 documents each, damaged."""
    rng = random.Random(1)
    write_parquet(path, [f"{i} {rng.random()}" for i in range(600)], row_group_size=300, compression="zstd")
    data = bytearray(path.read_bytes())
    if kind == "empty":
        data = b""
    elif kind == "cut off":
        data = data[: len(data) // 2]
    elif kind == "no parquet":
        data = b"def f(): pass\n" * 100
    elif kind == "second half":
        start = pq.ParquetFile(path).metadata.row_group(1).column(1).dictionary_page_offset
        data[start : start + 2000] = bytes(2000)
    path.write_bytes(data)
    return path


def files_of(settings) -> dict[str, Path]:
    return {"train": settings.train_file, "val": settings.val_file}


def plain_ids(settings, documents) -> list[int]:
    """The definition: the library's ids of each document, and the end-of-text id behind them."""
    library = tokenizers.Tokenizer.from_file(str(settings.tokenizer_file))
    library.encode_special_tokens = True
    return [token for text in documents for token in [*library.encode(text, add_special_tokens=False).ids, 0]]


def plain_split(text: str, val_fraction: float) -> str:
    """The definition: a hash of the text decides."""
    number = int(hashlib.blake2b(text.encode(), digest_size=6).hexdigest(), 16)
    return "val" if number / 16**12 < val_fraction else "train"


def plain_documents(text: str) -> list[str]:
    """The format's definition, line by line: a line that is exactly the marker ends a document."""
    documents, lines = [], []
    for line in [*text.split("\n"), M]:
        if line == M:
            documents.append("\n".join(lines))
            lines = []
        else:
            lines.append(line)
    return [document for document in documents if document]
