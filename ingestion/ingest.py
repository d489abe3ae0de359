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

import os
import sys

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.realpath(__file__))))  # also with python -I
import plumbing.start

import argparse
import hashlib
import json
import re
import shlex
import shutil
from collections import Counter
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import huggingface_hub  # imports its modules when they are used, so --help answers at once
from huggingface_hub import constants, utils
from tqdm import tqdm

from config import CHAR
from plumbing.command_line import ScriptParser, add_flags
from plumbing.errors import UserError, run_script
from plumbing.files import flush_to_disk, make_folder, only_writer, rename
from plumbing.inputs import LeftOut, parquet_files
from plumbing.text import byte_size, printable, shown_path

STACK, STACK_PYTHON = "bigcode/the-stack", "data/python"
CONVERTED = "refs/convert/parquet"  # the revision where the hub keeps its Parquet copy of a dataset in another format
BLOCK = 8_000_000  # bytes per request, and the most that an interruption costs


@dataclass
class CachedFile:
    """A file of the dataset, and its paths in the hub's cache."""

    name: str  # its path in the dataset
    url: str
    path: Path  # in the folder of the commit, a link to
    blob: Path  # the content, named by its hash
    size: int  # as the hub lists it
    sha256: str | None

    @property
    def unfinished(self) -> Path:
        return self.blob.with_name(self.blob.name + ".incomplete")

    def bytes_here(self) -> int:
        """How much of it the cache has: all of it, what came before an interruption, or nothing."""
        return next((p.stat().st_size for p in (self.path, self.blob, self.unfinished) if p.exists()), 0)

    def may_be_linked(self) -> bool:
        """Whether its name leads to a file in the folder of the commit. The hub's library refuses others as well."""
        parts = self.name.split("/")
        return not any(part in ("", ".", "..") or part[1:2] == ":" or "\\" in part for part in parts)

    def matches(self, path: Path) -> bool:
        """Whether this is what is in the file, by its hash, or where the hub lists none, by its size."""
        if self.sha256 is None:
            return path.stat().st_size == self.size
        with open(path, "rb") as content:
            return hashlib.file_digest(content, "sha256").hexdigest() == self.sha256


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
    url = huggingface_hub.hf_hub_url(dataset, file.path, repo_type="dataset", revision=snapshot.name)
    return CachedFile(file.path, url, snapshot / file.path, blob, file.size, sha256)


def check_space(cache: Path, missing: int) -> None:
    free = shutil.disk_usage(next(folder for folder in (cache, *cache.parents) if folder.exists())).free
    if missing > free:
        raise UserError(
            f"The download of {byte_size(missing)} does not fit on the disk of {shown_path(cache)}, which has "
            f"{byte_size(free)} free. Take fewer with --files, or set HF_HUB_CACHE to a folder on another disk."
        )
    print(f"Into {shown_path(cache)}, {byte_size(free)} free. Ctrl-C stops it; the same command resumes.")


def fetch(file: CachedFile, progress: tqdm) -> None:
    """Download a file to its blob, from where an earlier run was interrupted. The hub's own download starts such a file
    again: https://github.com/huggingface/huggingface_hub/issues/4196"""
    make_folder(file.blob.parent)
    with only_writer(file.blob):
        if file.blob.exists():  # another run has just finished it
            return
        with open(file.unfinished, "ab") as target:
            size = file.size
            if target.tell() >= size and not file.matches(file.unfinished):  # the first answer will tell the true size
                size = target.tell() + 1
            while target.tell() < size:
                block, size = read_range(file, target.tell(), min(target.tell() + BLOCK, size), size)
                target.write(block)
                progress.update(len(block))
            flush_to_disk(target)
        if not file.matches(file.unfinished):
            file.unfinished.unlink()
            raise UserError(f"{file.url} arrived damaged and was deleted. Run this command again.")
        rename(file.unfinished, file.blob)


def read_range(file: CachedFile, start: int, end: int, size: int) -> tuple[bytes, int]:
    """Download bytes start to end - 1 of a file: (them, or fewer where the file ends, and the size of the file, which
    the hub may list wrongly). Raises UserError for an answer that is no part of the file, such as a login page."""
    headers = utils.build_hf_headers() | {"Range": f"bytes={start}-{end - 1}", "Accept-Encoding": "identity"}
    data = bytearray()
    options = {"headers": headers, "timeout": constants.HF_HUB_DOWNLOAD_TIMEOUT}
    with utils.http_stream_backoff("GET", file.url, **options) as answer:
        sent = re.fullmatch(r"bytes (\d+-\d+|\*)/(\d+)", answer.headers.get("Content-Range", ""))
        if answer.status_code == 416 and sent:  # the file ends before `start`
            return b"", int(sent[2])
        utils.hf_raise_for_status(answer)
        if answer.status_code == 206 and sent and sent[1].startswith(f"{start}-"):
            for chunk in answer.iter_bytes():
                data += chunk
                if len(data) > end - start:
                    break
            if len(data) <= end - start:
                return bytes(data), int(sent[2])
    raise UserError(
        f"The answer to a request for a part of {file.name} is something else (status {answer.status_code}, "
        f"{answer.headers.get('Content-Type', 'no type')}): perhaps the page of a proxy or a login. Try again from "
        "another network; what was downloaded stays."
    )


