"""What a manifest records of an artifact beyond weights and images: one frozen record for each format."""

from collections.abc import Mapping
from dataclasses import Field, dataclass, field
from typing import Annotated, Any, ClassVar, Literal

from convnext_deploy.artifacts.spec import GraphIO
from convnext_deploy.config.choices import Flavor, Runtime, Target
from convnext_deploy.config.records import between, matching
from convnext_deploy.quantization.scheme import QuantizationScheme, resolve_scheme

Format = Literal["torch", "onnx", "tensorrt", "torch-tensorrt", "foreign", "predictions"]
"""`foreign` and `predictions` only teach: networks of other libraries, and what some network has said of the images."""
Library = Literal["timm", "torchvision", "transformers", "torch.export"]
History = tuple[Mapping[str, int | float | None], ...]
"""What training measured after each epoch, by name; None where it was not finite, which JSON cannot hold."""

Count = Annotated[int, between(0, 2**53)]
Fraction = Annotated[float, between(0.0, 1.0)]
BatchSize = Annotated[int, between(1, 2**31)]
GPU = Annotated[str, matching(r"SM\d{2,3}", "a compute capability such as SM86")]


class Details:
    """Base of what is recorded of one format alone, as its manifest has it under `details`."""

    __dataclass_fields__: ClassVar[dict[str, Field[Any]]]  # each of them is a dataclass


@dataclass(frozen=True)
class Fold:
    """The constants of one module that went into a layer; `source` and `target` are names of modules, or `mean and std`."""

    rewrite: str
    source: str
    target: str


@dataclass(frozen=True)
class Kept:
    """Constants that stayed where they were, and why."""

    rewrite: str
    source: str
    reason: str


@dataclass(frozen=True)
class Difference:
    """The largest difference of any logit before and after, over `num_images` `random` or `given` images.

    `relative` is relative to the largest logit before.
    """

    images: str
    num_images: Count
    precision: Literal["float64", "float32"]
    absolute: float
    relative: float


TOLERANCES = {"float64": 1e-9, "float32": 1e-3}
"""What a rewrite may move a logit by, relative to the largest one. Float64 shows that the algebra is right, float32 only that
nothing was lost between there and the network that is returned: it may not be smaller than what rounding does to hard weights."""


@dataclass(frozen=True)
class Certificate:
    """What was folded, what was not, and how far the logits moved, computed on the CPU.

    In float64 the rewritten network is compared before its weights are rounded: that is the algebra and nothing else. In float32
    it is the network that `fold` returns.
    """

    folded: tuple[Fold, ...]
    kept: tuple[Kept, ...]
    differences: tuple[Difference, ...]

    @property
    def holds(self) -> bool:
        """Whether all differences are within `TOLERANCES`."""
        return all(difference.relative <= TOLERANCES[difference.precision] for difference in self.differences)


@dataclass(frozen=True)
class Step:
    """What one step of `quantize` gave on the selection images. Fractions, percentage points, nats, decibels, seconds.

    `risk_pp`: the upper 95 % bound of the drop on new images, see `stages.drop_bound`, and `expected_drop_pp` the drop to expect
    there; both 100 where a logit is not finite. `kl` and `sqnr_db` are of the logits against the float network's, None where they
    are infinite. `judged`: judging ended after so many images, as the risk of all is at least `risk_pp` whatever the others give;
    the other figures are of these images. None: all were judged.
    """

    name: str
    top1: Fraction
    top1_drop_pp: float
    interval_pp: tuple[float, float]
    agreement: Fraction
    kl: float | None
    sqnr_db: float | None
    risk_pp: float
    seconds: Annotated[float, between(0.0, 1e12)]
    passed: bool
    expected_drop_pp: float = 0.0
    judged: Count | None = None


@dataclass(frozen=True)
class LayerEffect:
    """What quantizing one layer alone does to the logits, as `quantization.sensitivity.Effect`; `kl` None: it is infinite."""

    layer: str
    kl: float | None
    changed: Fraction
    macs: Count


@dataclass(frozen=True)
class Selection:
    """What `quantize` tried, the step that it chose and the reason, and the effect of each layer where that was measured.

    `images`: how many training images judged; `images_needed`: with fewer no step can pass, None: no number is enough. `metric`
    says what `top1` and the drops of the steps are of.
    """

    steps: tuple[Step, ...]
    chosen: str
    reason: str
    max_drop_pp: Annotated[float, between(0.0, 100.0)]
    effects: tuple[LayerEffect, ...] = ()
    images: Count = 0
    images_needed: Count | None = None
    metric: Literal["top-1", "mAP"] = "top-1"


@dataclass(frozen=True)
class PTQRecord:
    """What post-training quantization did: the smoothing exponent of each layer (None: it was left as it is), and so on.

    `layers_rounded`: by GPTQ. `blocks_reconstructed` is of artifacts of earlier versions, which learned how to round.
    """

    calibration_images: Count
    smoothing: Mapping[str, float | None] = field(default_factory=dict)
    blocks_reconstructed: Count | None = None
    float_layers: tuple[str, ...] = ()
    layers_rounded: Count | None = None


