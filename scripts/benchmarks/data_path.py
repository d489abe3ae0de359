"""The data path, each step in MB/s: against a first script that does the same, and against the usual libraries."""

import contextlib
import functools
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from tokenizers import trainers

from config import ROOT
from model.tokenization.bpe_encoder import END, BPEEncoder
from model.tokenization.bpe_trainer import train_bpe_tokenizer
from model.tokenization.character_encoder import CharacterEncoder
from model.tokenization.tokenizer import (
    Tokenizer,
    load_tokenizer,
    make_bpe_tokenizer,
    make_character_tokenizer,
    save_tokenizer,
)
from plumbing.errors import UserError
from plumbing.parallel import cores, in_input_order
from scripts.benchmarks.common import medians

# A first script: rows as Python strings, one write each. Prints the seconds.
TO_PYLIST = """
import sys, time
import pyarrow.parquet as pq
start = time.perf_counter()
with pq.ParquetFile(sys.argv[1]) as parquet, open(sys.argv[2], "w", encoding="utf-8", newline="") as file:
    for batch in parquet.iter_batches(256, columns=["content"]):
        for text in batch.column(0).to_pylist():
            file.write(text.replace("\\r\\n", "\\n").replace("\\r", "\\n") + "\\n<|endoftext|>\\n")
    file.flush()
print(time.perf_counter() - start)
"""
# The limit: decode the column, in batches as large as ours, and discard it.
ITER_BATCHES = """
import sys, time
import pyarrow.parquet as pq
start = time.perf_counter()
with pq.ParquetFile(sys.argv[1]) as parquet:
    for batch in parquet.iter_batches(256, columns=["content"], use_threads=True):
        pass
print(time.perf_counter() - start)
"""
# Runs a script in this process, then prints its peak memory. (The system's figure for a child process includes its
# parent's memory.)
WITH_PEAK = """
import os, runpy, sys
sys.argv = sys.argv[1:]
sys.path[0] = os.path.dirname(sys.argv[0])
try:
    runpy.run_path(sys.argv[0], run_name="__main__")
finally:
    print([line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")][0], "kB at most")
"""


# --- the inputs -------------------------------------------------------------------------------------------------------


@dataclass
class Inputs:
    """What the steps read. Slow peers get `texts`, 20 MB of the documents: their rates do not depend on the size."""

    folder: Path
    documents: list[bytes]
    texts: list[str]
    char: Tokenizer
    bpe: Tokenizer

    @property
    def megabytes(self) -> float:
        return sum(map(len, self.documents)) / 1e6

    @property
    def texts_megabytes(self) -> float:
        return sum(len(text.encode()) for text in self.texts) / 1e6


def gather_python(folders: list[Path], megabytes: float) -> list[bytes]:
    """The Python files in these folders, each text once; then all of them again until there is enough."""
    found: dict[bytes, None] = {}
    size = 0
    for folder in folders:
        for path in sorted(folder.rglob("*.py")):
            data = path.read_bytes().replace(b"\r\n", b"\n") if path.is_file() else b""
            with contextlib.suppress(UnicodeDecodeError):
                data.decode("utf-8")
                if data and data not in found and b"<|endoftext|>" not in data and size < megabytes * 1e6:
                    found[data] = None
                    size += len(data)
    print(f"{size / 1e6:,.0f} MB of different Python files", file=sys.stderr)
    documents = list(found)
    return documents * max(1, round(megabytes * 1e6 / size))


