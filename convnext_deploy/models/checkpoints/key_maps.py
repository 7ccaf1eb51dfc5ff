"""Map the names and shapes of weights to those of timm, torchvision and transformers, and back.

The network's own keys are those of the official repositories (`facebook`). A dialect is one column of a table of names;
reading and writing use the same table, so a round trip cannot lose a weight.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from typing import get_args

from torch import Tensor

from convnext_deploy.artifacts.spec import ModelSpec
from convnext_deploy.config.choices import Dialect
from convnext_deploy.errors import CheckpointError
from convnext_deploy.models.variants import Variant, complete_spec, timm_output_stride

DIALECTS: tuple[Dialect, ...] = get_args(Dialect)

# Own name, then the name in timm, torchvision and transformers; None: that library has no such layer. {s} is the model stage,
# {odd} and {even} are torchvision's 2s+1 and 2s, and * stands for the number of a block.
_STEM = [
    ("downsample_layers.0.0", "stem.0", "features.0.0", "embeddings.patch_embeddings"),
    ("downsample_layers.0.1", "stem.1", "features.0.1", "embeddings.layernorm"),
    ("downsample_layers.0.2", "stem.2", None, None),
    ("downsample_layers.0.3", "stem.3", None, None),
]
_DOWNSAMPLE = [
    (f"downsample_layers.{{s}}.{i}", f"stages.{{s}}.downsample.{i}", f"features.{{even}}.{i}",
     f"encoder.stages.{{s}}.downsampling_layer.{i}")
    for i in (0, 1)
]  # fmt: skip
_HALVE = [  # of timm's networks with a patch size of 2, before the first model stage; here the end of the stem
    (f"downsample_layers.0.{2 + i}", f"stages.0.downsample.{i}", None, None) for i in (0, 1)
]
_BLOCK = [
    (f"stages.{{s}}.*.{own}", f"stages.{{s}}.blocks.*.{timm}", torchvision and f"features.{{odd}}.*.{torchvision}",
     f"encoder.stages.{{s}}.layers.*.{huggingface}")
    for own, timm, torchvision, huggingface in (
        ("dwconv", "conv_dw", "block.0", "dwconv"),
        ("norm", "norm", "block.2", "layernorm"),
        ("pwconv1", "mlp.fc1", "block.3", "pwconv1"),
        ("grn.gamma", "mlp.grn.weight", None, "grn.weight"),
        ("grn.beta", "mlp.grn.bias", None, "grn.bias"),
        ("pwconv2", "mlp.fc2", "block.5", "pwconv2"),
        ("gamma", "gamma", "layer_scale", "layer_scale_parameter"),
    )
]  # fmt: skip
_HEAD = [
    ("norm", "head.norm", "classifier.0", "layernorm"),
    ("norm_pre", "norm_pre", None, None),
    ("pre_logits", "head.pre_logits.fc", None, None),
    ("head", "head.fc", "classifier.2", "classifier"),
]
_COLUMN: dict[Dialect, int] = {"facebook": 0, "timm": 1, "torchvision": 2, "huggingface": 3}
BASE_MODELS = ("convnext.", "convnextv2.")
"""What transformers puts before the names of all but the head, by version."""
SIGNATURES: dict[Dialect, tuple[str, str, str]] = {
    "facebook": ("downsample_layers.0.0.weight", "stages.0.0.dwconv.weight", "stages.3.0.dwconv.weight"),
    "timm": ("stem.0.weight", "stages.0.blocks.0.conv_dw.weight", "stages.3.blocks.0.conv_dw.weight"),
    "torchvision": ("features.0.0.weight", "features.1.0.block.0.weight", "features.7.0.block.0.weight"),
    "huggingface": (
        "embeddings.patch_embeddings.weight",
        "encoder.stages.0.layers.0.dwconv.weight",
        "encoder.stages.3.layers.0.dwconv.weight",
    ),
}
"""Dialect → weights that every network in it has: the stem's, and those of the first block of the first and last model stage."""
MAIN_PARTS: dict[Dialect, tuple[str, ...]] = {
    "facebook": ("downsample_layers", "stages", "norm", "norm_pre", "pre_logits", "head", "head_norm"),
    "timm": ("stem", "stages", "norm_pre", "head"),
    "torchvision": ("features", "classifier"),
    "huggingface": ("embeddings", "encoder", "layernorm", "classifier", *(base.rstrip(".") for base in BASE_MODELS)),
}
"""Dialect → how the names of all its weights begin."""
WITHOUT_HEAD: tuple[Dialect, ...] = ("timm", "huggingface")
"""The libraries whose own networks can be without head: `num_classes=0`, `ConvNextModel`."""


