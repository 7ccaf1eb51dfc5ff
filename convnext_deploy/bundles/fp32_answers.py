"""What the FP32 network answered to the validation images, so that a device can tell what it loses on them."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from convnext_deploy.artifacts.hashes import hash_file
from convnext_deploy.bundles.contents import Contents
from convnext_deploy.bundles.reported_accuracy import Reported
from convnext_deploy.data.datasets import Data, FolderImages
from convnext_deploy.errors import ArtifactError
from convnext_deploy.evaluation.measure import read_predictions
from convnext_deploy.system.files import write_text
from convnext_deploy.system.progress import Progress

FILE = "fp32_answers.tsv"


@dataclass(frozen=True)
class FP32Answers:
    """Classes and first guesses `(N,)` of the images of a folder; `network` says whose they are."""

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
        found = _of(reported.get(model.name), data, data.validation)
        if found is not None:
            return found
    return None


def _of(found: Reported | None, data: Data, images: FolderImages) -> FP32Answers | None:
    if found is None or found.report.judged_on is None or found.report.judged_on != data.judged_on:
        return None
    baseline = next((row for row in found.report.rows if row.name == found.row.provenance.baseline), None)
    if baseline is None or baseline.identity.precision != "fp32":
        return None
    score = read_predictions(found.run / "scores" / f"{baseline.name}.json")
    # the classes must have the numbers that the models give them
    if score is None or score.answers is not None or score.labels != tuple(data.validation.labels.tolist()):
        return None
    return FP32Answers(
        images, score.labels, score.predictions, f"{baseline.identity.variant}, {baseline.identity.format}"
    )


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
