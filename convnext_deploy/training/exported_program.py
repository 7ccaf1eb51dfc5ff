"""Open programs of `torch.export` (`.pt2`), after what they would have PyTorch call is looked at.

`torch.export.load` runs what a file asks for: pickles of weights, constants and example inputs, custom objects, any function that
can be reached from the module `torch` by a node's target, and symbolic sizes, which SymPy evaluates as Python. An archive is opened
only if it has none of the first, operators as targets, and sizes made of symbols, numbers and known functions.

Source: torch 2.14, `torch.export.pt2_archive._package` and `torch._export.serde.serialize`.
"""

from __future__ import annotations

import io
import json
import re
import warnings
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from convnext_deploy.errors import CheckpointError, first_line
from convnext_deploy.models.checkpoints.file_checks import check_torchscript
from convnext_deploy.training.foreign_network import ForeignNetwork
from convnext_deploy.training.program_graph import ProgramShape, read_shape

_LARGEST_GRAPH = 200_000_000  # bytes of JSON; a vision transformer of a billion parameters has about 5 million
_OPERATOR = re.compile(
    r"torch\.ops\.(aten|prims|torchvision|higher_order)\.(?!_*__)\w+(\.(?!__)\w+)?"
    r"|torch\.sym_(int|float|max|min|not|ite|sum)|torch\._sym_sqrt"
    r"|_operator\.(add|sub|mul|floordiv|truediv|mod|pow|neg|pos|eq|ne|lt|le|gt|ge|and_|or_|not_|getitem)"
    r"|math\.(ceil|floor|trunc)"
)
_HIGHER_ORDER = re.compile(r"torch\.ops\.higher_order\.(wrap_with_set_grad_enabled|wrap_with_autocast)")
_NAME = re.compile(r"[\w.]*")
_FREE = ("metadata", "in_spec", "out_spec", "as_string", "expr_str", "torch_version", "target", "as_operator")
"""What is not called as a variable is in the Python that PyTorch makes of a graph, and need not look like a name."""
_SYMBOL = re.compile(r"'[a-z]{1,8}\d{1,6}'")
_FUNCTIONS = {
    "Symbol", "Integer", "Rational", "Float", "Add", "Mul", "Pow", "Max", "Min", "Mod", "Abs", "Eq", "Ne", "And", "Or", "Not",
    "FloorDiv", "ModularIndexing", "Where", "PythonMod", "CleanDiv", "CeilToInt", "FloorToInt", "CeilDiv", "PowByNatural",
    "FloatPow", "FloatTrueDiv", "IntTrueDiv", "TruncToFloat", "TruncToInt", "RoundToInt", "ToFloat", "Identity", "StrictLessThan",
    "LessThan", "GreaterThan", "StrictGreaterThan", "Equality", "Unequality", "positive", "integer", "nonnegative", "real",
    "True", "False", "oo", "int_oo", "precision",
}  # fmt: skip
_NUMBERS_AND_SIGNS = re.compile(r"[\d\s(),=+\-*/<>']*")


def open_program(file: Path) -> tuple[ForeignNetwork, ProgramShape]:
    """Return the network in a program, and what it takes.

    Raises: CheckpointError: if the file is no such program, would run code, or does not map one batch of images to one of logits,
        always to the same.
    """
    _check_archive(file)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about formats, which the user did not choose
            program = torch.export.load(file)
    except Exception as error:  # everything that PyTorch's deserializer raises means the same to a user
        raise CheckpointError(
            f"PyTorch {torch.__version__} cannot open the program {file} ({first_line(error)}); it may be of another version."
        ) from None
    shape = read_shape(program, file)
    module = program.module(check_guards=False)

    def compute(images: Tensor) -> tuple[Tensor | None, Tensor | None]:
        parts = [images] if shape.batch is None else _of_size(images, shape.batch)
        found = torch.cat([pytree.tree_leaves(module(part))[shape.place] for part in parts])[: len(images)]
        return found.flatten(1), None

    network = ForeignNetwork(module, compute, str(file))
    # a program has no evaluation mode to go into: it is as it was exported
    network.eval = lambda: network  # type: ignore[method-assign]
    return network, shape