def recognize(state: Mapping[str, Tensor]) -> Dialect | None:
    """Return the dialect of a state dict, or None if it is not a ConvNeXt in any of them."""
    names = {_without_base(key) for key in state}
    # every network has it in one dialect and no network in another
    return next((dialect for dialect, (stem, *_) in SIGNATURES.items() if stem in names), None)


def to_native(state: Mapping[str, Tensor], dialect: Dialect) -> dict[str, Tensor]:
    """Return the same weights under their own names and in their own shapes; names that the dialect lacks stay as they are."""
    result: dict[str, Tensor] = {}
    for key, tensor in state.items():
        name = key if dialect == "facebook" else _rename(_without_base(key), dialect, reverse=True, halved=True)
        result[name or key] = _native_shape(name or key, tensor)
    return result


def from_native(state: Mapping[str, Tensor], spec: ModelSpec, dialect: Dialect) -> dict[str, Tensor]:
    """Return a network's weights under the names and in the shapes of a dialect.

    Raises: CheckpointError: if that library has no such network.
    """
    row = complete_spec(spec)
    check_writable(spec, dialect)
    result: dict[str, Tensor] = {}
    for key, tensor in state.items():
        name = key if dialect == "facebook" else _rename(key, dialect, reverse=False, halved=spec.strides[0] > 1)
        if name is None:
            raise CheckpointError(f"'{key}' has no name in {dialect}; this network cannot be written for it.")
        if dialect == "huggingface" and spec.num_classes and not name.startswith("classifier."):
            name = BASE_MODELS[row.version - 1] + name
        result[name] = _foreign_shape(key, tensor, row, dialect)
    return result


def check_writable(spec: ModelSpec, dialect: Dialect) -> list[str]:
    """Check that a library's own ConvNeXt can be the network of `spec`, and return what it will compute differently.

    Raises: CheckpointError: naming what it lacks.
    """
    row = complete_spec(spec)
    headless = not spec.num_classes and dialect not in WITHOUT_HEAD
    lacking: list[tuple[bool, str]] = [
        (row.hidden_widths is not None, "blocks of different hidden widths, which this pruned network has"),
        (spec.head_norm, "a second norm before the head"),
        (headless, f"a form without head; those of {' and '.join(WITHOUT_HEAD)} have one"),
    ]
    if dialect == "timm":
        lacking += [
            (
                timm_output_stride(spec) is None,
                f"a patch size of {spec.patch_size} with strides of {spec.strides} and dilations of {spec.dilations}",
            ),
            (bool(row.head_hidden_size) and row.head_norm_first, "a hidden layer with the norm before the pooling"),
            (bool(row.head_hidden_size) and spec.head_activation != "gelu", f"a {spec.head_activation} in the head"),
        ]
    else:
        plain = Variant(row.version, row.depths, row.dims)
        lacking += [
            (row.stem != "patch", "overlapping stems"),
            (row.norm != "layernorm", f"a {row.norm}"),
            (row.norm_eps != plain.norm_eps, f"norms with eps {row.norm_eps:g}"),
            (row.kernel_sizes != plain.kernel_sizes, f"kernels of {row.kernel_sizes}"),
            (row.head_norm_first, "a norm before the pooling"),
            (bool(row.head_hidden_size), "a hidden layer in the head"),
            (row.activation != "gelu" and dialect != "huggingface", f"the activation {row.activation}"),
            (spec.patch_size != 4 and dialect != "huggingface", f"a patch size of {spec.patch_size}"),
            (spec.strides != ModelSpec.strides, f"strides of {spec.strides}"),
            (spec.dilations != ModelSpec.dilations, f"dilations of {spec.dilations}"),
        ]
    if dialect == "torchvision":
        lacking += [(row.version == 2, "ConvNeXt v2"), (spec.in_channels != 3, f"{spec.in_channels} input channels")]
    for missing, what in lacking:
        if missing:
            raise CheckpointError(f"{spec.variant} cannot be written for {dialect}, whose ConvNeXt lacks {what}.")
    eps = spec.head_norm_eps
    if dialect == "huggingface" or eps is None or eps == row.norm_eps:
        return []
    return [f"the last norm's eps {eps:g} becomes {row.norm_eps:g}, because {dialect} has one for all norms"]


