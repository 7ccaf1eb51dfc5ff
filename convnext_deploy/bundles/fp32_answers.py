"""What the FP32 network answered to the validation images, so that a device can tell what it loses on them."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from convnext_deploy.artifacts.artifact import Artifact, read_artifact
from convnext_deploy.artifacts.hashes import hash_file
from convnext_deploy.bundles.contents import Contents
from convnext_deploy.bundles.reported_accuracy import Reported
from convnext_deploy.data.agreement import outputs_of_classes
from convnext_deploy.data.class_names import match_names
from convnext_deploy.data.datasets import Data, FolderImages
from convnext_deploy.errors import ArtifactError
from convnext_deploy.evaluation.measure import read_predictions
from convnext_deploy.system.files import write_text
from convnext_deploy.system.progress import Progress

FILE = "fp32_answers.tsv"


@dataclass(frozen=True)
class FP32Answers:
    """Classes and first guesses `(N,)` of the images of a folder, in the model's numbering; `network` says whose they are."""

    images: FolderImages
    labels: tuple[int, ...]
    guesses: tuple[int, ...]
    network: str


def find_fp32_answers(contents: Contents, data: Data | None, reported: Mapping[str, Reported]) -> FP32Answers | None:
    """Return what the baseline of a bundle's models answered to the validation images of `data`, as its run has it.

    `reported`: what the reports of their runs say of the models, by name.

    None: there are no image files, the models lie in no run, their baseline is no FP32 network, or it was scored on other images.
    """
    if data is None or data.multi_label or not isinstance(data.validation, FolderImages):
        return None
    for model in contents.models:
        found = _of(model.artifact, reported.get(model.name), data)
        if found is not None:
            return found
    return None


def _of(model: Artifact, found: Reported | None, data: Data) -> FP32Answers | None:
    if found is None or found.report.judged_on is None or found.report.judged_on != data.judged_on:
        return None
    baseline = next((row for row in found.report.rows if row.name == found.row.provenance.baseline), None)
    if baseline is None or baseline.identity.precision != "fp32":
        return None
    score = read_predictions(found.run / "scores" / f"{baseline.name}.json")
    then = found.report.class_names
    if score is None or score.answers is not None or match_names(then, data.class_names) is None:
        return None
    data = data.in_order(then, str(found.run))  # --classes may have numbered them otherwise since
    images = data.validation
    if not isinstance(images, FolderImages) or score.labels != tuple(images.labels.tolist()):
        return None
    # a device knows the classes by the model's outputs alone; which output a guess was is what the model's own file says, and
    # which one a class has what the bundle's classes.txt says
    labels = _as_outputs(score.labels, model, data)
    guesses = _as_outputs(score.predictions, read_artifact(model.path), data)
    return FP32Answers(images, labels, guesses, f"{baseline.identity.variant}, {baseline.identity.format}")


def _as_outputs(classes: tuple[int, ...], model: Artifact, data: Data) -> tuple[int, ...]:
    """Return the outputs of a model for classes in the data's numbering."""
    outputs = outputs_of_classes(model, data)
    return classes if outputs is None else tuple(outputs[np.array(classes, np.int64)].tolist())


def write_fp32_answers(folder: Path, found: FP32Answers, progress: Progress) -> dict[str, Any]:
    """Write a line for each image: bytes, SHA-256, class, first guess; its name stays here. Return the entry of the record.

    Raises: ArtifactError: if an image cannot be read.
    """
    lines = []
    with progress.task("bundle: read the validation images", len(found.images), "images") as task:
        for place, path in enumerate(found.images.paths):
            try:
                size, digest = found.images.size_hint(place), hash_file(path)
            except OSError as error:
                raise ArtifactError(
                    f"{path} cannot be read ({error.strerror}); the bundle needs its checksum."
                ) from None
            lines.append(f"{size}\t{digest}\t{found.labels[place]}\t{found.guesses[place]}\n")
            task.advance()
    write_text(folder / FILE, "".join(lines))
    return {"answers": FILE, "images": len(lines), "network": found.network}
