"""The .pt files of this project: written whole or not at all, and read without running anything that stands in them.

A .pt file of torch.save is a zip archive:

    archive/data.pkl    the content, as a pickle: not data, but a program for a small stack machine, which makes it
    archive/data/0      the numbers of a tensor, or of several that are views of one long vector; archive/data/1, ...

A pickle can call any function of Python, so whoever opens a stranger's file with Python's own unpickler lets a stranger
run code. torch.load(..., weights_only=True) knows fewer operations, but allocates what the file asks for and compares
no checksums. So here is the whole machine, with only those operations that torch.save needs for tensors and plain
values; anything else ends the reading. Sizes are compared with the file's before memory is taken.

Behind the archive, as its comment, stands the SHA-256 of all before it: no changed bit goes unnoticed, wherever it is.
(It tells damage, not forgery: who forges a file can compute it too.)

    >>> save(path, {"step": 250, "weights": {"norm": torch.ones(3)}})
    >>> load(path)
    {'step': 250, 'weights': {'norm': tensor([1., 1., 1.])}}
"""

import hashlib
import os
import pickletools
import zipfile
from collections.abc import Callable
from math import prod
from pathlib import Path

import torch
from torch import Tensor

from plumbing.files import CHUNK, whole_file
from plumbing.text import shown_path

DTYPES = {"torch FloatStorage": torch.float32, "torch ByteStorage": torch.uint8}
TENSOR, ORDERED = "torch._utils _rebuild_tensor_v2", "collections OrderedDict"

# Far above what a model of a thousand layers or a tokenizer of 65,536 ids needs, and far below what a laptop has.
MAX_PROGRAM = 12_000_000  # bytes of data.pkl
MAX_OPERATIONS = 400_000  # each makes at most a small object
MAX_MEMBERS = 20_000  # of the archive

END = b"PK\5\6"  # the zip format's end record: 22 bytes, the last two of which count those of the comment behind them
DIGEST = 64  # characters


# --- writing ----------------------------------------------------------------------------------------------------------


class Hashed:
    """A file for torch.save to write to, which keeps the SHA-256 of what was written."""

    def __init__(self, file):
        self.file, self.flush, self.hash = file, file.flush, hashlib.sha256()

    def write(self, data) -> int:
        self.hash.update(data)
        return self.file.write(data)


def save(path: Path, content: dict) -> None:
    """Write a dict of tensors and plain values. Raises OSError where the disk does not take it."""
    with whole_file(path) as file:
        hashed = Hashed(file)
        try:
            torch.save(content, hashed)
        except RuntimeError as error:  # torch trips over the file that it could not write, and says nothing of the disk
            cause = error.__context__
            raise cause if isinstance(cause, OSError) else OSError(f"{shown_path(path)}: {error}") from None
        file.seek(-2, os.SEEK_END)
        file.write(DIGEST.to_bytes(2, "little") + hashed.hash.hexdigest().encode())


# --- reading ----------------------------------------------------------------------------------------------------------


def load(path: Path) -> dict:
    """Read what `save` wrote, onto the CPU. Raises ValueError with a reason for anything else."""
    try:
        with open(path, "rb") as file:
            check_digest(file)
            with zipfile.ZipFile(file) as archive:
                return Content(archive).read()
    except Exception as error:  # a truncated or foreign file raises whatever its first wrong byte leads to
        raise ValueError(str(error).split("\n")[0][:300] or type(error).__name__) from None


def check_digest(file) -> None:
    """Compare the file with the SHA-256 at its end. Raises ValueError."""
    size = file.seek(0, os.SEEK_END)
    file.seek(max(0, size - DIGEST - 22))
    end = file.read()
    file.seek(0)
    if file.read(4) != b"PK\3\4":
        raise ValueError("not a file of torch.save")
    if end[:4] != END or int.from_bytes(end[20:22], "little") != DIGEST:
        raise ValueError("cut short, or not written by this project")
    file.seek(0)
    digest, members, left = hashlib.sha256(), 0, size - DIGEST - 2
    while chunk := file.read(min(CHUNK, left)):
        digest.update(chunk)
        members += chunk.count(b"PK\1\2")  # each of which Python's zipfile turns into an object
        left -= len(chunk)
    digest.update(bytes(2))  # the comment was empty when it was computed
    if digest.hexdigest().encode() != end[22:]:
        raise ValueError("damaged: its bytes do not have the checksum at its end")
    if members > MAX_MEMBERS:
        raise ValueError(f"{members:,} parts are too many")


