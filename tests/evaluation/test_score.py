"""Top-1 and top-5 counts from logits, and the errors and orders that scoring promises."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor

from convnext_deploy.artifacts.artifact import Artifact
from convnext_deploy.artifacts.spec import GraphIO
from convnext_deploy.data.datasets import Data
from convnext_deploy.data.evaluation_batches import EvaluationBatches
from convnext_deploy.errors import ArtifactError
from convnext_deploy.evaluation.run_images import run_batches
from convnext_deploy.evaluation.score import Guessing, Score, count_guesses
from convnext_deploy.models.checkpoints.load_network import load_network
from convnext_deploy.runners.graph_io import Images, Outputs
from convnext_deploy.runners.torch import TorchRunner
from convnext_deploy.system.progress import SilentProgress


class PassThrough:
    """A runner whose images are the logits themselves."""

    name = "pass-through"
    device = "cpu"

    def prepare(self, images: Images) -> NDArray[np.generic]:
        return images

    def run(self, prepared: NDArray[np.generic]) -> Outputs:
        return {"logits": prepared[:, :, 0, 0]}

    def logits(self, images: Images) -> NDArray[np.float32]:
        return self.run(self.prepare(images))["logits"].astype(np.float32, copy=False)

    def close(self) -> None:
        """Nothing is held."""


def score_with(runner: Any, images: Iterable[tuple[Any, Any]], guessing: Guessing | None = None) -> Score:
    return count_guesses(run_batches(runner, images, guessing or Guessing(), "model", SilentProgress()))


def batches(logits: NDArray[np.float32], labels: list[int], size: int = 3) -> Iterator[tuple[Tensor, Tensor]]:
    images = torch.from_numpy(logits)[:, :, None, None]
    yield from zip(images.split(size), torch.tensor(labels).split(size), strict=True)


def score(logits: NDArray[np.float32], labels: list[int]) -> Score:
    return score_with(PassThrough(), batches(logits, labels))


def test_score_counts_first_and_first_five_guesses() -> None:
    logits = np.tile(np.arange(8, 0, -1, dtype=np.float32), (8, 1))  # class 0 first, class 7 last
    found = score(logits, [0, 1, 4, 5, 7, 0, 3, 6])
    assert (found.correct, found.correct_top5, found.total) == (2, 5, 8)
    assert (found.top1, found.top5) == (0.25, 0.625)
    assert found.predictions == (0,) * 8
    assert found.labels == (0, 1, 4, 5, 7, 0, 3, 6)


@pytest.mark.parametrize("classes", [2, 4, 5])
def test_score_counts_all_guesses_when_there_are_five_classes_or_fewer(classes: int) -> None:
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(20, classes)).astype(np.float32)
    found = score(logits, rng.integers(0, classes, 20).tolist())
    assert found.correct_top5 == 20
    assert 0 < found.correct < 20


def test_score_keeps_the_probability_of_each_first_guess() -> None:
    logits = np.array([[2.0, 0.0, 0.0], [0.0, 0.0, 1.0]], np.float32)
    shares = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    assert score(logits, [0, 1]).confidences == pytest.approx(shares.max(axis=1).tolist())
    # graphs that give probabilities: ours, of which runners return the logarithm, and others, which do not say so
    for outputs, io, foreign in ((np.log(shares), GraphIO(output="probabilities"), False), (shares, GraphIO(), True)):
        images = batches(outputs.astype(np.float32), [0, 1])
        found = score_with(PassThrough(), images, Guessing(io=io, foreign=foreign))
        assert found.confidences == pytest.approx(shares.max(axis=1).tolist(), abs=1e-6)


def test_score_prefers_the_lower_class_when_logits_tie() -> None:
    logits = np.zeros((4, 9), np.float32)
    logits[1, 3:5] = 1
    logits[2] = -0.0
    found = score(logits, [0, 3, 4, 5])
    assert found.predictions == (0, 3, 0, 0)
    assert (found.correct, found.correct_top5) == (2, 3)


@settings(max_examples=60, deadline=None, derandomize=True, database=None)
@given(seed=st.integers(0, 2**32 - 1), count=st.integers(1, 20), classes=st.integers(2, 12), distinct=st.integers(1, 9))
def test_score_equals_sorting_by_hand(seed: int, count: int, classes: int, distinct: int) -> None:
    rng = np.random.default_rng(seed)
    logits = rng.integers(0, distinct, (count, classes)).astype(np.float32)
    labels = rng.integers(0, classes, count).tolist()
    ranked = [sorted(range(classes), key=lambda c, row=row: (-row[c], c)) for row in logits]  # type: ignore[misc]
    found = score(logits, labels)
    assert found.predictions == tuple(order[0] for order in ranked)
    assert found.correct == sum(order[0] == label for order, label in zip(ranked, labels, strict=True))
    assert found.correct_top5 == sum(label in order[:5] for order, label in zip(ranked, labels, strict=True))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_score_refuses_when_a_logit_is_not_finite(value: float) -> None:
    logits = np.zeros((7, 3), np.float32)
    logits[5, 2] = value
    with pytest.raises(ArtifactError, match="model: the logits are not finite") as caught:
        score(logits, [0] * 7)
    assert "\n" not in str(caught.value)


def test_score_equals_network_on_the_validation_images(small_artifacts: dict[str, Artifact], small_data: Data) -> None:
    artifact = small_artifacts["student"]
    images = EvaluationBatches(small_data.validation, artifact.preprocess, 5)
    runner = TorchRunner(load_network(artifact), "cpu")
    found = score_with(runner, images)
    runner.close()
    with torch.no_grad():
        network = load_network(artifact)
        expected = torch.cat([network(batch).argmax(dim=1) for batch, _ in images])
    assert found.predictions == tuple(expected.tolist())
    assert found.labels == tuple(small_data.validation.labels.tolist())
    assert found.correct == int((expected.numpy() == small_data.validation.labels).sum())
