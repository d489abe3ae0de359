"""Step 1, from the Hugging Face hub: download Python source code that is published as a dataset.

    python ingestion/ingest.py                          (5 of the 206 files of bigcode/the-stack, about 1.5 GB)
    python ingestion/ingest.py --files 20
    python ingestion/ingest.py --dataset codeparrot/codeparrot-clean --revision refs/convert/parquet

Reads   Parquet files of a dataset on huggingface.co. bigcode/the-stack needs an account there, its terms accepted, and
        a token; codeparrot/codeparrot-clean (third line) needs none of these
Writes  the hub's cache, where `datasets` finds them too: HF_HUB_CACHE, else HF_HOME/hub, else ~/.cache/huggingface/hub
Next    python scripts/extract_parquets_to_text.py

Stop it with Ctrl-C and run the same command again: it resumes inside the file where it stopped, and downloads nothing
twice. No account or no network? Use ingestion/ingest_folder.py.
"""

import argparse
import hashlib
import json
import os
import shlex
import shutil
from collections import Counter
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from urllib.parse import quote

import _root
import huggingface_hub  # imports its modules when they are used, so --help answers at once
from huggingface_hub import constants
from tqdm import tqdm

from config import CHAR
from plumbing.command_line import add_flags
from plumbing.errors import UserError, run_script
from plumbing.files import make_folder, rename
from plumbing.inputs import LeftOut, parquet_files
from plumbing.text import printable, shown_path

STACK, STACK_PYTHON = "bigcode/the-stack", "data/python"
CONVERTED = "refs/convert/parquet"  # the revision where the hub keeps its Parquet copy of a dataset in another format
BLOCK = 8_000_000  # bytes per request, and the most that an interruption costs


def shown_size(size: int) -> str:
    """A number of bytes as text: "61.25 GB", or "12.3 MB" below one GB."""
    return f"{size / 1e9:,.2f} GB" if size >= 1e9 else f"{size / 1e6:,.1f} MB"


@dataclass
class CachedFile:
    """A file of the dataset, and its paths in the hub's cache."""

    url: str  # hf://datasets/OWNER/NAME@COMMIT/PATH
    path: Path  # in the folder of the commit, a link to
    blob: Path  # the content, named by its hash
    size: int
    sha256: str | None

    @property
    def unfinished(self) -> Path:
        return self.blob.with_name(self.blob.name + ".incomplete")

    def bytes_here(self) -> int:
        """How much of it the cache has: all of it, what came before an interruption, or nothing."""
        return next((p.stat().st_size for p in (self.path, self.blob, self.unfinished) if p.exists()), 0)


def list_parquets(args: argparse.Namespace, source: str) -> tuple[str, list]:
    """(the commit of the revision, the Parquet files in its folder, sorted). Raises UserError if there are none."""
    api = huggingface_hub.HfApi()
    commit = api.dataset_info(args.dataset, revision=args.revision).sha
    tree = api.list_repo_tree(args.dataset, args.data_dir, recursive=True, revision=commit, repo_type="dataset")
    found = sorted((entry for entry in tree if hasattr(entry, "size")), key=lambda file: file.path)  # no folders
    parquets, left_out = [], LeftOut()
    for file in found:
        if file.path.lower().endswith(".parquet"):
            parquets.append(file)
        else:
            left_out.add("not Parquet", PurePosixPath(file.path).suffix or PurePosixPath(file.path).name)
    if not parquets:
        endings = Counter("".join(PurePosixPath(file.path).suffixes) or "without an ending" for file in found)
        raise UserError(
            f"{source}: none of the {len(found)} files is Parquet ("
            + ", ".join(f"{count} {ending}" for ending, count in endings.most_common(4))
            + "). The hub keeps a Parquet copy of many datasets. Try:\n  python ingestion/ingest.py "
            + shlex.join(["--dataset", args.dataset, "--revision", CONVERTED])
        )
    left_out.show()
    return commit, parquets


def in_cache(file, snapshot: Path, dataset: str) -> CachedFile:
    """A file of the hub's list, with its paths in the cache. `snapshot` is the folder of the commit there."""
    sha256 = file.lfs.sha256 if file.lfs else None
    blob = snapshot.parents[1] / "blobs" / (sha256 or file.blob_id)
    url = f"hf://datasets/{dataset}@{snapshot.name}/{file.path}"
    return CachedFile(url, snapshot / file.path, blob, file.size, sha256)


