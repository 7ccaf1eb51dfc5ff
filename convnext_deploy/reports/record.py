"""The report as records, and its JSON form."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from convnext_deploy.errors import ArtifactError
from convnext_deploy.evaluation.flips import ClassChange, Flip
from convnext_deploy.evaluation.timing.speedup import Speed, load_speed

REPORT_JSON = "report.json"
SCHEMA = 1


@dataclass(frozen=True)
class Layer:
    """A linear layer or convolution of a quantized network.

    `choice`: how it computes, a name in `quantization.scheme.CHOICES`. `weights`: how many it has. What a ladder measured of this
    layer quantized alone (see `quantization.sensitivity.Effect`), None where it did not: `kl`, `changed` and `macs`.
    """

    name: str
    choice: str
    weights: int
    kl: float | None = None
    changed: float | None = None
    macs: int | None = None


@dataclass(frozen=True)
class StageRow:
    """One artifact and what was measured on it. Fractions, milliseconds, bytes, seconds, percentage points.

    `top1_drop_pp` is against `baseline`, the nearest FP32 PyTorch ancestor (None for such an artifact itself);
    `source_drop_pp` against the first artifact of the run. `not_run` says why there is no score.

    Of the validation images, `lost` are classified correctly by the baseline only, `gained` by the artifact only, and the first
    guess of `flipped` changed; `flips` are the first of them, lost ones before others, and `classes` the changes class by class.
    `mcnemar_p` is the p-value of the exact test that nothing changed. For `proven` and `images_needed` see `Verdict`.

    Of an INT8 graph or engine, `speed` is what was measured against the float form of its network, `speed_not_measured` why that
    was not done, and `ship` the path of the artifact to use instead where it is too slow. `for_comparison`: a float form that no
    stage of the recipe made.

    `rungs`: what a ladder tried (see `stages.quantize.Rung`), of which it took `chosen` for a `reason`.

    How it was made: `config`, the settings of the stage; `inputs`, the names of the artifacts it reads, by role; `history`, what
    training measured after each epoch; `layers` of a quantized PyTorch network; `lineage`, the steps behind it, the first one
    first; `base_model`, the published weights it began with. How it is used: `file`, `graph` (see `GraphIO`), `preprocess`.
    """

    name: str
    kind: str
    artifact: str
    variant: str
    format: str
    precision: str
    size_bytes: int
    wall_s: float
    runner: str | None = None
    device: str | None = None
    correct: int | None = None
    total: int | None = None
    top1: float | None = None
    top5: float | None = None
    baseline: str | None = None
    agreement: float | None = None
    top1_drop_pp: float | None = None
    top1_drop_interval_pp: tuple[float, float] | None = None
    mcnemar_p: float | None = None
    lost: int | None = None
    gained: int | None = None
    flipped: int | None = None
    source_drop_pp: float | None = None
    latency_p50_ms: float | None = None
    latency_p90_ms: float | None = None
    not_run: str | None = None
    gate: Mapping[str, float | str | None] = field(default_factory=dict)
    passed: bool | None = None
    proven: bool | None = None
    images_needed: int | None = None
    reasons: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    rungs: tuple[Mapping[str, Any], ...] = ()
    chosen: str | None = None
    reason: str | None = None
    classes: tuple[ClassChange, ...] = ()
    flips: tuple[Flip, ...] = ()
    config: Mapping[str, Any] = field(default_factory=dict)
    inputs: Mapping[str, str] = field(default_factory=dict)
    history: tuple[Mapping[str, float | None], ...] = ()
    layers: tuple[Layer, ...] = ()
    lineage: tuple[Mapping[str, Any], ...] = ()
    base_model: str | None = None
    license: str | None = None
    num_classes: int | None = None
    file: str | None = None
    graph: Mapping[str, Any] | None = None
    preprocess: Mapping[str, Any] | None = None
    speed: Speed | None = None
    speed_not_measured: str | None = None
    ship: str | None = None
    for_comparison: bool = False


@dataclass(frozen=True)
class Report:
    """All rows of a run in order, and what is needed to understand them.

    `source` is where the artifact that the user brought lay, `command` what was typed or called. `thumbnails` are the images in
    `StageRow.flips` as data URIs, by their index in decimal digits.
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

    @property
    def passed(self) -> bool:
        """Whether no gate failed."""
        return all(row.passed is not False for row in self.rows)

    def to_json(self) -> str:
        """Return the text of `report.json`."""
        return json.dumps({"schema": SCHEMA, "passed": self.passed, **dataclasses.asdict(self)}, indent=1)


def read_report(run: Path) -> Report:
    """Read the report of a run folder.

    Raises: ArtifactError: if there is none, or it is damaged.
    """
    path = run / REPORT_JSON if run.is_dir() else run
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        content.pop("passed")
        if content.pop("schema") != SCHEMA:
            raise ArtifactError(f"{path} was written by another version of this tool; run the recipe again.")
        rows = []
        for row in content.pop("rows"):
            row |= {key: tuple(row[key]) for key in ("reasons", "notes")}
            if row["top1_drop_interval_pp"] is not None:
                row["top1_drop_interval_pp"] = tuple(row["top1_drop_interval_pp"])
            # reports of before have neither
            row["classes"] = tuple(ClassChange(**entry) for entry in row.get("classes", ()))
            row["rungs"] = tuple(row.get("rungs", ()))
            row["flips"] = tuple(Flip(**entry) for entry in row.get("flips", ()))
            row["layers"] = tuple(Layer(**entry) for entry in row.get("layers", ()))
            row |= {key: tuple(dict(entry) for entry in row.get(key, ())) for key in ("history", "lineage")}
            row["speed"] = None if row.get("speed") is None else load_speed(row["speed"])
            rows.append(StageRow(**row))
        content["class_names"] = tuple(str(name) for name in content.get("class_names", ()))
        content["thumbnails"] = {key: str(value) for key, value in content.get("thumbnails", {}).items()}
        return Report(**content, rows=tuple(rows))
    except FileNotFoundError:
        raise ArtifactError(f"{run} is no finished run: it has no {REPORT_JSON}.") from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ArtifactError(f"{path} is no report of this tool ({error}).") from None
