"""`predict`: what an artifact takes images to be, with the name and the probability of each class."""

import stat
from collections.abc import Generator, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, overload

import numpy as np
from numpy.typing import NDArray

from convnext_deploy.api.open_inputs import open_artifact
from convnext_deploy.api.options import DataOptions, EvaluationOptions, ExecutionOptions, verb
from convnext_deploy.api.predictions import Guess, Prediction, Predictions, PredictionStream
from convnext_deploy.artifacts.artifact import Artifact
from convnext_deploy.artifacts.spec import GraphIO
from convnext_deploy.config.checks import require
from convnext_deploy.data.agreement import check_takes_images
from convnext_deploy.data.image_folder import list_images
from convnext_deploy.data.pixels import IMAGE_EXTENSIONS
from convnext_deploy.errors import ArtifactError, DataError, RecipeError, printable
from convnext_deploy.evaluation.folder_labels import FolderLabels
from convnext_deploy.evaluation.measure import BATCH_SIZE
from convnext_deploy.evaluation.probabilities import to_label_probabilities, to_probabilities
from convnext_deploy.runners import Runner, open_runner
from convnext_deploy.system.execution import decoding_processes, resolve_device
from convnext_deploy.system.memory_faults import Halving
from convnext_deploy.system.progress import Progress

if TYPE_CHECKING:
    from convnext_deploy.data.prediction_batches import FileBatches

DEFAULT_THRESHOLD = 0.5
"""The probability from which on a multi-label network is taken to say yes."""
_WORTH_PROCESSES = 256  # images, for which starting processes that decode them takes less time than it saves


@overload
def predict(
    artifact: Path | str,
    images: Path | str | Iterable[Path | str],
    *,
    stream: Literal[False] = False,
    top_k: int | None = None,
    threshold: float | None = None,
    runner: str | None = None,
    data: DataOptions = DataOptions(),
    evaluation: EvaluationOptions = EvaluationOptions(),
    execution: ExecutionOptions = ExecutionOptions(),
) -> Predictions: ...


@overload
def predict(
    artifact: Path | str,
    images: Path | str | Iterable[Path | str],
    *,
    stream: Literal[True],
    top_k: int | None = None,
    threshold: float | None = None,
    runner: str | None = None,
    data: DataOptions = DataOptions(),
    evaluation: EvaluationOptions = EvaluationOptions(),
    execution: ExecutionOptions = ExecutionOptions(),
) -> PredictionStream: ...


@verb
def predict(
    artifact: Path | str,
    images: Path | str | Iterable[Path | str],
    *,
    stream: bool = False,
    top_k: int | None = None,
    threshold: float | None = None,
    runner: str | None = None,
    data: DataOptions = DataOptions(),
    evaluation: EvaluationOptions = EvaluationOptions(),
    execution: ExecutionOptions = ExecutionOptions(),
) -> Predictions | PredictionStream:
    """Classify images with an artifact's own runner and preprocessing.

    Predictions come in the order of `images`, those of a folder sorted by path.

    Args:
        artifact: folder or file, or the name of published weights.
        images: an image file, of any name; or a folder, of which all files below are taken that are images by their names; or
            several of these.
        stream: return an iterator and no list. Everything but the images themselves is checked and opened before this returns;
            they are read while the predictions are taken, a few batches ahead, so that there may be any number of them. Its
            `close` ends it early; so does letting it go.
        top_k: classes per image, at least 1; fewer come where there are not so many. None: 5, or of a multi-label network all
            labels above the threshold.
        threshold: of a multi-label network, the probability from which on an image is said to have a label, 0 to 1; None: 0.5. A
            network of another origin, which does not tell, is taken for one if this is given.
        runner: one of `runners.RUNNERS`; None: that of the artifact's format.
        data: what it says of the network's input and outputs counts.
        evaluation: `batch_size` counts.
        execution: `device`, `workers` and `progress` count.

    Returns: a list that shows itself as a table; a file that cannot be read is told by `Prediction.error` and ends nothing.

    Raises:
        DataError: if there is no image, or a path is not there.
        ArtifactError: if the artifact cannot be opened, or computes values that are not finite.
        BackendUnavailableError: if this machine lacks what the runner needs.
    """
    from convnext_deploy.data.prediction_batches import FileBatches

    if top_k is not None and top_k < 1:
        raise RecipeError(f"top_k = {top_k} is out of range; expected >= 1.")
    require(threshold is None or 0 <= threshold <= 1, "threshold", threshold, "0 to 1")
    paths = find_images([images] if isinstance(images, str | Path) else images)
    opened = open_artifact(artifact, None, data, execution.reporter)
    check_takes_images(str(artifact), opened)
    io = opened.io
    if io.output == "feature-map":
        what = "gives a feature map, which is no vector of an image; take the network with --output features"
        raise RecipeError(f"{artifact} {what}.")
    choice = _choose(opened, top_k, threshold)
    if threshold is None and choice.threshold is not None:
        execution.reporter.say(f"labels with a probability of at least {choice.threshold:g}; another with --threshold")
    top_k = choice.most
    if io.gives_best_only and top_k > io.top_k:
        execution.reporter.say(f"{artifact} gives its {io.top_k} most probable classes only")
    workers = execution.workers
    if workers is None:
        workers = decoding_processes() if len(paths) >= _WORTH_PROCESSES else 0
    batches = FileBatches(paths, opened.preprocess, evaluation.batch_size or BATCH_SIZE, workers)
    backend = open_runner(opened, resolve_device(execution.device or "auto"), runner=runner)
    found = PredictionStream(_classify(opened, backend, batches, io, choice, execution.reporter), backend.close)
    return found if stream else Predictions(found)


