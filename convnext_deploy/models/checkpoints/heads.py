"""Read the heads that people put in the place of a library's own: dropout, a hidden layer or a norm before the logits.

| modules with weights | read as |
|---|---|
| Linear, wherever it stands in a Sequential | the logits |
| Linear, Linear, with others between them | a hidden layer, an activation, the logits |
| LayerNorm, Linear | one more norm after the network's own, the logits |

Dropout and activations have no weights, so a file does not tell them. Dropout does nothing in evaluation; the activation is taken
to be ReLU, and that is said.
"""

import contextlib
import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from convnext_deploy.config.choices import Dialect
from convnext_deploy.errors import CheckpointError

_PARTS: dict[Dialect, str] = {
    "timm": "head.fc",
    "torchvision": "classifier",
    "huggingface": "classifier",
    "facebook": "head",
}
"""Dialect → what the library calls the head, without the last norm."""
_STANDARD: dict[Dialect, str] = {**_PARTS, "torchvision": "classifier.2"}
_NORMS: dict[Dialect, str | None] = {"timm": None, "torchvision": "classifier.0", "huggingface": None, "facebook": None}
_BATCH_NORM = "running_mean"


@dataclass(frozen=True)
class Head:
    """`tensors` under the network's own names, `changes` to the fields of its `ModelSpec`, and `remarks` on what is assumed.

    `taken`: the names in the file of what was found beside the network.
    """

    tensors: Mapping[str, Tensor] = field(default_factory=dict)
    changes: Mapping[str, Any] = field(default_factory=dict)
    remarks: tuple[str, ...] = ()
    taken: frozenset[str] = frozenset()


def take_head(tensors: dict[str, Tensor], dialect: Dialect, path: Path) -> Head:
    """Take the head out of the weights of a network, where it is not the library's own; in place.

    Args:
        tensors: under the dialect's names.
        dialect: whose names they are.
        path: the file, for messages.

    Raises: CheckpointError: if it is made of other modules than in the table.
    """
    part = f"{_PARTS[dialect]}."
    modules: dict[str, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        module, _, parameter = key.rpartition(".")
        of_quantizer = module.endswith("_quantizer")  # of a quantized network of ours
        if key.startswith(part) and module != _NORMS[dialect] and not of_quantizer:
            modules.setdefault(module, {})[parameter] = tensor
    if not modules or set(modules) == {_STANDARD[dialect]}:
        return Head()
    for module, parameters in modules.items():
        for parameter in parameters:
            del tensors[f"{module}.{parameter}"]
    return read_head(modules, path)


def has_head(tensors: Mapping[str, Tensor], dialect: Dialect) -> bool:
    """Whether the library's own head is there."""
    return f"{_STANDARD[dialect]}.weight" in tensors


def head_beside(tensors: Mapping[str, Tensor], start: int, width: int, path: Path) -> Head:
    """Return the one head that stands beside a backbone, as in a module with `backbone` and `classifier`; an empty one otherwise.

    Args:
        tensors: what stands beside it, under the names of the file.
        start: where these differ from each other: the length of what all begin with.
        width: of the backbone's features.
        path: the file, for messages.
    """
    groups: dict[str, dict[str, dict[str, Tensor]]] = {}
    for key, tensor in tensors.items():
        module, _, parameter = key.rpartition(".")
        groups.setdefault(key[start:].partition(".")[0], {}).setdefault(module, {})[parameter] = tensor
    heads = []
    for name, modules in groups.items():
        with contextlib.suppress(CheckpointError):
            head = read_head(modules, path)
            names = ("head_norm.weight", "pre_logits.weight", "head.weight")
            first = next(head.tensors[name] for name in names if name in head.tensors)
            if first.shape[-1] == width:
                taken = frozenset(f"{module}.{key}" for module, found in modules.items() for key in found)
                remark = f"{path.name}: took '{name}' beside the network for its head"
                heads.append(dataclasses.replace(head, taken=taken, remarks=(remark, *head.remarks)))
    return heads[0] if len(heads) == 1 else Head()


def read_head(modules: Mapping[str, Mapping[str, Tensor]], path: Path) -> Head:
    """Return the head that is made of modules: name → parameter → tensor. Raises: CheckpointError: as `take_head`."""
    ordered = sorted(modules, key=lambda name: [(len(part), part) for part in name.split(".")])
    kinds = [_kind(modules[name]) for name in ordered]
    if kinds == ["Linear"]:
        return Head(_named(modules, ordered, ("head",)))
    if kinds == ["LayerNorm", "Linear"]:
        remark = f"{path.name}: the head has a LayerNorm of its own, whose eps is taken to be 1e-5, which the file does not tell"
        return Head(_named(modules, ordered, ("head_norm", "head")), {"head_norm": True}, (remark,))
    if kinds == ["Linear", "Linear"] and _have_room(*ordered):
        remark = f"{path.name}: the head has a hidden layer; its activation is taken to be ReLU, which the file does not tell"
        return Head(_named(modules, ordered, ("pre_logits", "head")), {"head_activation": "relu"}, (remark,))
    found = ", ".join(f"{name} ({kind})" for name, kind in zip(ordered, kinds, strict=True))
    raise CheckpointError(
        f"{path} has a head of {found}; read are a Linear, a LayerNorm and a Linear, and two Linear with an activation between."
    )


def _kind(parameters: Mapping[str, Tensor]) -> str:
    weight = parameters.get("weight")
    if _BATCH_NORM in parameters:
        return "BatchNorm"
    if weight is None:
        return "no weight"
    if weight.ndim == 1 and "bias" not in parameters:
        return "PReLU or scale"
    return {1: "LayerNorm", 2: "Linear"}.get(weight.ndim, f"weight of {weight.ndim} dimensions")


def _named(
    modules: Mapping[str, Mapping[str, Tensor]], ordered: list[str], names: tuple[str, ...]
) -> dict[str, Tensor]:
    return {
        f"{name}.{parameter}": tensor
        for module, name in zip(ordered, names, strict=True)
        for parameter, tensor in modules[module].items()
    }


def _have_room(first: str, second: str) -> bool:
    """Whether something without weights can stand between two modules of a Sequential, or their names do not tell."""
    before, after = first.rpartition("."), second.rpartition(".")
    numbered = before[0] == after[0] and before[2].isdecimal() and after[2].isdecimal()
    return not numbered or int(after[2]) - int(before[2]) > 1
