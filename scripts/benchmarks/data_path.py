"""The steps of the data path, each in MB/s, against what a first script would do and the libraries that do the same."""

import contextlib
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from config import ROOT
from plumbing.errors import UserError

# What a first script would do: rows as Python strings, one write each. Prints the seconds.
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
# The limit: decode the column, in batches as large as ours, and do nothing with it.
ITER_BATCHES = """
import sys, time
import pyarrow.parquet as pq
start = time.perf_counter()
with pq.ParquetFile(sys.argv[1]) as parquet:
    for batch in parquet.iter_batches(256, columns=["content"], use_threads=True):
        pass
print(time.perf_counter() - start)
"""


def gather_python(folders: list[Path], megabytes: float) -> list[bytes]:
    """Python files of these folders, each text once, then all of them again until there is enough."""
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


# Runs a script in its process, and says at the end how much memory it had at most. (What the system tells the parent
# of its child's memory includes the parent's own.)
WITH_PEAK = """
import runpy, sys
sys.argv = sys.argv[1:]
try:
    runpy.run_path(sys.argv[0], run_name="__main__")
finally:
    print([line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")][0], "kB at most")
"""


def script_run(script: str, *flags) -> tuple[float, float]:
    """Run a step. Returns (the MB/s that it prints, its peak memory in MB)."""
    command = [sys.executable, "-c", WITH_PEAK, ROOT / "scripts" / script, *flags]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, encoding="utf-8")  # noqa: S603
    if done.returncode:
        raise UserError(f"{script} ended with exit code {done.returncode}: {done.stderr[-400:]}")
    rates, peak = re.findall(r"([\d.]+) MB/s", done.stdout), re.findall(r"(\d+) kB at most", done.stdout)
    return float(rates[-1]), float(peak[-1]) * 1024 / 1e6


def snippet_seconds(code: str, *args) -> float:
    """Run a few lines in a process of their own. Returns the seconds that they print."""
    command = [sys.executable, "-c", code, *map(str, args)]
    done = subprocess.run(command, capture_output=True, text=True, encoding="utf-8", check=True)  # noqa: S603
    return float(done.stdout)


def encoding_rate(tokenizer, texts: list[bytes], workers: int) -> float:
    """MB/s of our encoder, text in memory to ids in memory, on so many threads. At the start it knows no word."""
    from model.tokenization.bpe_encoder import END, BPEEncoder
    from model.tokenization.character_encoder import CharacterEncoder
    from plumbing.parallel import in_input_order

    words = BPEEncoder(tokenizer) if tokenizer.kind == "bpe" else None

    def work(piece: list[bytes]):
        for _ in (words or CharacterEncoder(tokenizer)).encode(bytes([END]).join([*piece, b""])):
            pass
        yield None

    start = time.perf_counter()
    for _, results in in_input_order(work, texts_in_pieces(texts), workers):
        list(results)
    return sum(map(len, texts)) / 1e6 / (time.perf_counter() - start)


def texts_in_pieces(texts: list[bytes], size: int = 1 << 23):
    piece, bytes_in_it = [], 0
    for text in texts:
        piece.append(text)
        bytes_in_it += len(text)
        if bytes_in_it >= size:
            yield piece
            piece, bytes_in_it = [], 0
    if piece:
        yield piece


def tiktoken_of(tokenizer):
    """The same vocabulary and pattern as a tiktoken encoding, where that is installed; else None."""
    try:
        import tiktoken
    except ImportError:
        return None
    ranks = {tokenizer.token_bytes(token): token for token in range(1, tokenizer.vocab_size)}
    pattern = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s"
    return tiktoken.Encoding("ours", pat_str=pattern, mergeable_ranks=ranks, special_tokens={})


def rate_of(work, megabytes: float) -> float:
    start = time.perf_counter()
    work()
    return megabytes / (time.perf_counter() - start)


