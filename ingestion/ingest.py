"""Step 1, the large way: download Python source code that is published as a dataset on the Hugging Face hub.

    python ingestion/ingest.py                          (5 of the 206 files of bigcode/the-stack, about 1.5 GB)
    python ingestion/ingest.py --files 20
    python ingestion/ingest.py --dataset codeparrot/codeparrot-clean --revision refs/convert/parquet

Reads   parquet files of a dataset on huggingface.co. bigcode/the-stack wants an account there, its terms accepted and
        a token; codeparrot/codeparrot-clean (third line) wants none of these
Writes  the hub's cache, where `datasets` finds them too: HF_HUB_CACHE, else HF_HOME/hub, else ~/.cache/huggingface/hub
Next    python scripts/extract_parquets_to_text.py

Stop it with Ctrl-C and run the same command again: it goes on inside the file where it stopped, and what is in the
cache already is not downloaded again. Without an account or a network, ingestion/ingest_folder.py does as well.
"""

import argparse
import hashlib
import json
import os
import shlex
import shutil
from collections import Counter
from pathlib import Path, PurePosixPath
from urllib.parse import quote

import _root

from config import CHAR, Settings
from plumbing.command_line import add_flags, parse
from plumbing.errors import UserError, run_script
from plumbing.text import shown_path

STACK, STACK_PYTHON = "bigcode/the-stack", "data/python"
CONVERTED = "refs/convert/parquet"  # the revision where the hub keeps its parquet copy of a dataset in another format
BLOCK = 8_000_000  # bytes asked for at once, and the most that an interruption costs


def file_count(text: str) -> int | None:
    """The value of --files: "5" gives 5, "all" gives None."""
    if text != "all" and not (text.isdecimal() and int(text) > 0):
        raise argparse.ArgumentTypeError(f"{text!r} is neither a number of files nor all")
    return None if text == "all" else int(text)


def command_line() -> tuple[Settings, argparse.Namespace]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=file_count, default="5", metavar="N", help="how many, or all [%(default)s]")
    parser.add_argument("--dataset", default=STACK, metavar="OWNER/NAME", help="name on the hub [%(default)s]")
    parser.add_argument(
        "--data-dir", metavar="FOLDER", help=f"folder in it [{STACK_PYTHON} for {STACK}, else the whole]"
    )
    parser.add_argument("--revision", default="main", help="branch, tag or commit of it [%(default)s]")
    add_flags(parser, CHAR, "debug")
    settings, args = parse(parser, CHAR)
    if args.dataset.count("/") != 1:
        parser.error(f"--dataset wants OWNER/NAME, as in {STACK}")
    if args.data_dir is None:
        args.data_dir = STACK_PYTHON if args.dataset == STACK else ""
    args.data_dir = args.data_dir.strip("/")
    return settings, args


if __name__ == "__main__":
    settings, args = command_line()  # before the hub's library, which takes a second to import

from huggingface_hub import HfApi, HfFileSystem, constants, errors, get_hf_file_metadata, get_token, hf_hub_url
from tqdm import tqdm


def shown_size(*sizes: int) -> str:
    """The sum of some sizes in bytes, as a text: "61.25 GB", or "12.3 MB" below one GB."""
    return f"{sum(sizes) / 1e9:,.2f} GB" if sum(sizes) >= 1e9 else f"{sum(sizes) / 1e6:,.1f} MB"


# === one file ========================================================================================================


def unfinished(blob: Path) -> Path:
    return blob.with_name(blob.name + ".incomplete")


def bytes_here(path: Path, blob: Path) -> int:
    """How much of a file the cache holds: all of it, or what came before an interruption, or nothing."""
    return next((p.stat().st_size for p in (path, blob, unfinished(blob)) if p.exists()), 0)


def fetch(hub: HfFileSystem, url: str, blob: Path, size: int, sha256: str | None, progress: tqdm) -> None:
    """Download the file at hf://... to `blob`, going on where an earlier start was interrupted.

    The hub's own download begins such a file anew: https://github.com/huggingface/huggingface_hub/issues/4196
    """
    blob.parent.mkdir(parents=True, exist_ok=True)
    with hub.open(url, block_size=BLOCK, cache_type="none") as source, open(unfinished(blob), "ab") as target:
        source.seek(target.tell())
        while target.tell() < size and (block := source.read(min(BLOCK, size - target.tell()))):  # a request a block
            target.write(block)
            progress.update(len(block))
        target.flush()
        os.fsync(target.fileno())
    with open(unfinished(blob), "rb") as file:
        sound = sha256 is None or hashlib.file_digest(file, "sha256").hexdigest() == sha256
    if not sound or unfinished(blob).stat().st_size != size:
        unfinished(blob).unlink()
        raise UserError(f"{url} arrived damaged and was thrown away. Run this command again.")
    os.replace(unfinished(blob), blob)


