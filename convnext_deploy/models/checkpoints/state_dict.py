"""Find the network that a state dict belongs to, and load it."""

import operator
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from convnext_deploy.artifacts.spec import ModelSpec
from convnext_deploy.config.choices import Dialect
from convnext_deploy.errors import CheckpointError, OtherNetworkError
from convnext_deploy.models.checkpoints import INDEX
from convnext_deploy.models.checkpoints.find_network import (
    choose_network,
    describe_choice,
    find_networks,
    tensor_tables,
)
from convnext_deploy.models.checkpoints.hidden_widths import find_widths
from convnext_deploy.models.checkpoints.key_maps import DIALECTS, recognize, to_native
from convnext_deploy.models.checkpoints.other_networks import name_change, name_network
from convnext_deploy.models.checkpoints.safe_reader import load_metadata, read_content, take_tensors
from convnext_deploy.models.variants import VARIANTS, Variant

_SHARD = re.compile(r"-\d+-of-\d+\.")
_SHARD_OF_TRANSFORMERS = re.compile(r"-\d{5}-of-(?!00001\.)\d{5}\.")  # whatever it holds, it is not all
# What a checkpoint for fine-tuning may lack or have in another size: the head; the last norm only where the head is missing too,
# as in the weights of a pretrained backbone.
_HEAD = ("head.", "pre_logits.", "head_norm.")
_LAST_NORM = ("norm.", "norm_pre.")
_BLOCK = re.compile(r"stages\.(\d)\.(\d+)\.")
_MOST_NAMED = 5


@dataclass(frozen=True)
class Checkpoint:
    """Weights under the network's own names, the dialect they came in, and what is worth knowing about the file.

    `arguments`: what its training was called with, by where that stands in the file → name → plain value; empty if it does not say.
    `changes`: to the fields of the `ModelSpec` that the weights show, for a head that is not the library's own.
    """

    state: dict[str, Tensor]
    dialect: Dialect
    notes: tuple[str, ...]
    arguments: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    changes: Mapping[str, Any] = field(default_factory=dict)


def load_checkpoint(path: Path, entry: str | None = None) -> Checkpoint:
    """Read a file of weights in any dialect.

    Args:
        path: the file.
        entry: which of several networks in it, see `choose_network`; None: the one to take first.

    Raises: CheckpointError: if it cannot be read, or holds no ConvNeXt.
    """
    content, beside = read_content(path)
    networks = [] if _SHARD_OF_TRANSFORMERS.search(path.name) else find_networks(content, path)
    if not any(tensor.numel() for network in networks for tensor in network.tensors.values()):
        return _load_incomplete(content, path, beside.arguments)
    network = choose_network(networks, entry, path)
    is_foreign = not load_metadata(path)  # our own files have quantizers too
    if is_foreign:
        _check_unchanged(network.tensors, path)
    notes = [
        f"{path.name}: weights in the names of {network.library}",
        *describe_choice(network, networks, path),
        *network.head.remarks,
        *_describe_objects(beside.not_made, path),
    ]
    state = {**to_native(network.tensors, network.dialect), **network.head.tensors}
    if is_foreign and "head.bias" not in state and (weight := state.get("head.weight")) is not None:
        state["head.bias"] = weight.new_zeros(len(weight))
        notes.append(
            f"{path.name}: the head has no bias, read as zeros; heads that compare angles, as ArcFace's, are read wrongly"
        )
    if is_foreign and _gives_one_logit(state):
        for name in ("head.weight", "head.bias"):
            state[name] = torch.cat([torch.zeros_like(state[name]), state[name]])
        notes.append(
            f"{path.name}: its one logit is taken for that of the second of two classes; the first has a logit of 0"
        )
    if kinds := sorted({str(t.dtype).removeprefix("torch.") for t in state.values()} - {"float32"}):
        notes.append(f"{path.name}: weights in {', '.join(kinds)} are converted to float32")
    return Checkpoint(state, network.dialect, tuple(notes), beside.arguments, network.head.changes)


def _describe_objects(names: tuple[str, ...], path: Path) -> Iterator[str]:
    """Say of which packages the objects beside the weights are."""
    if names:
        packages = {name.partition(".")[0] for name in names}
        named = sorted(packages - {"builtins", "collections", "typing"} or packages)
        others = f" and {len(named) - _MOST_NAMED} more" if len(named) > _MOST_NAMED else ""
        yield (
            f"{path.name}: beside the weights are objects of {', '.join(named[:_MOST_NAMED])}{others}: paths, attributes and "
            "OmegaConf's tables were read as plain values, all else was left out, and nothing was run"
        )


def _gives_one_logit(state: Mapping[str, Tensor]) -> bool:
    """Whether a network was trained with a sigmoid: softmax of the logits (0, z) gives the same probabilities."""
    weight, bias = state.get("head.weight"), state.get("head.bias")
    return weight is not None and bias is not None and weight.ndim == 2 and len(weight) == len(bias) == 1


