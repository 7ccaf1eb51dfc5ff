"""Archives and pickles put together by hand: bombs, overlaps, and claims of memory that is not there."""

from __future__ import annotations

import copy
import io
import pickle
import struct
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.serialization import MAGIC_NUMBER, PROTOCOL_VERSION

from tests.models.bad_files import Bad, Executes, good_state, touch

MEGABYTE = 1 << 20


class Claim:
    """Stands for a storage of some number of float32 in a pickle."""

    def __init__(self, numel: int) -> None:
        self.numel = numel


def claiming_tensor(numel: int, size: tuple[int, ...], stride: tuple[int, ...], offset: int = 0) -> Executes:
    """Return what unpickles to a tensor of that size on a storage of that many elements."""
    hooks: OrderedDict[str, Any] = OrderedDict()
    return Executes(torch._utils._rebuild_tensor_v2, Claim(numel), offset, size, stride, False, hooks)


class _Pickler(pickle.Pickler):
    legacy = False

    def persistent_id(self, obj: Any) -> Any:
        if not isinstance(obj, Claim):
            return None
        return ("storage", torch.FloatStorage, "0", "cpu", obj.numel, *([None] if self.legacy else []))


def pickled(content: object, *, legacy: bool = False) -> bytes:
    buffer = io.BytesIO()
    pickler = _Pickler(buffer, protocol=2)
    pickler.legacy = legacy
    pickler.dump(content)
    return buffer.getvalue()


def archive(data: bytes, storage: bytes = bytes(16), name: str = "archive/") -> dict[str, bytes]:
    """Return the records of an archive as torch writes them."""
    return {f"{name}data.pkl": data, f"{name}byteorder": b"little", f"{name}data/0": storage, f"{name}version": b"3\n"}