def check(path: Path, debug: bool) -> None:
    """Open a downloaded file, and show what it holds."""
    import pyarrow as pa  # here, and `datasets` below: what the hub refuses, it refuses at once
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as parquet:
            rows, columns = parquet.metadata.num_rows, parquet.schema_arrow.names
    except pa.ArrowException as error:
        raise UserError(
            f"{shown_path(path.resolve())} is damaged ({str(error).splitlines()[0]}). "
            "Delete it, and run this command again."
        ) from None
    if debug:
        tqdm.write(f"  {path.name}: {shown_size(path.stat().st_size)}, {rows:,} rows of {', '.join(columns)}")
    if "content" not in columns:
        tqdm.write(f"  {path.name} has no column content: name the one with the text to extraction, with --column")


# === all of them =====================================================================================================


def download(settings: Settings, args: argparse.Namespace) -> None:
    # --- what there is -----------------------------------------------------------------------------------------------
    api, hub = HfApi(), HfFileSystem()
    commit = api.dataset_info(args.dataset, revision=args.revision).sha
    tree = api.list_repo_tree(args.dataset, args.data_dir, recursive=True, revision=commit, repo_type="dataset")
    found = sorted((entry for entry in tree if hasattr(entry, "size")), key=lambda file: file.path)  # no folders
    parquets = [file for file in found if file.path.endswith(".parquet")]
    where = f"{args.dataset}{args.data_dir and ', folder ' + args.data_dir}, revision {args.revision}"
    if not parquets:
        kinds = Counter("".join(PurePosixPath(file.path).suffixes) or "without an ending" for file in found)
        raise UserError(
            f"{where}: none of the {len(found)} files is parquet ("
            + ", ".join(f"{count} {kind}" for kind, count in kinds.most_common(4))
            + "). The hub keeps a parquet copy of many datasets. Try:\n  python ingestion/ingest.py "
            + shlex.join(["--dataset", args.dataset, "--revision", CONVERTED])
        )

    # --- what is wanted, and how much of it is here ------------------------------------------------------------------
    chosen = parquets[: args.files]
    cache = Path(constants.HF_HUB_CACHE).absolute()
    store = cache / f"datasets--{args.dataset.replace('/', '--')}"  # the hub's layout: blobs, named by their hash,
    snapshot = store / "snapshots" / commit  # and for each commit a folder of links to them, named as in the dataset
    blobs = {file.path: store / "blobs" / (file.lfs.sha256 if file.lfs else file.blob_id) for file in chosen}
    here = {file.path: bytes_here(snapshot / file.path, blobs[file.path]) for file in chosen}
    size = sum(file.size for file in chosen)
    missing = sum(max(0, file.size - here[file.path]) for file in chosen)
    whole = sum(here[file.path] >= file.size for file in chosen)
    print(f"{where}: {len(parquets)} parquet files, {shown_size(*(file.size for file in parquets))}")
    print(
        f"Wanted: {len(chosen)} files, {shown_size(size)}, of which {whole} are here already. "
        f"To download: {shown_size(missing)}."
    )

    # --- whether it can be had ---------------------------------------------------------------------------------------
    if missing:  # the list is open to everybody, the files may not be
        get_hf_file_metadata(hf_hub_url(args.dataset, chosen[0].path, repo_type="dataset", revision=commit))
    free = shutil.disk_usage(next(folder for folder in (cache, *cache.parents) if folder.exists())).free
    if missing > free:
        raise UserError(
            f"The disk of {shown_path(cache)} has {shown_size(free)} free, {shown_size(missing)} are to be downloaded. "
            "Take fewer with --files, or set HF_HUB_CACHE to a folder on another disk."
        )

    # --- the download ------------------------------------------------------------------------------------------------
    if missing:
        print(f"Into {shown_path(cache)}, {shown_size(free)} free. Ctrl-C stops it; the same command goes on.")
    with tqdm(total=size, initial=size - missing, unit="B", unit_scale=True, delay=2, disable=not missing) as progress:
        for file in chosen:
            path, blob = snapshot / file.path, blobs[file.path]
            if not path.exists():
                url = f"hf://datasets/{args.dataset}@{{}}/{file.path}"
                if not blob.exists():
                    progress.set_description(path.name, refresh=False)
                    fetch(hub, url.format(commit), blob, file.size, file.lfs and file.lfs.sha256, progress)
                from datasets import DownloadManager

                # It finds the blob there and files it: it adds the link, and notes the revision's commit.
                DownloadManager().download(url.format(quote(args.revision, safe="")))
                if not path.is_symlink():
                    blob.unlink(missing_ok=True)  # this system has no links, and the cache has made a copy
            check(path, settings.debug)

    # --- what comes next ---------------------------------------------------------------------------------------------
    folder = snapshot / args.data_dir
    print(f"{len(chosen)} files, {shown_size(size)}, in {shown_path(folder)}")
    usual = (args.dataset, args.data_dir, args.revision) == (STACK, STACK_PYTHON, "main")
    by_itself = usual and not any(settings.parquet_dir.rglob("*.parquet"))  # extraction would take those first
    print("Next: python scripts/extract_parquets_to_text.py" + ("" if by_itself else f" {shlex.quote(str(folder))}"))


