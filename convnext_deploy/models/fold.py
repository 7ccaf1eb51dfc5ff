"""Exact rewrites for deployment: constants that a trained network multiplies and adds go into the layer beside them.

| rewrite | before | after |
|---|---|---|
| `layer_scale` | `γ ⊙ (W h + b)` | `(diag(γ) W) h + γ ⊙ b`, in the second linear layer of a block |
| `norm_affine` | `W (g ⊙ z + β) + b` | `(W diag(g)) z + (b + W β)`, in the layer after a norm; `z` is what the norm divided |
| `grn_bias` | `W (v + β) + b` | `W v + (b + W β)`, in the second linear layer of a v2 block; `v` is GRN without its bias |
| `normalization` | `W ((x - mean) / std) + b` | `(W diag(1 / (w std))) (w x) + (b - W (mean / std))`, in the stem |

`w` is the value of white in the images that the folded network takes, 1 or 255. A convolution is one such product per position;
its `W β` is summed over the kernel, which gives the same number at every position only without padding. So the mean does not go
into an overlapping stem, whose zeros stand for the mean colour and not for black. A norm before the pooling goes into the layer
after it, because the mean over pixels of `g ⊙ z + β` is `g ⊙ mean(z) + β`. The affine of the stem's norm stays: its output is
the first block's input and also the residual stream, which no layer multiplies. All of it holds for a network that evaluates;
in training, dropout before the head would have zeroed `g ⊙ z + β` whole.

The arithmetic is in float64 and rounded once, to the network's float32. A folded network is the same `ConvNeXt` of the same
`ModelSpec` with the same parameters, of which the folded ones are neutral: norm weight and `γ` 1, biases 0. So it is saved,
loaded, prepared for quantization, trained and converted to other libraries like any other, and smoothing finds the norm weight
that takes its scales. A spec that said "without affine" would have to be known to all of these, and would be false again after
smoothing. What is neutral costs nothing where it counts: `drop_identities` takes it out of a network that will only run or be
exported, and it looks at the numbers, not at a flag that could be wrong. The graph then has no node for `γ` and for GRN's bias,
and a LayerNormalization has a scale, which ONNX demands, and no bias.
"""

import copy
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from convnext_deploy.artifacts.details import Certificate, Fold, Kept
from convnext_deploy.artifacts.preprocessing import tell
from convnext_deploy.artifacts.spec import Preprocess
from convnext_deploy.config.records import read_record
from convnext_deploy.errors import CheckpointError, DataError, RecipeError, suggest
from convnext_deploy.models.convnext import Block, ConvNeXt
from convnext_deploy.models.equivalence import compare, compute_logits, dtype_name
from convnext_deploy.models.identities import constants
from convnext_deploy.quantization.prepare import is_padded

Rewrite = Literal["layer_scale", "norm_affine", "grn_bias"]
REWRITES: tuple[Rewrite, ...] = get_args(Rewrite)
Pixels = Literal["normalized", "unit", "byte"]
WHITE: dict[Pixels, float | None] = {"normalized": None, "unit": 1.0, "byte": 255.0}
"""What a folded network takes → the value of white; None: normalized images, as before."""

STEM, MEAN_AND_STD = "downsample_layers.0.0", "mean and std"
_RANDOM_IMAGES = 2
_RANDOM_SIDE = 96  # pixels; what a rewrite changes is the same at every position, so larger images tell no more
_ALREADY = "it already changes nothing"
_RESIDUAL = "its output is also the residual stream, which no layer multiplies, or goes into another norm"
_FEATURES = "what it gives are the features, behind which no layer comes"
_PADDED_LAYER = "the layer after it pads with zeros, to which a norm adds no bias"
_PADDED = f"{STEM} overlaps and pads with zeros, which are the mean colour after normalization and black before it"


@dataclass(frozen=True)
class Folding:
    """The folded network, the transform of the images that it takes, and the proof that it computes the same."""

    network: ConvNeXt
    preprocess: Preprocess
    certificate: Certificate


