"""A hub of datasets on this machine's loopback, for the tests: it answers as the real one does."""

import contextlib
import hashlib
import io
import json
import random
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

STACK, CODEPARROT, CONVERTED = "bigcode/the-stack", "codeparrot/codeparrot-clean", "refs/convert/parquet"
BLOCK = 8_000_000  # what ingest.py asks for at once


class Hub(ThreadingHTTPServer):
    """Answers as the hub does: lists to everybody, files after a redirect to another host, gated ones with a token."""

    daemon_threads = True

    def handle_error(self, request, client_address):
        """A client that is stopped hangs up: no news."""

    def __init__(self, datasets: dict[str, dict[str, dict[str, bytes]]]):
        super().__init__(("127.0.0.1", 0), Answer)
        self.datasets = datasets  # name -> revision -> path -> content
        self.gated = self.damaged = False
        self.tokens: dict[str, bool] = {}  # token -> whether its account has accepted the terms
        self.page = self.proxy_refuses = False  # in place of the bytes of a file
        self.claimed_size: int | None = None
        self.stall_at: int | None = None  # a request for bytes from here on is answered by half, and then by silence
        self.stalled, self.released = threading.Event(), threading.Event()
        self.requests: list[str] = []  # such as "HEAD file", and "GET file bytes=0-99" for the host behind the redirect
        self.tokens_seen: set[tuple[str, str]] = set()  # (host, Authorization)
        self.blobs = {
            sha256(content): (path, content)
            for revisions in datasets.values()
            for files in revisions.values()
            for path, content in files.items()
        }

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Answer(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Hub

    def log_message(self, *args):
        pass

    def do_GET(self):
        hub, path = self.server, urlsplit(self.path).path
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        if token:
            hub.tokens_seen.add((self.headers["Host"].partition(":")[0], token))
        if path.startswith("/cdn/"):
            return self.blob(*hub.blobs[path.removeprefix("/cdn/")])
        if token and token not in hub.tokens:
            return self.refuse(401, message="Invalid credentials in Authorization header")
        _, name, verb, revision, rest = re.fullmatch(
            r"(/api)?/datasets/([^/]+/[^/]+)(?:/(revision|tree|resolve)/([^/]+)/?(.*))?", path
        ).groups()
        revisions = {r: r for r in hub.datasets.get(name, {})} | {commit(r): r for r in hub.datasets.get(name, {})}
        if not revisions:
            return self.refuse(404, "RepoNotFound") if token else self.refuse(401)
        revision, rest = unquote(revision or "main"), unquote(rest or "")
        if revision not in revisions:
            return self.refuse(404, "RevisionNotFound")
        files, sha = hub.datasets[name][revisions[revision]], commit(revisions[revision])
        if verb == "resolve":
            if hub.gated and not hub.tokens.get(token):
                return self.refuse(403 if token else 401, "GatedRepo")
            if rest not in files:
                return self.refuse(404, "EntryNotFound")
            if self.command == "HEAD":
                hub.requests.append(f"HEAD {rest}")
            digest = sha256(files[rest])
            headers = {"X-Repo-Commit": sha, "X-Linked-Etag": f'"{digest}"', "X-Linked-Size": str(len(files[rest]))}
            return self.reply(302, headers | {"Location": f"http://localhost:{hub.server_port}/cdn/{digest}"})
        if verb == "tree":
            if rest and not any(path.startswith(rest + "/") for path in files):
                return self.refuse(404, "EntryNotFound")
            inside = {path: content for path, content in files.items() if path.startswith(rest)}
            entries = [{"type": "directory", "path": str(Path(path).parent), "oid": "0" * 40} for path in inside]
            for path, content in inside.items():
                size = hub.claimed_size or len(content)
                lfs = {"oid": sha256(content), "size": size, "pointerSize": 130}
                entries.append({"type": "file", "path": path, "size": size, "oid": "1" * 40, "lfs": lfs})
            return self.reply(200, {}, json.dumps(entries).encode())
        return self.reply(200, {}, json.dumps({"id": name, "sha": sha}).encode())

    do_HEAD = do_GET

    def blob(self, path: str, content: bytes) -> None:
        hub = self.server
        wanted = self.headers.get("Range", "")
        hub.requests.append(f"{self.command} {path} {wanted}")
        first, last = map(int, re.fullmatch(r"bytes=(\d+)-(\d+)", wanted).groups())
        if hub.page:  # which has no end
            self.send_response(200)
            self.send_header("Content-Type", "text/html")
            self.end_headers()
            with contextlib.suppress(OSError):
                while not hub.released.is_set():
                    self.wfile.write(b"<p>Log in</p>" * 10_000)
            return None
        if hub.proxy_refuses:
            return self.reply(403, {"Content-Type": "text/html"}, b"blocked")
        if first >= len(content):
            return self.reply(416, {"Content-Range": f"bytes */{len(content)}"})
        last = min(last, len(content) - 1)
        body = content[first : last + 1]
        if hub.damaged:
            body = bytes(len(body))
        if hub.stall_at is not None and last >= hub.stall_at:
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {first}-{last}/{len(content)}")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body[: len(body) // 2])
            hub.stalled.set()
            hub.released.wait(30)
            return None
        return self.reply(206, {"Content-Range": f"bytes {first}-{last}/{len(content)}"}, body)

    def refuse(self, status: int, code: str = "", message: str = "no") -> None:
        self.reply(status, {"X-Error-Code": code, "X-Error-Message": message}, json.dumps({"error": message}).encode())

    def reply(self, status: int, headers: dict[str, str], body: bytes = b"") -> None:
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def commit(revision: str) -> str:
    return hashlib.sha1(revision.encode(), usedforsecurity=False).hexdigest()


def parquet(seed: int, size: int) -> bytes:
    """A parquet file of about `size` bytes of text, in rows of at most 100,000 characters."""
    text = random.Random(seed).randbytes(size // 2).hex()
    rows = [text[i : i + 100_000] for i in range(0, len(text), 100_000)]
    table = pa.table({"content": rows, "path": [f"{i}.py" for i in range(len(rows))]})
    pq.write_table(table, buffer := io.BytesIO(), compression="none", use_dictionary=False, write_statistics=False)
    return buffer.getvalue()


@pytest.fixture(scope="module")
def files() -> dict[str, bytes]:
    sizes = [12_000_000, 200_000, 300_000]  # the first one is more than a block
    return {f"data/python/train-0000{i}-of-00003.parquet": parquet(i, size) for i, size in enumerate(sizes)}


@pytest.fixture
def hub(files):
    other = {"data/java/train-00000-of-00001.parquet": parquet(9, 1000), "README.md": b"# The Stack"}
    codeparrot = {
        "main": {f"file-{i:012}.json.gz": b"%d" % i for i in range(54)},
        CONVERTED: {f"default/partial-train/000{i}.parquet": parquet(10 + i, 50_000) for i in range(2)},
    }
    server = Hub({STACK: {"main": files | other}, CODEPARROT: codeparrot})
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    yield server
    server.released.set()
    server.shutdown()
    thread.join()
    server.server_close()
