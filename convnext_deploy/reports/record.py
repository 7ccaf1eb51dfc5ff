"""The report as records, and its JSON form."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from convnext_deploy.config.choices import FeatureOutput, MetricName
from convnext_deploy.config.preprocess import PreprocessSettings
from convnext_deploy.config.recipe import BASELINE, SOURCE, LatencyGoal
from convnext_deploy.config.records import read_record
from convnext_deploy.documents import read_json, reason
from convnext_deploy.errors import ArtifactError
from convnext_deploy.evaluation.feature_score import FeatureQuality
from convnext_deploy.evaluation.flips import ClassChange, Flip
from convnext_deploy.evaluation.gate import Verdict
from convnext_deploy.evaluation.lesson import Lesson
from convnext_deploy.evaluation.metric import METRICS, Metric
from convnext_deploy.evaluation.mistakes import ClassScore, Confusion, SureError
from convnext_deploy.evaluation.timing.front import Front
from convnext_deploy.metrics.calibration import Calibration
from convnext_deploy.metrics.change import Change
from convnext_deploy.metrics.multi_label import MultiLabel
from convnext_deploy.metrics.paired import Drop
from convnext_deploy.metrics.worst_class import WorstClass
from convnext_deploy.reports.device_run import DeviceRun
from convnext_deploy.reports.row_parts import History as History
from convnext_deploy.reports.row_parts import Identity as Identity
from convnext_deploy.reports.row_parts import Layer as Layer
from convnext_deploy.reports.row_parts import MeasuredSpeed as MeasuredSpeed
from convnext_deploy.reports.row_parts import Provenance as Provenance
from convnext_deploy.system.results import Result
from convnext_deploy.system.sealed_json import SEAL, seal, unseal

REPORT_JSON = "report.json"
SCHEMA = 2


@dataclass(frozen=True)
class Accuracy:
    """What a runner on a device answered to the validation images: counts, and fractions of them, of what `metric` says.

    `value` and `change` are of that, whatever it is. Where it counts images, `correct`, `top1` and `top5` are set; otherwise they
    are None, and `multi_label` has mAP, AUC and the classes.
    `drop` is against the row's baseline, None for a baseline itself; `source_drop_pp` against the run's source, or its first
    artifact where there is none, None for that one. `calibration`: its expected calibration error, and how much more that is than
    the baseline's; `worst_class`: the class that loses most against the baseline. The first guess of `flipped` images changed;
    `flips` are the first of them, lost ones before others, and `classes` the changes class by class. `per_class`: the score of each
    class; `confusions`: which classes it takes for which, all pairs of few classes; `errors`: those of which it is most sure.
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
    per_class: tuple[ClassScore, ...] = ()
    confusions: tuple[Confusion, ...] = ()
    errors: tuple[SureError, ...] = ()
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
class StageRow:
    """One artifact and what is known of it. Fractions, milliseconds, bytes, seconds, percentage points.

    `accuracy` is None where it was not run, and `not_run` says why. `warnings` say why its figures may mean nothing, and stand
    where nobody overlooks them; `notes` are good to know. `lesson`: of a student, what its teachers were worth.
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
    lesson: Lesson | None = None

    @property
    def name(self) -> str:
        """The name of its stage, which no other row of the report has."""
        return self.identity.name

    @property
    def is_simulated(self) -> bool:
        """Whether its size and times say nothing of what it simulates: INT8 or FP8 in PyTorch."""
        return self.identity.quantized_type is not None and self.identity.format == "torch"

    @property
    def is_made_to_be_used(self) -> bool:
        """Whether it was run, the run made it, and it is what it will be."""
        return self.accuracy is not None and self.identity.kind not in (SOURCE, BASELINE) and not self.is_simulated

    def figures(self) -> dict[str, Any]:
        """Return what was measured, flat: accuracies are fractions, drops percentage points."""
        own, accuracy, speed = self.identity, self.accuracy, self.speed
        change = None if accuracy is None else accuracy.change
        drop = None if accuracy is None else accuracy.drop
        against = None if speed.against_float is None else speed.against_float.worst
        return {
            "stage": self.name,
            **{key: getattr(own, key) for key in ("variant", "format", "precision", "size_bytes")},
            **{key: getattr(accuracy, key, None) for key in ("runner", "device", "top1", "top5")},
            "scored": "top-1" if accuracy is None else accuracy.metric,
            "score": None if accuracy is None else accuracy.value,
            "drop_pp": None if change is None else change.drop_pp,
            "drop_interval_pp": None if change is None else change.interval_pp,
            "top1_drop_pp": None if drop is None else drop.top1_drop_pp,
            "top1_drop_interval_pp": None if drop is None else drop.interval_pp,
            "ece": accuracy and accuracy.calibration and accuracy.calibration.ece,
            "ece_increase_pp": accuracy and accuracy.calibration and accuracy.calibration.increase_pp,
            "worst_class_drop_pp": accuracy and accuracy.worst_class and accuracy.worst_class.drop_pp,
            "baseline": self.provenance.baseline,
            "latency_p50_ms": None if speed.latency is None else speed.latency.p50_ms,
            "latency_p90_ms": None if speed.latency is None else speed.latency.p90_ms,
            "speedup": None if against is None else against.median,
            "passed": self.verdict.passed,
        }


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


@dataclass(frozen=True, repr=False)
class Report(Result):
    """All rows of a run in order, and what is needed to understand them.

    `source` is where the artifact that the user brought lay, `source_preprocess` what was said of how images are made ready for it,
    `source_output` what was taken of it in the place of its logits,
    `command` what was typed or called. `started_in` is the folder from which its paths lead, None in the report of an earlier
    version; `data_options` what was said of how the data is read, as words of the command line. `thumbnails` are the images in
    `Accuracy.flips` and `.errors` as data URIs, by their index.
    `assumptions`: what the scores rest on that was neither measured nor read from a file, a sentence each. `leaks`: what is on both
    sides. `images`: what is known of the validation images, as the end of a sentence; `judged_on`: a hash of which they are, None
    without files or in an old report. `test`: what the test gave, at the end. `devices`: what `collect` brought in.
    `unlabelled`: the recipe's folder of images that only teachers label. `front`: what has a latency goal, timed beside what it
    replaces; `front_not_timed`: why there is none; `latency_goals`: the recipe's.
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
    started_in: str | None = None
    data_options: tuple[str, ...] = ()
    class_names: tuple[str, ...] = ()
    thumbnails: Mapping[str, str] = field(default_factory=dict)
    assumptions: tuple[str, ...] = ()
    leaks: tuple[str, ...] = ()
    images: str = "which were not trained on"
    judged_on: str | None = None
    test: TestResult | None = None
    source_preprocess: PreprocessSettings = field(default_factory=PreprocessSettings)
    source_output: FeatureOutput | None = None
    devices: tuple[DeviceRun, ...] = ()
    unlabelled: str | None = None
    front: Front | None = None
    front_not_timed: str | None = None
    latency_goals: tuple[LatencyGoal, ...] = ()

    @property
    def metric(self) -> Metric:
        """What its artifacts are scored by, or would be with labels; of several, the first."""
        found: list[MetricName] = [row.accuracy.metric for row in self.rows if row.accuracy is not None]
        found += ["kNN top-1" for row in self.rows if row.features is not None]
        return METRICS[found[0] if found else "top-1"]

    @property
    def passed(self) -> bool:
        """Whether no gate failed."""
        return all(row.verdict.passed is not False for row in self.rows)

    def headline(self) -> str:
        """Say of what it is, and whether all gates held."""
        failed = [row.name for row in self.rows if row.verdict.passed is False]
        judged = sum(row.verdict.passed is not None for row in self.rows)
        passed = f"{judged} gate{'' if judged == 1 else 's'} passed" if judged else "no gates"
        verdict = f"FAILED: {', '.join(failed)}" if failed else passed if self.complete else "not complete"
        images = f"{self.validation_images:,} validation images of {self.data}" if self.validation_images else "no data"
        return f"{self.recipe}, {len(self.rows)} artifact{'' if len(self.rows) == 1 else 's'}, {images}: {verdict}"

    def to_rows(self) -> list[dict[str, Any]]:
        """Return a record for each artifact."""
        return [row.figures() for row in self.rows]

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
