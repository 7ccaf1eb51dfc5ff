"""The report as records, and its JSON form."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from convnext_deploy.artifacts.details import History as Epochs
from convnext_deploy.artifacts.details import Selection
from convnext_deploy.artifacts.spec import GraphIO, Preprocess
from convnext_deploy.config.choices import FeatureOutput
from convnext_deploy.config.preprocess import PreprocessSettings
from convnext_deploy.config.recipe import Gate
from convnext_deploy.config.records import read_record
from convnext_deploy.documents import read_json, reason
from convnext_deploy.errors import ArtifactError
from convnext_deploy.evaluation.feature_score import FeatureQuality
from convnext_deploy.evaluation.flips import ClassChange, Flip
from convnext_deploy.evaluation.gate import Verdict
from convnext_deploy.evaluation.latency import Latency
from convnext_deploy.evaluation.metric import METRICS, Metric, MetricName
from convnext_deploy.evaluation.timing.speedup import Speed
from convnext_deploy.metrics.calibration import Calibration
from convnext_deploy.metrics.change import Change
from convnext_deploy.metrics.multi_label import MultiLabel
from convnext_deploy.metrics.paired import Drop
from convnext_deploy.metrics.worst_class import WorstClass
from convnext_deploy.system.sealed_json import SEAL, seal, unseal

REPORT_JSON = "report.json"
SCHEMA = 2


@dataclass(frozen=True)
class Identity:
    """Which artifact it is: `artifact` is where it lies, `file` the main file in there, `kind` that of the stage that made it.

    `sha256` is the hash of its files, None in the report of an earlier version.
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

    @property
    def is_int8(self) -> bool:
        """Whether it computes, or simulates, in INT8, whatever the rest of it computes in."""
        return self.precision.startswith("int8")


@dataclass(frozen=True)
class Accuracy:
    """What a runner on a device answered to the validation images: counts, and fractions of them, of what `metric` says.

    `value` and `change` are of that, whatever it is. Where it counts images, `correct`, `top1` and `top5` are set; otherwise they
    are None, and `multi_label` has mAP, AUC and the classes.
    `drop` is against the row's baseline, None for a baseline itself; `source_drop_pp` against the run's source, or its first
    artifact where there is none, None for that one. `calibration`: its expected calibration error, and how much more that is than
    the baseline's; `worst_class`: the class that loses most against the baseline. The first guess of `flipped` images changed;
    `flips` are the first of them, lost ones before others, and `classes` the changes class by class.
    """

    runner: str
    device: str
    correct: int | None
    total: int
    top1: float | None
    top5: float | None
    source_drop_pp: float | None = None
    drop: Drop | None = None
    calibration: Calibration | None = None
    worst_class: WorstClass | None = None
    flipped: int | None = None
    classes: tuple[ClassChange, ...] = ()
    flips: tuple[Flip, ...] = ()
    metric: MetricName = "top-1"
    multi_label: MultiLabel | None = None

    @property
    def value(self) -> float:
        """What is scored, a fraction: top-1, kNN top-1 or mAP."""
        found = self.top1 if self.multi_label is None else self.multi_label.map
        assert found is not None  # one of both is set
        return found

    @property
    def change(self) -> Change | None:
        """What it lost against the row's baseline; None for a baseline itself."""
        found = self.multi_label
        if found is None:
            return None if self.drop is None else self.drop.change
        if found.drop_pp is None or found.drop_interval_pp is None or found.agreement is None:
            return None
        return Change(found.drop_pp, found.drop_interval_pp, found.agreement)


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


@dataclass(frozen=True)
class StageRow:
    """One artifact and what is known of it. Fractions, milliseconds, bytes, seconds, percentage points.

    `accuracy` is None where it was not run, and `not_run` says why. `warnings` say why its figures may mean nothing, and stand
    where nobody overlooks them; `notes` are good to know.
    """

    identity: Identity
    accuracy: Accuracy | None = None
    not_run: str | None = None
    verdict: Verdict = field(default_factory=Verdict)
    speed: MeasuredSpeed = field(default_factory=MeasuredSpeed)
    history: History = field(default_factory=History)
    provenance: Provenance = field(default_factory=Provenance)
    notes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    features: FeatureQuality | None = None

    @property
    def name(self) -> str:
        """The name of its stage, which no other row of the report has."""
        return self.identity.name


