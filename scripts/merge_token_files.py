"""Merge token files into one, such as the shards that several machines made with --shard.

    python scripts/merge_token_files.py data/train_bpe.*-of-8.bin --output data/train_bpe.bin

Reads   token files of the same tokenizer, each with its description; they are compared with their checksums
Writes  one token file and its description; all shards of a corpus give the same file as a run without --shard
Next    the same for the validation files (data/val_bpe.*-of-8.bin), then python trainv2.py
"""

import os
import sys

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.realpath(__file__))))  # also with python -I
import plumbing.start

import glob
import re
from pathlib import Path

import numpy as np
from tqdm import tqdm

from dataset import TokenFile, joined_pairs, open_tokens, same_tokenizer, sidecar, token_writer
from plumbing.command_line import ScriptParser, refuse_same
from plumbing.errors import UserError, run_script
from plumbing.files import allow_open_files
from plumbing.inputs import Unchanged
from plumbing.text import plural, shown_path

SHARD = re.compile(r"\.(\d+)-of-(\d+)\.")  # in the name of a shard
TOKENS_AT_ONCE = 1 << 22
ABOUT_TOKENIZER = ("tokenizer_kind", "tokenizer_sha256", "tokenizer_meaning", "vocab_size", "end_of_text_id")


def shards_in_order(names: list[str]) -> list[Path]:
    """The files to merge, with patterns such as *.bin expanded. Shards are sorted by their numbers, and all shards of
    one split must be there."""
    paths = [Path(found) for name in names for found in ([name] if Path(name).exists() else glob.glob(name) or [name])]
    shards = [SHARD.search(path.name) for path in paths]
    if not all(shards):
        return paths
    stems = sorted({path.name[: shard.start()] for path, shard in zip(paths, shards, strict=True)})
    if len(stems) > 1:
        raise UserError(f"These are shards of different files: {', '.join(stems)}. Merge those of one.")
    numbers = [int(shard[1]) for shard in shards]
    total = max(int(shard[2]) for shard in shards)
    if len({shard[2] for shard in shards}) > 1 or sorted(numbers) != list(range(1, total + 1)):
        missing = sorted(set(range(1, total + 1)) - set(numbers))
        found = f"found {sorted(numbers)}, missing {missing} of {total}"
        raise UserError(f"These are not all shards of the same split: {found}.")
    return [path for _, path in sorted(zip(numbers, paths, strict=True))]


def merged_facts(files: list[TokenFile]) -> dict:
    """The facts for the sidecar of the merged file. Raises UserError if the files' tokenizers differ."""
    facts = {name: files[0].facts[name] for name in ABOUT_TOKENIZER if name in files[0].facts}
    for data in files:
        if not same_tokenizer(data.facts, facts):
            first = shown_path(files[0].path)
            raise UserError(f"{shown_path(data.path)} was made with another tokenizer than {first}.")
    fractions = {data.facts.get("val_fraction") for data in files}
    return {
        **facts,
        "source": ", ".join(dict.fromkeys(str(data.facts.get("source", "")) for data in files)),
        "val_fraction": fractions.pop() if len(fractions) == 1 else None,
        "pairs": joined_pairs(files),
    }


def main() -> None:
    parser = ScriptParser(__doc__)
    parser.add_argument("inputs", nargs="+", metavar="FILE", help="token files; shards are sorted by their numbers")
    parser.add_argument("--output", type=Path, required=True, help="file to write")
    args = parser.parse_args()

    paths = shards_in_order(args.inputs)
    refuse_same({"--output": args.output}, *paths)
    allow_open_files(len(paths))
    inputs = Unchanged(*paths, *map(sidecar, paths))
    files = [open_tokens(path, may_be_empty=True) for path in paths]
    total = sum(map(len, files))
    if not total:
        raise UserError("These files hold no tokens. Prepare more text, or with another --val-fraction.")
    progress = tqdm(desc="merging", total=2 * total, unit="B", unit_scale=True, delay=2)
    with token_writer(args.output, merged_facts(files)) as writer, progress, inputs:
        for data in files:
            data.file.seek(0)  # reading, because a mapping of a file that becomes shorter would kill the process
            while ids := data.file.read(2 * TOKENS_AT_ONCE):
                writer.extend(np.frombuffer(ids, "<u2"))
                progress.update(len(ids))
            writer.count(*(data.facts.get(name, 0) for name in ("documents", "utf8_bytes", "unknown_characters")))
    counts = f"{plural(writer.documents, 'document')}, {writer.tokens:,} tokens, {writer.utf8_bytes:,} bytes"
    print(f"{plural(len(files), 'file')}, {counts}, in {shown_path(args.output)}")


if __name__ == "__main__":
    run_script(main)
