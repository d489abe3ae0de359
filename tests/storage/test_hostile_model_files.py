"""A stranger's .pt file cannot run code, crash the process or use up the memory.

The files are forged by hand, with a correct checksum, as a forger would. Each test has its control: what a loader
without the protection would have done.
"""

import gzip
import hashlib
import io
import os
import pickle
import struct
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from faults import end_of, start
from runs import same
from stored_runs import LINUX, check_all_refused, peak_growth, refused_checkpoint

from model.storage.safe_load import load, save
from model.tokenization.tokenizer import make_character_tokenizer

MARK = "executed"  # a file that a pickle's code would make


class Calls:
    """Its pickle calls a function when it is loaded."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def seal(path: Path) -> None:
    """Append the checksum to an archive, as a forger can."""
    data = path.read_bytes()
    path.write_bytes(data[:-2] + (64).to_bytes(2, "little") + hashlib.sha256(data).hexdigest().encode())


def forge(
    path: Path, program: bytes, numbers: dict | None = None, compression=zipfile.ZIP_STORED, more=(), order=b"little"
) -> None:
    """An archive as torch.save writes it, with this program as its pickle."""
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, data in [("data.pkl", program), ("byteorder", order), ("version", b"3\n"), *more]:
            archive.writestr(f"archive/{name}", data)
        for key, data in (numbers or {}).items():
            archive.writestr(f"archive/data/{key}", data)
    seal(path)


def tensor_program(number=4, size=(4,), stride=(1,), offset=0, storage="FloatStorage", key="0", rebuild=None) -> bytes:
    """The pickle of {"a": a tensor}, with whatever it claims about that tensor."""

    def tuple_of(values) -> bytes:
        return b"(" + b"".join(pickle.dumps(value, 2)[2:-1] for value in values) + b"t"

    text = f"c{rebuild or 'torch._utils _rebuild_tensor_v2'}\n".replace(" ", "\n", 1).encode()
    persistent = b"(X\x07\0\0\0storage" + f"ctorch\n{storage}\n".encode() + pickle.dumps(key, 2)[2:-1]
    persistent += pickle.dumps("cpu", 2)[2:-1] + pickle.dumps(number, 2)[2:-1] + b"tQ"
    rest = pickle.dumps(offset, 2)[2:-1] + tuple_of(size) + tuple_of(stride) + b"\x89}"
    return b"\x80\x02}X\x01\0\0\0a" + text + b"(" + persistent + rest + b"tRs."


def legacy(content) -> bytes:
    file = io.BytesIO()
    torch.save(content, file, _use_new_zipfile_serialization=False)
    return file.getvalue()


def pickles() -> dict[str, bytes]:
    """Programs that run something, or make something that no tensor or plain value needs."""
    import importlib
    import subprocess

    touch = f"open({MARK!r}, 'w').close()"
    kinds = {
        "os.system": pickle.dumps(Calls(os.system, f"touch {MARK}"), 2),
        "eval": pickle.dumps(Calls(eval, touch), 2),
        "exec": pickle.dumps(Calls(exec, touch), 2),
        "exec, protocol 0": pickle.dumps(Calls(exec, touch), 0),
        "exec, protocol 4": pickle.dumps(Calls(exec, touch), 4),
        "exec, protocol 5": pickle.dumps(Calls(exec, touch), 5),
        "exec inside the content": pickle.dumps({"format_version": 1, "weights": Calls(exec, touch)}, 2),
        "Popen": pickle.dumps(Calls(subprocess.Popen, ["touch", MARK]), 2),
        "open": pickle.dumps(Calls(open, MARK, "w"), 2),
        "import": pickle.dumps(Calls(importlib.import_module, "antigravity"), 2),
        "torch.load of a pickle": pickle.dumps(Calls(torch.load, io.BytesIO(b"x")), 2),
        "a huge bytearray": pickle.dumps(Calls(bytearray, 2**40), 2),
        "a numpy array": pickle.dumps(np.zeros(3), 2),
        "a model, whole": pickle.dumps(torch.nn.Linear(2, 2), 2),
        "INST": f"(S'touch {MARK}'\nios\nsystem\n.".encode(),
        "OBJ": b"(cos\nsystem\n" + f"S'touch {MARK}'\no.".encode(),
        "a persistent id of its own": b"\x80\x02X\x01\0\0\0aQ.",
        "an extension code": b"\x82\x01.",
        "bytes of 2^62": b"\x80\x04\x8e" + struct.pack("<Q", 2**62) + b"x.",
        "a frame of 2^62": b"\x80\x04\x95" + struct.pack("<Q", 2**62) + b"}.",
        "text of 4 GiB": b"\x80\x02X\xff\xff\xff\xffabc.",
        "a number of 2^31 bytes": b"\x80\x02\x8b\xff\xff\xff\x7f.",
        "millions of dicts": b"\x80\x02" + b"}" * 5_000_000 + b".",
        "millions of tuples in tuples": b"\x80\x02)" + b"\x85" * 5_000_000 + b".",
        "too large a program": b"\x80\x02X" + struct.pack("<I", 13_000_000) + b"a" * 13_000_000 + b".",
        "a list of lists of lists": b"\x80\x02]" + b"".join(b"q%c](h%ch%ce" % (i, i, i) for i in range(60)) + b")R.",
        "a tuple of tuples as key": b"\x80\x02})" + b"".join(b"q%ch%c\x86" % (i, i) for i in range(60)) + b"Ns.",
        "a number as key": b"\x80\x02}K\x01Ns.",
        "a list in itself": b"\x80\x02]q\x00h\x00a.",
        "an empty stack": b"\x80\x02.",
        "no end": b"\x80\x02}",
        "an unknown operation": b"\x80\x02\xff.",
        "a mark that is not there": b"\x80\x02t.",
        "nothing": b"",
    }
    return kinds


TENSORS = {
    "more numbers than there are": tensor_program(number=2**28, size=(2**28,)),
    "fewer numbers than there are": tensor_program(number=2, size=(2,)),
    "a size beyond the numbers": tensor_program(size=(2**40,)),
    "a stride of zero": tensor_program(size=(2**30,), stride=(0,)),
    "strides that overlap": tensor_program(size=(2, 3), stride=(1, 1)),
    "an offset beyond the numbers": tensor_program(offset=2**40),
    "an offset before them": tensor_program(offset=-1),
    "a size below zero": tensor_program(size=(-4,)),
    "a size that wraps around": tensor_program(size=(2**32, 2**32), stride=(2**32, 1)),
    "a size of text": tensor_program(size=("4",)),
    "numbers that are not there": tensor_program(key="7"),
    "numbers outside the archive": tensor_program(key="../../../etc/passwd"),
    "objects": tensor_program(storage="DoubleStorage"),
    "quantized": tensor_program(rebuild="torch._utils _rebuild_qtensor"),
    "sparse": tensor_program(rebuild="torch._utils _rebuild_sparse_tensor"),
    "a parameter": tensor_program(rebuild="torch._utils _rebuild_parameter"),
    "a nested tensor": tensor_program(rebuild="torch._utils _rebuild_nested_tensor"),
    "on the device meta": tensor_program(rebuild="torch._utils _rebuild_meta_tensor_no_storage"),
}


def archives(folder: Path, good: Path) -> None:
    """Files that are no archive of torch.save, or one that lies about itself."""
    program, numbers = tensor_program(), {"0": bytes(16)}
    forge(folder / "deflated.pt", program, numbers, zipfile.ZIP_DEFLATED)
    zeros = bytes(100_000_000)
    forge(folder / "a bomb.pt", tensor_program(number=25_000_000, size=(25_000_000,)), {"0": zeros}, 8)
    forge(folder / "a bomb of a program.pt", b"\x80\x02" + bytes(100_000_000), None, zipfile.ZIP_BZIP2)
    forge(folder / "the same name twice.pt", program, numbers, more=[("data.pkl", b"}.")])
    forge(folder / "65,000 parts.pt", program, numbers, more=[(f"x/{i}", b"") for i in range(30_000)])
    forge(folder / "big-endian.pt", program, numbers, order=b"big")
    with zipfile.ZipFile(folder / "parts without an archive.pt", "w") as archive:
        archive.writestr("nothing", b"")
    seal(folder / "parts without an archive.pt")
    # A directory that lists the same bytes ten times.
    forge(folder / "overlapping.pt", program, {"0": bytes(50_000)})
    data = (folder / "overlapping.pt").read_bytes()[:-64]
    start, end = data.rindex(b"PK\1\2"), data.rindex(b"PK\5\6")
    entries = b"".join(data[start:end].replace(b"data/0", f"data/{i}".encode()) for i in range(1, 10))
    count, size = struct.unpack("<HI", data[end + 10 : end + 16])
    counts = struct.pack("<HHI", count + 9, count + 9, size + len(entries))
    lying = data[:end] + entries + data[end : end + 8] + counts + data[end + 16 : -2] + bytes(2)
    (folder / "overlapping.pt").write_bytes(lying)
    seal(folder / "overlapping.pt")

    (folder / "legacy.pt").write_bytes(legacy({"a": torch.zeros(3)}))
    (folder / "legacy that runs.pt").write_bytes(legacy(Calls(os.system, f"touch {MARK}")))
    (folder / "bare pickle.pt").write_bytes(pickle.dumps(Calls(os.system, f"touch {MARK}")))
    with tarfile.open(folder / "tar.pt", "w") as archive:
        archive.add(good, "storages")
        archive.add(good, "tensors")
    with gzip.open(folder / "gzip.pt", "wb") as file:
        file.write(good.read_bytes())
    np.savez(folder / "numpy.npz", a=np.zeros(3))
    (folder / "numpy.npz").rename(folder / "numpy.pt")
    (folder / "safetensors.pt").write_bytes(struct.pack("<Q", 2**60) + b'{"a":{}}')
    (folder / "empty.pt").write_bytes(b"")
    (folder / "zeros.pt").write_bytes(bytes(100_000))
    (folder / "html.pt").write_bytes(b"<!DOCTYPE html><title>Sign in</title>" * 100)
    (folder / "a zip in a zip.pt").write_bytes(b"")
    with zipfile.ZipFile(folder / "a zip in a zip.pt", "w") as archive:
        archive.write(good, "archive/data.pkl")
        archive.writestr("archive/byteorder", b"little")
    seal(folder / "a zip in a zip.pt")
    script = torch.jit.script(torch.nn.Linear(2, 2)) if hasattr(torch.jit, "script") else None
    if script is not None:
        torch.jit.save(script, str(folder / "torchscript.pt"))
        seal(folder / "torchscript.pt")


def changes_of_content() -> dict:
    """Changes to the content of a model file."""
    huge = 10**12
    changed = [
        {"n_layer": 10**9},
        {"n_layer": 1000},
        {"block_size": huge},
        {"block_size": 65_536, "n_layer": 1000},
        {"n_embd": huge},
        {"vocab_size": huge},
        {"vocab_size": -1},
        {"n_head": 0},
        {"n_head": 3},
        {"n_embd": 16.0},
        {"n_embd": True},
        {"n_layer": "2"},
        {"block_size": None},
        {"rotary_base": float("nan")},
        {"rotary_base": -1.0},
        {"rotary_base": 1e-320},
        {"rotary_base": 1e299},
        {"rotary_base": 10**299},
        {"dropout": 1.5},
        {"tie_embeddings": 1},
        {"more": 1},
        {1: 1},
    ]
    kinds = {f"architecture {c}": (lambda content, c=c: content["architecture"].update(c)) for c in changed}
    kinds |= {
        "no architecture": lambda content: content.pop("architecture"),
        "an architecture of text": lambda content: content.update(architecture="large"),
        "weights missing": lambda content: content["weights"].pop("head.weight"),
        "weights of another type": lambda content: content["weights"].update({"norm.weight": torch.zeros(16).byte()}),
        "weights not finite": lambda content: content["weights"].update({"norm.weight": torch.full((16,), torch.inf)}),
        "weights of text": lambda content: content["weights"].update({"norm.weight": "16"}),
        "a list as content": lambda content: content.update(weights=[]),
        "another tokenizer": lambda content: content["tokenizer"].update(json=make_character_tokenizer("x").to_str()),
        "no tokenizer": lambda content: content.update(tokenizer=None),
        "tokenizer of bytes": lambda content: content["tokenizer"].update(json=5),
        "no summary": lambda content: content.update(training=[]),
        "a summary of nothing": lambda content: content["training"].clear(),
        "a summary of other data": lambda content: content["training"].update(data=5),
    }
    summaries = [
        *({name: value} for name in ("steps", "tokens_seen", "val_loss") for value in ("7", [7], 10**400)),
        {"val_bits_per_byte": "1.5"},
        {"init_from": 5},
        *({"data": {name: []}} for name in ("source", "documents", "utf8_bytes")),
    ]
    kinds |= {f"summary {c}"[:60]: (lambda content, c=c: content["training"].update(c)) for c in summaries}
    return kinds


@LINUX
@pytest.mark.filterwarnings("ignore")  # about a name that is there twice, and about TorchScript's age
def test_hostile_files_are_refused(finished_run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder, model_file = tmp_path / "files", finished_run.settings.model_file
    folder.mkdir()
    for name, program in pickles().items():
        forge(folder / f"{name}.pt", program)
    for name, program in TENSORS.items():
        forge(folder / f"{name}.pt", program, {"0": bytes(16)})
    archives(folder, model_file)
    model_content = load(model_file)
    for number, (name, change) in enumerate(changes_of_content().items()):
        content = {k: dict(v) if isinstance(v, dict) else v for k, v in model_content.items()}
        change(content)
        save(folder / f"{number} {name[:40].replace('/', ' ')}.pt", content)
    paths = sorted(folder.iterdir())
    assert len(paths) > 90
    check_all_refused(paths, tmp_path / "errors")
    # This variable makes torch.load run pickles again where nobody says otherwise.
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    running = [path for path in paths if MARK.encode() in path.read_bytes()]
    assert len(running) > 10
    check_all_refused(running, tmp_path / "errors")
    assert not (tmp_path / MARK).exists()


@pytest.mark.filterwarnings("ignore")
def test_the_hostile_files_are_hostile(tmp_path, monkeypatch):
    """The control: torch.load runs them unless told otherwise, and always accepts tensors that lie about their size."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    forge(tmp_path / "m.pt", pickles()["os.system"])
    torch.load("m.pt")
    assert (tmp_path / MARK).exists()
    for name in ("a stride of zero", "strides that overlap"):
        forge(tmp_path / "m.pt", TENSORS[name], {"0": bytes(16)})
        assert torch.load("m.pt", weights_only=True)["a"].numel() > 4
    forge(tmp_path / "m.pt", tensor_program(number=10**6, size=(10**6,)), {"0": bytes(4 * 10**6)}, 8)
    assert (tmp_path / "m.pt").stat().st_size < 20_000
    assert torch.load("m.pt", weights_only=True)["a"].numel() == 10**6


