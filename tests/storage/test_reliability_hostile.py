"""A damaged file is never used, and a stranger's file cannot run code, crash the process or eat the memory.

Damage is done at random places, hostile files are forged by hand, with a correct checksum, as a forger would. Each test
has its control: what a loader without the protection would have done. The full numbers: uv run pytest -m soak
"""

import gzip
import hashlib
import io
import json
import os
import pickle
import random
import re
import shutil
import struct
import tarfile
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import make_pipeline
from faults import end_of, runs, start
from runs import same

import train
from config import CHAR
from dataset import open_tokens
from model.storage.checkpoint import load_checkpoint
from model.storage.model_file import load_model
from model.storage.safe_load import load, save
from model.tokenization.bpe_trainer import train_bpe_tokenizer
from model.tokenization.tokenizer import Tokenizer, load_tokenizer, make_character_tokenizer
from plumbing.errors import UserError

LINUX = pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="measures memory by /proc")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A character run's settings, with two checkpoints and a model file."""
    settings = replace(make_pipeline(tmp_path_factory.mktemp("trained"), CHAR, "char"), debug=False, sample_tokens=0)
    train.main(settings, fresh=False)
    return settings


@pytest.fixture(scope="module")
def model_content(trained):
    return load(trained.model_file)


def refusal(path: Path) -> str | None:
    """What load_model() says of a file that it refuses, None where it takes it."""
    try:
        load_model(path)
    except UserError as error:
        assert "\n" not in str(error) and path.name in str(error) and len(str(error)) < 700
        return str(error)
    return None


def refused_checkpoint(path: Path) -> str | None:
    try:
        load_checkpoint(path)
    except ValueError as error:
        assert "\n" not in str(error)
        return str(error)
    return None


def peak_growth(function) -> float:
    """By how many MB the memory of this process rises at most while a function runs."""
    Path("/proc/self/clear_refs").write_text("5")  # forget the earlier peak

    def read(name):
        return int(re.search(rf"{name}:\s+(\d+)", Path("/proc/self/status").read_text())[1]) / 1000

    before = read("VmRSS")
    function()
    return read("VmHWM") - before


# --- damage -----------------------------------------------------------------------------------------------------------


def damaged(data: bytes, other: bytes, rng: random.Random) -> bytes:
    """A file's bytes with one of the damages that disks and copies do. `other` is another file of about its size."""
    data, kind = bytearray(data), rng.randrange(7)
    at = rng.randrange(len(data))
    if kind == 0:
        return bytes(data[:at])
    if kind == 1:
        data[at] ^= 1 << rng.randrange(8)
    elif kind == 2:
        for _ in range(20):
            data[rng.randrange(len(data))] = rng.randrange(256)
    elif kind == 3:
        data[at:] = bytes(len(data) - at)
    elif kind == 4:
        data[at:] = other[at:]
    elif kind == 5:
        data[at : at + 512] = bytes(len(data[at : at + 512]))
    else:
        data[at:at] = rng.randbytes(rng.randrange(1, 100))
    return bytes(data)


def accepted_damage(number: int, folder: Path, good: Path, other: Path, refuse) -> list[int]:
    """Damage a file so many times. Returns the numbers of those that were accepted."""
    data, others, accepted = good.read_bytes(), other.read_bytes(), []
    rng = random.Random(number)
    for i in range(number):
        bad = damaged(data, others, rng)
        (folder / good.name).write_bytes(bad)
        if bad != data and refuse(folder / good.name) is None:
            accepted.append(i)
    return accepted


