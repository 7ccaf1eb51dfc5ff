"""What all workers of a session share: the first one that needs a thing makes it, the others wait and read it.

Tracing a network for ONNX takes seconds, so that what `torch.onnx.export` made of a network is shared as well: within a session
no network is traced twice, in whatever test that is, unless it asks for the fixture `traced_anew`.
"""

from __future__ import annotations

import hashlib
import io
import os
import pickle
import shutil
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import onnx
import onnx_ir
import pytest
import torch
from _pytest.mark import ParameterSet
from filelock import FileLock

T = TypeVar("T")
_roots: list[Path] = []


def share_with_all_workers(factory: pytest.TempPathFactory) -> None:
    """Have this worker share what it makes from here on; its own temporary folder lies below that of the session."""
    base = factory.getbasetemp()
    _roots[:] = [base.parent if "PYTEST_XDIST_WORKER" in os.environ else base]


def make_once(name: str, make: Callable[[Path], T]) -> T:
    """Return what `make(folder)` returned in the worker that came first; nobody may change the folder afterwards.

    Args:
        name: of the folder, different for everything that is shared.
        make: what it returns is pickled, for the other workers.
    """
    (root,) = _roots
    folder, made = root / f"shared-{name}", root / f"shared-{name}.pickle"
    with FileLock(root / f"shared-{name}.lock"):
        if not made.exists():
            shutil.rmtree(folder, ignore_errors=True)  # of an attempt that failed
            folder.mkdir()
            made.write_bytes(pickle.dumps(make(folder)))
    result: T = pickle.loads(made.read_bytes())
    return result


class _ByValue(pickle.Pickler):
    """Pickles tensors by what they hold: torch's own way names the place in memory, which is never the same twice."""

    def reducer_override(self, obj: Any) -> Any:
        """Return dtype, shape and values of a tensor, and leave the rest to pickle."""
        if not isinstance(obj, torch.Tensor):
            return NotImplemented
        values = obj.detach().contiguous().view(-1).view(torch.uint8).numpy().tobytes()
        return _ByValue, (type(obj), str(obj.dtype), tuple(obj.shape), obj.stride(), obj.requires_grad, values)


def _content(traced: Any) -> bytes:
    """Return whatever could make a difference: classes, attributes, weights and hooks of a module, arguments and options."""
    with io.BytesIO() as file:
        pickler = _ByValue(file)
        pickler.fast = True  # whether two equal strings are one object makes none
        pickler.dump(traced)
        return file.getvalue()


@contextmanager
def shared_traces() -> Iterator[None]:
    """Within the block, `torch.onnx.export` to memory traces the same module with the same arguments once for all workers."""
    export: Callable[..., Any] = torch.onnx.export

    def trace(model: Any, args: Any = (), f: Any = None, **options: Any) -> Any:
        try:
            content = _content((model, args, options))
        except (
            pickle.PicklingError,
            AttributeError,
            TypeError,
            RecursionError,
            ValueError,
        ):  # such as a class that is local to a test
            return export(model, args, f, **options)
        if f is not None:
            return export(model, args, f, **options)
        name = f"trace-{hashlib.sha256(content).hexdigest()}"
        graph = make_once(name, lambda _: export(model, args, **options).model_proto.SerializeToString())
        return torch.onnx.ONNXProgram(onnx_ir.from_proto(onnx.ModelProto.FromString(graph)), None)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.onnx, "export", trace)
        yield


def heavy_except(quick: Collection[Any], values: Iterable[Any]) -> list[ParameterSet]:
    """Return values to parametrize with; those that are not quick are heavy."""
    return [pytest.param(value, marks=[] if value in quick else [pytest.mark.heavy]) for value in values]


def slow_except(chosen: Collection[Any], values: Iterable[Any]) -> list[ParameterSet]:
    """Return values to parametrize with; those that are not chosen repeat for releases what these show."""
    return [pytest.param(value, marks=[] if value in chosen else [pytest.mark.slow]) for value in values]
