"""Files that are no weights: pickles with code, archives that lie, other formats. Each is made by a function of a folder."""

from __future__ import annotations

import argparse
import io
import os
import pickle
import tarfile
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from PIL import Image
from safetensors.torch import save
from torch import Tensor, nn

from convnext_deploy.artifacts.spec import ModelSpec
from tests.models.conftest import random_state

MARKER = "executed"  # the file that code in a pickle would make
SPEC = ModelSpec("test_convnext", 10)
KEY = "stages.1.1.pwconv2.weight"


@dataclass(frozen=True)
class Bad:
    """A bad file: what makes it in a folder, and a part of the line that refuses it."""

    name: str
    make: Callable[[Path], Path]
    says: str


@cache
def good_state() -> dict[str, Tensor]:
    """Return weights with which nothing is wrong; do not change them."""
    return random_state(SPEC)


def raw(content: bytes, name: str = "bad.pth") -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        (folder / name).write_bytes(content)
        return folder / name

    return make


class Executes:
    """Unpickling it calls a function."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.function, self.arguments = function, arguments

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return self.function, self.arguments


class OwnDict(OrderedDict[str, Tensor]):
    """A class that nobody else has."""


def touch(folder: Path) -> Executes:
    return Executes(Path.touch, folder / MARKER)


def code(folder: Path) -> str:
    return f"__import__('pathlib').Path({str(folder / MARKER)!r}).touch()"


def torch_save(content: Callable[[Path], object], *, legacy: bool = False) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        torch.save(content(folder), folder / "bad.pth", _use_new_zipfile_serialization=not legacy)
        return folder / "bad.pth"

    return make


def tensor_with_code(folder: Path) -> Tensor:
    tensor = torch.ones(2)
    tensor.note = touch(folder)  # type: ignore[attr-defined]
    return tensor


def plain_pickle(folder: Path) -> Path:
    (folder / "bad.pth").write_bytes(pickle.dumps(touch(folder), protocol=2))
    return folder / "bad.pth"


EXECUTING = [
    Bad("os.system", torch_save(lambda f: {"w": Executes(os.system, f"touch '{f / MARKER}'")}), "would execute code"),
    Bad("eval", torch_save(lambda f: {"w": Executes(eval, code(f))}), "would execute code"),
    Bad("exec", torch_save(lambda f: [Executes(exec, code(f))]), "would execute code"),
    Bad("method", torch_save(lambda f: {**good_state(), "w": touch(f)}), "would execute code"),
    Bad("code in legacy", torch_save(lambda f: {"model": touch(f)}, legacy=True), "would execute code"),
    Bad("code nested", torch_save(lambda f: {"state_dict": {**good_state(), "x": touch(f)}}), "would execute code"),
    Bad("code beside", torch_save(lambda f: {"model": good_state(), "hook": touch(f)}), "would execute code"),
    Bad("code in namespace", torch_save(lambda f: {"args": argparse.Namespace(x=touch(f))}), "would execute code"),
    Bad("code in tensor", torch_save(lambda f: {"w": tensor_with_code(f)}), "would execute code"),
]


def truncated(form: str, kept: float) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        path = folder / ("bad.safetensors" if form == "safetensors" else "bad.pth")
        buffer = io.BytesIO()
        torch.save(good_state(), buffer, _use_new_zipfile_serialization=form == "zip")
        content = save(good_state()) if form == "safetensors" else buffer.getvalue()
        path.write_bytes(content[: int(kept * len(content))])
        return path

    return make


def png(folder: Path) -> Path:
    Image.fromarray(np.zeros((9, 9, 3), np.uint8)).save(folder / "bad.png")
    return (folder / "bad.png").rename(folder / "bad.pth")


def onnx_file(folder: Path) -> Path:
    graph = onnx.helper.make_graph([], "g", [], [])
    (folder / "bad.pth").write_bytes(onnx.helper.make_model(graph).SerializeToString())
    return folder / "bad.pth"


def tar_file(folder: Path) -> Path:
    with tarfile.open(folder / "bad.tar", "w") as archive:
        for name in ("storages", "tensors", "pickle"):
            archive.addfile(tarfile.TarInfo(name))
    return folder / "bad.tar"


def folder_called_pth(folder: Path) -> Path:
    (folder / "bad.pth").mkdir()
    return folder / "bad.pth"


def link(target: str) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        (folder / "bad.pth").symlink_to(target)
        return folder / "bad.pth"

    return make


def fifo(folder: Path) -> Path:
    os.mkfifo(folder / "bad.pth")
    return folder / "bad.pth"


LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 114374272\n"

OTHER_FORMATS = [
    *(Bad(f"{f} cut at {k}", truncated(f, k), "bad.") for f in ("zip", "legacy", "safetensors") for k in (0.01, 0.4, 0.9999)),
    Bad("empty", raw(b""), "is empty"),
    Bad("text", raw(b"These are not weights.\n"), "not a readable checkpoint"),
    Bad("page", raw(b"\n<!DOCTYPE html><html><body>404</body></html>"), "is a web page"),
    Bad("page 2", raw(b"<HTML><body>log in first</body></html>", "bad.safetensors"), "is a web page"),
    Bad("lfs", raw(LFS), "is a Git LFS pointer"),
    Bad("lfs 2", raw(LFS, "bad.safetensors"), "is a Git LFS pointer"),
    Bad("png", png, "not a readable checkpoint"),
    Bad("onnx", onnx_file, "not a readable checkpoint"),
    Bad("gzip", raw(b"\x1f\x8b\x08\x00" + bytes(60)), "not a readable checkpoint"),
    Bad("tar", tar_file, "not a readable checkpoint"),
    Bad("zeros", raw(bytes(4096)), "not a readable checkpoint"),
    Bad("plain pickle", plain_pickle, "bad.pth"),
    Bad("folder", folder_called_pth, "is not an artifact folder"),
    Bad("dangling link", link("nowhere.pth"), "symbolic link that leads nowhere"),
    Bad("looping link", link("bad.pth"), "symbolic link that leads nowhere"),
    Bad("endless device", link("/dev/zero"), "bad.pth"),
    Bad("pipe", fifo, "bad.pth"),
    Bad("unknown suffix", raw(b"x", "bad.h5"), "is not an artifact"),
]  # fmt: skip


def changed(**tensors: Tensor) -> Callable[[Path], dict[str, Tensor]]:
    return lambda _: {**good_state(), **{key.replace("__", "."): tensor for key, tensor in tensors.items()}}


def with_value(value: float) -> Callable[[Path], dict[str, Tensor]]:
    broken = good_state()[KEY].clone()
    broken[3, 4] = value
    return lambda _: {**good_state(), KEY: broken}


def cycle(_: Path) -> dict[str, Any]:
    content: dict[str, Any] = {}
    content["model"] = content
    return content


def key_is_tensor(_: Path) -> dict[Any, Tensor]:
    return {torch.ones(3, 3): torch.ones(1)}


def renamed(key: str) -> Callable[[Path], Mapping[str, Tensor]]:
    return lambda _: {**good_state(), key: torch.ones(1)}


CONTENTS = [
    Bad("unknown class", torch_save(lambda _: OwnDict(good_state())), "would execute code (tests.models.bad_files.OwnDict)"),
    Bad("numpy", torch_save(lambda _: {"w": np.ones(3)}), "would execute code (numpy"),
    Bad("module", torch_save(lambda _: nn.Linear(2, 2)), "would execute code (torch.nn.modules.linear.Linear)"),
    Bad("safetensors", raw(save({"w": torch.ones(3)})), "is a safetensors file by its content; give it a name that ends in"),
    Bad("list", torch_save(lambda _: list(good_state().values())), "holds no state dict"),
    Bad("tensor", torch_save(lambda _: torch.ones(3)), "holds no state dict"),
    Bad("empty dict", torch_save(lambda _: {}), "holds no state dict"),
    Bad("numbers", torch_save(lambda _: {"a": 1, "b": 2.5}), "'a' is a int"),
    Bad("int keys", torch_save(lambda _: dict(enumerate(good_state().values()))), "holds no state dict"),
    Bad("tensor keys", torch_save(key_is_tensor), "holds no state dict"),
    Bad("nested beyond", torch_save(lambda _: {"model": {"net": {"x": torch.ones(3)}}}), "its first keys are x"),
    Bad("cycle", torch_save(cycle), "holds no state dict"),
    Bad("nan", torch_save(with_value(float("nan"))), "not finite"),
    Bad("inf", torch_save(with_value(float("inf"))), "not finite"),
    Bad("minus inf", torch_save(with_value(float("-inf"))), "not finite"),
    Bad("complex", torch_save(changed(head__bias=torch.ones(10, dtype=torch.complex64))), "complex tensor"),
    Bad("sparse", torch_save(changed(head__weight=torch.eye(10, 64).to_sparse())), "'head.weight' is a torch.sparse_coo"),
    Bad("meta", torch_save(changed(head__bias=torch.ones(10, device="meta"))), "'head.bias'"),
    Bad("expanded", torch_save(changed(head__weight=torch.ones(1).expand(2**34, 64))), "claims shape (17179869184, 64)"),
    Bad("expanded to fit", torch_save(changed(head__weight=torch.ones(1).expand(10, 64))), "claims shape (10, 64)"),
    Bad("no channels", torch_save(changed(downsample_layers__0__0__weight=torch.ones(24, 0, 4, 4))), "(24, 0, 4, 4)"),
    Bad("no patch", torch_save(changed(downsample_layers__0__0__weight=torch.ones(24, 3, 0, 0))), "(24, 3, 0, 0)"),
    Bad("scalar hidden layer", torch_save(changed(pre_logits__weight=torch.ones(()))), "not a ConvNeXt checkpoint"),
    Bad("no head", torch_save(lambda _: {k: v for k, v in good_state().items() if not k.startswith(("head", "norm."))}), "bad.pth"),
    Bad("line break in key", torch_save(renamed("evil\nerror: x")), "bad.pth"),
    Bad("escape in key", torch_save(renamed("\x1b[2J\x1b]0;owned\x07")), "bad.pth"),
    Bad("long key", torch_save(renamed("x" * 1_000_000)), "xxx"),
    Bad("only odd keys", torch_save(lambda _: {"a\nb": torch.ones(1), "c" * 100_000: torch.ones(1)}), "bad.pth"),
    Bad("empty key", torch_save(renamed("")), "'' (0 characters)"),
    Bad("prefix only", torch_save(lambda _: {"module.": torch.ones(1)}), "not a ConvNeXt checkpoint"),
]  # fmt: skip
