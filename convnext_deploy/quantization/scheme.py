"""Quantization schemes: which tensors of which layers are quantized, and on which grids, for each deployment target.

PTQ, QAT, the exporters and the reports read the same object. Nothing else knows where a quantizer sits: `SCHEMES` says it by
patterns over the names of layers, and a recipe may say otherwise for any layer by patterns of its own.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import Any, Literal

from convnext_deploy.errors import RecipeError, suggest

SMALLEST_SCALE = 1e-6
_WILDCARD = re.compile(r"\[[^]]*\]|[*?]")


@dataclass(frozen=True)
class TensorScheme:
    """A grid: `real = scale * (level - zero_point)`, `quant_min <= level <= quant_max`; the levels are integers.

    A symmetric grid has its zero point in the middle: 0 of int8, 128 of uint8. Per-channel scales have one value per output
    channel: a weight `(N, K)` or `(N, C, h, w)` and what the layer gives have a scale `(N,)`; per-tensor scales are scalars `()`.

    `floating`: the levels are the numbers of FP8 E4M3 (four bits of exponent, three of mantissa) and not integers.
    Source: Micikevicius et al. 2022, "FP8 Formats for Deep Learning", arXiv 2209.05433, table 1.
    """

    quant_min: int
    quant_max: int
    symmetric: bool
    per_channel: bool
    floating: bool = False

    @property
    def dtype(self) -> Literal["int8", "uint8", "float8_e4m3fn"]:
        """The type that holds its levels."""
        return "float8_e4m3fn" if self.floating else "int8" if self.quant_min < 0 else "uint8"

    @property
    def last_step(self) -> int:
        """The distance between the last two levels, which is the largest."""
        return 32 if self.floating else 1

    @property
    def smallest_scale(self) -> float:
        """A constant-zero tensor must still have a positive scale, also after a cast to FP16.

        A floating grid loses nothing where its scale is larger than it had to be, so FP16 gets scales of which it has all digits.
        """
        return 2.0**-14 if self.floating else SMALLEST_SCALE


@dataclass(frozen=True)
class LayerScheme:
    """The grids of one quantized layer: of its input, its weight, and its output where that is quantized too.

    `input_shift`: the input's grid has a zero point though the target knows none; the exported graph adds the shift that it stands
    for to the input before it is quantized, and the bias takes it back.
    `patches`: a convolution with kernel = stride and no padding is exported as a linear layer, and its output stays in float; the
    grid of the output is for any other.

    Raises: RecipeError: if the weight's grid is not symmetric, or the input has a scale per channel. No target knows these.
    """

    input: TensorScheme
    weight: TensorScheme
    output: TensorScheme | None = None
    input_shift: bool = False
    patches: bool = False

    def __post_init__(self) -> None:
        if not self.weight.symmetric:
            raise RecipeError("the grid of a weight must be symmetric: no target multiplies weights with a zero point.")
        if self.input.per_channel:
            raise RecipeError("an input has one scale for the whole tensor: a sum over channels needs a common one.")
        if self.output is not None and self.output.per_channel and not self.output.symmetric:
            raise RecipeError(
                "an output with a scale for each channel must be symmetric: the channels share a zero point."
            )


CHOICES: dict[str, tuple[str, ...]] = {
    "float": (),
    "int8": ("input", "weight"),
    "int8-output": ("input", "weight", "output"),
    "int8-zero-point-shift": ("input", "weight"),
    "int8-patches": ("input", "weight", "output"),
    "fp8": ("input", "weight"),
}
"""What may be chosen for a layer → which of its tensors are quantized, on the grids of the target.

