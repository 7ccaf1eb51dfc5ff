"""Run images through an opened artifact, whatever is then made of what it gives; of several processes each runs its part."""

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from convnext_deploy.artifacts.artifact import Artifact
from convnext_deploy.data.datasets import ImageSet
from convnext_deploy.data.sampling import alone
from convnext_deploy.errors import ArtifactError
from convnext_deploy.runners import Runner, open_runner
from convnext_deploy.system.distributed import batches_of, cores_of_each
from convnext_deploy.system.execution import Execution
from convnext_deploy.system.memory_faults import Halving
from convnext_deploy.system.progress import Progress
from convnext_deploy.system.shared_work import share_out

Part = TypeVar("Part", covariant=True)


class Keeping(Protocol[Part]):
    """What is kept of the answers to a batch; other processes get it pickled."""

    @property
    def gives(self) -> str:
        """What an artifact gives, for messages."""

    def convert(self, given: NDArray[Any]) -> NDArray[Any]:
        """Return what is looked at of what the artifact gives, which must be finite."""

    def keep(self, found: NDArray[Any], labels: NDArray[Any], number: int) -> Part:
        """Return what is kept of converted answers and the labels of the images; `number`: of the batch, from 0."""


def in_order(found: NDArray[Any], outputs: NDArray[np.int64] | None) -> NDArray[Any]:
    """Return logits `(N, outputs)` in the order of the classes, `(classes,)`; None: they are in it."""
    return found if outputs is None else found[:, outputs]


def run_batches(
    runner: Runner,
    batches: Iterable[tuple[Any, Any]],
    keeping: Keeping[Part],
    description: str,
    progress: Progress,
    numbers: Iterable[int] | None = None,
) -> Iterator[Part]:
    """Yield what is kept of each batch.

    Args:
        runner: opened.
        batches: pairs of images and labels, as tensors.
        keeping: what is kept.
        description: for messages.
        progress: where to say that memory is too small for a batch.
        numbers: of the batches; None: from 0 on.

    Raises:
        ArtifactError: if a value is not finite.
        TooLittleMemoryError: if memory is too small for a single image.
    """
    compute = Halving(runner.logits, np.concatenate, description, progress)
    for number, (images, targets) in zip(itertools.count() if numbers is None else numbers, batches):  # noqa: B905
        found = keeping.convert(compute(np.ascontiguousarray(images.numpy())))
        if not np.isfinite(found).all():
            raise ArtifactError(f"{description}: the {keeping.gives} are not finite; the artifact is unusable.")
        yield keeping.keep(found, targets.numpy(), number)


@dataclass(frozen=True)
class Opened:
    """An artifact, opened in the first process, and how images are given to it; others open it when they have a part."""

    runner: Runner | None
    artifact: Artifact
    execution: Execution
    batch_size: int

    def __reduce__(self) -> tuple[Any, ...]:
        return Opened, (None, self.artifact, self.execution, self.batch_size)

    def run(self, images: ImageSet, chosen: Sequence[int], keeping: Keeping[Part], description: str) -> Iterator[Part]:
        """Yield what is kept of each batch of the chosen images, which all processes run; arguments as of `run_batches`."""
        answering = _Answering(self, images, chosen, keeping, description)
        with self.execution.progress.task(description, len(chosen), "images") as task:
            for number, part in enumerate(share_out(answering, range(-(-len(chosen) // self.batch_size)))):
                yield part
                task.advance(min(self.batch_size, len(chosen) - number * self.batch_size))


@dataclass(frozen=True)
class _Answering(Generic[Part]):
    """What is kept of each batch of some images."""

    opened: Opened
    images: ImageSet
    chosen: Sequence[int]
    keeping: Keeping[Part]
    description: str

    def __reduce__(self) -> tuple[Any, ...]:
        own = alone(self.images, self.chosen), range(len(self.chosen))
        return _Answering, (self.opened, *own, self.keeping, self.description)

    def __call__(self, numbers: range) -> Iterator[Part]:
        from convnext_deploy.data.evaluation_batches import EvaluationBatches

        opened, size = self.opened, self.opened.batch_size
        own = [self.chosen[place] for place in batches_of(numbers, len(self.chosen), size)]
        batches = EvaluationBatches(
            self.images, opened.artifact.preprocess, size, opened.execution.workers, own, as_pixels=True
        )
        runner = opened.runner
        if runner is None:
            # PyTorch computes with as many threads as in the first process
            is_torch = opened.artifact.format in ("torch", "foreign")
            threads = None if is_torch else cores_of_each()
            runner = open_runner(opened.artifact, opened.execution.device, threads=threads)
        try:
            yield from run_batches(runner, batches, self.keeping, self.description, opened.execution.progress, numbers)
        finally:
            if opened.runner is None:
                runner.close()
