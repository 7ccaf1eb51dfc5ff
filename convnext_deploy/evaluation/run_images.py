"""Run images through an opened artifact, whatever is then made of what it gives."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from convnext_deploy.errors import ArtifactError
from convnext_deploy.runners import Runner
from convnext_deploy.system.memory_faults import Halving
from convnext_deploy.system.progress import Progress

Convert = Callable[[NDArray[Any]], NDArray[Any]]


def in_order(outputs: NDArray[np.int64] | None) -> Convert:
    """Return what puts logits `(N, outputs)` into the order of the classes, `(classes,)`; None: they are in it."""
    return lambda found: found if outputs is None else found[:, outputs]


def run_images(
    runner: Runner,
    batches: Iterable[tuple[Any, Any]],
    total: int,
    progress: Progress,
    description: str,
    convert: Convert = lambda found: found,
    gives: str = "logits",
) -> Iterator[tuple[NDArray[np.float32], NDArray[Any]]]:
    """Yield what an artifact gives for each batch, and the labels of the batch.

    Args:
        runner: opened.
        batches: pairs of images and labels, as tensors.
        total: number of images, for the progress display.
        progress: where to report.
        description: what the progress display shows.
        convert: what is done to what the runner gives, before it is looked at.
        gives: what that is, for messages.

    Raises:
        ArtifactError: if a value is not finite.
        TooLittleMemoryError: if memory is too small for a single image.
    """
    compute = Halving(runner.logits, np.concatenate, description, progress)
    with progress.task(description, total, "images") as task:
        for images, targets in batches:
            found = convert(compute(np.ascontiguousarray(images.numpy())))
            if not np.isfinite(found).all():
                raise ArtifactError(f"{description}: the {gives} are not finite; the artifact is unusable.")
            yield found, targets.numpy()
            task.advance(len(targets))
