"""What TensorBoard and MLflow are told of a run: everything once, also what was taken from an earlier one."""

from __future__ import annotations

import dataclasses
import importlib.util
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator  # type: ignore[import-untyped]

from convnext_deploy.api.options import ExecutionOptions
from convnext_deploy.api.run_stages import create_settings
from convnext_deploy.config.recipe import Recipe
from convnext_deploy.data.datasets import Data
from convnext_deploy.errors import BackendUnavailableError, OutputError
from convnext_deploy.pipeline.run import RunResult, run_recipe
from convnext_deploy.pipeline.stage import Settings
from convnext_deploy.pipeline.tracking import Tracking, figures_of
from convnext_deploy.system.execution import Execution
from convnext_deploy.training.mlflow_tracker import tracked_run
from convnext_deploy.training.tensorboard import TensorBoardTracker
from tests.pipeline.conftest import STAGES, settings_for
from tests.reports.conftest import BASELINE_ROW, ENGINE_ROW, INT8_ROW, SPEED, UNPROVEN_ROW, change, create_report


class Store:
    """Stands for MLflow: what a run holds at its end, with the refusals of its store (checked with mlflow-skinny 3.17)."""

    def __init__(self) -> None:
        self.params: dict[str, str] = {}
        self.metrics: dict[tuple[str, int], float] = {}
        self.tags: dict[str, str] = {}
        self.artifacts: list[str] = []
        self.statuses: list[str] = []
        self.begun: list[dict[str, Any]] = []
        self.active: str | None = None
        self.refuses: str | None = None  # what every write ends with

    def start_run(self, **settings: Any) -> SimpleNamespace:
        self._check()
        self.begun.append(settings)
        return SimpleNamespace(info=SimpleNamespace(run_id="4711"))

    def log_params(self, params: dict[str, str]) -> None:
        assert len(params) <= 100
        self._check(*params)
        self.params |= params

    def log_batch(self, run_id: str, metrics: list[SimpleNamespace]) -> None:
        assert run_id == "4711"
        self._check(*(metric.key for metric in metrics))
        for metric in metrics:
            assert (metric.key, metric.step) not in self.metrics, f"{metric.key} is there twice"
            self.metrics[metric.key, metric.step] = metric.value

    def set_tag(self, run_id: str, key: str, value: str) -> None:
        self._check(key)
        self.tags[key] = value

    def log_artifact(self, run_id: str, path: str) -> None:
        self._check()
        self.artifacts.append(Path(path).name)

    def _check(self, *names: str) -> None:
        if self.refuses is not None:
            raise RuntimeError(self.refuses)
        for name in names:
            assert all(c.isalnum() or c in "_-. /" for c in name), name


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> Store:
    found = Store()
    module, entities = ModuleType("mlflow"), ModuleType("mlflow.entities")
    module.__spec__ = SimpleNamespace(name="mlflow")  # type: ignore[assignment]  # what find_spec looks at
    entities.__dict__["Metric"] = lambda key, value, time, step: SimpleNamespace(key=key, value=value, step=step)
    module.__dict__.update(
        entities=entities,
        start_run=found.start_run,
        active_run=lambda: found.active,
        log_params=found.log_params,
        end_run=found.statuses.append,
        get_tracking_uri=lambda: "file:///store",
        MlflowClient=lambda: found,
    )
    monkeypatch.setitem(sys.modules, "mlflow", module)
    monkeypatch.setitem(sys.modules, "mlflow.entities", entities)
    return found


def scalars(folder: Path) -> dict[tuple[str, int], float]:
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    events.Reload()
    found: dict[tuple[str, int], float] = {}
    for tag in events.Tags()["scalars"]:
        for event in events.Scalars(tag):
            assert (tag, event.step) not in found, f"step {event.step} of {tag} is there twice"
            found[tag, event.step] = event.value
    return found


def test_figures_are_those_of_the_row() -> None:
    assert figures_of(change(INT8_ROW, against_float=SPEED)) == pytest.approx(
        {
            "top1": 519 / 540,
            "top5": 1.0,
            "drop_pp": 100 * 2 / 540,
            "drop_low_pp": -0.5,
            "drop_high_pp": 1.234,
            "size_mb": 3.849999,
            "latency_p50_ms": 1.236,
            "speedup": 0.5,
            "passed": 0.0,
        }
    )
    assert figures_of(ENGINE_ROW) == {"size_mb": 9.0}
    accuracy = change(BASELINE_ROW, metric="kNN top-1").accuracy
    assert figures_of(dataclasses.replace(BASELINE_ROW, accuracy=accuracy))["knntop1"] == 521 / 540