def test_what_torch_save_writes_is_read_back(tmp_path):
    """Every type of value that load() knows. torch.load reads the file as well."""
    content = {"a": 1, "b": 2**40, "c": -5, "d": 1.5, "e": True, "f": None, "g": [1, "x", [], {}, 70_000], "h": (1,)}
    content |= {"i": (1, 2), "j": (1, 2, 3, 4), "k": "é日🐍", "l": {}, "m": torch.nn.Linear(3, 4).state_dict()}
    long = torch.arange(24.0)
    content |= {"n": torch.get_rng_state(), "o": torch.tensor(2.5), "p": long[2:8].view(2, 3), "q": long, "r": False}
    content["many"] = {f"name {i}": i for i in range(600)}
    save(tmp_path / "x.pt", content)
    assert same(load(tmp_path / "x.pt"), content)
    assert same(torch.load(tmp_path / "x.pt", weights_only=True), content)


@LINUX
def test_reading_takes_less_than_twice_the_file(tmp_path):
    save(tmp_path / "x.pt", {"a": torch.randn(4_000_000), "b": torch.randn(4_000_000)})
    data = bytearray((tmp_path / "x.pt").read_bytes())
    megabytes = len(data) / 1e6

    def check():
        assert peak_growth(lambda: load(tmp_path / "x.pt")) < 2 * megabytes
        data[len(data) // 2] ^= 1
        (tmp_path / "x.pt").write_bytes(data)
        assert peak_growth(lambda: refused_checkpoint(tmp_path / "x.pt")) < megabytes / 4

    assert end_of(start(check)) == 0