@runs(500, 5000)
def test_no_damaged_checkpoint_or_model_is_accepted(trained, tmp_path, number):
    old, new = sorted(trained.checkpoint_dir.glob("*.pt"))
    assert accepted_damage(number // 2, tmp_path, new, old, refused_checkpoint) == []
    assert accepted_damage(number // 2, tmp_path, trained.model_file, new, refusal) == []


def test_torch_alone_would_accept_damage(trained, tmp_path):
    """The control, and one without the checksum at the end, but with those of the archive."""
    old, new = sorted(trained.checkpoint_dir.glob("*.pt"))

    def torch_refuses(path):
        try:
            torch.load(path, weights_only=True)
        except Exception as error:
            return str(error)

    assert len(accepted_damage(60, tmp_path, new, old, torch_refuses)) > 5


def test_a_changed_bit_anywhere_is_noticed(trained, tmp_path):
    """Headers and padding, which the archive's own checksums do not cover, included."""
    data = trained.model_file.read_bytes()
    for at in [*range(300), *range(len(data) - 300, len(data)), *range(300, len(data) - 300, 997)]:
        changed = bytearray(data)
        changed[at] ^= 1
        (tmp_path / "m.pt").write_bytes(changed)
        assert refusal(tmp_path / "m.pt"), at


def test_files_that_are_whole_but_not_what_they_should_be(trained, tmp_path):
    old, new = sorted(trained.checkpoint_dir.glob("*.pt"))
    shutil.copy(old, tmp_path / new.name)
    assert refused_checkpoint(tmp_path / new.name) == "it is the checkpoint of step 5"
    shutil.copy(trained.model_file, tmp_path / new.name)
    assert refused_checkpoint(tmp_path / new.name)
    shutil.copy(new, tmp_path / "model.pt")
    assert "but a checkpoint" in refusal(tmp_path / "model.pt")


CHANGES = {
    "a weight is missing": lambda c: c["model"].pop("norm.weight"),
    "a weight too many": lambda c: c["model"].update(extra=torch.zeros(1)),
    "another shape": lambda c: c["model"].update({"norm.weight": torch.ones(17)}),
    "another type": lambda c: c["model"].update({"norm.weight": torch.ones(16, dtype=torch.uint8)}),
    "not finite": lambda c: c["model"]["norm.weight"].fill_(float("nan")),
    "no tensor": lambda c: c["model"].update({"norm.weight": 3}),
    "no model": lambda c: c.pop("model"),
    "a memory not finite": lambda c: c["optimizer"]["mean"].fill_(float("inf")),
    "a memory of another size": lambda c: c["optimizer"].update(mean=torch.zeros(3)),
    "no optimizer": lambda c: c.pop("optimizer"),
    "random numbers missing": lambda c: c.pop("rng"),
    "random numbers of another size": lambda c: c.update(rng=torch.zeros(3, dtype=torch.uint8)),
    "another architecture": lambda c: c["settings"].update(n_embd=32),
    "a senseless architecture": lambda c: c["settings"].update(n_layer="many"),
    "no settings": lambda c: c.pop("settings"),
    "a setting that is none": lambda c: c["settings"].update(seed=[1]),
    "no max_steps": lambda c: c["settings"].pop("max_steps"),
    "no sources": lambda c: c.pop("sources"),
    "a source missing": lambda c: c["sources"].pop("tokenizer"),
    "no device": lambda c: c.pop("device"),
    "a step as text": lambda c: c.update(step="10"),
    "another version": lambda c: c.update(format_version=2),
    "compiled, perhaps": lambda c: c.update(compiled="perhaps"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_checkpoint_that_lacks_something_is_passed_over(trained, tmp_path, capsys, change):
    old, new = sorted(trained.checkpoint_dir.glob("*.pt"))
    settings = replace(trained, checkpoint_dir=tmp_path / "run", model_file=tmp_path / "m.pt")
    settings.checkpoint_dir.mkdir()
    shutil.copy(old, settings.checkpoint_dir)
    content = load_checkpoint(new)
    CHANGES[change](content)
    save(settings.checkpoint_dir / new.name, content)
    train.main(settings, fresh=False)
    out = capsys.readouterr().out
    assert f"{new.name} cannot be used: " in out and old.name in out
    assert same(load_checkpoint(settings.checkpoint_dir / new.name), load_checkpoint(new))


# --- hostile files ----------------------------------------------------------------------------------------------------

MARK = "executed"  # a file that a pickle's code would make


class Runs:
    """A pickle of it calls a function."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def seal(path: Path) -> None:
    """Write the checksum at the end of an archive, as its forger can."""
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
    """The pickle of {"a": a tensor}, with what it says of that tensor."""

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
        "os.system": pickle.dumps(Runs(os.system, f"touch {MARK}"), 2),
        "eval": pickle.dumps(Runs(eval, touch), 2),
        "exec": pickle.dumps(Runs(exec, touch), 2),
        "exec, protocol 0": pickle.dumps(Runs(exec, touch), 0),
        "exec, protocol 4": pickle.dumps(Runs(exec, touch), 4),
        "exec, protocol 5": pickle.dumps(Runs(exec, touch), 5),
        "exec inside the content": pickle.dumps({"format_version": 1, "weights": Runs(exec, touch)}, 2),
        "Popen": pickle.dumps(Runs(subprocess.Popen, ["touch", MARK]), 2),
        "open": pickle.dumps(Runs(open, MARK, "w"), 2),
        "import": pickle.dumps(Runs(importlib.import_module, "antigravity"), 2),
        "torch.load of a pickle": pickle.dumps(Runs(torch.load, io.BytesIO(b"x")), 2),
        "a huge bytearray": pickle.dumps(Runs(bytearray, 2**40), 2),
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
    zeros = bytes(200_000_000)
    forge(folder / "a bomb.pt", tensor_program(number=50_000_000, size=(50_000_000,)), {"0": zeros}, 8)
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
    (folder / "legacy that runs.pt").write_bytes(legacy(Runs(os.system, f"touch {MARK}")))
    (folder / "bare pickle.pt").write_bytes(pickle.dumps(Runs(os.system, f"touch {MARK}")))
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


def architectures() -> dict:
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
    return kinds


def tokenizer_texts(char: str, bpe: str) -> dict[str, str]:
    """JSON texts of tokenizers that must not be used: they crash or hang the library, or would do something else."""

    def changed(text: str, model: dict | None = None, **top) -> str:
        content = json.loads(text)
        content["model"] |= model or {}
        return json.dumps(content | top)

    vocab = json.loads(char)["model"]["vocab"]
    pieces = json.loads(bpe)["model"]["vocab"]
    split = {"type": "Split", "behavior": "Isolated", "invert": False}
    added = json.loads(bpe)["added_tokens"][0]
    return {
        "a prefix for continuing words": changed(bpe, {"continuing_subword_prefix": "é"}),
        "a suffix": changed(bpe, {"end_of_word_suffix": "</w>"}),
        "dropout": changed(bpe, {"dropout": 0.5}),
        "a charsmap": changed(bpe, normalizer={"type": "Precompiled", "precompiled_charsmap": "AAAA"}),
        "a normalizer": changed(bpe, normalizer={"type": "Lowercase"}),
        "a normalizer that grows": changed(
            bpe, normalizer={"type": "Replace", "pattern": {"String": "a"}, "content": "a" * 10**6}
        ),
        "a pattern without end": changed(char, pre_tokenizer=split | {"pattern": {"Regex": "(a|aa)+$"}}),
        "a prefix space": changed(bpe, pre_tokenizer={"type": "ByteLevel", "add_prefix_space": True}),
        "no pre-tokenizer": changed(bpe, pre_tokenizer=None),
        "another decoder": changed(bpe, decoder=None),
        "padding to 2^40": changed(bpe, padding={"strategy": {"Fixed": 2**40}, "direction": "Right"}),
        "truncation": changed(bpe, truncation={"max_length": 1, "strategy": "LongestFirst", "stride": 0}),
        "an added token": changed(bpe, added_tokens=[added, added | {"id": 2**31, "content": "x"}]),
        "an id of 2^31": changed(char, {"vocab": vocab | {"\u1234": 2**31}}),
        "an id of 10^400": changed(char, {"vocab": vocab | {"\u1234": 10**400}}),
        "an id below 0": changed(char, {"vocab": vocab | {"\u1234": -1}}),
        "an id that is a fraction": changed(char, {"vocab": vocab | {"\u1234": 2.5}}),
        "an id twice": changed(char, {"vocab": vocab | {"\u1234": 5}}),
        "a gap": changed(char, {"vocab": vocab | {"\u1234": 5000}}),
        "a long character": changed(char, {"vocab": vocab | {"ab": len(vocab)}}),
        "half a surrogate pair": changed(char, {"vocab": vocab | {"\ud800": len(vocab)}}),
        "a token not of bytes": changed(bpe, {"vocab": pieces | {"日": len(pieces)}}),
        "a merge of nothing": changed(bpe, {"merges": [["nowhere", "b"]]}),
        "merges of three": changed(bpe, {"merges": [["a", "b", "c"]]}),
        "merges of numbers": changed(bpe, {"merges": 5}),
        "a byte missing": changed(
            bpe, {"vocab": {piece: i for i, piece in enumerate(pieces) if i < 200}, "merges": []}
        ),
        "no vocabulary": changed(bpe, {"vocab": {}}),
        "a list as vocabulary": changed(char, {"vocab": []}),
        "deep": "[" * 1_000_000,
        "deep inside": changed(bpe)[:-1] + ', "x": ' + "[" * 100_000 + "]" * 100_000 + "}",
        "a number of a million digits": '{"model": ' + "1" * 1_000_000 + "}",
        "two models": changed(bpe)[:-1] + ', "model": {"type": "Unigram"}}',
        "empty": "",
        "null": "null",
        "NaN": "NaN",
    }


@pytest.fixture(scope="module")
def texts():
    char = make_character_tokenizer("abc\n def").to_str()
    bpe = train_bpe_tokenizer(["ab ab ab abc def def"] * 3, 262).to_str()
    return tokenizer_texts(char, bpe)


@LINUX
@pytest.mark.filterwarnings("ignore")  # of a name that stands twice, and of TorchScript's age
@pytest.mark.parametrize("unsafe", [False, True])
def test_hostile_files_are_refused(trained, model_content, texts, tmp_path, monkeypatch, unsafe):
    """In one process, which looks at its memory: 64 MB, for 13 MB of the largest file, is what each may take."""
    monkeypatch.chdir(tmp_path)
    if unsafe:  # the variable that makes torch.load run pickles again where nobody says otherwise
        monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    files = tmp_path / "files"
    files.mkdir()
    for name, program in pickles().items():
        forge(files / f"{name}.pt", program)
    for name, program in TENSORS.items():
        forge(files / f"{name}.pt", program, {"0": bytes(16)})
    archives(files, trained.model_file)
    for number, (name, change) in enumerate(architectures().items()):
        content = {k: dict(v) if isinstance(v, dict) else v for k, v in model_content.items()}
        change(content)
        save(files / f"{number} {name[:40].replace('/', ' ')}.pt", content)
    for name, text in texts.items():
        tokenizer = {"kind": "bpe", "json": text, "sha256": hashlib.sha256(text.encode(errors="replace")).hexdigest()}
        if "\ud800" not in text:
            save(files / f"tokenizer, {name}.pt", model_content | {"tokenizer": tokenizer})
    paths = sorted(files.iterdir())
    assert len(paths) > 100

    def look() -> None:
        for path in paths:
            said = []
            grown = peak_growth(lambda path=path, said=said: said.append(refusal(path)))
            assert said[0], path.name
            assert grown < 64, (path.name, grown)

    assert end_of(start(look, errors=tmp_path / "errors")) == 0, (tmp_path / "errors").read_text()
    assert (tmp_path / "errors").read_text() == ""  # no library said anything either
    assert not (tmp_path / MARK).exists()


@pytest.mark.filterwarnings("ignore")
def test_the_hostile_files_are_hostile(tmp_path, monkeypatch):
    """The control: torch.load runs them, as soon as it is not told otherwise, and takes tensors that lie."""
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
    """Every kind of value that the reader knows, and torch.load reads the file as well."""
    content = {"a": 1, "b": 2**40, "c": -5, "d": 1.5, "e": True, "f": None, "g": [1, "x", [], {}, 70_000], "h": (1,)}
    content |= {"i": (1, 2), "j": (1, 2, 3, 4), "k": "é日🐍", "l": {}, "m": torch.nn.Linear(3, 4).state_dict()}
    long = torch.arange(24.0)
    content |= {"n": torch.get_rng_state(), "o": torch.tensor(2.5), "p": long[2:8].view(2, 3), "q": long, "r": False}
    content["many"] = {f"name {i}": i for i in range(600)}
    save(tmp_path / "x.pt", content)
    assert same(load(tmp_path / "x.pt"), content)
    assert same(torch.load(tmp_path / "x.pt", weights_only=True), content)


@LINUX
def test_reading_takes_no_more_than_four_times_the_file(tmp_path):
    save(tmp_path / "x.pt", {"a": torch.randn(4_000_000), "b": torch.randn(4_000_000)})
    data = bytearray((tmp_path / "x.pt").read_bytes())
    megabytes = len(data) / 1e6

    def look():
        assert peak_growth(lambda: load(tmp_path / "x.pt")) < 2 * megabytes
        data[len(data) // 2] ^= 1
        (tmp_path / "x.pt").write_bytes(data)
        assert peak_growth(lambda: refused_checkpoint(tmp_path / "x.pt")) < megabytes / 4

    assert end_of(start(look)) == 0


# --- tokenizers and token files ---------------------------------------------------------------------------------------


def test_hostile_tokenizers_are_refused(texts, tmp_path, capfd):
    for name, text in texts.items():
        (tmp_path / "t.json").write_bytes(text.encode(errors="surrogatepass"))
        with pytest.raises(UserError) as refused:
            load_tokenizer(tmp_path / "t.json")
        assert "\n" not in str(refused.value) and "t.json" in str(refused.value) and len(str(refused.value)) < 500, name
    assert capfd.readouterr().err == ""  # no panic of the library
    (tmp_path / "t.json").write_bytes(b" " * 13_000_000)
    with pytest.raises(UserError, match="too large"):
        load_tokenizer(tmp_path / "t.json")


def test_the_library_alone_would_crash_or_accept(texts):
    """The control. The prefix aborts the process: in this version of the library, at least it ends in some error."""
    import tokenizers

    def aborts():
        tokenizers.Tokenizer.from_str(texts["a prefix for continuing words"])

    assert end_of(start(aborts, errors=Path(os.devnull))) != 0
    for name in (
        "a normalizer that grows",
        "a pattern without end",
        "an id twice",
        "a byte missing",
    ):
        tokenizers.Tokenizer.from_str(texts[name])


@runs(600, 5000)
def test_no_damaged_tokenizer_passes_under_the_hash_of_the_good_one(tmp_path, capfd, number):
    """Some damages make another valid tokenizer. Its hash is another one, which all that depends on it compares."""
    rng, refused, others = random.Random(number), 0, 0
    goods = [make_character_tokenizer("abc\n def é日").to_str(pretty=True)]
    goods += [train_bpe_tokenizer(["ab ab ab abc def def"] * 3, 262).to_str(pretty=True)]
    sums = {Tokenizer(good).sha256 for good in goods}
    for i in range(number):
        good = goods[i % 2].encode()
        bad = damaged(good, goods[1 - i % 2].encode(), rng)
        (tmp_path / "t.json").write_bytes(bad)
        try:
            tokenizer = load_tokenizer(tmp_path / "t.json")
            assert bad in (good, goods[1 - i % 2].encode()) or tokenizer.sha256 not in sums
            others += bad != good
            tokenizer.decode(range(tokenizer.vocab_size))
        except UserError as error:
            assert "\n" not in str(error)
            refused += 1
    assert refused > 0.7 * number
    assert capfd.readouterr().err == ""
    assert others < 0.3 * number


@runs(100, 1000)
def test_no_damaged_token_file_is_used(trained, tmp_path, number):
    data, rng = trained.train_file.read_bytes(), random.Random(number)
    about = trained.train_file.with_name("train.bin.json").read_bytes()
    for i in range(number):
        for name, good in (("train.bin", data), ("train.bin.json", about)):
            harmed = bool(i % 2) == (name == "train.bin")
            (tmp_path / name).write_bytes(damaged(good, good[::-1], rng) if harmed else good)
        if (tmp_path / "train.bin").read_bytes() == data:
            continue  # a description with another word for the source is one that is not checked
        with pytest.raises(UserError, match=r"train\.bin"):
            open_tokens(tmp_path / "train.bin")


def test_without_the_checksum_a_changed_token_would_be_trained_on(trained, tmp_path):
    """The control: length and description are as they were."""
    for path in trained.train_file.parent.glob("train.bin*"):
        shutil.copy(path, tmp_path)
    data = bytearray((tmp_path / "train.bin").read_bytes())
    data[100] ^= 1
    (tmp_path / "train.bin").write_bytes(data)
    assert len(data) == 2 * json.loads((tmp_path / "train.bin.json").read_text())["tokens"]
    with pytest.raises(UserError, match="train.bin is damaged"):
        train.main(replace(trained, train_file=tmp_path / "train.bin"), fresh=False)


def test_ids_beyond_the_vocabulary_are_refused(trained, tmp_path):
    for path in trained.train_file.parent.glob("train.bin*"):
        shutil.copy(path, tmp_path)
    tokens = np.fromfile(tmp_path / "train.bin", "<u2")
    tokens[3] = 60_000
    tokens.tofile(tmp_path / "train.bin")
    about = json.loads((tmp_path / "train.bin.json").read_text())
    about["sha256"] = hashlib.sha256(tokens.tobytes()).hexdigest()
    (tmp_path / "train.bin.json").write_text(json.dumps(about))
    with pytest.raises(UserError, match="train.bin is damaged"):
        open_tokens(tmp_path / "train.bin")


# --- round trips ------------------------------------------------------------------------------------------------------


def random_text(rng: random.Random) -> str:
    """Any text that UTF-8 can say, in pieces that stand next to each other in all orders."""
    pieces = ["<|endoftext|>", "<|unk|>", "\n", "\r\n", "\r", "\0", "\ufeff", "  ", "\t", "def ", "'s", "é", "日", "🐍"]
    ranges = [(0, 0x80), (0x80, 0x800), (0x800, 0xD800), (0xE000, 0x10000), (0x10000, 0x110000)]
    text = []
    for _ in range(rng.randrange(30)):
        text.append(rng.choice(pieces) if rng.random() < 0.4 else chr(rng.randrange(*rng.choice(ranges))))
    return "".join(text)


@runs(3000, 50_000)
def test_any_text_comes_back(number):
    rng = random.Random(number)
    bpe = Tokenizer(train_bpe_tokenizer([random_text(rng) for _ in range(200)], 500).to_str())
    texts = [random_text(rng) for _ in range(number)]
    for text, ids in zip(texts, map(bpe.encode, texts), strict=True):
        assert bpe.decode(ids) == text
        assert bpe.end_of_text_id not in ids
    known = min(number // 2, 2000)  # more have more different characters than a token file can count
    char = Tokenizer(make_character_tokenizer("".join(texts[:known])).to_str())
    for i, (text, ids) in enumerate(zip(texts, map(char.encode, texts), strict=True)):
        seen = "".join(c if char.library.token_to_id(c) is not None else "<|unk|>" for c in text)
        assert char.decode(ids) == seen
        assert i >= known or seen == text
        assert char.end_of_text_id not in ids
        assert len(char.unknown(text, ids)) == sum(char.library.token_to_id(c) is None for c in text)


def test_a_batch_that_finds_special_tokens_in_text_is_noticed():
    """The control: the library, as its file comes, does."""
    bpe = Tokenizer(train_bpe_tokenizer(["a b c"], 260).to_str())
    bpe.library.encode_special_tokens = False
    rng = random.Random(1)
    assert any(0 in bpe.encode(random_text(rng)) for _ in range(100))