@torch.no_grad()
def fold(
    network: ConvNeXt,
    preprocess: Preprocess,
    images: Tensor | None = None,
    *,
    rewrites: Collection[Rewrite] = REWRITES,
    pixels: Pixels = "normalized",
) -> Folding:
    """Return a folded copy of a float network, and its certificate; the network itself is left alone.

    The copy keeps devices, dtypes, `requires_grad` and mode; folding it again changes no bit. With `pixels`, the returned transform
    has mean 0 and std 1 or 1/255, which is what the copy then takes; where the stem cannot take the mean, it is the old one.

    Args:
        network: with weights in float32 or float64, before `prepare`.
        preprocess: the transform of the images that `network` takes; the random images have its size, at most 96 pixels.
        images: `(N, C, H, W)` real images, normalized by `preprocess`, to compare the logits on; without them only random ones.
        rewrites: which to do inside the network.
        pixels: what the copy is to take: `normalized` images as before, or pixel values with white at 1 (`unit`) or 255 (`byte`).

    Raises:
        RecipeError: if there is no such rewrite or kind of pixels.
        CheckpointError: if the network is quantized, of another dtype, or has or gets values that are not finite.
        DataError: if transform or images do not fit the network, or values are not finite.
    """
    _check_request(rewrites, pixels)
    _check_network(network)
    _check_images(network, preprocess, images)
    sides = (min(side, _RANDOM_SIDE) for side in preprocess.sides)
    shape = (_RANDOM_IMAGES, len(preprocess.mean), *sides)
    samples = {"random": torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)}
    if images is not None:
        samples["given"] = images.detach().to("cpu", torch.float64)
    wide = copy.deepcopy(network).to("cpu", torch.float64).eval()
    dtypes = (torch.float64, torch.float32)
    before = {(name, dtype): compute_logits(wide, batch, dtype) for dtype in dtypes for name, batch in samples.items()}

    folds, kept = _rewrite(wide, rewrites)
    if (white := WHITE[pixels]) is not None:
        change = _fold_normalization(wide, preprocess, white)
        if isinstance(change, Fold):
            folds.append(change)
            samples = {name: _as_pixels(batch, preprocess) * white for name, batch in samples.items()}
            channels = len(preprocess.mean)
            inside = {"mean": (0.0,) * channels, "std": (1.0 / white,) * channels}
            preprocess = tell(preprocess, inside, "as folding left them")
        else:
            kept.append(change)

    folded = copy.deepcopy(network)
    for parameter, exact in zip(folded.parameters(), wide.parameters(), strict=True):
        parameter.copy_(exact)
    _check_finite(folded, " after folding; what is multiplied into it is too large")
    differences = tuple(
        compare(name, dtype, before[name, dtype], compute_logits(result, batch, dtype))
        for result, dtype in zip((wide, folded), dtypes, strict=True)
        for name, batch in samples.items()
    )
    return Folding(folded, preprocess, Certificate(tuple(folds), tuple(kept), differences))


def _rewrite(network: ConvNeXt, rewrites: Collection[str]) -> tuple[list[Fold], list[Kept]]:
    """Do the rewrites inside the network, in place."""
    folds: list[Fold] = []
    kept: list[Kept] = []
    for rewrite, source, target in places(network):
        if rewrite not in rewrites:
            continue
        if target is None:
            kept.append(Kept(rewrite, source, _FEATURES if _is_last(network, source) else _RESIDUAL))
        elif _is_shifted(network.get_submodule(source)) and is_padded(network.get_submodule(target)):
            kept.append(Kept(rewrite, source, _PADDED_LAYER))
        elif _fold_module(network.get_submodule(source), network.get_submodule(target)):
            folds.append(Fold(rewrite, source, target))
        else:
            kept.append(Kept(rewrite, source, _ALREADY))
    return folds, kept


def places(network: ConvNeXt) -> Iterator[tuple[Rewrite, str, str | None]]:
    """Yield each rewrite, the module that has the constants, and the layer that they go into (None: there is none), by name."""
    after_stem = network.stem.convolutions
    yield "norm_affine", f"downsample_layers.0.{after_stem}", None
    if len(network.stem) > after_stem + 1:
        yield "norm_affine", f"downsample_layers.0.{after_stem + 1}", f"downsample_layers.0.{after_stem + 2}"
    for s in range(1, len(network.downsample_layers)):
        yield "norm_affine", f"downsample_layers.{s}.0", f"downsample_layers.{s}.1"
    for name, block in network.named_modules():
        if isinstance(block, Block):
            yield "norm_affine", f"{name}.norm", f"{name}.pwconv1"
            if block.grn is not None:
                yield "grn_bias", f"{name}.grn", f"{name}.pwconv2"
            if block.gamma is not None:
                yield "layer_scale", name, f"{name}.pwconv2"
    last_norm = "norm" if network.norm_pre is None else "norm_pre"
    head: str | None = "head" if network.pre_logits is None else "pre_logits"
    if not network.num_classes and network.pre_logits is None:
        head = None  # the features are what the norm gives
    yield "norm_affine", last_norm, head if network.head_norm is None else None
    if network.head_norm is not None:
        yield "norm_affine", "head_norm", head


def _is_last(network: ConvNeXt, source: str) -> bool:
    """Whether no layer comes behind a norm, as in a network without head."""
    return not network.num_classes and source in ("norm", "norm_pre", "head_norm")


def _is_shifted(source: nn.Module) -> bool:
    bias = getattr(source, "bias", None)
    return bias is not None and bool(bias.any())


