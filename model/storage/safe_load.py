"""Save and load .pt files: written completely or not at all, and read without running any code they contain.

A .pt file of torch.save is a zip archive:

    archive/data.pkl    the content as a pickle, which is a program for a small stack machine
    archive/data/0      the numbers of a tensor, or of several tensors that share them; archive/data/1, ...

A pickle can call any Python function, so whoever opens a stranger's file with Python's unpickler runs the stranger's
code. torch.load(..., weights_only=True) allows fewer operations, but allocates whatever the file asks for and verifies
no checksums. The unpickler here has only the operations that torch.save needs for tensors and plain values, refuses
everything else, and compares sizes with the file's size before it allocates memory.

The archive's comment, at the end of the file, is the SHA-256 of everything before it, so a flipped bit is noticed
wherever it is. (This detects damage, not forgery: whoever forges a file can compute the checksum too.)

    >>> save(path, {"step": 250, "weights": {"norm": torch.ones(3)}})
    >>> load(path)
    {'step': 250, 'weights': {'norm': tensor([1., 1., 1.])}}
"""

import errno
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
from plumbing.inputs import state_of
from plumbing.text import shown_path

# The only names that a pickle may ask for.
DTYPES = {"torch FloatStorage": torch.float32, "torch ByteStorage": torch.uint8}
REBUILD_TENSOR, ORDERED_DICT = "torch._utils _rebuild_tensor_v2", "collections OrderedDict"

# Far above what a model of a thousand layers or a tokenizer of 65,536 ids needs, far below what a laptop can hold.
MAX_PROGRAM = 12_000_000  # bytes of data.pkl
MAX_OPERATIONS = 400_000  # each makes at most one small object
MAX_MEMBERS = 20_000  # of the archive

# Errors of opening a file that may be sound: no permission, too many open files, no memory.
NOT_THE_FILES_FAULT = (errno.EACCES, errno.EPERM, errno.EMFILE, errno.ENFILE, errno.ENOMEM)
END_RECORD = b"PK\5\6"  # ends a zip archive: 22 bytes, the last two are the length of the comment after them
DIGEST_SIZE = 64  # characters


class HashingFile:
    """A file for torch.save to write to that computes the SHA-256 of what is written."""

    def __init__(self, file):
        self.file, self.flush, self.hash = file, file.flush, hashlib.sha256()

    def write(self, data) -> int:
        self.hash.update(data)
        return self.file.write(data)


def save(path: Path, content: dict, check: Callable[[Path], object] | None = None) -> None:
    """Write a dict of tensors and plain values; for `check`, see whole_file(). Raises OSError if the disk refuses."""
    with whole_file(path, check=check) as file:
        hashing = HashingFile(file)
        try:
            torch.save(content, hashing)
        except RuntimeError as error:  # torch fails on the half-written file and hides the disk's own error
            cause = error.__context__
            raise cause if isinstance(cause, OSError) else OSError(f"{shown_path(path)}: {error}") from None
        file.seek(-2, os.SEEK_END)
        file.write(DIGEST_SIZE.to_bytes(2, "little") + hashing.hash.hexdigest().encode())


def load(path: Path) -> dict:
    """Read what `save` wrote, onto the CPU. Raises ValueError with a reason for any other file; OSError or MemoryError
    where it is not the file that is wrong."""
    try:
        if path.exists() and not path.is_file():
            raise ValueError("it is not a file")  # but a folder, or a pipe, which would never end
        with open(path, "rb") as file:
            before = state_of(file)
            check_digest(file)
            with zipfile.ZipFile(file) as archive:
                content = Archive(archive).content()
            if state_of(file) != before:
                raise ValueError("it was changed while it was read")
            return content
    except Exception as error:  # a damaged or foreign file can raise anything
        if isinstance(error, MemoryError) or getattr(error, "errno", None) in NOT_THE_FILES_FAULT:
            raise
        raise ValueError(str(error).split("\n")[0][:300] or type(error).__name__) from None


