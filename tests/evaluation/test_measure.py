"""Measuring real artifacts: latency, scores, and measurements kept in a file."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from convnext_deploy.artifacts.artifact import Artifact
from convnext_deploy.data.datasets import Data
from convnext_deploy.evaluation.latency import Latency, measure_latency
from convnext_deploy.evaluation.measure import Measurement, measure_artifact, read_kept, write_kept
from convnext_deploy.evaluation.score import Score
from convnext_deploy.models.checkpoints.load_network import load_network
from convnext_deploy.runners.graph_io import Images, Outputs
from convnext_deploy.runners.torch import TorchRunner
from convnext_deploy.system.execution import Execution


@pytest.fixture(scope="module")
def measured(small_artifacts: dict[str, Artifact], small_data: Data) -> Measurement:
    """The measurement of the small student."""
    return measure_artifact(small_artifacts["student"], small_data, Execution(), "student", 7)


def test_measure_latency_orders_its_percentiles(small_artifacts: dict[str, Artifact]) -> None:
    runner = TorchRunner(load_network(small_artifacts["student"]), "cpu")
    found = measure_latency(runner, (3, 32, 32))
    runner.close()
    assert found.batch_size == 1
    assert 0 < found.p50_ms <= found.p90_ms < 10_000


class _CountingRunner(TorchRunner):
    def __init__(self, artifact: Artifact) -> None:
        super().__init__(load_network(artifact), "cpu")
        self.prepared = 0
        self.calls: list[tuple[tuple[int, ...], np.dtype[np.generic]]] = []

    def prepare(self, images: Images) -> NDArray[np.generic]:
        self.prepared += 1
        return super().prepare(images)

    def run(self, prepared: NDArray[np.generic]) -> Outputs:
        self.calls.append((prepared.shape, prepared.dtype))
        return super().run(prepared)


def test_measure_latency_calls_with_single_images_often_enough(small_artifacts: dict[str, Artifact]) -> None:
    runner = _CountingRunner(small_artifacts["student"])
    measure_latency(runner, (3, 64, 64))
    runner.close()
    assert 30 <= len(runner.calls) <= 210
    assert runner.prepared == 1  # before the clock starts: no user pays for it in a call
    assert set(runner.calls) == {((1, 3, 64, 64), np.dtype(np.float32))}


def test_measure_artifact_scores_every_validation_image(measured: Measurement, small_data: Data) -> None:
    assert measured.score is not None
    assert measured.latency is not None
    assert measured.score.labels == tuple(small_data.validation.labels.tolist())
    assert (measured.runner, measured.device, measured.not_run) == ("torch", "cpu", None)


def test_measure_artifact_does_not_depend_on_batch_size(
    measured: Measurement, small_artifacts: dict[str, Artifact], small_data: Data
) -> None:
    again = measure_artifact(small_artifacts["student"], small_data, Execution(), "student", 18)
    assert again.score == measured.score


def test_read_measurement_gives_back_what_was_written(measured: Measurement, tmp_path: Path) -> None:
    path = tmp_path / "measurements" / "student.json"
    write_kept(path, "key", measured)
    assert read_kept(Measurement, path, "key") == measured
    assert read_kept(Measurement, path, "another key") is None


def test_write_measurement_replaces_an_older_one(tmp_path: Path) -> None:
    path = tmp_path / "m.json"
    first = Measurement(Score(1, 2, (0, 1), (0, 0)), Latency(1, 2.5, 3.25), "torch", "cpu")
    write_kept(path, "a", first)
    second = dataclasses.replace(first, device="cuda")
    write_kept(path, "b", second)
    assert read_kept(Measurement, path, "a") is None
    assert read_kept(Measurement, path, "b") == second
    assert [file.name for file in tmp_path.iterdir()] == ["m.json"]


@pytest.mark.parametrize("content", ["", "{", "[]", "3", "null", '{"key": "key"}', '{"key": "key", "score": 3}'])
def test_read_measurement_is_none_when_the_file_is_damaged(tmp_path: Path, content: str) -> None:
    (tmp_path / "m.json").write_text(content)
    assert read_kept(Measurement, tmp_path / "m.json", "key") is None


def test_read_measurement_is_none_when_there_is_no_file(tmp_path: Path) -> None:
    assert read_kept(Measurement, tmp_path / "none.json", "key") is None