def _fold_module(source: nn.Module, layer: nn.Module) -> bool:
    """Move the constants of a norm, GRN or block into a layer, in place; False where they change nothing already."""
    assert isinstance(layer, nn.Linear | nn.Conv2d)  # what _places names
    found = {name: parameter for name, parameter, neutral in constants(source) if (parameter != neutral).any()}
    if isinstance(source, Block):
        _scale_output(layer, found.get("gamma"))
    else:
        _absorb_input(layer, found.get("weight"), found.get("bias", found.get("beta")))
    for _, parameter, neutral in constants(source):
        parameter.fill_(neutral)
    return bool(found)


def _absorb_input(layer: nn.Linear | nn.Conv2d, scale: Tensor | None, shift: Tensor | None) -> None:
    """Let a layer make of `z` what it made of `scale ⊙ z + shift`; both `(C_in,)` and float64, or None for 1 and 0.

    The weight is `(C_out, C_in)` or `(C_out, C_in, h, w)`; with a shift, the layer has no padding.
    """
    weight, bias = layer.weight, layer.bias
    assert bias is not None  # every layer of a ConvNeXt has one
    if shift is not None:
        bias += weight.reshape(*weight.shape[:2], -1).sum(-1) @ shift.flatten()
    if scale is not None:
        weight *= scale.view(1, -1, *[1] * (weight.ndim - 2))


def _scale_output(layer: nn.Linear | nn.Conv2d, gain: Tensor | None) -> None:
    """Multiply what a layer gives by `gain`, `(C_out,)` float64, or None for 1."""
    assert layer.bias is not None
    if gain is not None:
        layer.weight *= gain.view(-1, *[1] * (layer.weight.ndim - 1))
        layer.bias *= gain


def _fold_normalization(network: ConvNeXt, preprocess: Preprocess, white: float) -> Fold | Kept:
    """Let the stem take pixel values in `[0, white]`, in place, where that is exact."""
    stem = network.get_submodule(STEM)
    assert isinstance(stem, nn.Conv2d)  # the first layer of every stem
    mean, std = (torch.tensor(values, dtype=stem.weight.dtype) for values in (preprocess.mean, preprocess.std))
    if not mean.any() and (std == 1.0 / white).all():
        return Kept("normalization", MEAN_AND_STD, _ALREADY)
    if mean.any() and any(stem.padding):
        return Kept("normalization", MEAN_AND_STD, _PADDED)
    _absorb_input(stem, 1.0 / (white * std), -mean / std)
    return Fold("normalization", MEAN_AND_STD, STEM)


def _as_pixels(images: Tensor, preprocess: Preprocess) -> Tensor:
    """Return the pixel values in [0, 1] of which normalization made `images`, `(N, C, H, W)` float64."""
    mean, std = (torch.tensor(v, dtype=images.dtype).view(-1, 1, 1) for v in (preprocess.mean, preprocess.std))
    return images * std + mean


def _check_request(rewrites: Collection[str], pixels: str) -> None:
    for found, known in [*((rewrite, REWRITES) for rewrite in rewrites), (pixels, tuple(WHITE))]:
        if found not in known:
            raise RecipeError(f"fold: '{found}' is unknown.{suggest(found, known)} Known: {', '.join(known)}.")


def _check_network(network: ConvNeXt) -> None:
    for name, layer in network.named_modules():
        if isinstance(layer, nn.Linear | nn.Conv2d) and type(layer) not in (nn.Linear, nn.Conv2d):
            raise CheckpointError(f"'{name}' is quantized, and folding would move its grid; fold the float network.")
    if others := {dtype_name(parameter.dtype) for parameter in network.parameters()} - {"float32", "float64"}:
        raise CheckpointError(f"the weights are {', '.join(sorted(others))}; fold the float32 network.")
    _check_finite(network, "; the training that made it diverged")


def _check_finite(network: ConvNeXt, reason: str) -> None:
    for name, parameter in network.named_parameters():
        if not parameter.isfinite().all():
            raise CheckpointError(f"'{name}' holds values that are not finite{reason}.")


def _check_images(network: ConvNeXt, preprocess: Preprocess, images: Tensor | None) -> None:
    try:
        read_record(Preprocess, vars(preprocess), "the images of this network cannot be normalized")
    except ValueError as error:
        raise DataError(str(error)) from None
    channels = network.get_submodule(STEM).in_channels
    if len(preprocess.mean) != channels:
        raise DataError(f"the transform is for {len(preprocess.mean)} channels, the network takes {channels}.")
    if images is not None and (images.ndim != 4 or images.shape[1] != channels or not len(images)):
        raise DataError(
            f"the images have shape {tuple(images.shape)}; expected (N, {channels}, H, W) with N of at least 1."
        )
    if images is not None and not images.isfinite().all():
        raise DataError("the images hold values that are not finite.")