def zipped(records: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        with zipfile.ZipFile(folder / "bad.pth", "w", compression) as file:
            for name, content in records.items():
                file.writestr(name, content)
        return folder / "bad.pth"

    return make


def legacy(content: object, storage: bytes = bytes(16)) -> Callable[[Path], Path]:
    """Make a file as torch wrote them before it used archives."""

    def make(folder: Path) -> Path:
        system = {"protocol_version": PROTOCOL_VERSION, "little_endian": True, "type_sizes": {}}
        head = b"".join(pickle.dumps(part, protocol=2) for part in (MAGIC_NUMBER, PROTOCOL_VERSION, system))
        keys = pickle.dumps(["0"], protocol=2)
        data = struct.pack("<q", len(storage) // 4) + storage
        (folder / "bad.pth").write_bytes(head + pickled(content, legacy=True) + keys + data)
        return folder / "bad.pth"

    return make


def bomb(record: str) -> Callable[[Path], Path]:
    """Make an archive of some kilobytes with a record of 600 MB of zeros."""

    def make(folder: Path) -> Path:
        records = archive(pickled({"w": claiming_tensor(150 * MEGABYTE, (150 * MEGABYTE,), (1,))}))
        with zipfile.ZipFile(folder / "bad.pth", "w", zipfile.ZIP_DEFLATED, compresslevel=1) as file:
            for name, content in records.items():
                with file.open(name, "w") as stream:
                    if name == f"archive/{record}":
                        for _ in range(600):
                            stream.write(bytes(MEGABYTE))
                    else:
                        stream.write(content)
        return folder / "bad.pth"

    return make


def overlapping(folder: Path) -> Path:
    """Make an archive of 2 MB in which 1000 names stand for the same megabyte."""
    with zipfile.ZipFile(folder / "bad.pth", "w") as file:
        for name, content in archive(pickled({"w": claiming_tensor(4, (4,), (1,))}), bytes(MEGABYTE)).items():
            file.writestr(name, content)
        original = file.getinfo("archive/data/0")
        for i in range(1, 1000):
            other = copy.copy(original)
            other.filename = f"archive/data/{i}"
            file.filelist.append(other)
    return folder / "bad.pth"


def crowded(folder: Path) -> Path:
    """Make an archive of half a million empty records."""
    with zipfile.ZipFile(folder / "bad.pth", "w") as file:
        file.writestr("archive/data.pkl", pickled({}))
        original = file.getinfo("archive/data.pkl")
        for i in range(500_000):
            other = copy.copy(original)
            other.filename = f"a/{i}"
            file.filelist.append(other)
    return folder / "bad.pth"


def encrypted(folder: Path) -> Path:
    path = zipped(archive(pickled({"w": claiming_tensor(4, (4,), (1,))})))(folder)
    content = bytearray(path.read_bytes())
    for signature, position in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        start = content.find(signature)
        while start >= 0:
            content[start + position] |= 1
            start = content.find(signature, start + 4)
    path.write_bytes(content)
    return path


def script(folder: Path) -> Path:
    """Make a TorchScript program, whose loading would run its code."""
    names = ("constants.pkl", "code/__torch__.py", "code/__torch__.py.debug_pkl")
    records = {**archive(pickled({})), **{f"archive/{name}": b"" for name in names}}
    return zipped(records)(folder)


def code_in_archive(folder: Path) -> Path:
    return zipped(archive(pickled({"w": touch(folder)})))(folder)


def one(*arguments: Any, **options: Any) -> dict[str, Any]:
    return {"w": claiming_tensor(*arguments, **options)}


def head(size: tuple[int, int], stride: tuple[int, int]) -> dict[str, Any]:
    """Return weights in which all is well but for the head: all of them lie on one storage of `NUMBERS` zeros."""
    body: dict[str, Any] = {
        key: claiming_tensor(NUMBERS, tuple(tensor.shape), tensor.stride()) for key, tensor in good_state().items()
    }
    return {**body, "head.weight": claiming_tensor(NUMBERS, size, stride)}


NUMBERS = 100_000
DEEP = 200_000
DEEP_LIST = b"\x80\x02" + b"]" * DEEP + b"a" * (DEEP - 1) + b"."
DEEP_DICT = b"\x80\x02" + b"}X\x05\x00\x00\x00model" * DEEP + b"}" + b"s" * DEEP + b"."

ARCHIVES = [
    Bad("code in hand-made archive", code_in_archive, "would execute code"),
    Bad("script", script, "TorchScript"),
    Bad("archive of text", zipped({"readme.txt": b"hello"}), "not a readable checkpoint"),
    Bad("archive without pickle", zipped({"archive/version": b"3\n"}), "not a readable checkpoint"),
    Bad(
        "archive without storage",
        zipped({"archive/data.pkl": pickled(one(4, (4,), (1,)))}),
        "not a readable checkpoint",
    ),
    Bad("compressed", zipped(archive(pickled(one(4, (4,), (1,)))), zipfile.ZIP_DEFLATED), "uncompressed"),
    Bad("bomb of weights", bomb("data/0"), "is an archive whose 4 records unpack to"),
    Bad("bomb of pickle", bomb("data.pkl"), "is an archive whose 4 records unpack to"),
    Bad("overlapping records", overlapping, "is an archive whose 1003 records unpack to"),
    Bad("half a million records", crowded, "is an archive"),
    Bad("encrypted", encrypted, "bad.pth"),
    Bad("path upwards", zipped(archive(pickled({}), name="../../")), "bad.pth"),
    Bad("absolute path", zipped(archive(pickled({}), name="/executed/")), "bad.pth"),
    Bad("deep list", zipped(archive(DEEP_LIST)), "holds no state dict"),
    Bad("deep dict", zipped(archive(DEEP_DICT)), "holds no state dict"),
    Bad("unfinished pickle", zipped(archive(b"\x80\x02}X\xff\xff\xff\x7fw")), "not a readable checkpoint"),
    Bad("memo that is not there", zipped(archive(b"\x80\x02h\x07.")), "not a readable checkpoint"),
    Bad("storage of 2**60", zipped(archive(pickled(one(2**60, (4,), (1,))))), "bad.pth"),
    Bad("storage of 2**33", zipped(archive(pickled(one(2**33, (2**33,), (1,))))), "bad.pth"),
    Bad("tensor beyond its storage", zipped(archive(pickled(one(4, (2**33,), (1,))))), "bad.pth"),
    Bad("offset beyond the storage", zipped(archive(pickled(one(4, (4,), (1,), offset=10**15)))), "bad.pth"),
    Bad("negative size", zipped(archive(pickled(one(4, (-4,), (1,))))), "not a readable checkpoint"),
    Bad("size that overflows", zipped(archive(pickled(one(4, (2**40, 2**40), (0, 0))))), "bad.pth"),
    Bad("legacy storage of 2**60", legacy(one(2**60, (4,), (1,))), "bad.pth"),
    Bad("legacy storage of 2**33", legacy(one(2**33, (2**33,), (1,))), "bad.pth"),
    Bad("legacy tensor beyond its storage", legacy(one(4, (2**33,), (1,))), "bad.pth"),
    Bad("legacy offset beyond the storage", legacy(one(4, (4,), (1,), offset=10**15)), "bad.pth"),
    Bad("legacy expanded", legacy(head((10**8, 64), (0, 0)), bytes(4 * NUMBERS)), "claims shape (100000000, 64)"),
    Bad("legacy growing head", legacy(head((4 * 10**7, 64), (64, 1)), bytes(4 * NUMBERS)), "bad.pth"),
    Bad("growing head", zipped(archive(pickled(head((4 * 10**7, 64), (64, 1))), bytes(4 * NUMBERS))), "bad.pth"),
    Bad("legacy code", legacy({"w": Executes(eval, "1 + 1")}), "would execute code (eval)"),
    Bad("legacy module", legacy(nn.Identity()), "would execute code"),
]