def _load_incomplete(content: Any, path: Path, arguments: Mapping[str, Mapping[str, Any]]) -> Checkpoint:
    """Return weights that are not all of a network, for `infer_model_spec` to say what is missing."""
    if _SHARD.search(path.name):
        raise CheckpointError(f"{path} is one of the files of a network; give their index, *{INDEX}, or their folder.")
    tables = [*tensor_tables(content)]
    held = [key for _, table in tables for key, value in table.items() if isinstance(key, str)]
    _check_unchanged([*held, *_names_of_tables(content)], path)
    if (other := name_network(held)) is not None:
        raise OtherNetworkError(f"{path} is not a ConvNeXt checkpoint: it looks like {other}.")
    names, largest = max(tables, key=lambda each: len(each[1]), default=((), {}))
    tensors, _ = take_tensors({k: v for k, v in largest.items() if isinstance(v, Tensor)} if names else content, path)
    dialect = recognize(tensors)
    if dialect is None:
        some = ", ".join(list(tensors)[:3])
        raise CheckpointError(
            f"{path} is not a ConvNeXt checkpoint with the names of {', '.join(DIALECTS)}; its first keys are {some}."
        )
    return Checkpoint(to_native(tensors, dialect), dialect, (), arguments)


def _names_of_tables(content: Any) -> Iterator[str]:
    """Yield the names in a table and in the tables in it."""
    for table in (content, *(content.values() if isinstance(content, Mapping) else ())):
        yield from (key for key in (table if isinstance(table, Mapping) else ()) if isinstance(key, str))


def _check_unchanged(keys: Iterable[str], path: Path) -> None:
    """Raises: CheckpointError: if names say that something was put into a network, so that its weights are not its own."""
    if (change := name_change(keys)) is not None:
        raise CheckpointError(f"{path} is not a ConvNeXt checkpoint of plain weights: {change}.")


def infer_model_spec(state: Mapping[str, Tensor], path: Path) -> ModelSpec:
    """Find the variant, classes, channels, stem and head from the names and shapes of a state dict.

    Returns: the spec; its `num_classes` is 0 if there is no head.
    Raises: CheckpointError: if these are not the weights of a ConvNeXt, or no variant has these depths and widths.
    """
    blocks = {(int(block[1]), int(block[2])) for key in state if (block := _BLOCK.match(key))}
    first = [min((number for stage, number in blocks if stage == i), default=0) for i in range(4)]
    keys = ["downsample_layers.0.0.weight", *(f"stages.{i}.{number}.dwconv.weight" for i, number in enumerate(first))]
    missing = next((key for key in keys if key not in state), None)
    if missing is not None:
        raise CheckpointError(f"{path} is not a ConvNeXt checkpoint: it has no '{missing}'.")
    stem, *depthwise = (state[key] for key in keys)
    head, pre_logits = state.get("head.weight"), state.get("pre_logits.weight")
    if head is None and "head.bias" in state:
        raise CheckpointError(f"{path} is not a whole checkpoint: it has 'head.bias' and no 'head.weight'.")
    linear = [weight for weight in (pre_logits, head) if weight is not None]
    if (
        any(weight.ndim != 4 for weight in (stem, *depthwise))
        or any(weight.ndim != 2 for weight in linear)
        or any(0 in weight.shape for weight in (stem, *depthwise, *linear))
    ):
        found = [tuple(weight.shape) for weight in (stem, *depthwise, *linear)]
        raise CheckpointError(
            f"{path} is not a ConvNeXt checkpoint: the shapes of stem, convolutions and head are {found}."
        )
    convolutions = [i for i in range(4) if getattr(state.get(f"downsample_layers.0.{i}.weight"), "ndim", 0) == 4]
    kinds = {(0,): "patch", (0, 1): "overlap", (0, 2): "overlap_act", (0, 3): "patch"}
    halves = tuple(convolutions) == (0, 3)
    found_row = {
        "version": 2 if any(".grn." in key for key in state) else 1,
        "depths": tuple(len([number for stage, number in blocks if stage == i]) for i in range(4)),
        "dims": tuple(weight.shape[0] for weight in depthwise),
        "stem": kinds.get(tuple(convolutions), "unknown"),
        "kernel_sizes": tuple(weight.shape[2] for weight in depthwise),
        "norm_bias": f"stages.0.{first[0]}.norm.bias" in state,
        "head_norm_first": "norm_pre.weight" in state,
    }
    matching = [name for name, row in VARIANTS.items() if _traits(row) == found_row]
    if not matching:
        matching = _with_removed_blocks(found_row, blocks)
    if not matching:
        raise CheckpointError(_describe_unknown(path, found_row))
    hidden = None if pre_logits is None else int(pre_logits.shape[0])
    exact = [name for name in matching if VARIANTS[name].head_hidden_size == hidden]
    name = (exact or matching)[0]
    return ModelSpec(
        name,
        0 if head is None else int(head.shape[0]),
        int(stem.shape[1]),
        int(stem.shape[2]) if found_row["stem"] == "patch" else ModelSpec.patch_size,
        head_hidden_size=None if exact else hidden,
        strides=(2, 2, 2, 2) if halves else ModelSpec.strides,
        head_norm="head_norm.weight" in state,
        hidden_widths=find_widths(VARIANTS[name], state),
    )


