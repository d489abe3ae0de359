"""ingestion/ingest.py, run as a user runs it, through the real libraries, against a hub on this machine's loopback."""

import os
import signal
import subprocess
import sys
from http.server import ThreadingHTTPServer
from importlib.util import find_spec
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from fork_server import ForkServer
from hub import BLOCK, CODEPARROT, CONVERTED, STACK, Answer, commit, parquet, sha256

from plumbing.text import byte_size

SCRIPT = Path(__file__).resolve().parents[2] / "ingestion" / "ingest.py"


# What ingest.py imports, except the hub's library itself, which reads the environment when it is imported.
HTTP = "httpx2" if find_spec("httpx2") else "httpx"
MODULES = [HTTP, "yaml", "fsspec", "filelock", "tqdm", "pyarrow.parquet"]


def environment(folder: Path, endpoint: str, variables: dict[str, str]) -> dict[str, str]:
    """One with the hub's cache in a folder, and with nothing of the hub's settings on this machine."""
    env = {k: v for k, v in os.environ.items() if not k.startswith("HF_") and "proxy" not in k.lower()}
    return env | {"HF_ENDPOINT": endpoint, "HF_HOME": str(folder / "hf"), "HF_HUB_DISABLE_TELEMETRY": "1"} | variables


def start(folder: Path, endpoint: str, *flags: str, **variables: str) -> subprocess.Popen:
    """Start ingest.py as a process of its own that can be interrupted, and that runs beside another."""
    env, pipe = environment(folder, endpoint, variables), subprocess.PIPE
    return subprocess.Popen(
        [sys.executable, str(SCRIPT), *flags], cwd=folder, env=env, text=True, stdout=pipe, stderr=pipe
    )


def finish(process: subprocess.Popen) -> tuple[int, str, str]:
    try:
        out, err = process.communicate(timeout=60)
    finally:
        process.kill()  # nothing where it has ended
    assert "Traceback" not in err, err
    return process.returncode, out, err


@pytest.fixture(scope="module")
def ingest(tmp_path_factory):
    """ingest(folder, endpoint, *flags, **variables): the exit code, stdout and stderr of ingest.py."""
    server = ForkServer(tmp_path_factory.mktemp("server"), MODULES)

    def run(folder: Path, endpoint: str, *flags: str, **variables: str) -> tuple[int, str, str]:
        done = server.run([str(SCRIPT), *flags], folder, environment(folder, endpoint, variables), 60)
        assert "Traceback" not in done.stderr, done.stderr
        return done.returncode, done.stdout, done.stderr

    yield run
    server.close()


def snapshot(folder: Path, dataset: str = STACK, revision: str = "main") -> Path:
    return folder / "hf" / "hub" / f"datasets--{dataset.replace('/', '--')}" / "snapshots" / commit(revision)


# === downloads =======================================================================================================


@pytest.mark.skipif(os.name != "posix", reason="sends Ctrl-C as a signal")
def test_an_interrupted_download_goes_on_and_nothing_is_downloaded_twice(hub, files, tmp_path, ingest):
    first, second, _ = files
    hub.gated, hub.tokens = True, {"hf_accepted": True}

    # Stopped with Ctrl-C in the second block of the first file.
    hub.stall_at = BLOCK
    process = start(tmp_path, hub.url, "--files", "2", HF_TOKEN="hf_accepted")
    assert hub.stalled.wait(40)
    process.send_signal(signal.SIGINT)
    code, out, err = finish(process)
    assert code == 130 and "stopped" in err
    assert "3 Parquet files, 12.5 MB" in out and "Wanted: 2 files, 12.2 MB, of which 0 are here already." in out
    blobs = snapshot(tmp_path).parents[1] / "blobs"
    assert {path.name: path.stat().st_size for path in blobs.iterdir()} == {sha256(files[first]) + ".incomplete": BLOCK}

    # The same command again: the rest of the first file, and the second one.
    hub.stall_at = None
    hub.requests.clear()
    code, out, err = ingest(tmp_path, hub.url, "--files", "2", HF_TOKEN="hf_accepted")
    assert code == 0, err
    assert [request for request in hub.requests if request.startswith("GET")] == [
        f"GET {first} bytes={BLOCK}-{len(files[first]) - 1}",
        f"GET {second} bytes=0-{len(files[second]) - 1}",
    ]
    assert "of which 0 are here already. To download: 4.2 MB." in out
    for name in (first, second):
        path = snapshot(tmp_path) / name
        assert path.read_bytes() == files[name]
        assert pq.read_table(path).column_names == ["content", "path"]
        assert f"{path.name}: {byte_size(len(files[name]))}" in out
    assert sorted(path.name for path in blobs.iterdir()) == sorted(sha256(files[name]) for name in (first, second))
    assert (snapshot(tmp_path).parents[1] / "refs" / "main").read_text() == commit("main")
    assert f"in {(snapshot(tmp_path) / 'data/python').relative_to(tmp_path)}\n" in out
    assert "Next: python scripts/extract_parquets_to_text.py" in out

    # And once more: the list, no file.
    hub.requests.clear()
    code, out, err = ingest(tmp_path, hub.url, "--files", "2", HF_TOKEN="hf_accepted")
    assert code == 0 and hub.requests == []
    assert "of which 2 are here already. To download: 0.0 kB." in out

    # The token went to the hub, and not to the host that it redirects to.
    assert hub.tokens_seen == {("127.0.0.1", "hf_accepted")}


