"""Parts of a row of the report: which artifact it is, how fast, how it was made, and from what."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from convnext_deploy.artifacts.artifact import quantized_type
from convnext_deploy.artifacts.details import History as Epochs
from convnext_deploy.artifacts.details import Selection
from convnext_deploy.artifacts.spec import GraphIO, Preprocess
from convnext_deploy.config.recipe import Gate
from convnext_deploy.evaluation.latency import Latency
from convnext_deploy.evaluation.timing.speedup import Speed


@dataclass(frozen=True)
class Identity:
    """Which artifact it is: `artifact` is where it lies, `file` the main file in there, `kind` that of the stage that made it.

    `sha256` is the hash of its files, None in the report of an earlier version. `multi_label`: it answers each label by itself.
    """

    name: str
    kind: str
    artifact: str
    variant: str
    format: str
    precision: str
    size_bytes: int
    file: str | None = None
    num_classes: int | None = None
    sha256: str | None = None
    multi_label: bool = False

    @property
    def quantized_type(self) -> str | None:
        """`INT8` or `FP8` where it computes, or simulates, in that, whatever the rest of it computes in."""
        return quantized_type(self.precision)


@dataclass(frozen=True)
class MeasuredSpeed:
    """How fast it is: `latency` of single images beside its score, where it was run.

    Of an INT8 graph or engine, `against_float` is what was measured against its float baseline, `not_measured` why that was not
    done, and `ship` the path of the artifact to use instead where it is too slow.
    """

    latency: Latency | None = None
    against_float: Speed | None = None
    not_measured: str | None = None
    ship: str | None = None


@dataclass(frozen=True)
class Layer:
    """A linear layer or convolution of a quantized network.

    `choice`: how it computes, a name in `quantization.scheme.CHOICES`. `weights`: how many it has. Where the stage quantized this
    layer alone, `kl` is the divergence in nats of the class probabilities from those in float, `changed` the fraction of first
    guesses that changed, and `macs` the layer's multiplications for one image; None where it did not.
    """

    name: str
    choice: str
    weights: int
    kl: float | None = None
    changed: float | None = None
    macs: int | None = None


@dataclass(frozen=True)
class History:
    """What happened while it was made, in `wall_s` seconds: `epochs`, what training measured after each.

    `selection`: the steps of the fallback sequence that `quantize` tried, and the selected one; `layers` of a quantized PyTorch
    network.
    """

    wall_s: float = 0.0
    epochs: Epochs = ()
    selection: Selection | None = None
    layers: tuple[Layer, ...] = ()


@dataclass(frozen=True)
class Provenance:
    """From what and with which settings it was made, what it had to reach, and how it is used.

    `config` are the settings of its stage, `inputs` the names of the artifacts that this reads, by role. `baseline` is the nearest
    FP32 PyTorch ancestor, None for such an artifact itself. `lineage`: the stages behind it, the first one first; `base_model`:
    the published weights it began with. `for_comparison`: a float baseline that no stage of the recipe made.
    """

    baseline: str | None = None
    gate: Gate = field(default_factory=Gate)
    config: Mapping[str, Any] = field(default_factory=dict)
    inputs: Mapping[str, str] = field(default_factory=dict)
    lineage: tuple[Mapping[str, Any], ...] = ()
    base_model: str | None = None
    license: str | None = None
    graph: GraphIO | None = None
    preprocess: Preprocess | None = None
    for_comparison: bool = False
