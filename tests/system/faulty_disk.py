"""Disks that are full, as far as that can be had without being root, and every writer of the package."""

from __future__ import annotations

import io
import os
import resource
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper

from convnext_deploy.bundles.archive import write_archive
from convnext_deploy.data import shard_parts
from convnext_deploy.data.shard_parts import SAMPLE, Part
from convnext_deploy.graphs.onnx_io import save_onnx
from convnext_deploy.models.checkpoints.safe_reader import save_state
from convnext_deploy.system.files import append, copy_file, write_array, write_bytes, write_text
from convnext_deploy.training.checkpoint_store import TrainingStore

SIZE = 40_000  # bytes that each writer writes at least


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """Let no file of this process grow beyond `size` bytes, as on a disk that is nearly full."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@contextmanager
def umask(mask: int) -> Iterator[None]:
    """Make files of this process as this umask says."""
    before = os.umask(mask)
    try:
        yield
    finally:
        os.umask(before)


def _numbers() -> torch.Tensor:
    return torch.arange(SIZE // 4, dtype=torch.float32)


def _graph() -> onnx.ModelProto:
    values = helper.make_tensor("w", TensorProto.FLOAT, [SIZE // 4], _numbers().numpy().tobytes(), raw=True)
    taken, given = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [SIZE // 4]) for name in "xy")
    graph = helper.make_graph([helper.make_node("Add", ["x", "w"], ["y"])], "g", [taken], [given], [values])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def _copy(path: Path) -> None:
    source = path.parent.with_name("source")
    with largest_file(resource.RLIM_INFINITY):
        source.write_bytes(bytes(SIZE))
    copy_file(source, path)


def _archive(path: Path) -> None:
    folder = path.parent.with_name("folder")
    folder.mkdir(exist_ok=True)
    with largest_file(resource.RLIM_INFINITY):
        (folder / "noise").write_bytes(np.random.default_rng(0).bytes(SIZE))
    write_archive(folder, path)


def _index(path: Path) -> None:
    shard_parts.save(path, {("train-0.tar", SIZE): Part(np.zeros(SIZE // SAMPLE.itemsize, SAMPLE), b"names" * 9)})


WRITERS: dict[str, tuple[str, Callable[[Path], None]]] = {
    "text": ("report.md", lambda path: write_text(path, "é" * (SIZE // 2))),
    "bytes": ("model.plan", lambda path: write_bytes(path, bytes(SIZE))),
    "array": ("pixels.npy", lambda path: write_array(path, np.zeros(SIZE, np.uint8))),
    "copy": ("model.onnx", _copy),
    "weights": ("model.safetensors", lambda path: save_state(path, {"w": _numbers()}, {"a": 1})),
    "graph": ("model.onnx", lambda path: save_onnx(_graph(), path, {"a": 1})),
    "state": (
        "last.pt",
        lambda path: TrainingStore(path.parent, "key").save({"model": {"w": _numbers()}, "list": [1]}),
    ),
    "best": ("best.safetensors", lambda path: TrainingStore(path.parent, "key").save_best({"w": _numbers()})),
    "history": (
        "history.json",
        lambda path: TrainingStore(path.parent, "key").save_history([{"loss": 0.5}] * (SIZE // 8)),
    ),
    "archive": ("bundle.zip", _archive),
    "index": ("shards.npz", _index),
    "events": ("events", lambda path: append(path, bytes(SIZE))),
}
"""Writer → the name of its file, and a function that writes it at a path, always the same bytes."""


def is_whole_archive(content: bytes) -> bool:
    """Whether bytes are a `.zip` without damage."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        return archive.testzip() is None
