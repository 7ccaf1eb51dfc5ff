"""The honesty check from end to end: a planted slow INT8 graph is caught, a good one passes, and nothing is measured twice."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from convnext_deploy.artifacts.artifact import Artifact, read_artifact
from convnext_deploy.config.fit import FitConfig
from convnext_deploy.config.onnx import ONNXConfig
from convnext_deploy.config.ptq import PTQConfig
from convnext_deploy.config.recipe import SOURCE, Gate, Recipe, StageEntry
from convnext_deploy.config.train import ModelConfig, TrainConfig
from convnext_deploy.data.datasets import Data
from convnext_deploy.errors import ExportError
from convnext_deploy.evaluation.timing import speedup as speed
from convnext_deploy.evaluation.timing.speedup import Speed, Speedup
from convnext_deploy.exporters.onnx import export as network_graph
from convnext_deploy.exporters.onnx import ort_fusion
from convnext_deploy.exporters.onnx.ort_fusion import fuse_int8_matmuls
from convnext_deploy.exporters.onnx.trace import export_float
from convnext_deploy.pipeline import speed_check
from convnext_deploy.pipeline.float_baseline import FloatBaseline
from convnext_deploy.pipeline.run import RunResult, run_recipe
from convnext_deploy.pipeline.speed_check import Comparison, measure_comparison
from convnext_deploy.reports.record import StageRow, read_report
from convnext_deploy.system.environment import describe_environment
from convnext_deploy.system.progress import SilentProgress
from tests.cli.conftest import call
from tests.pipeline.conftest import settings_for
from tests.shared import heavy_except, make_once

SIDE = 96  # large enough for INT8 to be clearly faster
FLOAT = "float-onnxruntime"
PLANTED = ("stages.0.", "stages.1.", "stages.2.")


@pytest.fixture(autouse=True)
def _few_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speed, "ROUNDS", 3)
    monkeypatch.setattr(speed, "SECONDS", 0.2)


@pytest.fixture
def quantized(small_artifacts: dict[str, Artifact]) -> Artifact:
    """A network that was quantized for ONNX Runtime, evaluated at larger images than it was trained with."""
    artifact = small_artifacts["quantize"]
    return dataclasses.replace(artifact, preprocess=dataclasses.replace(artifact.preprocess, image_size=SIDE))


@pytest.fixture
def wide(small_data: Data) -> dict[str, Artifact]:
    """The same of a network wide enough for INT8 to be faster, and its FP32 ancestor `model`."""
    stages = (
        StageEntry(
            "model", TrainConfig(ModelConfig("atto", 32), FitConfig(epochs=1, batch_size=36, warmup_epochs=0)), None
        ),
        StageEntry("ptq", PTQConfig(target="onnxruntime", calibration_method="minmax", calibration_images=12), "model"),
    )

    def make(folder: Path) -> dict[str, Artifact]:
        run_recipe(Recipe("wide", stages), settings_for(folder), data=small_data)
        return {name: read_artifact(folder / "stages" / name) for name in ("model", "ptq")}

    found = make_once("wide", make)
    larger = dataclasses.replace(found["ptq"].preprocess, image_size=SIDE)
    return {**found, "ptq": dataclasses.replace(found["ptq"], preprocess=larger)}


def recipe_of(gate: Gate = Gate(), **changes: object) -> Recipe:  # noqa: B008  (frozen)
    stages = (StageEntry("int8", ONNXConfig(), SOURCE, gate),)
    return dataclasses.replace(Recipe("speed", stages, source="quantized"), **changes)  # type: ignore[arg-type]


def rows_of(result: RunResult) -> dict[str, StageRow]:
    return {row.name: row for row in result.report.rows}


def slow_form(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Give the linear layers of all model stages but the last signed inputs, for which ONNX Runtime has slow kernels only."""
    result = fuse_int8_matmuls(proto)
    for constant in result.graph.initializer:
        if constant.name.startswith(PLANTED) and constant.name.endswith(".input_zero_point"):
            shifted = (numpy_helper.to_array(constant).astype(np.int16) - 128).astype(np.int8)
            constant.CopyFrom(numpy_helper.from_array(shifted, constant.name))
    return result