class Content:
    """The content of an archive, its tensors read when the program comes to them."""

    def __init__(self, archive: zipfile.ZipFile):
        self.archive, self.members, self.storages = archive, {}, {}
        for member in archive.infolist():
            if member.compress_type != zipfile.ZIP_STORED or member.file_size != member.compress_size:
                raise ValueError(f"{member.filename!r} is compressed")
            self.members[member.filename.partition("/")[2]] = member
        size = sum(member.file_size for member in self.members.values())
        if len(self.members) < len(archive.infolist()) or size > archive.start_dir:
            raise ValueError("its parts overlap")
        if self.archive.read(self.members["byteorder"].filename) != b"little":
            raise ValueError("its numbers are not little-endian")

    def read(self) -> dict:
        member = self.members["data.pkl"]
        if member.file_size > MAX_PROGRAM:
            raise ValueError(f"data.pkl has {member.file_size:,} bytes, too many")
        return execute(self.archive.read(member), self.storage, tensor_of)

    def storage(self, pid: tuple) -> Tensor:
        """The numbers named by a persistent id ("storage", type, key, device, number): one long vector."""
        _, kind, key, _, number = pid
        if not (isinstance(kind, str) and isinstance(key, str) and isinstance(number, int)):
            raise ValueError("it names numbers in a way that torch.save does not")
        dtype, member = DTYPES[kind], self.members[f"data/{key}"]
        if member.file_size != number * dtype.itemsize:
            raise ValueError(f"{number:,} numbers are said to be in {member.file_size:,} bytes")
        if key not in self.storages:  # zipfile compares the CRC-32
            self.storages[key] = torch.frombuffer(bytearray(self.archive.read(member)), dtype=dtype)
        return self.storages[key]


def tensor_of(storage: Tensor, offset: int, size: tuple, stride: tuple, *_) -> Tensor:
    """A tensor of this size, as a view of the vector `storage` from `offset` on."""
    if len(size) > 4 or not all(type(number) is int for number in (offset, *size, *stride)):
        raise ValueError("a tensor has a size that is no number")
    if offset < 0 or min(size, default=1) < 1 or offset + prod(size) > len(storage):
        raise ValueError(f"a tensor of the size {size} does not fit into {len(storage):,} numbers")
    tensor = storage[offset : offset + prod(size)].view(size)
    if tensor.stride() != stride:
        raise ValueError("a tensor whose numbers do not lie one behind the other")
    return tensor


def execute(program: bytes, storage: Callable, tensor: Callable) -> object:
    """Run a pickle on a machine that can make dicts, lists, tuples, numbers, text, and tensors; nothing else.

    storage(persistent id) and tensor(storage, offset, size, stride, ...) are called where the program asks for one.
    The operations are described in Python's module pickletools.
    """
    stack, marks, memo = [], [], {}

    def since_mark() -> list:
        start = marks.pop()
        items = stack[start:]
        del stack[start:]
        return items

    for count, (operation, argument, _) in enumerate(pickletools.genops(program)):
        name = operation.name
        if count == MAX_OPERATIONS:
            raise ValueError(f"more than {count:,} operations")
        match name:
            case "PROTO":
                pass
            case "STOP":
                return stack.pop()
            case "BINUNICODE" | "BININT" | "BININT1" | "BININT2" | "LONG1" | "BINFLOAT":
                stack.append(argument)
            case "NONE" | "NEWTRUE" | "NEWFALSE":
                stack.append({"NONE": None, "NEWTRUE": True, "NEWFALSE": False}[name])
            case "EMPTY_DICT" | "EMPTY_LIST" | "EMPTY_TUPLE":
                stack.append({"EMPTY_DICT": dict, "EMPTY_LIST": list, "EMPTY_TUPLE": tuple}[name]())
            case "BINPUT" | "LONG_BINPUT":
                memo[argument] = stack[-1]
            case "BINGET" | "LONG_BINGET":
                if not isinstance(memo[argument], str):  # a list of twice a list of twice a list ... has no end
                    raise ValueError("it uses something twice that is neither a text nor a name")
                stack.append(memo[argument])
            case "MARK":
                marks.append(len(stack))
            case "TUPLE":
                stack.append(tuple(since_mark()))
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                items = [stack.pop() for _ in range(int(name[-1]))]
                stack.append(tuple(reversed(items)))
            case "APPEND" | "APPENDS":
                items = since_mark() if name == "APPENDS" else [stack.pop()]
                stack[-1] += items
            case "SETITEM" | "SETITEMS":
                items = since_mark() if name == "SETITEMS" else [stack.pop(-2), stack.pop()]
                if not all(isinstance(key, str) for key in items[::2]):
                    raise ValueError("a dict has a key that is no text")
                stack[-1].update(zip(items[::2], items[1::2], strict=True))
            case "GLOBAL":
                if argument not in (*DTYPES, TENSOR, ORDERED):
                    raise ValueError(f"it asks for {argument!r}, which is neither a tensor nor a plain value")
                stack.append(argument)
            case "BINPERSID":
                stack.append(storage(stack.pop()))
            case "REDUCE":  # call a function
                arguments, function = stack.pop(), stack.pop()
                if function == ORDERED and arguments == ():
                    stack.append({})
                elif function == TENSOR:
                    stack.append(tensor(*arguments))
                else:
                    raise ValueError("it calls what is no function")
            case "BUILD":  # an attribute that torch gives to a state_dict; nothing here needs it
                stack.pop()
            case _:
                raise ValueError(f"it has the operation {name}, which no tensor or plain value needs")
    raise ValueError("its program has no end")