def measure_data(args) -> list[dict]:
    """The table: each step of the data path on all cores, the peer's rate, and the limit where there is one.

    Slow peers get 20 MB of the data: their rates do not depend on its length.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq
    from tokenizers import trainers

    from model.tokenization.bpe_trainer import train_bpe_tokenizer
    from model.tokenization.tokenizer import (
        load_tokenizer,
        make_bpe_tokenizer,
        make_character_tokenizer,
        save_tokenizer,
    )
    from plumbing.parallel import cores

    os.environ["TOKENIZERS_PARALLELISM"] = "true"
    documents = gather_python(args.folders, args.megabytes)
    total = sum(map(len, documents)) / 1e6
    rows: dict[str, dict[str, list]] = {}

    def note(step: str, **figures: float) -> None:
        for name, figure in figures.items():
            rows.setdefault(step, {}).setdefault(name, []).append(figure)

    with tempfile.TemporaryDirectory(dir=args.scratch) as name:
        folder = Path(name)
        schema = pa.schema([("content", pa.string())])
        with pq.ParquetWriter(folder / "p.parquet", schema, compression="zstd") as writer:
            for piece in texts_in_pieces(documents, 16_000_000):
                writer.write_table(pa.table({"content": pa.array([t.decode() for t in piece], pa.string())}, schema))
        texts = [text.decode() for text in documents[: max(1, len(documents) * 20 // round(max(total, 20)))]]
        part = sum(len(text.encode()) for text in texts) / 1e6
        char = make_character_tokenizer("".join(text.decode() for text in dict.fromkeys(documents)))
        save_tokenizer(char, folder / "char.json")
        save_tokenizer(train_bpe_tokenizer(texts, 8192), folder / "bpe.json")
        char, bpe = (load_tokenizer(folder / f"{kind}.json") for kind in ("char", "bpe"))
        ids = {character: i for character, i in char.library.get_vocab().items() if len(character) == 1}
        peer = tiktoken_of(bpe)
        outputs = ["--train-file", folder / "t.bin", "--val-file", folder / "v.bin"]
        flags = {
            kind: ["--corpus", folder / "c.txt", "--tokenizer-file", folder / f"{kind}.json", "--quiet"]
            for kind in ("char", "bpe")
        }
        for _ in range(args.rounds):
            rate, peak = script_run("extract_parquets_to_text.py", folder / "p.parquet", "--corpus", folder / "c.txt")
            seconds = snippet_seconds(TO_PYLIST, folder / "p.parquet", folder / "d.txt")
            limit = total / snippet_seconds(ITER_BATCHES, folder / "p.parquet")
            note("parquet to text", ours=rate, peak=peak, to_pylist=total / seconds, limit=limit)

            rate, peak = script_run("sample_corpus_subset.py", "--corpus", folder / "c.txt", "--fraction", 0.2,
                                    "--output", folder / "s.txt", "--quiet")  # fmt: skip
            note("sample a fifth", ours=rate, peak=peak)

            ours = encoding_rate(char, documents, cores())
            text = texts[0] if len(texts) == 1 else "".join(texts)
            note("characters to ids", ours=ours, nanoGPT=rate_of(lambda: [ids[c] for c in text], part))  # noqa: B023
            rate, peak = script_run("prepare_dataset.py", *flags["char"], *outputs)
            note("characters to ids, the script", ours=rate, peak=peak)

            ours = encoding_rate(bpe, documents, cores())
            theirs = rate_of(lambda: bpe.library.encode_batch_fast(texts, add_special_tokens=False), part)
            note("BPE to ids", ours=ours, tokenizers=theirs)
            if peer:
                theirs = rate_of(lambda: peer.encode_ordinary_batch(texts, num_threads=2), part)
                note("BPE to ids", tiktoken=theirs)
            rate, peak = script_run("prepare_dataset_bpe.py", *flags["bpe"], *outputs)
            note("BPE to ids, the script", ours=rate, peak=peak)

        learn = documents[: max(1, round(len(documents) * min(1, args.train_megabytes / total)))]
        learn = [document.decode() for document in learn]
        size = sum(len(document.encode()) for document in learn) / 1e6
        library, trainer = make_bpe_tokenizer(), trainers.BpeTrainer(vocab_size=8192, show_progress=False)
        note(
            f"train BPE, 8,192 ids, {size:.0f} MB",
            ours=rate_of(lambda: train_bpe_tokenizer(learn, 8192), size),
            tokenizers=rate_of(lambda: library.train_from_iterator(learn, trainer), size),
        )

    table = []
    for step, figures in rows.items():
        median = {name: statistics.median(values) for name, values in figures.items()}
        ours, peak, limit = median.pop("ours"), median.pop("peak", None), median.pop("limit", None)
        table.append({
            "step": step,
            "ours, MB/s": f"{ours:,.1f}",
            "peers, MB/s": ", ".join(f"{name} {rate:,.1f}" for name, rate in median.items()),
            "ratio": ", ".join(f"{ours / rate:.1f}" for rate in median.values()),
            "limit": f"{limit:,.0f}" if limit else "",
            "fraction": f"{ours / limit:.0%}" if limit else "",
            "peak, MB": f"{peak:,.0f}" if peak else "",
        })  # fmt: skip
    return table
