"""Open an artifact with its own runner and measure it: score on all validation images, latency of single images."""

import dataclasses
import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar, cast

import numpy as np

from convnext_deploy.artifacts.artifact import Artifact
from convnext_deploy.config.records import read_record
from convnext_deploy.data.agreement import outputs_of_classes
from convnext_deploy.data.datasets import Data
from convnext_deploy.documents import read_json
from convnext_deploy.errors import BackendUnavailableError
from convnext_deploy.evaluation.feature_score import Neighbourhood, Vectors, score_features
from convnext_deploy.evaluation.label_score import join_labels, keep_labels
from convnext_deploy.evaluation.latency import Latency, measure_latency
from convnext_deploy.evaluation.metric import metric_of
from convnext_deploy.evaluation.run_images import Opened
from convnext_deploy.evaluation.score import Guessing, Score, count_guesses
from convnext_deploy.metrics.neighbours import Similarity
from convnext_deploy.runners import open_runner
from convnext_deploy.system.execution import Execution
from convnext_deploy.system.files import whole_file, write_text
from convnext_deploy.system.sealed_json import seal, unseal

Record = TypeVar("Record")

BATCH_SIZE = 64
RESULT_VERSION = 3
"""In the key of a measurement: raised when an artifact is scored or timed in another way, so that it is measured again."""


@dataclass(frozen=True)
class Measurement:
    """What the runner of an artifact gave. `score` is None when it was not run, and `not_run` says why.

    Of a feature extractor `features` say by what it was scored; its `vectors` are kept in a file of their own, of which the hash is
    here, and `similarity` is that to those of its baseline.
    """

    score: Score | None = None
    latency: Latency | None = None
    runner: str | None = None
    device: str | None = None
    not_run: str | None = None
    features: Neighbourhood | None = None
    similarity: Similarity | None = None
    vectors_sha256: str | None = None
    vectors: Any = field(default=None, compare=False, repr=False)


def measure_artifact(
    artifact: Artifact, data: Data, execution: Execution, name: str, batch_size: int = BATCH_SIZE
) -> Measurement:
    """Measure an artifact, which all processes score and the first one times.

    An engine that this machine cannot run is no error; its measurement says why.

    Raises:
        BackendUnavailableError: if the runner's package is missing.
        ArtifactError: if the artifact is damaged or computes values that are not finite.
    """
    try:
        runner = open_runner(artifact, execution.device)
    except BackendUnavailableError as error:
        if artifact.format not in ("tensorrt", "torch-tensorrt"):
            raise
        return Measurement(not_run=str(error))
    try:
        image = (artifact.model.in_channels, *artifact.preprocess.sides)
        opened = Opened(runner, artifact, execution, batch_size)
        if not artifact.model.num_classes:
            found, features, vectors = score_features(opened, data, name)
            latency = measure_latency(runner, image)
            return Measurement(
                found,
                latency,
                runner.name,
                runner.device,
                None,
                features,
                vectors_sha256=_digest(vectors),
                vectors=vectors,
            )
        score = _score(opened, data, f"{name}: validate")
        return Measurement(score, measure_latency(runner, image), runner.name, runner.device)
    finally:
        runner.close()


def _score(opened: Opened, data: Data, description: str) -> Score:
    artifact, images = opened.artifact, data.validation
    outputs, chosen = outputs_of_classes(artifact, data), range(len(images))
    if data.multi_label:
        keeping = keep_labels(outputs, artifact.io, description)
        answers = join_labels(opened.run(images, chosen, keeping, description))
        return Score(0, 0, (), (), metric=metric_of(artifact, data), answers=answers)
    guessing = Guessing(outputs, artifact.io, artifact.model.variant == "unknown")
    return count_guesses(opened.run(images, chosen, guessing, description))


def _digest(vectors: Vectors) -> str:
    return hashlib.sha256(repr(vectors.shape).encode() + vectors.tobytes()).hexdigest()


def write_measurement(path: Path, key: str, measured: Measurement) -> None:
    """Keep a measurement, and its vectors beside it, in `NAME.features.npy`."""
    if measured.vectors is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        with whole_file(_vectors_file(path), needed=measured.vectors.nbytes) as partial, partial.open("wb") as file:
            np.save(file, measured.vectors, allow_pickle=False)
    write_kept(path, key, dataclasses.replace(measured, vectors=None, similarity=None))


def read_measurement(path: Path, key: str) -> Measurement | None:
    """Return the measurement kept in `path` with its vectors, or None, as `read_kept`."""
    measured = read_kept(Measurement, path, key)
    if measured is None or measured.vectors_sha256 is None:
        return measured
    try:
        vectors = np.load(_vectors_file(path), allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None
    return dataclasses.replace(measured, vectors=vectors) if _digest(vectors) == measured.vectors_sha256 else None


def read_predictions(path: Path) -> Score | None:
    """Return the score in the measurement that was kept last in `path`, whatever it was measured on; None: there is none."""
    try:
        content = unseal(read_json(path))
        content.pop("key")
        return read_record(Measurement, content, "record").score
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def _vectors_file(path: Path) -> Path:
    return path.with_suffix(".features.npy")


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