def test_all_files_of_another_dataset_and_revision(hub, tmp_path, ingest):
    flags = ["--dataset", CODEPARROT, "--revision", CONVERTED, "--files", "all", "--quiet"]
    code, out, err = ingest(tmp_path, hub.url, *flags)
    assert code == 0, err
    folder = snapshot(tmp_path, CODEPARROT, CONVERTED)
    there = {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert there == hub.datasets[CODEPARROT][CONVERTED]
    assert f"Next: python scripts/extract_parquets_to_text.py {folder}\n" in out
    assert "rows of" not in out  # --quiet


def test_what_is_not_parquet_is_named(hub, tmp_path, ingest):
    contents = {"x.PARQUET": parquet(3, 1000), "README.md": b"# B", "y.jsonl": b"{}", "z.jsonl": b"{} "}
    hub.datasets["a/b"] = {"main": contents}
    hub.blobs |= {sha256(content): (path, content) for path, content in contents.items()}
    code, out, err = ingest(tmp_path, hub.url, "--dataset", "a/b")
    assert code == 0, err
    assert "left out, not Parquet: 3 (.jsonl 2, .md)\n" in out
    assert "1 Parquet files" in out and (snapshot(tmp_path, "a/b") / "x.PARQUET").exists()


def test_a_damaged_download_is_thrown_away(hub, tmp_path, ingest):
    hub.damaged = True
    code, _, err = ingest(tmp_path, hub.url, "--files", "1")
    assert code == 1 and "arrived damaged" in err
    assert not list((snapshot(tmp_path).parents[1] / "blobs").iterdir())


def blobs_of(folder: Path) -> dict[str, int]:
    """The files in the cache that hold content, finished or not, with their sizes."""
    return {path.name: path.stat().st_size for path in (snapshot(folder).parents[1] / "blobs").iterdir()}


def unfinished(folder: Path, content: bytes, size: int) -> dict[str, int]:
    """Put the first bytes of a file into the cache, as an interrupted download leaves them."""
    path = snapshot(folder).parents[1] / "blobs" / f"{sha256(content)}.incomplete"
    path.parent.mkdir(parents=True)
    path.write_bytes(content[:size])
    return blobs_of(folder)


def test_two_downloads_into_one_cache_do_not_destroy_each_other(hub, files, tmp_path, ingest):
    hub.stall_at = BLOCK
    first = start(tmp_path, hub.url, "--files", "1")
    assert hub.stalled.wait(40)
    before = {name: size for name, size in blobs_of(tmp_path).items() if name.endswith(".incomplete")}
    code, _, err = ingest(tmp_path, hub.url, "--files", "1")
    assert code == 1 and "Another run is writing" in err
    assert before.items() <= blobs_of(tmp_path).items() and list(before.values()) == [BLOCK]
    first.terminate()
    finish(first)


def test_a_page_in_place_of_a_file_does_not_get_into_the_file(hub, files, tmp_path, ingest):
    """A login page that answers every request with 200, and has no end: what was downloaded before stays."""
    hub.page = True
    before = unfinished(tmp_path, next(iter(files.values())), 100_000)
    code, _, err = ingest(tmp_path, hub.url, "--files", "1")
    assert code == 1 and "something else (status 200, text/html)" in err and len(err.splitlines()) == 1
    assert blobs_of(tmp_path) == before
    hub.page = False
    assert ingest(tmp_path, hub.url, "--files", "1")[0] == 0


@pytest.mark.parametrize(("size", "there"), [(1_000, 100), (1_000, 100_000), (1_000, None), (10**8, None)])
def test_a_size_that_the_hub_lists_wrongly_does_no_harm(hub, files, tmp_path, size, there, ingest):
    content = next(iter(files.values()))
    hub.claimed_size = size
    unfinished(tmp_path, content, there or len(content))
    code, _, err = ingest(tmp_path, hub.url, "--files", "1")
    assert code == 0, err
    assert blobs_of(tmp_path) == {sha256(content): len(content)}


def test_an_unreadable_file_blocks_none_behind_it(hub, files, tmp_path, ingest):
    names = list(files)
    bad = b"no parquet" * 1000
    hub.datasets[STACK]["main"] = {**hub.datasets[STACK]["main"], names[1]: bad}
    hub.blobs[sha256(bad)] = (names[1], bad)
    for _ in range(2):  # the second time, nothing is downloaded, and the advice is the same
        code, _, err = ingest(tmp_path, hub.url, "--files", "3")
        assert code == 1 and "train-00001-of-00003.parquet is damaged" in err and "--skip-bad" in err
        assert err.count("damaged") == 1 and "this command again" not in err
        assert len(blobs_of(tmp_path)) == 3
    # The disk damaged another one since: it is deleted, and comes again.
    path = snapshot(tmp_path) / names[2]
    path.resolve().write_bytes(b"x" * path.stat().st_size)
    code, _, err = ingest(tmp_path, hub.url, "--files", "3")
    assert code == 1 and "train-00002-of-00003.parquet is damaged" in err and "Run this command again" in err
    ingest(tmp_path, hub.url, "--files", "3")
    assert path.read_bytes() == files[names[2]]


def test_names_with_signs_that_mean_something_elsewhere(hub, files, tmp_path, ingest):
    content = list(files.values())[1]
    names = [f"data/python/a{sign}b.parquet" for sign in ("{x}", "[1]", "*", "?", "#", "%41", " ", "é", "@main")]
    strange = ["data/python/../../../x.parquet", "data/python/a::b.parquet", "data/python/c:x.parquet"]
    hub.datasets[STACK]["main"] = dict.fromkeys([*names, *strange], content)
    code, _, err = ingest(tmp_path, hub.url, "--files", "all")
    assert code == 1 and all(repr(name) in err for name in strange) and err.count("is not a name") == 3, err
    assert {str(path.relative_to(snapshot(tmp_path))) for path in snapshot(tmp_path).rglob("*.parquet")} == set(names)
    assert all((snapshot(tmp_path) / name).read_bytes() == content for name in names)


# === refusals ========================================================================================================


def test_terms_that_are_not_accepted(hub, tmp_path, ingest):
    hub.gated, hub.tokens = True, {"hf_not_accepted_yet": False}
    for variables, reason in (
        ({}, "got no token from you (401)"),
        ({"HF_TOKEN": "hf_not_accepted_yet"}, "does not accept your token for it (403)"),
    ):
        code, out, err = ingest(tmp_path, hub.url, **variables)
        assert code == 1 and reason in err
        for step in ("huggingface.co/join", f"huggingface.co/datasets/{STACK}", "settings/tokens", "hf auth login"):
            assert step in err
        assert "hf_not_accepted_yet" not in out + err
    assert hub.tokens_seen == {("127.0.0.1", "hf_not_accepted_yet")}


def test_a_proxy_that_refuses_is_not_taken_for_terms(hub, tmp_path, ingest):
    hub.proxy_refuses = True
    code, _, err = ingest(tmp_path, hub.url, "--files", "1", HF_TOKEN="")
    assert code == 1 and "proxy" in err and "status 403" in err and "terms" not in err


def test_a_token_that_the_hub_does_not_know(hub, tmp_path, ingest):
    tokens = ["hf_expired", "hf_döner"]  # the second one cannot even be sent
    for token in tokens:
        code, out, err = ingest(tmp_path, hub.url, HF_TOKEN=token)
        assert code == 1 and "does not know your token" in err and token not in out + err


def test_names_that_the_hub_does_not_have(hub, tmp_path, ingest):
    hub.tokens = {"hf_known": True}
    cases = [
        (["--dataset", "nobody/nothing"], {}, ["The hub shows no dataset nobody/nothing"]),
        (["--dataset", "nobody/nothing"], {"HF_TOKEN": "hf_known"}, ["The hub shows no dataset nobody/nothing"]),
        (["--data-dir", "data/cobol/"], {}, ["has no folder data/cobol", "tree/main"]),
        (["--revision", "v9"], {}, ["has no revision v9"]),
        (["--dataset", CODEPARROT], {}, ["54 .json.gz", f"--dataset {CODEPARROT} --revision {CONVERTED}"]),
    ]
    for flags, variables, words in cases:
        code, _, err = ingest(tmp_path, hub.url, *flags, **variables)
        assert code == 1 and all(word in err for word in words), err
    assert not (tmp_path / "hf" / "hub").exists()


def test_no_disk_no_network(hub, tmp_path, ingest):
    hub.claimed_size = 10**18
    with ThreadingHTTPServer(("127.0.0.1", 0), Answer) as closed:
        nobody = f"http://127.0.0.1:{closed.server_port}"
    code, out, err = ingest(tmp_path, hub.url)
    assert code == 1 and "The download of 3,000,000,000.00 GB does not fit" in err and "--files" in err
    assert "Wanted: 3 files, 3,000,000,000.00 GB" in out
    assert not [request for request in hub.requests if request.startswith("GET")]
    code, out, err = ingest(tmp_path, nobody)
    assert code == 1 and f"No connection to {nobody}" in err and len(err.splitlines()) == 1


def test_wrong_use(tmp_path, ingest):
    for flags in (["--files", "0"], ["--files", "some"], ["--dataset", "the-stack"], ["--fils", "2"]):
        code, _, err = ingest(tmp_path, "http://127.0.0.1:9", *flags)
        assert code == 2 and "See --help" in err and flags[0] in err