def check_space(cache: Path, missing: int) -> None:
    free = shutil.disk_usage(next(folder for folder in (cache, *cache.parents) if folder.exists())).free
    if missing > free:
        raise UserError(
            f"The download of {shown_size(missing)} does not fit on the disk of {shown_path(cache)}, which has "
            f"{shown_size(free)} free. Take fewer with --files, or set HF_HUB_CACHE to a folder on another disk."
        )
    print(f"Into {shown_path(cache)}, {shown_size(free)} free. Ctrl-C stops it; the same command resumes.")


def fetch(file: CachedFile, progress: tqdm) -> None:
    """Download a file to its blob, from where an earlier run was interrupted. The hub's own download starts such a file
    again: https://github.com/huggingface/huggingface_hub/issues/4196"""
    make_folder(file.blob.parent)
    hub, unfinished = huggingface_hub.HfFileSystem(), file.unfinished
    with hub.open(file.url, block_size=BLOCK, cache_type="none") as source, open(unfinished, "ab") as target:
        source.seek(target.tell())
        while block := source.read(min(BLOCK, max(0, file.size - target.tell()))):  # one request
            target.write(block)
            progress.update(len(block))
        target.flush()
        os.fsync(target.fileno())
    with open(unfinished, "rb") as content:
        sound = file.sha256 in (None, hashlib.file_digest(content, "sha256").hexdigest())
    if not sound or unfinished.stat().st_size != file.size:
        unfinished.unlink()
        raise UserError(f"{file.url} arrived damaged and was deleted. Run this command again.")
    rename(unfinished, file.blob)


def link(file: CachedFile, args: argparse.Namespace, commit: str) -> None:
    """Have the hub's library link the blob into the folder of the commit, and note which commit the revision is."""
    from datasets import DownloadManager  # takes seconds to import

    revision = quote(args.revision, safe="")
    DownloadManager().download(file.url.replace(f"@{commit}/", f"@{revision}/", 1))  # it finds the blob
    if not file.path.is_symlink():
        file.blob.unlink(missing_ok=True)  # this system has no links, and the cache has made a copy


def check_parquet(path: Path, debug: bool) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as parquet:
            rows, columns = parquet.metadata.num_rows, parquet.schema_arrow.names
    except pa.ArrowException as error:
        damage = f"{shown_path(path.resolve())} is damaged ({str(error).splitlines()[0]})."
        raise UserError(f"{damage} Delete it, and run this command again.") from None
    name = printable(path.name)
    if debug:
        tqdm.write(f"  {name}: {shown_size(path.stat().st_size)}, {rows:,} rows of {printable(', '.join(columns))}")
    if "content" not in columns:
        tqdm.write(f"  {name} has no column content: name the one with the text to extraction, with --column")


def download(args: argparse.Namespace) -> None:
    source = f"{args.dataset}{args.data_dir and ', folder ' + args.data_dir}, revision {args.revision}"
    commit, parquets = list_parquets(args, source)
    cache = Path(constants.HF_HUB_CACHE).absolute()
    snapshot = cache / f"datasets--{args.dataset.replace('/', '--')}" / "snapshots" / commit
    files = [in_cache(file, snapshot, args.dataset) for file in parquets[: args.files]]
    size = sum(file.size for file in files)
    missing = sum(max(0, file.size - file.bytes_here()) for file in files)
    whole = sum(file.bytes_here() >= file.size for file in files)
    print(f"{source}: {len(parquets)} Parquet files, {shown_size(sum(file.size for file in parquets))}")
    wanted = f"{len(files)} files, {shown_size(size)}, of which {whole} are here already"
    print(f"Wanted: {wanted}. To download: {shown_size(missing)}.")
    if missing:
        # The list is open to everybody, the files may not be: ask for one.
        url = huggingface_hub.hf_hub_url(args.dataset, parquets[0].path, repo_type="dataset", revision=commit)
        huggingface_hub.get_hf_file_metadata(url)
        check_space(cache, missing)
    with tqdm(total=size, initial=size - missing, unit="B", unit_scale=True, delay=2, disable=not missing) as progress:
        for file in files:
            if not (file.path.exists() or file.blob.exists()):
                progress.set_description(printable(file.path.name), refresh=False)
                fetch(file, progress)
            if not file.path.exists():
                link(file, args, commit)
            check_parquet(file.path, args.debug)
    folder = snapshot / args.data_dir
    print(f"{len(files)} files, {shown_size(size)}, in {shown_path(folder)}")
    usual = (args.dataset, args.data_dir, args.revision) == (STACK, STACK_PYTHON, "main")
    by_itself = usual and not parquet_files(CHAR.parquet_dir)  # extraction would take those first
    print("Next: python scripts/extract_parquets_to_text.py" + ("" if by_itself else f" {shlex.quote(str(folder))}"))


