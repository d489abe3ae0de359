"""Join token files into one, such as the shares that several machines have made with --shard.

    python scripts/merge_token_files.py data/train_bpe.*-of-8.bin --output data/train_bpe.bin

Reads   token files of the same tokenizer, each with its description; they are compared with their checksums
Writes  one token file and its description; all shares of a corpus give the very file of a run without --shard
Next    the same for the validation files (data/val_bpe.*-of-8.bin), then python trainv2.py
"""

import argparse
import glob
import re
from pathlib import Path

import _root
from tqdm import tqdm

from dataset import open_tokens, token_writer
from plumbing.command_line import refuse_same
from plumbing.errors import UserError, run_script
from plumbing.text import shown_path

SHARE = re.compile(r"\.(\d+)-of-(\d+)\.")  # in the name of a share
TOKENS = 1 << 22  # copied at once
SAME = ("tokenizer_kind", "tokenizer_sha256", "vocab_size", "end_of_text_id")  # in the descriptions of all files


def in_order_of_shares(names: list[str]) -> list[Path]:
    """The files, patterns such as *.bin resolved. Shares go by their number, and all of one file must be there."""
    paths = [Path(found) for name in names for found in ([name] if Path(name).exists() else glob.glob(name) or [name])]
    shares = [SHARE.search(path.name) for path in paths]
    if not all(shares):
        return paths
    whole = sorted({path.name[: share.start()] for path, share in zip(paths, shares, strict=True)})
    if len(whole) > 1:
        raise UserError(f"These are shares of different files: {', '.join(whole)}. Join those of one.")
    numbers = sorted(int(share[1]) for share in shares)
    of = {int(share[2]) for share in shares}
    if len(of) > 1 or numbers != list(range(1, max(of) + 1)):
        missing = sorted(set(range(1, max(of) + 1)) - set(numbers))
        raise UserError(f"These are not all shares of one division: found {numbers}, missing {missing} of {max(of)}.")
    return [path for _, path in sorted(zip((int(share[1]) for share in shares), paths, strict=True))]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("inputs", nargs="+", metavar="FILE", help="token files; shares are put in order")
    parser.add_argument("--output", type=Path, required=True, help="file to write")
    args = parser.parse_args()

    paths = in_order_of_shares(args.inputs)
    refuse_same({"--output": args.output}, *paths)
    files = [open_tokens(path, may_be_empty=True) for path in paths]
    facts = {name: files[0].facts.get(name) for name in SAME}
    for data in files:
        if {name: data.facts.get(name) for name in SAME} != facts:
            raise UserError(
                f"{shown_path(data.path)} was made with another tokenizer than {shown_path(files[0].path)}."
            )
    facts["source"] = ", ".join(dict.fromkeys(str(data.facts.get("source", "")) for data in files))

    total = sum(map(len, files))
    if not total:
        raise UserError("These files hold no tokens. Prepare more text, or with another --val-fraction.")
    with (
        token_writer(args.output, facts) as writer,
        tqdm(desc="joining", total=2 * total, unit="B", unit_scale=True, delay=2) as progress,
    ):
        for data in files:
            for start in range(0, len(data), TOKENS):
                ids = data.tokens[start : start + TOKENS]
                writer.extend(ids)
                progress.update(2 * len(ids))
            writer.count(*(data.facts.get(name, 0) for name in ("documents", "utf8_bytes", "unknown_characters")))
    print(
        f"{len(files)} files, {writer.documents:,} documents, {writer.tokens:,} tokens, {writer.utf8_bytes:,} bytes, "
        f"in {shown_path(args.output)}"
    )


if __name__ == "__main__":
    run_script(main)
