"""Read the heads that people put in the place of a library's own: dropout, a hidden layer or a norm before the logits.

| modules with weights | read as |
|---|---|
| Linear, wherever it stands in a Sequential | the logits |
| Linear, Linear, with others between them | a hidden layer, an activation, the logits |
| LayerNorm before one of these | one more norm after the network's own |
| BatchNorm first, or right beside a Linear | a part of the Linear, which is exact in evaluation |

Dropout and activations have no weights, so a file does not tell them. Dropout does nothing in evaluation; the activation is taken
to be ReLU, and that is said. A hidden Linear without bias gets one of zeros.
"""

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
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
_USUAL_EPS = 1e-5  # of PyTorch's norms, which no file of weights tells
_HIDDEN, _NORM = ("pre_logits", "head"), ("head_norm",)
_NAMES: dict[tuple[str, ...], tuple[str, ...]] = {
    ("Linear",): ("head",),
    ("Linear", "Linear"): _HIDDEN,
    ("LayerNorm", "Linear"): (*_NORM, "head"),
    ("LayerNorm", "Linear", "Linear"): (*_NORM, *_HIDDEN),
}
"""Modules of a head → what the network calls them."""


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
                heads.append(replace(head, taken=taken, remarks=(remark, *head.remarks)))
    return heads[0] if len(heads) == 1 else Head()


def read_head(modules: Mapping[str, Mapping[str, Tensor]], path: Path) -> Head:
    """Return the head that is made of modules: name → parameter → tensor. Raises: CheckpointError: as `take_head`."""
    ordered = sorted(modules, key=lambda name: [(len(part), part) for part in name.split(".")])
    parts, remarks = _fold_batch_norms([_Part(name, name, _kind(modules[name]), modules[name]) for name in ordered])
    names = _NAMES.get(tuple(part.kind for part in parts))
    if names is None or ("pre_logits" in names and not _have_room(parts[-2].last, parts[-1].first)):
        found = ", ".join(f"{name} ({_kind(modules[name])})" for name in ordered)
        raise CheckpointError(
            f"{path} has a head of {found}; read are a Linear or two with an activation between, behind a LayerNorm or none, "
            "and BatchNorm at the beginning or right beside a Linear. Exported to ONNX by its own library, it can be validated."
        )
    changes: dict[str, Any] = {}
    if "head_norm" in names:
        changes["head_norm"] = True
        remarks.append(
            "the head has a LayerNorm of its own, whose eps is taken to be 1e-5, which the file does not tell"
        )
    if "pre_logits" in names:
        changes["head_activation"] = "relu"
        remarks.append("the head has a hidden layer; its activation is taken to be ReLU, which the file does not tell")
    tensors = {
        f"{name}.{parameter}": tensor
        for name, part in zip(names, parts, strict=True)
        for parameter, tensor in part.tensors.items()
    }
    return Head(tensors, changes, tuple(f"{path.name}: {remark}" for remark in remarks))


@dataclass(frozen=True)
class _Part:
    """A module of a head, or several that became one: the names of the `first` and the `last`."""

    first: str
    last: str
    kind: str
    tensors: Mapping[str, Tensor]


def _fold_batch_norms(parts: list[_Part]) -> tuple[list[_Part], list[str]]:
    """Make a BatchNorm a part of the Linear right beside it, or where it is first of the next; and give a hidden Linear a bias.

    In evaluation a BatchNorm is `y = scale x + shift` for each channel, so `W x + b` becomes `scale W x + (scale b + shift)`, or
    behind it `(W scale) x + (W shift + b)`, computed in FP64.
    """
    found: list[_Part] = []
    remarks: list[str] = []
    waiting: _Part | None = None
    for number, part in enumerate(parts):
        before = found[-1] if found else None
        follows = before is not None and not _have_room(before.last, part.first)
        leads = number == 0 or not _have_room(part.last, parts[min(number + 1, len(parts) - 1)].first)
        if (
            before is not None
            and before.kind == "Linear"
            and follows
            and _is_batch_norm(part, len(before.tensors["weight"]))
        ):
            scale, shift = _scale_and_shift(part.tensors)
            weight, bias = before.tensors["weight"].double(), _bias(before.tensors)
            found[-1] = _linear(before.first, part.last, scale[:, None] * weight, scale * bias + shift)
        elif part.kind == "BatchNorm" and leads and waiting is None:
            waiting = part
        elif part.kind == "Linear":
            weight, bias = part.tensors["weight"].double(), _bias(part.tensors)
            if waiting is not None and _is_batch_norm(waiting, weight.shape[1]):
                scale, shift = _scale_and_shift(waiting.tensors)
                found.append(_linear(waiting.first, part.last, weight * scale, weight @ shift + bias))
                waiting = None
            elif "bias" not in part.tensors and part is not parts[-1]:
                found.append(_linear(part.first, part.last, weight, bias))
            else:  # who reads the file says that the logits have no bias
                found.append(part)
        else:
            found.append(part)
    if len(found) < len(parts):
        remarks.append(
            "the head has a BatchNorm, which became a part of the Linear beside it; its eps is taken to be 1e-5"
        )
    return (found if waiting is None else [waiting, *found]), remarks


def _is_batch_norm(part: _Part, width: int) -> bool:
    shapes = {tensor.shape for name, tensor in part.tensors.items() if name != "num_batches_tracked"}
    return part.kind == "BatchNorm" and "running_var" in part.tensors and shapes == {torch.Size([width])}


def _scale_and_shift(tensors: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    mean, variance = tensors["running_mean"].double(), tensors["running_var"].double()
    scale = tensors.get("weight", torch.ones_like(mean)).double() / (variance + _USUAL_EPS).sqrt()
    return scale, tensors.get("bias", torch.zeros_like(mean)).double() - scale * mean


def _bias(tensors: Mapping[str, Tensor]) -> Tensor:
    weight = tensors["weight"].double()
    return tensors["bias"].double() if "bias" in tensors else weight.new_zeros(len(weight))


def _linear(first: str, last: str, weight: Tensor, bias: Tensor) -> _Part:
    return _Part(first, last, "Linear", {"weight": weight.float(), "bias": bias.float()})


def _kind(parameters: Mapping[str, Tensor]) -> str:
    weight = parameters.get("weight")
    if _BATCH_NORM in parameters:
        return "BatchNorm"
    if weight is None:
        return "no weight"
    if weight.ndim == 1 and "bias" not in parameters:
        return "PReLU or scale"
    return {1: "LayerNorm", 2: "Linear"}.get(weight.ndim, f"weight of {weight.ndim} dimensions")


def _have_room(first: str, second: str) -> bool:
    """Whether something without weights can stand between two modules of a Sequential, or their names do not tell."""
    before, after = first.rpartition("."), second.rpartition(".")
    numbered = before[0] == after[0] and before[2].isdecimal() and after[2].isdecimal()
    return not numbered or int(after[2]) - int(before[2]) > 1
