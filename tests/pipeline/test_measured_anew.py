"""Old measurements are not shown as new: what one depends on is in its key, and what is out of date is made again."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from convnext_deploy.artifacts.artifact import Artifact, write_manifest
from convnext_deploy.artifacts.details import EngineDetails, Profile, TorchTensorRTDetails
from convnext_deploy.config.recipe import Recipe
from convnext_deploy.data.datasets import Data
from convnext_deploy.evaluation import measure
from convnext_deploy.evaluation.measure import Measurement
from convnext_deploy.pipeline import ledger, measuring, speed_check, stage
from convnext_deploy.pipeline.float_baseline import FloatBaseline
from convnext_deploy.pipeline.run import run_recipe
from convnext_deploy.pipeline.stage import reusable
from convnext_deploy.system import environment
from convnext_deploy.system.environment import conditions_of, describe_environment
from convnext_deploy.system.progress import SilentProgress
from tests.artifacts.test_artifact import EVERY, create_artifact
from tests.pipeline.conftest import settings_for

Measured = Callable[..., list[str]]


@pytest.fixture
def again(copied: Path, light_recipe: Recipe, small_data: Data, monkeypatch: pytest.MonkeyPatch) -> Measured:
    """Run the first stage in the copy, where it is up to date, and return what was measured."""
    names: list[str] = []
    original = measure.measure_artifact

    def count(artifact: Artifact, *given: Any) -> Measurement:
        names.append(given[2])
        return original(artifact, *given)

    monkeypatch.setattr(measuring, "measure_artifact", count)
    short = dataclasses.replace(light_recipe, stages=light_recipe.stages[:1])

    def run(**changes: Any) -> list[str]:
        names.clear()
        settings = dataclasses.replace(settings_for(copied), restart=True, **changes)  # of a report with more rows
        assert run_recipe(short, settings, data=small_data).executed == ()
        return list(names)

    return run


def other_versions(monkeypatch: pytest.MonkeyPatch, **versions: str) -> None:
    original = environment.installed_version
    monkeypatch.setattr(environment, "installed_version", lambda name: versions.get(name) or original(name))


def test_scores_and_latencies_are_of_this_machine_and_these_versions(
    again: Measured, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert again() == []
    other_versions(monkeypatch, convnext_deploy="99.0")  # its records have versions of their own
    assert again() == []
    for name in ("onnxruntime", "onnxruntime_openvino", "tensorrt_cu13", "torch", "pillow"):
        other_versions(monkeypatch, **{name: "99.0"})
        assert (again(), again()) == (["model"], []), name
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    assert (again(), again()) == (["model"], [])
    monkeypatch.setenv("DNNL_MAX_CPU_ISA", "AVX2")
    assert (again(), again()) == (["model"], [])
    known = describe_environment()
    assert (known["threads"], known["variables"]) == ("OMP_NUM_THREADS=7", "DNNL_MAX_CPU_ISA=AVX2")
    monkeypatch.setattr(torch, "get_num_threads", lambda: 11)
    assert (again(), again()) == (["model"], [])
    for change in ({"cpu": "another"}, {"cores": 3}, {"gpus": "NVIDIA L4 (SM89); CUDA 13.0"}):
        monkeypatch.setattr(ledger, "describe_environment", lambda change=change: {**known, **change})
        assert (again(), again()) == (["model"], []), change


def test_measure_again_measures_what_is_there(again: Measured, copied: Path) -> None:
    before = json.loads((copied / "scores" / "model.json").read_text())
    assert again(measure_again=True) == ["model"]
    after = json.loads((copied / "scores" / "model.json").read_text())
    assert (after["key"], after["score"]) == (before["key"], before["score"])
    assert again() == []


def test_altered_score_is_not_taken(again: Measured, copied: Path) -> None:
    path = copied / "scores" / "model.json"
    content = json.loads(path.read_text())
    content["score"]["correct"] += 1
    path.write_text(json.dumps(content))
    assert (again(), again()) == (["model"], [])


def test_speed_is_of_this_machine_and_these_versions(
    small_artifacts: dict[str, Artifact], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from convnext_deploy.evaluation.timing import speedup

    measured: list[str] = []

    def time(*_: object, **__: object) -> speedup.Speed:
        measured.append("speed")
        each = speedup.Speedup(1, 2.0, 2.0, 2.0, 1.0, 2.0)
        return speedup.Speed("float", "/float", "onnxruntime", "onnxruntime", "cpu", (each,))

    monkeypatch.setattr(speedup, "measure_speed", time)
    against = FloatBaseline((), "onnxruntime", "onnxruntime", "cpu", (1,))
    plan = speed_check.Comparison("onnx-int8", "onnx-fp32", against, (), small_artifacts)

    def check(known: dict[str, Any], *, again: bool = False) -> int:
        kept = tmp_path / "scores" / "a.speed.json"
        speed_check.measure_comparison(plan, small_artifacts, kept, known, SilentProgress(), again=again)
        return len(measured)

    known = describe_environment()
    upgraded = {**known, "versions": {**known["versions"], "onnxruntime": "99.0"}}
    assert [check(each) for each in (known, known, upgraded, upgraded, {**upgraded, "cores": 99})] == [1, 1, 2, 2, 3]
    assert check({**upgraded, "cores": 99}, again=True) == 4


def test_conditions_leave_nothing_out_but_this_package() -> None:
    known = describe_environment()
    assert {**known["versions"], **conditions_of(known)["versions"]} == known["versions"]
    assert known["versions"].keys() - conditions_of(known)["versions"].keys() == {"convnext_deploy"}


ENGINE = EVERY[2]
ON_L4 = EngineDetails("tensorrt", "10.3.0", (), Profile(1, 1, 8), built_on="NVIDIA L4 (SM89)")
PROGRAM = TorchTensorRTDetails("2.14.0", "SM89", 8)


@pytest.mark.parametrize(
    ("details", "here", "gpu", "reason"),
    [
        (ON_L4, {"tensorrt": "10.3.0"}, "NVIDIA L4 (SM89)", None),
        (ON_L4, {"tensorrt": "10.4.0"}, "NVIDIA L4 (SM89)", "built with tensorrt 10.3.0, and here is 10.4.0"),
        (
            ON_L4,
            {"tensorrt": "10.3.0"},
            "NVIDIA L40 (SM89)",
            "built on NVIDIA L4 (SM89), and here is NVIDIA L40 (SM89)",
        ),
        (ON_L4, {}, None, None),  # nothing could build it here: it stays, and is not run
        (ENGINE, {"tensorrt_rtx": "1.7.1"}, "NVIDIA L40 (SM89)", None),  # it names its GPUs
        (ENGINE, {"tensorrt_rtx": "1.8"}, None, "built with tensorrt_rtx 1.7.1, and here is 1.8"),
        # the libraries alone, without the package that names them
        (ENGINE, {"tensorrt_rtx_cu13": "1.8"}, None, "built with tensorrt_rtx_cu13 1.7.1, and here is 1.8"),
        (PROGRAM, {"torch": "2.14"}, "NVIDIA L4 (SM89)", None),
        (PROGRAM, {"torch": "2.15"}, "NVIDIA L4 (SM89)", "built with torch 2.14, and here is 2.15"),
        (PROGRAM, {"torch": "2.14"}, "NVIDIA H100 (SM90)", "built on SM89, and here is NVIDIA H100 (SM90)"),
        (EVERY[0], {"torch": "2.15"}, None, None),  # weights stay what they are
    ],
)
def test_engine_is_built_again_when_tensorrt_or_the_gpu_changed(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    details: Any,
    here: dict[str, str],
    gpu: str | None,
    reason: str | None,
) -> None:
    artifact = create_artifact(tmp_path / "engine", details)
    versions = {"torch": "2.14", "tensorrt": "10.3.0", "tensorrt_rtx": "1.7.1", "tensorrt_rtx_cu13": "1.7.1"}
    record = dataclasses.replace(artifact.lineage[-1], versions=versions)
    write_manifest(dataclasses.replace(artifact, lineage=(record,)))
    monkeypatch.setattr(stage, "installed_version", here.get)
    monkeypatch.setattr(stage, "describe_gpu", lambda: gpu)
    said: list[str] = []
    progress = SilentProgress()
    monkeypatch.setattr(progress, "say", said.append)
    found = reusable(tmp_path / "engine", record.cache_key, progress)
    assert (found is None, said) == (
        (False, []) if reason is None else (True, [f"engine: it was {reason}; it is built again"])
    )
    assert reusable(tmp_path / "engine", "another key", progress) is None


def test_altered_artifact_is_made_again_and_that_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    artifact = create_artifact(tmp_path / "a")
    write_manifest(artifact)
    (tmp_path / "a" / "weights.bin").write_bytes(b"weightz")
    said: list[str] = []
    progress = SilentProgress()
    monkeypatch.setattr(progress, "say", said.append)
    assert reusable(tmp_path / "a", artifact.lineage[-1].cache_key, progress) is None
    assert "weights.bin is not the file that its manifest describes" in said[0]
    assert reusable(tmp_path / "absent", "key", progress) is None
    assert len(said) == 1