# === what can go wrong between here and the hub ======================================================================


def explain(error: BaseException | None, args: argparse.Namespace) -> str | None:
    """What to do about an error of the hub or of the network; None for any other error.

    Never the library's own text: it is long, and it can hold a signed address.
    """
    page = f"https://huggingface.co/datasets/{args.dataset}"
    status = getattr(getattr(error, "response", None), "status_code", None)
    if isinstance(error, errors.GatedRepoError) or status == 403:
        refusal = "does not accept your token for it" if get_token() else "got no token from you"
        return (
            f"{args.dataset} is open only to those who accepted its terms, and the hub {refusal} ({status}).\n"
            "  1. Create an account: https://huggingface.co/join\n"
            f"  2. Accept the terms: {page}\n"
            "  3. Create a token with read access to gated repositories: https://huggingface.co/settings/tokens\n"
            "  4. Log in with it: hf auth login (or set HF_TOKEN). Then run this command again.\n"
            f"Without an account: --dataset codeparrot/codeparrot-clean --revision {CONVERTED}"
        )
    stranger = status == 401 and not get_token()  # the answer to one, where a dataset is private or is not there
    if stranger or isinstance(error, errors.RepositoryNotFoundError | errors.HFValidationError):
        return (
            f"The hub shows no dataset {args.dataset}. Check the spelling; if it is private, log in first: "
            "hf auth login (or set HF_TOKEN)."
        )
    if isinstance(error, errors.RevisionNotFoundError):
        return f"{args.dataset} has no revision {args.revision}. {page}/tree/main lists those it has."
    if isinstance(error, errors.EntryNotFoundError) and status == 404:
        return f"{args.dataset} has no folder {args.data_dir}. {page}/tree/{args.revision} lists those it has."
    if status == 401 or isinstance(error, UnicodeEncodeError):  # a header, and so a token, is ASCII
        return "The hub does not know your token. Log in again: hf auth login (or correct HF_TOKEN, or unset it)."
    if status is not None:
        return f"The hub answered with status {status}. Try again later: what is downloaded stays."
    library = type(error).__module__.partition(".")[0]  # which one speaks HTTP depends on the version of the hub's
    offline = isinstance(error, errors.OfflineModeIsEnabled | json.JSONDecodeError)  # or a login page instead of a hub
    if offline or library in ("httpx2", "httpx", "requests"):
        return (
            f"No connection to {constants.ENDPOINT} ({type(error).__name__}). Check the network and the proxy, and "
            "that HF_HUB_OFFLINE is not set. Then run this command again: what is downloaded stays."
        )
    return explain(error.__cause__, args) if error else None


def main(settings: Settings, args: argparse.Namespace) -> None:
    try:
        download(settings, args)
    except Exception as error:
        text = explain(error, args)
        if text is None:
            raise
        raise UserError(text) from None


if __name__ == "__main__":
    run_script(lambda: main(settings, args))