def check_digest(file) -> None:
    """Compare the file with the SHA-256 at its end. Raises ValueError."""
    size = file.seek(0, os.SEEK_END)
    file.seek(max(0, size - DIGEST_SIZE - 22))
    end = file.read()
    file.seek(0)
    if file.read(4) != b"PK\3\4":
        raise ValueError("it was not written by torch.save")
    if end[:4] != END_RECORD or int.from_bytes(end[20:22], "little") != DIGEST_SIZE:
        raise ValueError("it is cut short, or was not written by this project")
    file.seek(0)
    digest, members, left = hashlib.sha256(), 0, size - DIGEST_SIZE - 2
    while chunk := file.read(min(CHUNK, left)):
        digest.update(chunk)
        members += chunk.count(b"PK\1\2")  # Python's zipfile makes an object for each
        left -= len(chunk)
    digest.update(bytes(2))  # the comment was empty when the digest was computed
    if digest.hexdigest().encode() != end[22:]:
        raise ValueError("it is damaged: its bytes do not match the checksum at its end")
    if members > MAX_MEMBERS:
        raise ValueError(f"its archive has {members:,} members, too many")


class Archive:
    """A checked zip archive of torch.save, which reads the numbers of a tensor when the pickle asks for them."""

    def __init__(self, archive: zipfile.ZipFile):
        self.archive, self.members, self.storages = archive, {}, {}
        for member in archive.infolist():
            if member.compress_type != zipfile.ZIP_STORED or member.file_size != member.compress_size:
                raise ValueError(f"{member.filename!r} is compressed")
            self.members[member.filename.partition("/")[2]] = member
        size = sum(member.file_size for member in self.members.values())
        if len(self.members) < len(archive.infolist()) or size > archive.start_dir:
            raise ValueError("the members of its archive overlap")
        if archive.read(self.members["byteorder"].filename) != b"little":
            raise ValueError("its numbers are not little-endian")

    def content(self) -> dict:
        program = self.members["data.pkl"]
        if program.file_size > MAX_PROGRAM:
            raise ValueError(f"data.pkl has {program.file_size:,} bytes, too many")
        return Unpickler(self.storage).run(self.archive.read(program))

    def storage(self, persistent_id: tuple) -> Tensor:
        """The numbers that ("storage", type, key, device, count) names, as one vector."""
        _, dtype_name, key, _, count = persistent_id
        if not (isinstance(dtype_name, str) and isinstance(key, str) and isinstance(count, int)):
            raise ValueError("it refers to numbers in a way that torch.save does not")
        dtype, member = DTYPES[dtype_name], self.members[f"data/{key}"]
        if member.file_size != count * dtype.itemsize:
            raise ValueError(f"it claims {count:,} numbers in {member.file_size:,} bytes")
        if key not in self.storages:  # zipfile verifies the CRC-32
            self.storages[key] = torch.frombuffer(bytearray(self.archive.read(member)), dtype=dtype)
        return self.storages[key]


def tensor_view(storage: Tensor, offset: int, size: tuple, stride: tuple, *_) -> Tensor:
    """A contiguous tensor of this size as a view of the vector `storage` from `offset` on. Raises ValueError."""
    if len(size) > 4 or not all(type(number) is int for number in (offset, *size, *stride)):
        raise ValueError("the size of a tensor is not made of whole numbers")
    if offset < 0 or min(size, default=1) < 1 or offset + prod(size) > len(storage):
        raise ValueError(f"a tensor of size {size} does not fit into {len(storage):,} numbers")
    tensor = storage[offset : offset + prod(size)].view(size)
    if tensor.stride() != stride:
        raise ValueError("a tensor is not contiguous")
    return tensor