def _with_removed_blocks(found: Mapping[str, object], blocks: Collection[tuple[int, int]]) -> list[str]:
    """Return the variants that these weights are of if blocks were removed before the last of a model stage, least deep first."""
    least = tuple(1 + max(number for stage, number in blocks if stage == i) for i in range(4))
    if least == found["depths"]:
        return []
    alike = [name for name, row in VARIANTS.items() if _traits(row) == {**found, "depths": row.depths}]
    fitting = [name for name in alike if all(map(operator.le, least, VARIANTS[name].depths))]
    return sorted(fitting, key=lambda name: sum(VARIANTS[name].depths))


def _traits(row: Variant) -> dict[str, object]:
    """Return what the names and shapes of a variant's weights show."""
    return {
        "version": row.version,
        "depths": row.depths,
        "dims": row.dims,
        "stem": row.stem,
        "kernel_sizes": row.kernel_sizes,
        "norm_bias": row.norm == "layernorm",
        "head_norm_first": row.head_norm_first,
    }


def _describe_unknown(path: Path, found: Mapping[str, object]) -> str:
    def distance(name: str) -> tuple[float, int]:
        row = _traits(VARIANTS[name])
        widths = sum(abs(a - b) / b for a, b in zip(found["dims"], VARIANTS[name].dims, strict=True))  # type: ignore[call-overload]
        depths = sum(abs(a - b) / b for a, b in zip(found["depths"], VARIANTS[name].depths, strict=True))  # type: ignore[call-overload]
        return widths + depths, sum(row[key] != found[key] for key in row)

    nearest = min(VARIANTS, key=distance)
    row = _traits(VARIANTS[nearest])
    differing = "; ".join(f"{key} {found[key]} instead of {row[key]}" for key in row if found[key] != row[key])
    return f"{path} is a ConvNeXt of no known variant. The nearest is {nearest}, but the file has {differing}."


@torch.no_grad()
def load_into(
    model: nn.Module, state: Mapping[str, Tensor], what: str, *, reinitialize_head: bool = False
) -> tuple[str, ...]:
    """Give a model the tensors of a state dict, which become its parameters without a copy; every key must fit.

    The model is left alone if any does not. Tensors of other dtypes than the model's are converted.

    Args:
        model: may be on the meta device.
        state: under the network's own names.
        what: the file, for messages.
        reinitialize_head: keep the model's own head where the state has none or one of another size.

    Returns: the names that kept the model's own values.
    Raises: CheckpointError: naming the first key that is missing, unexpected, of another shape or not finite.
    """
    expected = model.state_dict()
    kept = _kept_names(expected, state) if reinitialize_head else frozenset[str]()
    fitting: dict[str, Tensor] = {}
    for key, tensor in expected.items():
        if key in kept:
            continue
        if key not in state:
            raise CheckpointError(
                f"{what} lacks '{key}', which the network needs; is it a checkpoint of another model?"
            )
        if state[key].shape != tensor.shape:
            found, wanted = tuple(state[key].shape), tuple(tensor.shape)
            raise CheckpointError(f"{what}: '{key}' has shape {found}, the network needs {wanted}.")
        value = state[key].to(tensor.dtype)
        if value.is_floating_point() and value.numel() and not all(v.isfinite() for v in value.aminmax()):
            raise CheckpointError(
                f"{what}: '{key}' holds values that are not finite; the training that made it diverged."
            )
        fitting[key] = value
    unexpected = next((key for key in state if key not in expected and not (kept and key.startswith(_HEAD))), None)
    if unexpected is not None:
        raise CheckpointError(
            f"{what} has '{unexpected}', which the network does not; is it a checkpoint of another model?"
        )
    model.load_state_dict(fitting, strict=not kept, assign=True)
    return tuple(key for key in expected if key in kept)


def _kept_names(expected: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> frozenset[str]:
    def is_other(key: str) -> bool:
        return key not in state or state[key].shape != expected[key].shape

    heads = [key for key in expected if key.startswith(_HEAD)]
    extra = any(key.startswith(_HEAD) and key not in expected for key in state)
    kept = set(heads) if extra or any(is_other(key) for key in heads) else set()
    if "head.weight" not in state:
        kept |= {key for key in expected if key.startswith(_LAST_NORM) and key not in state}
    return frozenset(kept)