@pytest.mark.heavy
def test_planted_slow_graph_fails_with_exit_code_3_names_its_layers_and_what_to_ship(
    wide: dict[str, Artifact], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ort_fusion, "fuse_int8_matmuls", slow_form)
    out = tmp_path / "out"
    outcome = call("export", wide["ptq"].path, "--image-size", str(SIDE), "--out", out)
    assert outcome.code == 3
    row = {row.name: row for row in read_report(out).rows}["onnx"]
    found = row.speed.against_float
    assert row.verdict.passed is False
    assert found is not None
    assert found.worst.median < 1
    assert found.layers
    for layer in found.layers:
        assert layer.layer.startswith(PLANTED), found.layers
        assert ".pwconv" in layer.layer, found.layers
        assert layer.ms > 1.5 * layer.reference_ms
    assert row.speed.ship == str(out / "stages" / FLOAT)
    for text in (found.layers[0].layer, "layers responsible", f"ship {FLOAT} instead"):
        assert text in " ".join(outcome.out.split())
    again = call("report", out)
    assert again.code == 3
    assert f"ship {FLOAT} instead" in " ".join(again.out.split())


@pytest.mark.heavy
def test_good_graph_passes_is_not_measured_again_and_another_gate_judges_what_was_kept(
    wide: dict[str, Artifact], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for attempt in range(3):  # other work on the machine may hide what INT8 gains
        folder = tmp_path / str(attempt)
        settings = settings_for(folder)
        first = run_recipe(recipe_of(), settings, source=wide["ptq"])
        found = rows_of(first)["int8"]
        if found.verdict.passed:
            break
    assert found.verdict.passed is True, found.verdict.reasons
    assert found.speed.against_float is not None
    assert (found.speed.ship, found.speed.against_float.compared_with) == (None, FLOAT)
    assert first.executed == ("int8", FLOAT)
    made, student = read_artifact(folder / "stages" / FLOAT).preprocess, wide["model"].preprocess
    assert made == dataclasses.replace(student, image_size=SIDE)  # the normalization is that of the float network
    assert rows_of(first)[FLOAT].provenance.for_comparison
    assert (folder / "stages" / FLOAT / "model.onnx").is_file()

    monkeypatch.setattr(speed, "measure_speed", must_not_run)
    second = run_recipe(recipe_of(), settings, source=wide["ptq"])
    assert second.executed == ()
    assert rows_of(second)["int8"] == found
    strict = run_recipe(recipe_of(Gate(min_speedup=100)), settings, source=wide["ptq"])
    judged = rows_of(strict)["int8"]
    assert (strict.executed, judged.verdict.passed) == ((), False)
    assert judged.speed.against_float == found.speed.against_float
    assert "100× is asked for" in judged.verdict.reasons[0]


def must_not_run(*_: object, **__: object) -> Speed:
    raise AssertionError("nothing is to be measured here")


Planted = Callable[[float], list[str]]


@pytest.fixture
def planted(monkeypatch: pytest.MonkeyPatch) -> Planted:
    """Let the measurement find a speedup, and list what is compared with what."""

    def plant(median: float) -> list[str]:
        compared: list[str] = []

        def measure(ours: speed.Contender, reference: speed.Contender, *_: object, **__: object) -> Speed:
            compared.append(f"{ours.name} {reference.name} {reference.artifact.preprocess.image_size}")
            speedup = Speedup(1, median, median, median, 1.0, median)
            path = str(reference.artifact.location)
            return Speed(reference.name, path, ours.runner, reference.runner, "cpu", (speedup,))

        monkeypatch.setattr(speed, "measure_speed", measure)
        return compared

    return plant


def test_what_to_ship_is_named_as_it_was_given_whoever_measured_it(
    small_artifacts: dict[str, Artifact], tmp_path: Path, planted: Planted, monkeypatch: pytest.MonkeyPatch
) -> None:
    planted(0.5)
    artifacts = {"int8": small_artifacts["onnx-int8"], "float": small_artifacts["onnx-fp32"]}
    plan = Comparison("int8", "float", FloatBaseline((), "onnxruntime", "onnxruntime", "cpu", (1,)), (), artifacts)
    environment = describe_environment()
    for folder in (artifacts["float"].path.parent, artifacts["float"].path):
        monkeypatch.chdir(folder)
        place = Path(os.path.relpath(artifacts["float"].path))
        given = {**artifacts, "float": dataclasses.replace(artifacts["float"], path=place)}
        found = measure_comparison(plan, given, tmp_path / "kept.json", environment, SilentProgress())
        assert isinstance(found, Speed)
        assert found.path == str(place)


@pytest.mark.slow
def test_artifacts_with_other_ends_get_float_forms_of_their_own(
    small_artifacts: dict[str, Artifact], tmp_path: Path, planted: Planted
) -> None:
    compared = planted(2.0)
    stages = tuple(
        StageEntry(name, ONNXConfig(input_type=kind), SOURCE)  # type: ignore[arg-type]
        for name, kind in (("a", "float32"), ("b", "uint8"))
    )
    result = run_recipe(recipe_of(stages=stages), settings_for(tmp_path), source=small_artifacts["quantize"])
    assert compared == [f"a {FLOAT} 32", f"b {FLOAT}-2 32"]
    assert result.executed == ("a", "b", FLOAT, f"{FLOAT}-2")


@pytest.mark.slow
def test_float_graph_of_the_recipe_is_taken_though_it_comes_later_and_nothing_is_built(
    small_artifacts: dict[str, Artifact], small_data: Data, tmp_path: Path, planted: Planted
) -> None:
    compared = planted(0.5)
    stages = (
        StageEntry("ptq", PTQConfig(target="onnxruntime", calibration_method="minmax", calibration_images=12), SOURCE),
        StageEntry("int8", ONNXConfig(), "ptq"),
        StageEntry("theirs", ONNXConfig(runtime="onnxruntime"), SOURCE),
    )
    result = run_recipe(
        recipe_of(stages=stages), settings_for(tmp_path), source=small_artifacts["student"], data=small_data
    )
    assert compared == ["int8 theirs 32"]
    assert result.executed == ("ptq", "int8", "theirs")
    row = rows_of(result)["int8"]
    assert row.accuracy is not None
    assert (row.verdict.passed, row.speed.ship) == (False, str(tmp_path / "stages" / "theirs"))


@pytest.mark.parametrize("where", heavy_except(("recipe",), ("recipe", "settings")))
def test_check_can_be_left_out_and_the_report_says_so(
    quantized: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    monkeypatch.setattr(speed_check, "find_float_baseline", must_not_run)
    settings = dataclasses.replace(settings_for(tmp_path), speed_check=where != "settings")
    result = run_recipe(recipe_of(speed_check=where != "recipe"), settings, source=quantized)
    row = rows_of(result)["int8"]
    assert result.executed == ("int8",)
    assert (row.speed.against_float, row.verdict.passed) == (None, None)
    assert "speed not measured: it was left out, as asked for" in row.notes


def test_run_without_int8_for_a_runtime_that_is_here_measures_nothing_and_says_why(small_run: RunResult) -> None:
    rows = rows_of(small_run)
    for name in ("onnx-int8", "engine"):
        assert (rows[name].speed.against_float, rows[name].verdict.passed) == (None, None)
        if rows[name].speed.not_measured is not None:
            assert f"speed not measured: {rows[name].speed.not_measured}" in rows[name].notes
    assert rows["onnx-int8"].speed.not_measured is not None
    assert not any(row.provenance.for_comparison for row in small_run.report.rows)
    assert all(row.speed.not_measured is None for name, row in rows.items() if name not in ("onnx-int8", "engine"))


def test_float_form_that_cannot_be_made_is_no_error_of_the_run(
    quantized: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:

    def refuse(model: object, *arguments: object) -> onnx.ModelProto:
        if any("float" in path.name for path in (tmp_path / "stages").iterdir()):
            raise ExportError("planted")
        return export_float(model, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(network_graph, "export_float", refuse)
    row = rows_of(run_recipe(recipe_of(), settings_for(tmp_path), source=quantized))["int8"]
    assert row.speed.not_measured == "the float baseline could not be made: planted"
    assert row.verdict.passed is None