def prepare_inputs(documents: list[bytes], folder: Path) -> Inputs:
    """Write the parquet file and train both tokenizers."""
    schema = pa.schema([("content", pa.string())])
    with pq.ParquetWriter(folder / "p.parquet", schema, compression="zstd") as writer:
        for batch in text_batches(documents, 16_000_000):
            writer.write_table(pa.table({"content": pa.array([t.decode() for t in batch], pa.string())}, schema))
    megabytes = sum(map(len, documents)) / 1e6
    texts = [text.decode() for text in documents[: max(1, len(documents) * 20 // round(max(megabytes, 20)))]]
    char = make_character_tokenizer("".join(text.decode() for text in dict.fromkeys(documents)))
    save_tokenizer(char, folder / "char.json")
    save_tokenizer(train_bpe_tokenizer(texts, 8192), folder / "bpe.json")
    return Inputs(folder, documents, texts, load_tokenizer(folder / "char.json"), load_tokenizer(folder / "bpe.json"))


def text_batches(texts: list[bytes], size: int = 1 << 23) -> Iterator[list[bytes]]:
    """Consecutive texts in batches of about `size` bytes."""
    batch, batch_bytes = [], 0
    for text in texts:
        batch.append(text)
        batch_bytes += len(text)
        if batch_bytes >= size:
            yield batch
            batch, batch_bytes = [], 0
    if batch:
        yield batch


# --- one measurement each ---------------------------------------------------------------------------------------------


def script_figures(script: str, *flags) -> dict[str, float]:
    """Run a step of the pipeline: the MB/s that it prints, its peak memory in MB."""
    command = [sys.executable, "-c", WITH_PEAK, ROOT / "scripts" / script, *flags]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, encoding="utf-8")  # noqa: S603
    if done.returncode:
        raise UserError(f"{script} ended with exit code {done.returncode}: {done.stderr[-400:]}")
    rates, peak = re.findall(r"([\d.]+) MB/s", done.stdout), re.findall(r"(\d+) kB at most", done.stdout)
    return {"ours": float(rates[-1]), "peak": float(peak[-1]) * 1024 / 1e6}


def snippet_seconds(code: str, *args) -> float:
    """Run a few lines in a process of their own. Returns the seconds that they print."""
    command = [sys.executable, "-c", code, *map(str, args)]
    done = subprocess.run(command, capture_output=True, text=True, encoding="utf-8", check=True)  # noqa: S603
    return float(done.stdout)


def rate_of(work: Callable, megabytes: float) -> float:
    """MB/s of work()."""
    start = time.perf_counter()
    work()
    return megabytes / (time.perf_counter() - start)


def encode_with_ours(tokenizer: Tokenizer, texts: list[bytes]) -> None:
    """Our encoder on all cores, from text in memory to ids in memory. It starts without any known words."""
    words = BPEEncoder(tokenizer) if tokenizer.kind == "bpe" else None
    work = functools.partial(encode_batch, tokenizer, words)
    for _, results in in_input_order(work, text_batches(texts), cores()):
        list(results)


def encode_batch(tokenizer: Tokenizer, words: BPEEncoder | None, texts: list[bytes]) -> Iterator[None]:
    for _ in (words or CharacterEncoder(tokenizer)).encode(bytes([END]).join([*texts, b""])):
        pass
    yield None


def tiktoken_encoding(tokenizer: Tokenizer):
    """The same vocabulary and pattern for tiktoken, or None if it is not installed."""
    try:
        import tiktoken
    except ImportError:
        return None
    ranks = {tokenizer.token_bytes(token): token for token in range(1, tokenizer.vocab_size)}
    pattern = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s"
    return tiktoken.Encoding("ours", pat_str=pattern, mergeable_ranks=ranks, special_tokens={})


# --- the rows ---------------------------------------------------------------------------------------------------------


def parquet_to_text(inputs: Inputs) -> dict[str, float]:
    parquet, folder = inputs.folder / "p.parquet", inputs.folder
    return script_figures("extract_parquets_to_text.py", parquet, "--corpus", folder / "c.txt") | {
        "to_pylist": inputs.megabytes / snippet_seconds(TO_PYLIST, parquet, folder / "d.txt"),
        "limit": inputs.megabytes / snippet_seconds(ITER_BATCHES, parquet),
    }


def sample_a_fifth(inputs: Inputs) -> dict[str, float]:
    flags = ["--corpus", inputs.folder / "c.txt", "--fraction", 0.2, "--output", inputs.folder / "s.txt", "--quiet"]
    return script_figures("sample_corpus_subset.py", *flags)


def characters_to_ids(inputs: Inputs) -> dict[str, float]:
    ids = {character: i for character, i in inputs.char.library.get_vocab().items() if len(character) == 1}
    text = "".join(inputs.texts)
    return {
        "ours": rate_of(lambda: encode_with_ours(inputs.char, inputs.documents), inputs.megabytes),
        "nanoGPT": rate_of(lambda: [ids[c] for c in text], inputs.texts_megabytes),
    }


def bpe_to_ids(inputs: Inputs) -> dict[str, float]:
    library, peer, size = inputs.bpe.library, tiktoken_encoding(inputs.bpe), inputs.texts_megabytes
    figures = {
        "ours": rate_of(lambda: encode_with_ours(inputs.bpe, inputs.documents), inputs.megabytes),
        "tokenizers": rate_of(lambda: library.encode_batch_fast(inputs.texts, add_special_tokens=False), size),
    }
    if peer:
        figures["tiktoken"] = rate_of(lambda: peer.encode_ordinary_batch(inputs.texts, num_threads=2), size)
    return figures


def prepare_script(script: str, tokenizer_file: str, inputs: Inputs) -> dict[str, float]:
    folder = inputs.folder
    flags = ["--corpus", folder / "c.txt", "--tokenizer-file", folder / tokenizer_file, "--quiet"]
    return script_figures(script, *flags, "--train-file", folder / "t.bin", "--val-file", folder / "v.bin")


def train_bpe(texts: list[str], megabytes: float) -> dict[str, float]:
    library, trainer = make_bpe_tokenizer(), trainers.BpeTrainer(vocab_size=8192, show_progress=False)
    return {
        "ours": rate_of(lambda: train_bpe_tokenizer(texts, 8192), megabytes),
        "tokenizers": rate_of(lambda: library.train_from_iterator(texts, trainer), megabytes),
    }


STEPS = {
    "parquet to text": parquet_to_text,
    "sample a fifth": sample_a_fifth,
    "characters to ids": characters_to_ids,
    "characters to ids, the script": functools.partial(prepare_script, "prepare_dataset.py", "char.json"),
    "BPE to ids": bpe_to_ids,
    "BPE to ids, the script": functools.partial(prepare_script, "prepare_dataset_bpe.py", "bpe.json"),
}


def measure_data(args) -> list[dict]:
    """The table: each step of the data path on all cores, the peers' rates, and the limit where there is one."""
    os.environ["TOKENIZERS_PARALLELISM"] = "true"
    documents = gather_python(args.folders, args.megabytes)
    megabytes = sum(map(len, documents)) / 1e6
    with tempfile.TemporaryDirectory(dir=args.scratch) as folder:
        inputs = prepare_inputs(documents, Path(folder))
        rounds = [{step: measure(inputs) for step, measure in STEPS.items()} for _ in range(args.rounds)]
    rows = [data_row(step, medians([figures[step] for figures in rounds])) for step in STEPS]
    count = max(1, round(len(documents) * min(1, args.train_megabytes / megabytes)))
    texts = [document.decode() for document in documents[:count]]
    megabytes = sum(len(text.encode()) for text in texts) / 1e6
    return [*rows, data_row(f"train BPE, 8,192 ids, {megabytes:.0f} MB", train_bpe(texts, megabytes))]


def data_row(step: str, figures: dict[str, float]) -> dict:
    peers = {name: rate for name, rate in figures.items() if name not in ("ours", "peak", "limit")}
    ours, peak, limit = figures["ours"], figures.get("peak"), figures.get("limit")
    return {
        "step": step,
        "ours, MB/s": f"{ours:,.1f}",
        "peers, MB/s": ", ".join(f"{name} {rate:,.1f}" for name, rate in peers.items()),
        "ratio": ", ".join(f"{ours / rate:.1f}" for rate in peers.values()),
        "limit": f"{limit:,.0f}" if limit else "",
        "fraction": f"{ours / limit:.0%}" if limit else "",
        "peak, MB": f"{peak:,.0f}" if peak else "",
    }