class Unpickler:
    """A stack machine for pickles that can make dicts, lists, tuples, numbers, text, and tensors; nothing else. It
    calls `storage` with the persistent id of each tensor's numbers. Python's module pickletools describes the
    operations. A wrong program raises ValueError with a reason, or the error of the Python operation that fails."""

    def __init__(self, storage: Callable[[tuple], Tensor]):
        self.storage = storage
        self.stack: list = []
        self.marks: list[int] = []  # lengths of the stack at the MARK operations that are still open
        self.memo: dict[int, object] = {}

    def run(self, program: bytes) -> object:
        for count, (operation, argument, _) in enumerate(pickletools.genops(program)):
            if count == MAX_OPERATIONS:
                raise ValueError(f"its pickle has more than {count:,} operations")
            if operation.name == "STOP":
                return self.stack.pop()
            self.execute(operation.name, argument)
        raise ValueError("its pickle has no end")

    def execute(self, operation: str, argument: object) -> None:
        match operation:
            case "PROTO":  # the version of the pickle format
                pass
            case "BINUNICODE" | "BININT" | "BININT1" | "BININT2" | "LONG1" | "BINFLOAT":
                self.stack.append(argument)
            case "NONE" | "NEWTRUE" | "NEWFALSE":
                self.stack.append({"NONE": None, "NEWTRUE": True, "NEWFALSE": False}[operation])
            case "EMPTY_DICT" | "EMPTY_LIST" | "EMPTY_TUPLE":
                self.stack.append({"EMPTY_DICT": dict, "EMPTY_LIST": list, "EMPTY_TUPLE": tuple}[operation]())
            case "BINPUT" | "LONG_BINPUT":
                self.memo[argument] = self.stack[-1]
            case "BINGET" | "LONG_BINGET":  # of the same list twice, nested, lists would grow without end
                if not isinstance(self.memo[argument], str):
                    raise ValueError("it uses an object twice that is neither a text nor a name")
                self.stack.append(self.memo[argument])
            case "MARK":
                self.marks.append(len(self.stack))
            case "TUPLE":
                self.stack.append(tuple(self.pop_to_mark()))
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                self.stack.append(tuple(self.pop(int(operation[-1]))))
            case "APPEND" | "APPENDS":
                items = self.pop(1) if operation == "APPEND" else self.pop_to_mark()
                self.stack[-1].extend(items)
            case "SETITEM" | "SETITEMS":
                items = self.pop(2) if operation == "SETITEM" else self.pop_to_mark()
                if not all(isinstance(key, str) for key in items[::2]):
                    raise ValueError("a dict has a key that is not text")
                self.stack[-1].update(zip(items[::2], items[1::2], strict=True))
            case "GLOBAL":
                if argument not in (*DTYPES, REBUILD_TENSOR, ORDERED_DICT):
                    raise ValueError(f"it asks for {argument!r}, which is neither a tensor nor a plain value")
                self.stack.append(argument)
            case "BINPERSID":
                self.stack.append(self.storage(self.stack.pop()))
            case "REDUCE":  # a call; these are the only two functions that a pickle may call
                function, arguments = self.pop(2)
                if function == ORDERED_DICT and arguments == ():
                    self.stack.append({})
                elif function == REBUILD_TENSOR:
                    self.stack.append(tensor_view(*arguments))
                else:
                    raise ValueError("it calls something that is not an allowed function")
            case "BUILD":  # sets an attribute that torch gives to a state_dict; nothing here needs it
                self.stack.pop()
            case _:
                raise ValueError(f"it has the operation {operation}, which no tensor or plain value needs")

    def pop(self, count: int) -> list:
        """Take the top items off the stack, in the order they were pushed."""
        return [self.stack.pop() for _ in range(count)][::-1]

    def pop_to_mark(self) -> list:
        """Take all items pushed since the last MARK off the stack, in the order they were pushed."""
        start = self.marks.pop()
        items = self.stack[start:]
        del self.stack[start:]
        return items