def link(file: CachedFile, args: argparse.Namespace) -> None:
    """Have the hub's library link the blob into the folder of the commit, and note which commit the revision is."""
    huggingface_hub.hf_hub_download(args.dataset, file.name, repo_type="dataset", revision=args.revision)
    if not file.path.is_symlink():
        file.blob.unlink(missing_ok=True)  # this system has no links, and the cache has made a copy


def check_parquet(file: CachedFile, debug: bool) -> str | None:
    """What is wrong with a downloaded file, and what to do; None if it can be read."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(file.path) as parquet:
            rows, columns = parquet.metadata.num_rows, parquet.schema_arrow.names
    except pa.ArrowException as error:
        damage = f"{shown_path(file.path)} is damaged ({str(error).splitlines()[0]})."
        if file.matches(file.path):
            return f"{damage} It is so on the hub as well. Extraction leaves it out with --skip-bad."
        file.path.resolve().unlink()
        return f"{damage} It was deleted. Run this command again."
    name = printable(file.path.name)
    if debug:
        size = byte_size(file.path.stat().st_size)
        tqdm.write(f"  {name}: {size}, {rows:,} rows of {printable(', '.join(columns))}")
    if "content" not in columns:
        tqdm.write(f"  {name} has no column content: name the one with the text to extraction, with --column")
    return None


def download(args: argparse.Namespace) -> None:
    if not hasattr(utils, "http_stream_backoff"):
        raise UserError("This needs version 1.0 or newer of the hub's library: pip install -U huggingface_hub")
    source = f"{args.dataset}{args.data_dir and ', folder ' + args.data_dir}, revision {args.revision}"
    commit, parquets = list_parquets(args, source)
    cache = Path(constants.HF_HUB_CACHE).absolute()
    snapshot = cache / f"datasets--{args.dataset.replace('/', '--')}" / "snapshots" / commit
    wanted = [in_cache(file, snapshot, args.dataset) for file in parquets[: args.files]]
    files = [file for file in wanted if file.may_be_linked()]
    problems = [f"{file.name!r} is not a name for a file here: left out." for file in wanted if file not in files]
    size = sum(file.size for file in files)
    missing = sum(max(0, file.size - file.bytes_here()) for file in files)
    whole = sum(file.bytes_here() >= file.size for file in files)
    print(f"{source}: {len(parquets)} Parquet files, {byte_size(sum(file.size for file in parquets))}")
    here = f"{len(files)} files, {byte_size(size)}, of which {whole} are here already"
    print(f"Wanted: {here}. To download: {byte_size(missing)}.")
    if missing:
        huggingface_hub.get_hf_file_metadata(files[0].url)  # the list is open to everybody, the files may not be
        check_space(cache, missing)
    with tqdm(total=size, initial=size - missing, unit="B", unit_scale=True, delay=2, disable=not missing) as progress:
        for file in files:
            if not (file.path.exists() or file.blob.exists()):
                progress.set_description(printable(file.path.name), refresh=False)
                fetch(file, progress)
            if not file.path.exists():
                link(file, args)
            problems += filter(None, [check_parquet(file, args.debug)])
    folder = snapshot / args.data_dir
    print(f"{len(files)} files, {byte_size(size)}, in {shown_path(folder)}")
    if problems:
        raise UserError("\n".join(problems))
    usual = (args.dataset, args.data_dir, args.revision) == (STACK, STACK_PYTHON, "main")
    by_itself = usual and not parquet_files(CHAR.parquet_dir)  # extraction would take those first
    print("Next: python scripts/extract_parquets_to_text.py" + ("" if by_itself else f" {shlex.quote(str(folder))}"))


def explain(error: BaseException | None, args: argparse.Namespace) -> str | None:
    """What to do about an error of the hub or of the network; None for any other error. Never the library's own text:
    it is long, and it can contain a signed URL."""
    from huggingface_hub import errors

    page = f"https://huggingface.co/datasets/{args.dataset}"
    status = getattr(getattr(error, "response", None), "status_code", None)
    if isinstance(error, errors.GatedRepoError):
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
        reason = "does not let you have it, or a proxy on the way does not" if status == 403 else "has a problem"
        return f"The hub {reason} (status {status}). Try again later; what was downloaded stays."
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
    parser = ScriptParser(__doc__)
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