def explain(error: BaseException | None, args: argparse.Namespace) -> str | None:
    """What to do about an error of the hub or of the network; None for any other error. Never the library's own text:
    it is long, and it can contain a signed URL."""
    from huggingface_hub import errors

    page = f"https://huggingface.co/datasets/{args.dataset}"
    status = getattr(getattr(error, "response", None), "status_code", None)
    if isinstance(error, errors.GatedRepoError) or status == 403:
        refusal = "does not accept your token for it" if huggingface_hub.get_token() else "got no token from you"
        return (
            f"{args.dataset} is open only to those who accepted its terms, and the hub {refusal} ({status}).\n"
            "  1. Create an account: https://huggingface.co/join\n"
            f"  2. Accept the terms: {page}\n"
            "  3. Create a token with read access to gated repositories: https://huggingface.co/settings/tokens\n"
            "  4. Log in with it: hf auth login (or set HF_TOKEN). Then run this command again.\n"
            f"Without an account: --dataset codeparrot/codeparrot-clean --revision {CONVERTED}"
        )
    # To those without a token, the hub answers 401 for a dataset that is private or missing.
    stranger = status == 401 and not huggingface_hub.get_token()
    if stranger or isinstance(error, errors.RepositoryNotFoundError | errors.HFValidationError):
        return (
            f"The hub shows no dataset {args.dataset}. Check the spelling; if it is private, log in first: "
            "hf auth login (or set HF_TOKEN)."
        )
    if isinstance(error, errors.RevisionNotFoundError):
        return f"{args.dataset} has no revision {args.revision}. {page}/tree/main lists those that exist."
    if isinstance(error, errors.EntryNotFoundError) and status == 404:
        return f"{args.dataset} has no folder {args.data_dir}. {page}/tree/{args.revision} lists those that exist."
    if status == 401 or isinstance(error, UnicodeEncodeError):  # a token goes into a header, which is ASCII
        return "The hub does not know your token. Log in again: hf auth login (or correct HF_TOKEN, or unset it)."
    if status is not None:
        return f"The hub answered with status {status}. Try again later; what was downloaded stays."
    library = type(error).__module__.partition(".")[0]  # the one for HTTP, which depends on the version of the hub's
    no_hub = isinstance(error, errors.OfflineModeIsEnabled | json.JSONDecodeError)  # or a login page in its place
    if no_hub or library in ("httpx2", "httpx", "requests"):
        return (
            f"No connection to {constants.ENDPOINT} ({type(error).__name__}). Check the network and the proxy, and "
            "that HF_HUB_OFFLINE is not set. Then run this command again; what was downloaded stays."
        )
    return explain(error.__cause__, args) if error else None


def file_count(text: str) -> int | None:
    """The value of --files: "5" gives 5, "all" gives None."""
    if text != "all" and not (text.isdecimal() and int(text) > 0):
        raise argparse.ArgumentTypeError(f"{text!r} is neither a number of files nor all")
    return None if text == "all" else int(text)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=file_count, default="5", metavar="N", help="how many, or all [%(default)s]")
    parser.add_argument("--dataset", default=STACK, metavar="OWNER/NAME", help="name on the hub [%(default)s]")
    text = f"folder in it [{STACK_PYTHON} for {STACK}, else the whole]"
    parser.add_argument("--data-dir", metavar="FOLDER", help=text)
    parser.add_argument("--revision", default="main", help="branch, tag or commit of it [%(default)s]")
    add_flags(parser, CHAR, "debug")
    args = parser.parse_args()
    if args.dataset.count("/") != 1:
        parser.error(f"--dataset must be OWNER/NAME, as in {STACK}")
    if args.data_dir is None:
        args.data_dir = STACK_PYTHON if args.dataset == STACK else ""
    args.data_dir = args.data_dir.strip("/")
    try:
        download(args)
    except Exception as error:
        text = explain(error, args)
        if text is None:
            raise
        raise UserError(text) from None


if __name__ == "__main__":
    run_script(main)