@dataclass(frozen=True)
class SchemeDetails(Details):
    """The quantization target and the user's choices for single layers, see `QuantizationScheme`; target None: it is in float."""

    target: Target | None = None
    sites: Mapping[str, str] = field(default_factory=dict)

    @property
    def scheme(self) -> QuantizationScheme | None:
        """The scheme. Raises: RecipeError: if there is no target or choice of that name."""
        return None if self.target is None else resolve_scheme(self.target, self.sites)


@dataclass(frozen=True)
class TorchDetails(SchemeDetails):
    """Of a PyTorch artifact: how it was trained, folded and quantized.

    `entry`: which of several networks in a file of another origin it is, where one was asked for.
    """

    history: History = ()
    folding: Certificate | None = None
    ptq: PTQRecord | None = None
    selection: Selection | None = None
    entry: str | None = None


@dataclass(frozen=True)
class FP16Record:
    """Which nodes of an FP16 graph stay in FP32, by reason, and what that was decided on.

    `largest_activation` is over all tensors of the float network and the images that `ranges_from` names.
    """

    runtime: Runtime
    fp32_nodes: Mapping[str, Count]
    largest_activation: float
    ranges_from: str


@dataclass(frozen=True)
class ONNXDetails(SchemeDetails):
    """Of an ONNX artifact. `quantized_layers` is None where the file alone is known."""

    io: GraphIO = field(default_factory=GraphIO)
    fp16: FP16Record | None = None
    quantized_layers: Count | None = None


@dataclass(frozen=True)
class Profile:
    """Batch sizes of an engine: from `minimum` to `maximum`, tuned for `optimal`."""

    minimum: BatchSize
    optimal: BatchSize
    maximum: BatchSize

    def __str__(self) -> str:
        return f"{self.minimum} to {self.maximum}, tuned for {self.optimal}"


@dataclass(frozen=True)
class PrecisionReport:
    """How many MatMul and Conv nodes of the ONNX file the engine computes in which type.

    `requested_int8` and `requested_fp8` are how many the file asks for in these, `fallbacks` are those of them that run in another
    type, as `layer: type`, and `unseen` those that the engine does not list under their names.
    """

    nodes: Mapping[str, Count]
    requested_int8: Count
    fallbacks: tuple[str, ...]
    unseen: tuple[str, ...]
    requested_fp8: Count = 0

    @property
    def requested(self) -> int:
        """How many the file asks for on 8 bits."""
        return self.requested_int8 + self.requested_fp8

    def summary(self) -> str:
        """Return one line, such as `39 of 39 INT8 MatMul/Conv nodes run in INT8 (all: 39 INT8, 20 FP32)`."""
        listed = ", ".join(f"{count} {kind}" for kind, count in self.nodes.items())
        kept = self.requested - len(self.fallbacks) - len(self.unseen)
        kind = "FP8" if self.requested_fp8 else "INT8"
        return f"{kept} of {self.requested} {kind} MatMul/Conv nodes run in {kind} (all: {listed or 'none'})"


@dataclass(frozen=True)
class EngineDetails(Details):
    """Of TensorRT engines, one for each of `gpus`, or of the GPU that built it where there are none.

    `tensorrt` is the release that built them. `built_on`: the GPU that built it, with its name, where there are no `gpus`; None in
    artifacts of earlier versions. `precisions`: GPU → its report, None where the engine does not tell.
    """

    flavor: Flavor
    tensorrt: str
    gpus: tuple[GPU, ...]
    batch: Profile
    io: GraphIO = field(default_factory=GraphIO)
    version_compatible: bool = False
    stripped: bool = False
    precisions: Mapping[str, PrecisionReport | None] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    built_on: str | None = None


@dataclass(frozen=True)
class TorchTensorRTDetails(Details):
    """Of a Torch-TensorRT program: the release that compiled it, the compute capability and the largest batch it is for."""

    torch_tensorrt: str
    gpu: GPU
    max_batch_size: BatchSize


@dataclass(frozen=True)
class ForeignDetails(Details):
    """Of a network of another library: its name there, and the arguments of its constructor."""

    library: Library
    architecture: str
    arguments: Mapping[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"{self.library}'s {self.architecture}"


@dataclass(frozen=True)
class PredictionsDetails(Details):
    """Of a file of vectors by the names of images: what they are, and how many numbers each has.

    `by_numbers`: the file does not say what they are, and its numbers show that they are no logits, which is what they were taken
    for before anybody looked.
    """

    content: Literal["logits", "probabilities", "features"]
    width: Count
    by_numbers: bool = False


DETAILS: dict[Format, type[Details]] = {
    "torch": TorchDetails,
    "onnx": ONNXDetails,
    "tensorrt": EngineDetails,
    "torch-tensorrt": TorchTensorRTDetails,
    "foreign": ForeignDetails,
    "predictions": PredictionsDetails,
}
