"""Tracing a network for ONNX takes seconds, so that tests share what `torch.onnx.export` made of it, through all workers.

The same module with the same arguments is traced once. Of modules that differ in the values of their weights alone the first is
traced, and the others get its graph with their weights in it, where it is certain which initializer holds which weight; a network
for which it is not is traced itself.
"""

from __future__ import annotations

import functools
import hashlib
import importlib
import io
import pickle
import pkgutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import onnx
import onnx_ir
import pytest
import torch
from numpy.typing import NDArray
from onnx import numpy_helper
from torch import nn

from tests.shared import make_once

_Weights = dict[str, NDArray[Any]]


class _Pickler(pickle.Pickler):
    """Pickles tensors by what they hold: torch's own way names the place in memory, which is never the same twice.

    Of those in `weights`, by their ids, it takes type and shape alone.
    """

    def __init__(self, file: io.BytesIO, weights: frozenset[int] = frozenset()) -> None:
        super().__init__(file)
        self.fast = True  # whether two equal strings are one object makes no difference
        self._weights = weights

    def reducer_override(self, obj: Any) -> Any:
        """Return dtype, shape and values of a tensor, and leave the rest to pickle."""
        if not isinstance(obj, torch.Tensor):
            return NotImplemented
        form = (type(obj), str(obj.dtype), tuple(obj.shape))
        if id(obj) in self._weights:
            return _Pickler, form
        values = obj.detach().contiguous().view(-1).view(torch.uint8).numpy().tobytes()
        return _Pickler, (*form, obj.stride(), obj.requires_grad, values)


def _digest(traced: Any, weights: frozenset[int] = frozenset()) -> str:
    """Return a hash of whatever could make a difference: classes, attributes, weights and hooks of a module, and the arguments."""
    with io.BytesIO() as file:
        _Pickler(file, weights).dump(traced)
        return hashlib.sha256(file.getvalue()).hexdigest()


def _weights_of(model: nn.Module) -> dict[str, torch.Tensor]:
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}


def _arrays(weights: Mapping[str, torch.Tensor]) -> _Weights:
    return {name: tensor.detach().numpy() for name, tensor in weights.items()}


@contextmanager
def shared_traces() -> Iterator[None]:
    """Within the block, `torch.onnx.export` to memory traces a module once for all workers, and networks of one form once."""
    export: Callable[..., Any] = torch.onnx.export

    def graph_of(model: Any, args: Any, options: dict[str, Any]) -> bytes:
        graph: bytes = export(model, args, **options).model_proto.SerializeToString()
        return graph

    def make(model: Any, args: Any, options: dict[str, Any]) -> bytes:
        weights = _weights_of(model)
        if any(tensor.dtype == torch.bfloat16 for tensor in weights.values()):  # which NumPy lacks
            return graph_of(model, args, options)
        form = _digest((model, args, options), frozenset(map(id, weights.values())))
        first: tuple[bytes, _Weights] = make_once(
            f"form-{form}", lambda _: (graph_of(model, args, options), _arrays(weights))
        )
        graph = with_weights(*first, _arrays(weights))
        return graph_of(model, args, options) if graph is None else graph

    def trace(model: Any, args: Any = (), f: Any = None, **options: Any) -> Any:
        try:
            content = _digest((model, args, options))
        except (pickle.PicklingError, AttributeError, TypeError, RecursionError, ValueError):
            return export(model, args, f, **options)  # such as a class that is local to a test
        if f is not None or not isinstance(model, nn.Module):
            return export(model, args, f, **options)
        graph = make_once(f"trace-{content}", lambda _: make(model, args, options))
        return torch.onnx.ONNXProgram(onnx_ir.from_proto(onnx.ModelProto.FromString(graph)), None)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.onnx, "export", trace)
        _parse_the_library_once(patch)
        yield


def with_weights(graph: bytes, old: _Weights, new: _Weights) -> bytes | None:
    """Return a graph that was traced with some weights with others in their place; None: it is not certain where they are.

    An initializer holds the weight of its name, or the one whose values it has, as they are or transposed. Of weights that are
    equal the exporter may have kept one for all: they must be there by their names, or equal now too. Single numbers and integers
    that are no weight belong to the form of the network; arrays that are none may have been computed from weights.
    """
    changed = {name for name in old if old[name].tobytes() != new[name].tobytes()}
    proto, found = onnx.ModelProto.FromString(graph), set()
    named = {tensor.name for tensor in proto.graph.initializer} & set(old)
    for tensor in proto.graph.initializer if changed else ():
        values = numpy_helper.to_array(tensor)
        others = old.keys() - named if tensor.name in named else old.keys()
        names = [name for name in old if name == tensor.name or (name in others and _places(old[name], values))]
        if not names and (values.size == 1 or values.dtype.kind in "iub"):
            continue
        places = [(name, place) for name in names for place in _places(old[name], values)]
        contents = {np.ascontiguousarray(place(new[name])).tobytes() for name, place in places}
        if len(contents) != 1:
            return None
        found.update(names)
        tensor.ClearField("float_data")
        tensor.raw_data = contents.pop()
    return proto.SerializeToString() if changed <= found else None


def _places(weight: NDArray[Any], values: NDArray[Any]) -> list[Callable[[NDArray[Any]], NDArray[Any]]]:
    """Return what makes the values of an initializer of a weight; nothing if it does not hold that one, or several ways."""
    ways: list[Callable[[NDArray[Any]], NDArray[Any]]] = [lambda array: array]
    if weight.ndim == 2:
        ways.append(np.transpose)
    if weight.ndim != values.ndim and weight.size == values.size:
        ways.append(lambda array: array.reshape(values.shape))
    return [
        way
        for way in ways
        if weight.dtype == values.dtype
        and (made := way(weight)).shape == values.shape
        and np.ascontiguousarray(made).tobytes() == values.tobytes()
    ]


def _parse_the_library_once(patch: pytest.MonkeyPatch) -> None:
    """Keep the functions of the exporter's library, which it parses anew for each export: a sixth of the time of a small one."""
    try:
        import onnxscript._framework_apis as versions
    except ImportError:
        return
    for found in pkgutil.iter_modules(versions.__path__, f"{versions.__name__}."):
        module = importlib.import_module(found.name)
        if hasattr(module, "get_torchlib_ops"):
            patch.setattr(module, "get_torchlib_ops", functools.cache(module.get_torchlib_ops))
