"""The data path, each step in MB/s: against a first script that does the same, and against the usual libraries."""

import contextlib
import functools
import math
import os
import re
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from tokenizers import trainers

from config import ROOT
from model.tokenization.bpe_encoder import BPEEncoder
from model.tokenization.bpe_trainer import train_bpe_tokenizer
from model.tokenization.character_encoder import CharacterEncoder
from model.tokenization.pre_tokens import join_documents
from model.tokenization.tokenizer import (
    load_tokenizer,
    make_bpe_tokenizer,
    make_character_tokenizer,
    reloaded,
    save_tokenizer,
)
from plumbing.errors import UserError
from plumbing.parallel import cores, in_input_order
from plumbing.text import shown_path
from scripts.benchmarks.common import medians, run_silently, seconds_of

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
# The limit: decode the column and discard it.
ITER_BATCHES = """
import sys, time
import pyarrow.parquet as pq
start = time.perf_counter()
with pq.ParquetFile(sys.argv[1]) as parquet:
    for batch in parquet.iter_batches(256, columns=["content"], use_threads=True):
        pass
print(time.perf_counter() - start)
"""
# Runs a script in this process, then prints its peak memory where there is /proc. (The system's figure for a child
# process includes its parent's memory.)
WITH_PEAK = """
import os, runpy, sys
sys.argv = sys.argv[1:]
sys.path[0] = os.path.dirname(sys.argv[0])
try:
    runpy.run_path(sys.argv[0], run_name="__main__")
finally:
    if os.path.exists("/proc/self/status"):
        print([line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")][0], "kB at most")
"""


class Inputs:
    """What the steps read: in a folder the documents as a parquet file and both tokenizers, trained on them. Slow peers
    get `texts`, 20 MB of the documents: their rates do not depend on the size."""

    def __init__(self, documents: list[bytes], folder: Path):
        schema = pa.schema([("content", pa.string())])
        with pq.ParquetWriter(folder / "p.parquet", schema, compression="zstd") as writer:
            for batch in text_batches(documents, 16_000_000):
                writer.write_table(pa.table({"content": pa.array([t.decode() for t in batch], pa.string())}, schema))
        self.folder, self.documents, self.megabytes = folder, documents, sum(map(len, documents)) / 1e6
        few = documents[: max(1, len(documents) * 20 // round(max(self.megabytes, 20)))]
        self.texts, self.texts_megabytes = [text.decode() for text in few], sum(map(len, few)) / 1e6
        char = make_character_tokenizer("".join(text.decode() for text in dict.fromkeys(documents)))
        save_tokenizer(reloaded(char), folder / "char.json")
        save_tokenizer(reloaded(train_bpe_tokenizer(self.texts, 8192)), folder / "bpe.json")
        self.char, self.bpe = load_tokenizer(folder / "char.json"), load_tokenizer(folder / "bpe.json")


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
    if not found:
        raise UserError(f"There is no Python file in {' or '.join(map(shown_path, folders))}. Name other folders.")
    print(f"{size / 1e6:,.0f} MB of different Python files", file=sys.stderr)
    return list(found) * math.ceil(megabytes * 1e6 / size)


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


def script_figures(script: str, *flags) -> dict[str, float]:
    """Run a step of the pipeline: the MB/s that it prints, its peak memory in MB."""
    out = run_silently([sys.executable, "-c", WITH_PEAK, ROOT / "scripts" / script, *flags]).stdout
    rates, peak = re.findall(r"([\d.]+) MB/s", out), re.findall(r"(\d+) kB at most", out)
    if not rates:
        raise UserError(f"{script} was done too soon to print a rate. Give more --megabytes.")
    return {"ours": float(rates[-1])} | ({"peak": float(peak[-1]) * 1024 / 1e6} if peak else {})


def snippet_seconds(code: str, *args) -> float:
    """Run a few lines in a process of their own. Returns the seconds that they print."""
    return float(run_silently([sys.executable, "-c", code, *args]).stdout)


def rate_of(work: Callable, megabytes: float) -> float:
    return megabytes / seconds_of(work)


def encode_with_ours(tokenizer, texts: list[bytes]) -> None:
    """Our encoder on all cores, from text in memory to ids in memory. It starts without any known words."""
    words = BPEEncoder(tokenizer) if tokenizer.kind == "bpe" else None
    work = functools.partial(encode_batch, tokenizer, words)
    for _, results in in_input_order(work, text_batches(texts), cores()):
        list(results)


def encode_batch(tokenizer, words: BPEEncoder | None, texts: list[bytes]) -> Iterator[None]:
    for _ in (words or CharacterEncoder(tokenizer)).encode(join_documents(texts)):
        pass
    yield None


def tiktoken_encoding(tokenizer):
    """The same vocabulary and pattern for tiktoken."""
    import tiktoken

    ranks = {tokenizer.token_bytes(token): token for token in range(1, tokenizer.vocab_size)}
    pattern = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s"
    return tiktoken.Encoding("ours", pat_str=pattern, mergeable_ranks=ranks, special_tokens={})


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
    library, size = inputs.bpe.library, inputs.texts_megabytes
    figures = {
        "ours": rate_of(lambda: encode_with_ours(inputs.bpe, inputs.documents), inputs.megabytes),
        "tokenizers": rate_of(lambda: library.encode_batch_fast(inputs.texts, add_special_tokens=False), size),
    }
    with contextlib.suppress(ImportError):  # not installed
        peer = tiktoken_encoding(inputs.bpe)
        figures["tiktoken"] = rate_of(lambda: peer.encode_ordinary_batch(inputs.texts, num_threads=2), size)
    return figures


def prepare_script(script: str, tokenizer_file: str, inputs: Inputs) -> dict[str, float]:
    folder = inputs.folder
    flags = ["--corpus", folder / "c.txt", "--tokenizer-file", folder / tokenizer_file, "--quiet"]
    flags += ["--train-file", folder / "t.bin", "--val-file", folder / "v.bin"]
    one_worker = script_figures(script, *flags, "--workers", 1)["ours"]
    return script_figures(script, *flags) | {"one worker": one_worker}


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
    with tempfile.TemporaryDirectory(dir=args.scratch) as folder:
        inputs = Inputs(documents, Path(folder))
        rounds = [{step: measure(inputs) for step, measure in STEPS.items()} for _ in range(args.rounds)]
    rows = [data_row(step, medians([figures[step] for figures in rounds])) for step in STEPS]
    for wanted in args.train_megabytes:
        few = documents[: max(1, round(len(documents) * min(1, wanted / inputs.megabytes)))]
        texts, megabytes = [document.decode() for document in few], sum(map(len, few)) / 1e6
        rows.append(data_row(f"train BPE, 8,192 ids, {megabytes:.0f} MB", train_bpe(texts, megabytes)))
    return rows


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