def test_tensorboard_has_the_last_result_of_each_stage_and_keeps_its_curves(tmp_path: Path) -> None:
    for drop in (0.5, 0.25):  # a second run measures again
        tracking = Tracking((TensorBoardTracker(tmp_path),))
        for epoch in (1, 2, 3):
            tracking.of("student").write({"epoch": epoch, "train_loss": 1 / epoch})
        for row in (UNPROVEN_ROW, change(UNPROVEN_ROW, top1_drop_pp=drop)):  # and looks twice in itself
            tracking.show(create_report(BASELINE_ROW, row))
            tracking.show(create_report(BASELINE_ROW, row))
    assert scalars(tmp_path / "student") == pytest.approx({("train_loss", e): 1 / e for e in (1, 2, 3)})
    result = scalars(tmp_path / "qat" / "result")
    assert result["result/drop_pp", 1] == 0.25
    assert result["result/size_mb", 1] == pytest.approx(3.849999)
    assert result["result/passed", 1] == 1.0
    assert scalars(tmp_path / "student" / "result")["result/top1", 0] == pytest.approx(521 / 540)


def test_mlflow_is_told_of_a_run_that_was_there_already(
    store: Store, copied: Path, light_recipe: Recipe, light_run: RunResult, small_data: Data
) -> None:
    settings = dataclasses.replace(settings_for(copied), mlflow=True, tensorboard=True, command="convnext-deploy run x")
    found = run_recipe(light_recipe, settings, data=small_data)
    assert found.executed == ()
    assert store.begun == [{"run_name": "light", "nested": False}]
    assert store.statuses == ["FINISHED"]
    assert set(store.artifacts) == {"report.html", "report.json", "report.md", "model_card.md"}
    assert store.params["command"] == "convnext-deploy run x"
    assert store.params["seed"] == "3"
    assert store.params["model.fit.epochs"] == "1"
    assert store.params["onnx.from.source"] == "minmax"
    assert store.params["minmax.calibration_method"] == "minmax"
    assert not [name for name, value in store.params.items() if value in ("null", "None", "", "[]")]
    for place, row in enumerate(found.report.rows):
        assert row.name == STAGES[place]
        assert row.accuracy is not None
        assert store.metrics[f"{row.name}/top1", place] == row.accuracy.top1
        assert store.metrics[f"{row.name}/size_mb", place] == row.identity.size_bytes / 1e6
        assert store.tags[f"{row.name}.verdict"] == "no gate"
        # the curves of an earlier training, too
        losses = {key: value for key, value in store.metrics.items() if key[0] == f"{row.name}/train_loss"}
        assert losses == {(f"{row.name}/train_loss", e["epoch"]): e["train_loss"] for e in row.history.epochs}
        assert bool(losses) == (row.name in ("model", "qat"))
        assert ("result/top1", place) in scalars(copied / "tensorboard" / row.name / "result")


class KilledError(Exception):
    """What a test raises in the place of a fault."""


@pytest.mark.parametrize(
    ("error", "status"), [(KilledError(), "FAILED"), (KeyboardInterrupt(), "KILLED"), (SystemExit(143), "KILLED")]
)
def test_run_of_mlflow_ends_as_ours_does(store: Store, tmp_path: Path, error: BaseException, status: str) -> None:
    store.active = "of a notebook"
    (tmp_path / "report.md").write_text("so far")
    files = [tmp_path / "report.md", tmp_path / "absent"]
    with pytest.raises(type(error)), tracked_run("x", {}, files, lambda _: None):
        raise error
    assert (store.statuses, store.artifacts) == ([status], ["report.md"])
    assert store.begun[0]["nested"]


def test_store_that_fails_later_is_named_once_and_ends_nothing(store: Store) -> None:
    said: list[str] = []
    parameters = {f"é{number}:x": "1" for number in range(250)}  # more than one request takes, and no name of MLflow's
    with tracked_run("x", parameters, [], said.append) as tracker:
        assert len(store.params) == 250
        tracker.write_epoch("timm:resnet50", {"epoch": 1, "loss": float("nan")})  # a teacher is called as it was given
        assert ("timm_resnet50/loss", 1) in store.metrics
        store.refuses = "the server\nis gone"
        tracker.write_epoch("student", {"epoch": 1, "loss": 2.0})
        tracker.write_result("student", 0, {"top1": 0.5}, "passed")
    assert said[0] == "MLflow: run x, 4711, in file:///store"
    assert said[1:] == ["MLflow does not take everything (the server); the run goes on, and its folder has all"]
    assert store.statuses == ["FINISHED"]


def test_store_that_cannot_be_used_ends_before_any_work(
    store: Store, tmp_path: Path, light_recipe: Recipe, small_data: Data
) -> None:
    store.refuses = "connection refused"
    settings = Settings(tmp_path / "out", Execution(), mlflow=True)
    expected = r"^MLflow cannot write to file:///store \(connection refused\)\. Set MLFLOW_TRACKING_URI to a store "
    with pytest.raises(OutputError, match=expected):
        run_recipe(light_recipe, settings, data=small_data)
    assert not (tmp_path / "out" / "stages").exists()


def test_mlflow_that_is_missing_is_named_before_any_work(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None)
    with pytest.raises(BackendUnavailableError, match=r'^--mlflow needs the package mlflow: pip install "convnext_dep'):
        create_settings("run", "x", tmp_path / "out", Execution(), ExecutionOptions(mlflow=True))
    assert not (tmp_path / "out").exists()


def test_nothing_is_told_where_nothing_was_asked_for(rerun: Any, copied: Path) -> None:
    rerun()
    assert not (copied / "tensorboard").exists()