`fp8` is for a target with floating grids, which has it and `float` alone.
"""

Rules = tuple[tuple[str, str], ...]  # pattern over layer names, as `fnmatch` reads it → choice


@dataclass(frozen=True)
class QuantizationScheme:
    """A deployment target's choice: which tensors of which layers are quantized, and on which grids.

    Attributes:
        target: name in `SCHEMES`.
        sites: patterns and choices; the first that matches counts, a layer that none matches stays in float.
        activation: grid of inputs.
        weight: grid of weights.
        output: grid of outputs; None: that of inputs.
        overrides: patterns and choices of the user, before those of the target; of several that match, the one with the most
            letters that are not wildcards counts, so that their order means nothing.
    """

    target: str
    sites: Rules
    activation: TensorScheme
    weight: TensorScheme
    overrides: Rules = ()
    output: TensorScheme | None = None

    @property
    def precision(self) -> Literal["int8", "fp8"]:
        """What its layers compute in, as artifacts say it."""
        return "fp8" if self.weight.floating else "int8"

    @property
    def choices(self) -> tuple[str, ...]:
        """Those of `CHOICES` that its grids allow."""
        return tuple(name for name in CHOICES if name == "float" or name.startswith(self.precision))

    def choice(self, layer_name: str) -> str:
        """Return the name in `CHOICES` for a layer.

        Raises: RecipeError: if overrides that are equally specific say different things about it.
        """
        matching = [(_letters(pattern), pattern, choice) for pattern, choice in self.overrides]
        matching = [rule for rule in matching if fnmatchcase(layer_name, rule[1])]
        if matching:
            most = max(matching)[0]
            best = {choice: pattern for letters, pattern, choice in matching if letters == most}
            if len(best) > 1:
                said = " and ".join(f"'{pattern}' = '{choice}'" for choice, pattern in sorted(best.items()))
                raise RecipeError(f"sites: {said} disagree about '{layer_name}'; write its choice under its full name.")
            return next(iter(best))
        return self.usual_choice(layer_name)

    def usual_choice(self, layer_name: str) -> str:
        """Return how the layer of that name is computed without overrides, a key of `CHOICES`."""
        return next((choice for pattern, choice in self.sites if fnmatchcase(layer_name, pattern)), "float")

    def layer(self, layer_name: str) -> LayerScheme | None:
        """Return the grids of a layer, None for a layer in float. Raises: as `choice`."""
        choice = self.choice(layer_name)
        tensors = CHOICES[choice]
        if not tensors:
            return None
        output = (self.output or self.activation) if "output" in tensors else None
        if choice == "int8-zero-point-shift":
            return LayerScheme(replace(self.activation, symmetric=False), self.weight, output, input_shift=True)
        return LayerScheme(self.activation, self.weight, output, patches=choice == "int8-patches")

    def is_site(self, layer_name: str) -> bool:
        """Whether the layer of that name is quantized. Raises: as `choice`."""
        return self.layer(layer_name) is not None

    def with_overrides(self, overrides: Mapping[str, str]) -> QuantizationScheme:
        """Return the scheme with other choices for some layers, in place of those that it had.

        Args:
            overrides: pattern over layer names, such as `stages.3.*` → a key of `CHOICES`, such as `float`.

        Raises: RecipeError: if there is no such choice.
        """
        for pattern, choice in overrides.items():
            if choice not in self.choices:
                wrong = f"is not of the target '{self.target}'" if choice in CHOICES else "is unknown"
                raise RecipeError(
                    f"sites: '{pattern}' = '{choice}' {wrong}.{suggest(choice, self.choices)} "
                    f"Known: {', '.join(self.choices)}."
                )
        return replace(self, overrides=tuple(sorted(overrides.items())))

    def select(self, layer_names: Iterable[str]) -> dict[str, LayerScheme]:
        """Return the grids of the layers to quantize.

        Args:
            layer_names: of all the linear layers and convolutions of a network.

        Raises: RecipeError: if an override matches none of them, two disagree, or no layer is left to quantize.
        """
        names = list(layer_names)
        for pattern, _ in self.overrides:
            if not any(fnmatchcase(name, pattern) for name in names):
                raise RecipeError(
                    f"sites: '{pattern}' matches no linear layer or convolution of the network."
                    f"{suggest(pattern, names) or _examples(names)}"
                )
        found = {name: layer for name in names if (layer := self.layer(name)) is not None}
        if not found:
            patterns = ", ".join(pattern for pattern, _ in self.sites)
            reason = "sites leaves" if self.overrides else f"its layers match none of {patterns}, which leaves"
            raise RecipeError(f"no layer is quantized under the '{self.target}' scheme: {reason} all of them in float.")
        return found

    def details(self) -> dict[str, Any]:
        """Return what an artifact records of the scheme; `resolve_scheme` makes the same scheme of it."""
        return {"target": self.target, **({"sites": dict(self.overrides)} if self.overrides else {})}


def _letters(pattern: str) -> int:
    return len(_WILDCARD.sub("", pattern))


def _examples(names: list[str]) -> str:
    return f" Layers have names such as {', '.join(names[:: max(1, len(names) // 3)][:3])}." if names else ""


_S8 = TensorScheme(-128, 127, symmetric=True, per_channel=False)
_S8_PER_CHANNEL = TensorScheme(-128, 127, symmetric=True, per_channel=True)
_U8 = TensorScheme(0, 255, symmetric=False, per_channel=False)
_U8_PER_CHANNEL = TensorScheme(0, 255, symmetric=True, per_channel=True)
_E4M3 = TensorScheme(-448, 448, symmetric=True, per_channel=False, floating=True)
_E4M3_PER_CHANNEL = replace(_E4M3, per_channel=True)

_POINTWISE = (("stages.*.pwconv1", "int8"), ("stages.*.pwconv2", "int8"))
# The second linear layer reads a GELU, whose values begin at -0.17: a symmetric grid would leave half its codes unused.
_SHIFTED = (("stages.*.pwconv1", "int8"), ("stages.*.pwconv2", "int8-zero-point-shift"))
_DOWNSAMPLING = ("downsample_layers.[123].1", "downsample_layers.0.3")  # the last: of timm, behind a stem of stride 2
_INT8_DOWNSAMPLING = tuple((pattern, "int8") for pattern in _DOWNSAMPLING)
_FP8 = tuple((pattern, "fp8") for pattern in ("stages.*.pwconv?", *_DOWNSAMPLING))

SCHEMES: dict[str, QuantizationScheme] = {
    scheme.target: scheme
    for scheme in (
        # TensorRT runs a MatMul or Conv in INT8 when both its inputs are quantized, knows symmetric grids only, and is fastest when
        # the outputs stay in float for the GELU or residual add that follows. Depthwise convolutions are memory-bound and split
        # into padded groups in INT8; stem and head are small and sensitive. All of these stay in float.
        QuantizationScheme("tensorrt", (*_SHIFTED, *_INT8_DOWNSAMPLING), _S8, _S8_PER_CHANNEL),
        # Standard TensorRT has kernels of depthwise convolutions with INT8 on both sides, and takes slower ones where the norm
        # reads float; so the convolution's output, which is the norm's input, is quantized (Model Optimizer, pull request 1117).
        QuantizationScheme(
            "tensorrt-depthwise",
            (*_SHIFTED, *_INT8_DOWNSAMPLING, ("stages.*.dwconv", "int8-output")),
            _S8,
            _S8_PER_CHANNEL,
        ),
        # A floating grid is fine near zero on either side, and needs no shift. TensorRT-RTX computes depthwise convolutions in FP8
        # for SM120 and in float for SM89; they, the stem and the head stay in float for the reasons above.
        QuantizationScheme("tensorrt-fp8", _FP8, _E4M3, _E4M3_PER_CHANNEL),
        # ONNX Runtime on x86 multiplies unsigned by signed. Its linear layers give float from INT8 in one kernel, its convolutions
        # round what they give to 8 bits; so patches go through a linear layer. Depthwise convolutions in INT8 cost more for the
        # conversions at both ends than they save beside the float kernel; where they are chosen all the same, their channels have
        # scales of their own. The head is a Gemm, in float unless its output is quantized.
        QuantizationScheme(
            "onnxruntime",
            (*_POINTWISE, ("downsample_layers.?.?", "int8-patches")),
            _U8,
            _S8_PER_CHANNEL,
            output=_U8_PER_CHANNEL,
        ),
        # OpenVINO's CPU plugin makes of a zero point a compensation beside the MatMul or Conv; a shift before the pair goes into
        # the kernel that computes the input. Both are as fast (`benchmarks/latency.py --ablation`); the shift is what other targets
        # have too, and gives inputs all 256 codes. Depthwise convolutions and outputs in INT8 cost more conversions than they save.
        QuantizationScheme(
            "openvino",
            tuple((pattern, "int8-zero-point-shift") for pattern in ("stages.*.pwconv?", *_DOWNSAMPLING)),
            _U8,
            _S8_PER_CHANNEL,
        ),
    )
}


def resolve_scheme(target: str, overrides: Mapping[str, str] | None = None) -> QuantizationScheme:
    """Return the scheme of a deployment target, with the overrides of `QuantizationScheme.with_overrides`.

    Raises: RecipeError: if there is no target or choice of that name.
    """
    if target not in SCHEMES:
        raise RecipeError(
            f"unknown quantization target '{target}'.{suggest(target, SCHEMES)} Known: {', '.join(SCHEMES)}."
        )
    return SCHEMES[target].with_overrides(overrides or {})
