"""Open an artifact with its own runner and measure it: score on all validation images, latency of single images."""

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, cast

from convnext_deploy.artifacts.artifact import Artifact
from convnext_deploy.config.records import read_record
from convnext_deploy.data.agreement import outputs_of_classes
from convnext_deploy.data.datasets import Data
from convnext_deploy.documents import read_json
from convnext_deploy.errors import BackendUnavailableError
from convnext_deploy.evaluation.label_score import score_labels
from convnext_deploy.evaluation.latency import Latency, measure_latency
from convnext_deploy.evaluation.metric import metric_of
from convnext_deploy.evaluation.score import Score, score_runner
from convnext_deploy.runners import open_runner
from convnext_deploy.system.execution import Execution
from convnext_deploy.system.files import write_text
from convnext_deploy.system.sealed_json import seal, unseal

Record = TypeVar("Record")

BATCH_SIZE = 64
RESULT_VERSION = 3
"""In the key of a measurement: raised when an artifact is scored or timed in another way, so that it is measured again."""


@dataclass(frozen=True)
class Measurement:
    """What the runner of an artifact gave. `score` is None when it was not run, and `not_run` says why."""

    score: Score | None = None
    latency: Latency | None = None
    runner: str | None = None
    device: str | None = None
    not_run: str | None = None


def measure_artifact(
    artifact: Artifact, data: Data, execution: Execution, name: str, batch_size: int = BATCH_SIZE
) -> Measurement:
    """Measure an artifact. An engine that this machine cannot run is no error; its measurement says why.

    Raises:
        BackendUnavailableError: if the runner's package is missing.
        ArtifactError: if the artifact is damaged or computes values that are not finite.
    """
    from convnext_deploy.data.loaders import EvaluationBatches

    try:
        runner = open_runner(artifact, execution.device)
    except BackendUnavailableError as error:
        if artifact.format not in ("tensorrt", "torch-tensorrt"):
            raise
        return Measurement(not_run=str(error))
    try:
        batches = EvaluationBatches(data.validation, artifact.preprocess, batch_size, execution.workers, as_pixels=True)
        how = (len(data.validation), execution.progress, f"{name}: validate", outputs_of_classes(artifact, data))
        if data.multi_label:
            answers = score_labels(runner, batches, *how, artifact.io)
            score = Score(0, 0, (), (), metric=metric_of(artifact, data), answers=answers)
        else:
            score = score_runner(runner, batches, *how, artifact.io, foreign=artifact.model.variant == "unknown")
        latency = measure_latency(runner, (artifact.model.in_channels, *artifact.preprocess.sides))
        return Measurement(score, latency, runner.name, runner.device)
    finally:
        runner.close()


def write_kept(path: Path, key: str, record: Any) -> None:
    """Keep a record, with a checksum of itself; the folder of the file is made."""
    write_text(path, json.dumps(seal({"key": key, **dataclasses.asdict(record)})))


def read_kept(kind: type[Record], path: Path, key: str) -> Record | None:
    """Return the record kept in `path`, or None if there is none with this key, or it was altered."""
    try:
        content = unseal(read_json(path))
        # what was written has every field, also one that may be left out
        whole = content.keys() == {"key", *(field.name for field in dataclasses.fields(cast(Any, kind)))}
        return read_record(kind, content, "record") if content.pop("key") == key and whole else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
