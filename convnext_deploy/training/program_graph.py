"""What the graph of a program of `torch.export` tells: what it takes, which output is the logits, and that answers stay the same.

A program has no evaluation mode to go into. One that was exported in training mode normalizes an image by the others of its batch
and drops units at random, so that it says something else of it each time.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx
from torch.export.graph_signature import OutputKind
from torch.utils import _pytree as pytree

from convnext_deploy.errors import CheckpointError

_LOGITS = "logits"
_OF_BATCH = ("_batch_norm_with_update", "_batch_norm_with_update_functional")
"""Operators that normalize by the batch and have no argument that says so."""


@dataclass(frozen=True)
class ProgramShape:
    """What a program takes, `(batch, channels, height, width)`, and how many numbers it gives for an image; batch None: any.

    `place`: of the logits among all that it gives; `note` says which output that is, where there are several.
    """

    batch: int | None
    channels: int
    height: int
    width: int
    outputs: int
    place: int = 0
    note: str | None = None


def read_shape(program: torch.export.ExportedProgram, file: Path) -> ProgramShape:
    """Return what a program takes and gives.

    Raises: CheckpointError: if it does not map one batch of images to one of logits, or not always to the same.
    """
    names = set(program.graph_signature.user_inputs)
    inputs = [node.meta.get("val") for node in program.graph.nodes if node.op == "placeholder" and node.name in names]
    given = _outputs(program)
    outputs = [each for each in given if each.tensor.is_floating_point() and each.tensor.ndim >= 2]
    if len(inputs) != 1 or not isinstance(inputs[0], Tensor) or inputs[0].ndim != 4 or not outputs:
        raise CheckpointError(f"{file} does not map one batch of images (N, C, H, W) to logits (N, classes).")
    taken = inputs[0]
    batch, channels, height, width = (side if isinstance(side, int) else None for side in taken.shape)
    if channels not in (1, 3) or height is None or width is None:
        raise CheckpointError(
            f"{file} takes images of shape {tuple(map(str, taken.shape))}; expected (batch, 1 or 3 channels, height, width), with "
            "sizes that are fixed."
        )
    if taken.dtype != torch.float32:
        raise CheckpointError(f"{file} takes {taken.dtype}; expected float32.")
    _check_mode(program, file)
    found = _find_logits(outputs, file)
    count = math.prod(side for side in found.tensor.shape[1:] if isinstance(side, int))
    note = (
        f"of its outputs {_list(given)} the output '{found.name}' is taken for the logits" if len(given) > 1 else None
    )
    return ProgramShape(batch, channels, height, width, count, found.place, note)


@dataclass(frozen=True)
class _Output:
    """A tensor that a program gives, by its key or number, and its place among all leaves of what is returned."""

    name: str
    place: int
    tensor: Tensor

    def __str__(self) -> str:
        sides = ["N", *map(str, self.tensor.shape[1:])] if self.tensor.ndim else ["a number"]
        return f"'{self.name}' ({', '.join(sides)})"


def _outputs(program: torch.export.ExportedProgram) -> list[_Output]:
    """Return the tensors that a program returns; buffers that it changes, which its graph gives before them, are left out."""
    nodes = next(node for node in program.graph.nodes if node.op == "output").args[0]
    specs = program.graph_signature.output_specs
    given = [node for node, spec in zip(nodes, specs, strict=True) if spec.kind == OutputKind.USER_OUTPUT]
    tensors = [getattr(node, "meta", {}).get("val") for node in given]
    names = _names(program, len(given))
    return [_Output(names[place], place, tensor) for place, tensor in enumerate(tensors) if isinstance(tensor, Tensor)]


def _names(program: torch.export.ExportedProgram, count: int) -> list[str]:
    """Return the keys of what a program returns, such as `logits` of a dictionary, or `0` of a tuple."""
    numbers = [str(place) for place in range(count)]
    spec = program.call_spec.out_spec
    if spec is None or spec.num_leaves != count:
        return numbers
    try:
        keyed, _ = pytree.tree_flatten_with_path(pytree.tree_unflatten(range(count), spec))
    except Exception:  # of any kind: a library's own class may not take numbers in the place of tensors
        return numbers
    return [".".join(str(_key(part)) for part in path) or numbers[place] for place, (path, _) in enumerate(keyed)]


def _key(part: Any) -> Any:
    """Return one step of a path: the key of a dictionary, the number in a sequence, or the name of an attribute."""
    return next((getattr(part, name) for name in ("key", "idx", "name") if hasattr(part, name)), part)


def _find_logits(outputs: list[_Output], file: Path) -> _Output:
    """Return the output that is called logits, or the only one of its kind. Raises: CheckpointError: if there are several."""
    called = [each for each in outputs if each.name.rpartition(".")[2] == _LOGITS]
    flat = [each for each in outputs if each.tensor.ndim == 2]
    found = next((some for some in (called, flat, outputs) if len(some) == 1), None)
    if found is None:
        raise CheckpointError(
            f"{file} gives {len(outputs)} outputs, {_list(outputs)}, and does not tell which are the logits; export a network that "
            f"returns these alone, or a dictionary in which they are called '{_LOGITS}'."
        )
    return found[0]


def _list(outputs: list[_Output]) -> str:
    return ", ".join(map(str, outputs))


def _check_mode(program: torch.export.ExportedProgram, file: Path) -> None:
    """Refuse what answers by chance or by the other images of a batch, or changes. Raises: CheckpointError."""
    buffers = program.graph_signature.inputs_to_buffers
    changed = set(program.graph_signature.buffers_to_mutate.values())
    for operator, tags, arguments, written in _calls(program.graph_module):
        if _trains(arguments) or operator in _OF_BATCH:
            if "running_mean" in arguments and arguments["running_mean"] is None:
                raise CheckpointError(
                    f"{file} normalizes each image by the others of its batch ({operator} without running statistics), so that "
                    "what it says of an image changes; export a network that keeps running statistics."
                )
            raise _in_training(file, operator)
        if arguments.get("dropout_p"):  # of attention
            raise _in_training(file, operator)
        if torch.Tag.nondeterministic_seeded in tags and not {"train", "training", "dropout_p"} & arguments.keys():
            raise CheckpointError(
                f"{file} draws random numbers ({operator}), as networks do in training mode, so that what it says of an image "
                "changes; call .eval() on the network before torch.export."
            )
        changed |= {buffers[name] for name in written if name in buffers}
    if changed:
        raise _in_training(file, f"it changes the buffer '{min(changed)}'")


def _in_training(file: Path, sign: str) -> CheckpointError:
    return CheckpointError(
        f"{file} was exported in training mode ({sign}); call .eval() on the network before torch.export."
    )


def _calls(module: fx.GraphModule) -> Iterator[tuple[str, list[torch.Tag], dict[str, Any], set[str]]]:
    """Yield the calls of operators, also those in parts of the graph, such as what runs without gradients.

    Of each: its name, its tags, its arguments by their names, and the nodes that it writes into.
    """
    graphs = [part.graph for part in module.modules() if isinstance(part, fx.GraphModule)]
    for node in (node for graph in graphs for node in graph.nodes):
        if not isinstance(node.target, torch._ops.OpOverload):
            continue
        schema = node.target._schema
        given = dict(zip((each.name for each in schema.arguments), node.args, strict=False)) | dict(node.kwargs)
        arguments = {each.name: given.get(each.name, each.default_value) for each in schema.arguments}
        places = (each.name for each in schema.arguments if each.alias_info is not None and each.alias_info.is_write)
        written = {found.name for place in places if isinstance(found := arguments[place], fx.Node)}
        yield schema.name.rpartition("::")[2], node.target.tags, arguments, written


def _trains(arguments: Mapping[str, Any]) -> bool:
    """Whether a call is told to train; a dropout of nothing changes nothing."""
    told = [arguments[name] for name in ("train", "training") if name in arguments]
    return bool(told) and told[0] is not False and arguments.get("p") != 0  # None has `native_dropout` train