def find_twin(row: StageRow, others: Sequence[StageRow]) -> StageRow | None:
    """Return the first FP32 artifact of the same network in the same format that the same runner scored."""

    def network(each: StageRow) -> tuple[str, ...]:
        return each.identity.format, each.identity.variant, each.accuracy.runner if each.accuracy else ""

    floats = (other for other in others if other.identity.precision == "fp32" and other.accuracy and other is not row)
    return next((other for other in floats if network(other) == network(row)), None)


@dataclass(frozen=True)
class TestResult:
    """What is scored on the images of the test, of the artifact to ship and of its baseline, where that was scored: fractions.

    `top1` and `baseline_top1` are what `metric` says, `change` is what was lost; `drop` says more of it where images are counted.
    """

    name: str
    total: int
    top1: float
    baseline: str | None = None
    baseline_top1: float | None = None
    drop: Drop | None = None
    metric: MetricName = "top-1"
    change: Change | None = None


@dataclass(frozen=True)
class Report:
    """All rows of a run in order, and what is needed to understand them.

    `source` is where the artifact that the user brought lay, `source_preprocess` what was said of how images are made ready for it,
    `source_output` what was taken of it in the place of its logits,
    `command` what was typed or called. `thumbnails` are the images in `Accuracy.flips` as data URIs, by their index.
    `assumptions`: what the scores rest on that was neither measured nor read from a file, a sentence each. `leaks`: what is on both
    sides. `images`: what is known of the validation images, as the end of a sentence; `judged_on`: a hash of which they are, None
    without files or in an old report. `test`: what the test gave, at the end.
    """

    recipe: str
    data: str
    validation_images: int
    seed: int
    environment: Mapping[str, Any]
    rows: tuple[StageRow, ...]
    complete: bool = False
    command: str | None = None
    source: str | None = None
    class_names: tuple[str, ...] = ()
    thumbnails: Mapping[str, str] = field(default_factory=dict)
    assumptions: tuple[str, ...] = ()
    leaks: tuple[str, ...] = ()
    images: str = "which were not trained on"
    judged_on: str | None = None
    test: TestResult | None = None
    source_preprocess: PreprocessSettings = field(default_factory=PreprocessSettings)
    source_output: FeatureOutput | None = None

    @property
    def metric(self) -> Metric:
        """What its artifacts are scored by; of several, the first."""
        return METRICS[next((row.accuracy.metric for row in self.rows if row.accuracy is not None), "top-1")]

    @property
    def passed(self) -> bool:
        """Whether no gate failed."""
        return all(row.verdict.passed is not False for row in self.rows)

    def to_json(self) -> str:
        """Return the text of `report.json`."""
        return json.dumps(seal({"schema": SCHEMA, "passed": self.passed, **dataclasses.asdict(self)}), indent=1)


def read_report(run: Path) -> Report:
    """Read the report of a run folder.

    Raises: ArtifactError: if there is none, it is damaged, or another version of this tool wrote it.
    """
    path = run / REPORT_JSON if run.is_dir() else run
    try:
        sealed = read_json(path)
        content = {key: value for key, value in sealed.items() if key != SEAL}
        content.pop("passed")
        if content.pop("schema") == SCHEMA:
            report = read_record(Report, content, "report")
            unseal(sealed)  # last, because a field that is wrong tells more
            return report
    except FileNotFoundError:
        raise ArtifactError(f"{run} is not a finished run: it has no {REPORT_JSON}.") from None
    except (KeyError, TypeError, AttributeError):
        raise ArtifactError(f"{path} is not a report of this tool (it does not begin as one).") from None
    except (OSError, ValueError) as error:
        raise ArtifactError(f"{path} is not a report of this tool ({reason(error)}).") from None
    raise ArtifactError(f"{path} was written by another version of this tool; run the recipe again.")