@dataclass(frozen=True)
class _Choice:
    """Which classes of an image are told: the `most` probable, of a multi-label network those of at least `threshold`."""

    most: int
    multi_label: bool = False
    threshold: float | None = None


def _choose(artifact: Artifact, top_k: int | None, threshold: float | None) -> _Choice:
    """Raises: RecipeError: if a threshold is given for a network that tells one class of an image."""
    if not artifact.model.multi_label and (threshold is None or artifact.lineage):
        if threshold is not None:
            raise RecipeError(
                f"{artifact.place} tells one class of an image, so that the probabilities of all sum to 1; --threshold is for "
                "multi-label networks. Leave it out."
            )
        return _Choice(5 if top_k is None else top_k)
    if artifact.io.gives_best_only:
        raise RecipeError(
            f"{artifact.place} gives its best classes alone, and a multi-label network is to answer each."
        )
    if threshold is None and top_k is None:
        threshold = DEFAULT_THRESHOLD
    return _Choice(artifact.model.num_classes if top_k is None else top_k, True, threshold)


def find_images(images: Iterable[Path | str]) -> list[Path]:
    """Return the files meant by a list of files and folders.

    Raises: DataError: if one is not there or cannot be listed, a folder has no image, or there is none at all.
    """
    found: list[Path] = []
    for path in map(Path, images):
        try:
            mode = path.stat().st_mode
            inside = list_images(path) if stat.S_ISDIR(mode) else [path]
        except FileNotFoundError:
            raise DataError(f"{printable(path)} does not exist; expected an image or a folder of images.") from None
        except (OSError, ValueError) as error:  # ValueError: a name with a zero byte
            reason = getattr(error, "strerror", None) or error
            raise DataError(f"{printable(path)} cannot be read ({reason}).") from None
        if not inside:
            extensions = ", ".join(IMAGE_EXTENSIONS)
            raise DataError(f"{printable(path)} has no images; expected files that end in {extensions}.")
        found += inside
    if not found:
        raise DataError("no images were given; expected files or folders of images.")
    return found


def _classify(
    artifact: Artifact, runner: Runner, batches: "FileBatches", io: GraphIO, choice: _Choice, progress: Progress
) -> Generator[Prediction, None, None]:
    names, foreign = artifact.class_names, artifact.model.variant == "unknown"
    labels = FolderLabels(names)
    compute = Halving(runner.logits, np.concatenate, "predict", progress)
    with progress.task("predict", len(batches.paths), "images") as task:
        for batch in batches:
            rows: Iterator[tuple[Guess, ...]] = iter(())
            vectors: Iterator[NDArray[np.float32]] = iter(())
            if len(batch.pixels):
                logits = compute(batch.pixels)
                if not np.isfinite(logits).all():
                    raise ArtifactError(
                        f"{artifact.main_file}: the {io.output} are not finite; the artifact is unusable."
                    )
                count = min(choice.most, _given(io, logits.shape[1]))
                if io.gives_features:
                    vectors = iter(logits)
                elif choice.multi_label:
                    rows = _best(to_label_probabilities(logits, io), names, count, choice.threshold or 0.0)
                else:
                    rows = _best(to_probabilities(logits, io, foreign), names, count)
            for path, error in zip(batch.paths, batch.errors, strict=True):
                if error is not None:
                    found = Prediction(path, (), str(error))
                elif io.gives_features:
                    found = Prediction(path, (), features=next(vectors))
                else:
                    found = Prediction(path, next(rows))
                if found.guesses and not choice.multi_label:
                    labels.add(path, found.guesses[0].index)
                yield found
            task.advance(len(batch.paths))
    if (doubt := labels.doubt(artifact)) is not None:
        progress.say(f"WARNING: going by the names of the folders, {doubt}")


def _given(io: GraphIO, classes: int) -> int:
    return min(io.top_k, classes) if io.gives_best_only else classes


def _best(
    probabilities: NDArray[np.float64], names: tuple[str, ...] | None, count: int, least: float = 0.0
) -> Iterator[tuple[Guess, ...]]:
    # Among equal ones the lower class wins, as in the score of the validation images.
    for row, order in zip(probabilities, np.argsort(-probabilities, axis=1, kind="stable")[:, :count], strict=True):
        yield tuple(
            Guess(str(index) if names is None else names[index], index, float(row[index]))
            for index in order.tolist()
            if row[index] >= least
        )