def _check_archive(file: Path) -> None:
    """Refuse an archive that would run anything but operators. Raises: CheckpointError."""
    try:
        with zipfile.ZipFile(file) as archive:
            names = archive.namelist()
            check_torchscript(file, names)
            top = names[0].split("/")[0] if names else ""
            graphs = [name for name in names if name.startswith(f"{top}/models/")]
            if len(graphs) != 1 or not graphs[0].endswith(".json"):
                raise CheckpointError(
                    f"{file} holds {len(graphs)} models of torch.export; expected one, as torch.export.save writes it."
                )
            if archive.getinfo(graphs[0]).file_size > _LARGEST_GRAPH:
                raise CheckpointError(f"the graph in {file} is larger than any network's; it is not opened.")
            for name in names:
                _check_record(archive, name, top, file)
            graph = json.loads(archive.read(graphs[0]))
            _check_graph(graph, file)
            _check_names(graph["graph_module"], file)
    except (zipfile.BadZipFile, OSError, ValueError, KeyError, RecursionError, AttributeError) as error:
        raise CheckpointError(f"{file} is not a readable program of torch.export ({first_line(error)}).") from None


def _check_record(archive: zipfile.ZipFile, name: str, top: str, file: Path) -> None:
    inner = name.removeprefix(f"{top}/")
    if inner.startswith("data/aotinductor/"):
        raise _is_code(file, f"compiled code ({inner})")
    if inner.startswith("data/constants/") and Path(inner).name.startswith(("custom_obj", "opaque_obj")):
        raise _is_code(file, f"an object of a class of its own ({inner})")
    if inner.startswith(("data/weights/", "data/constants/")) and inner.endswith("_config.json"):
        entries = json.loads(archive.read(name)).get("config", {})
        pickled = next((key for key, entry in entries.items() if entry.get("use_pickle") is not False), None)
        if pickled is not None:
            raise _is_code(file, f"a pickle ('{pickled}')")
    if inner.endswith(".pt"):
        try:
            torch.load(io.BytesIO(archive.read(name)), map_location="cpu", weights_only=True)
        except Exception:  # of every kind, as for checkpoints; PyTorch would go on to read it as code
            raise _is_code(file, f"a pickle that is not tensors alone ({inner})") from None


def _check_graph(graph: Any, file: Path) -> None:
    for key, value in _values(graph):
        if key in ("target", "as_operator") and isinstance(value, str):
            if not _OPERATOR.fullmatch(value) or (".higher_order." in value and not _HIGHER_ORDER.fullmatch(value)):
                raise _is_code(file, f"a call of {value[:80]!r}")
        elif key == "as_custom_obj" or (isinstance(value, str) and "__enum__" in value):
            raise _is_code(file, "an object of a class of its own")
        elif key == "expr_str" and not _is_size(value):
            raise _is_code(file, f"a size that is an expression of Python ({str(value)[:80]!r})")


def _check_names(graph: Any, file: Path) -> None:
    """Refuse names that would be code in the Python that PyTorch makes of a graph, and runs."""
    pending = [graph]
    while pending:
        value = pending.pop()
        if isinstance(value, dict):
            pending += [key for key in value if key not in _FREE]
            pending += [each for key, each in value.items() if key not in _FREE]
        elif isinstance(value, list):
            pending += value
        elif isinstance(value, str) and not _NAME.fullmatch(value):
            raise _is_code(file, f"the name {value[:80]!r}")


def _values(graph: Any) -> Iterator[tuple[str, Any]]:
    """Yield all keys and values of the JSON, the nodes of a graph with their targets."""
    pending: list[tuple[str, Any]] = [("", graph)]
    while pending:
        key, value = pending.pop()
        if isinstance(value, dict):
            is_node = "target" in value and "inputs" in value
            pending += [(name if name != "target" or is_node else "place", each) for name, each in value.items()]
        elif isinstance(value, list):
            pending += [(key, each) for each in value]
        else:
            yield key, value


def _is_size(text: object) -> bool:
    """Whether an expression is made of symbols, numbers and known functions."""
    if not isinstance(text, str):
        return False
    rest = _SYMBOL.sub("", text)
    words = set(re.findall(r"[A-Za-z_]\w*", rest))
    bare = {word for word in words if re.fullmatch(r"[a-z]{1,8}\d{1,6}", word)}
    return words - bare <= _FUNCTIONS and _NUMBERS_AND_SIGNS.fullmatch(re.sub(r"[A-Za-z_]\w*", "", rest)) is not None


def _is_code(file: Path, what: str) -> CheckpointError:
    return CheckpointError(
        f"{file} asks for more than operators on tensors: {what}. It is not opened; export the network to ONNX instead."
    )


def _of_size(images: Tensor, batch: int) -> Iterator[Tensor]:
    """Yield images in parts of a fixed size, the last one filled up with its last image."""
    for part in images.split(batch):
        missing = batch - len(part)
        yield torch.cat([part, part[-1:].expand(missing, *part.shape[1:])]) if missing else part