def _without_base(key: str) -> str:
    return next((key.removeprefix(base) for base in BASE_MODELS if key.startswith(base)), key)


@cache
def _patterns(dialect: Dialect, reverse: bool, halved: bool) -> list[tuple[re.Pattern[str], str]]:
    return [
        (
            re.compile(re.escape(source).replace(r"\*", r"(\d+)") + r"((?:\.weight|\.bias)?)"),
            target.replace("*", r"\1") + (r"\2" if "*" in target else r"\1"),
        )
        for own, theirs in _rows(dialect, halved)
        for source, target in [(theirs, own) if reverse else (own, theirs)]
    ]


def _rows(dialect: Dialect, halved: bool) -> Iterator[tuple[str, str]]:
    column = _COLUMN[dialect]
    numbered: list[tuple[int, Sequence[tuple[str | None, ...]]]]
    numbered = [(0, _HALVE)] if halved else []  # before the names of an overlapping stem, whose numbers are the same
    numbered += [(0, _STEM), *((s, _DOWNSAMPLE) for s in (1, 2, 3)), *((s, _BLOCK) for s in range(4)), (0, _HEAD)]
    for s, rows in numbered:
        for row in rows:
            own, theirs = row[0], row[column]
            if own is not None and theirs is not None:
                numbers = {"s": s, "odd": 2 * s + 1, "even": 2 * s}
                yield own.format(**numbers), theirs.format(**numbers)


def _rename(key: str, dialect: Dialect, *, reverse: bool, halved: bool) -> str | None:
    for pattern, target in _patterns(dialect, reverse, halved):
        if found := pattern.fullmatch(key):
            return found.expand(target)
    return None


def _native_shape(key: str, tensor: Tensor) -> Tensor:
    """Undo what dialects do to shapes: 1×1 convolutions for linear layers, extra or missing dimensions of size 1."""
    if key.endswith(("pwconv1.weight", "pwconv2.weight")) and tensor.ndim == 4 and tensor.shape[2:] == (1, 1):
        return tensor.flatten(1)
    if key.endswith((".grn.gamma", ".grn.beta")) and tensor.numel() == max(tensor.shape, default=0):
        return tensor.reshape(1, 1, 1, -1)
    if key.endswith(".gamma") and ".grn." not in key and tensor.numel() == max(tensor.shape, default=0):
        return tensor.flatten()
    return tensor


def _foreign_shape(key: str, tensor: Tensor, row: Variant, dialect: Dialect) -> Tensor:
    if dialect == "timm":
        if ".grn." in key:
            return tensor.flatten()
        if row.pointwise_convolutions and key.endswith(("pwconv1.weight", "pwconv2.weight")):
            return tensor[:, :, None, None]
    if dialect == "torchvision" and key.endswith(".gamma"):
        return tensor[:, None, None]
    return tensor
