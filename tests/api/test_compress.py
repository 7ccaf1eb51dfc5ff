"""`compress`: from a budget to a network, with times that are known; what is timed on a machine is in tests/compression."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

import pytest

from convnext_deploy import DataOptions, EvaluationOptions, ExecutionOptions, TrainingOptions
from convnext_deploy.api import compress as verb
from convnext_deploy.api.compress import compress
from convnext_deploy.artifacts.artifact import Artifact, read_artifact
from convnext_deploy.artifacts.spec import ModelSpec
from convnext_deploy.compression import explore
from convnext_deploy.compression.time_model import Curve, TimeModel
from convnext_deploy.compression.times import Times
from convnext_deploy.config.recipe import Recipe
from convnext_deploy.config.recipe_toml import load_recipe
from convnext_deploy.errors import RecipeError
from convnext_deploy.evaluation.timing import front
from convnext_deploy.evaluation.timing.interleaved import Candidate, ProcessTimes, Timing
from convnext_deploy.models.block_shapes import block_shapes
from convnext_deploy.models.variants import complete_spec
from convnext_deploy.pipeline import run as pipeline
from convnext_deploy.pipeline.open_foreign import open_references
from convnext_deploy.pipeline.run_folder import claim
from convnext_deploy.reports.recipe_toml import write_recipe
from convnext_deploy.reports.record import read_report
from tests.api.test_distill_teachers import write_named
from tests.cli.conftest import call
from tests.exporters.recorded_progress import RecordingProgress
from tests.pipeline.test_open_artifact import write_foreign_onnx

MODEL = TimeModel(0.5, tuple(Curve((32, 128 * (stage + 1)), (0.1, 0.1 + 0.3 * (stage + 1))) for stage in range(4)))
DENSE_MS = 0.5 + 4 * 0.1 + 0.3 * (1 + 2 + 3 + 4)
SLOWER = 1.04  # than was predicted are files with few hidden units


def time_ms(spec: ModelSpec) -> float:
    """Return what a file takes in these tests."""
    widths = [width for stage in complete_spec(spec).block_widths for width in stage]
    found = MODEL.predict_ms(block_shapes(replace(spec, hidden_widths=None), 32), widths)
    return found * (SLOWER if spec.hidden_widths else 1.0)


def _timings(candidates: Sequence[Candidate], rounds: int, **_: Any) -> tuple[Timing, ...]:
    def timing(candidate: Candidate) -> Timing:
        times = [time_ms(candidate.artifact.model) * (1 + place / 1000) for place in range(rounds)]
        processes = tuple(ProcessTimes(10, ms, ms, ms, 1000 / ms, 0.1, 1) for ms in times)
        return Timing(candidate, candidate.runner or "", "cpu", processes)

    return tuple(map(timing, candidates))


@pytest.fixture(autouse=True)
def _known_times(monkeypatch: pytest.MonkeyPatch) -> None:
    def check(_: object, widths: Sequence[int], __: object) -> tuple[float, float]:
        found = time_ms(ModelSpec("test_convnext2", 3, hidden_widths=tuple(widths)))
        return found, found / DENSE_MS

    monkeypatch.setattr(verb, "times_for", lambda *_, **__: Times(MODEL, DENSE_MS, "known", is_measured=True))
    monkeypatch.setattr(verb, "check_widths", check)
    monkeypatch.setattr(verb, "user_cache", lambda: None)
    monkeypatch.setattr(front, "time_interleaved", _timings)
    monkeypatch.setattr(pipeline, "is_judged", lambda _: False)
    monkeypatch.setattr(explore, "_FRONT_STEPS", 3)
    monkeypatch.setattr(explore, "_PROPOSALS", 2)


def test_dry_run_prints_the_front_that_is_predicted_and_trains_nothing(
    small_artifacts: dict[str, Artifact], image_folder: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    command = ("compress", small_artifacts["student"].path, "--data", image_folder, "--out", out, "--device", "cpu")
    options = ("--target", "onnxruntime", "--workers", "0", "--dry-run")
    ran = call(*command, *options, "--latency-budget", "0.7x", "--latency-budget", "2ms")
    assert ran.code == 0, ran.err
    assert "What was explored before training" in ran.out
    assert "pruned-0.7x: prune from source: would run" in ran.out + ran.err
    assert "onnx-2ms: onnx from int8-2ms: would run" in ran.out + ran.err
    assert "block 4 (model stage 4, 128 channels): " in ran.err
    assert not out.exists()
    both = json.loads(call(*command, *options, "--latency-budget", "0.7x", "--latency-budget", "2ms", "--json").out)
    told = call(*command, *options, "--latency-budget", "0.7x", "--json")
    found = json.loads(told.out)
    # two networks see the same crops, of which the teacher is asked once
    trained = [[each["settings"] for each in run["stages"] if each["kind"] == "distill"] for run in (both, found)]
    assert [[each["teacher_cache"] for each in run] for run in trained] == [[True, True], [False]]
    assert "a pruned network has little to learn again" in told.err
    assert [stage["name"] for stage in found["stages"]][2:] == ["pruned", "distilled", "int8", "onnx"]
    times = [point["predicted_ms"] for point in found["front"]]
    assert times == sorted(times, reverse=True)
    assert all(point["kl"] >= 0 and 0 <= point["agreement"] <= 1 for point in found["front"])
    widths = next(stage["settings"]["widths"] for stage in found["stages"] if stage["kind"] == "prune")
    # no file is timed for a plan
    assert MODEL.predict_ms(block_shapes(ModelSpec("test_convnext2", 3), 32), widths) <= 0.7 * DENSE_MS


@pytest.mark.parametrize(
    ("budget", "said"),
    [
        (
            "0.1x",
            "and all but the blocks takes 0.600 ms of the dense network's 3.900 ms (known); ask for 0.16x or more",
        ),
        ("4ms", "asks for nothing: the dense network takes 3.900 ms"),
        ("fast", "'fast' is no latency"),
    ],
)
def test_budgets_that_no_network_keeps_end_in_a_line(
    budget: str, said: str, small_artifacts: dict[str, Artifact], image_folder: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    command = ("compress", small_artifacts["student"].path, "--data", image_folder, "--out", out, "--workers", "0")
    ran = call(*command, "--latency-budget", budget, "--target", "onnxruntime")
    assert ran.code in (1, 2)
    assert said in " ".join(ran.err.split())
    assert "Traceback" not in ran.err
    assert not out.exists()


def test_engines_have_no_milliseconds_before_a_device_has_timed_them(
    small_artifacts: dict[str, Artifact], image_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verb, "times_for", lambda *_, **__: Times(MODEL, DENSE_MS, "a proxy", is_measured=False))
    data, how = DataOptions(data=image_folder), ExecutionOptions(device="cpu", workers=0, progress="off")
    with pytest.raises(RecipeError, match="is a time on the device, which is not known here: a proxy"):
        compress(
            small_artifacts["student"].path,
            latency_budget="2ms",
            target="tensorrt",
            out=tmp_path / "out",
            data=data,
            execution=how,
        )
    with pytest.raises(RecipeError, match="names a budget twice"):
        compress(small_artifacts["student"].path, latency_budget=["0.5x", "0.50x"], data=data, execution=how)


class EnoughError(Exception):
    """Carries the recipe that a verb was about to run."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__(recipe.name)
        self.recipe = recipe


def stop(recipe: Recipe, *_: object) -> NoReturn:
    raise EnoughError(recipe)


def test_what_ends_the_run_is_said_before_anything_is_measured(
    small_artifacts: dict[str, Artifact], image_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any, **__: Any) -> NoReturn:
        raise AssertionError("times are measured")

    monkeypatch.setattr(verb, "times_for", refuse)
    out, images = tmp_path / "out", tmp_path / "images"
    shutil.copytree(image_folder, images)
    for side in images.iterdir():
        shutil.copytree(next(path for path in side.iterdir() if path.is_dir()), side / "one class more")
    command = ("compress", small_artifacts["student"].path, "--target", "onnxruntime", "--workers", "0", "--out", out)
    options = ("--latency-budget", "0.7x")
    ran = call(*command, *options, "--data", images)
    assert ran.code == 1
    assert "has 3 classes" in ran.err, ran.err
    assert not out.exists()
    # the folder of another run
    shutil.copytree(small_artifacts["student"].path.parents[1], out)
    before = sorted(path for path in out.rglob("*") if path.name != ".lock")
    ran = call(*command, *options, "--data", image_folder)
    assert ran.code == 1
    assert "Nothing was changed" in ran.err, ran.err
    assert sorted(path for path in out.rglob("*") if path.name != ".lock") == before
    # somebody works in it
    with claim(tmp_path / "busy"):
        busy = [word if word != out else tmp_path / "busy" for word in command]
        ran = call(*busy, *options, "--data", image_folder)
    assert ran.code == 1


def test_other_teachers_take_the_place_of_the_dense_network(
    small_artifacts: dict[str, Artifact], image_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_named(Path("other.onnx"))
    # a folder that is called as a stage is
    shutil.copytree(small_artifacts["teacher"].path, "pruned")
    command = ("compress", small_artifacts["student"].path, "--data", image_folder, "--device", "cpu", "--workers", "0")
    options = ("--target", "onnxruntime", "--latency-budget", "0.7x", "--dry-run", "--json")
    for given, teaching in (
        ((), "source"),
        (("pruned",), ["./pruned"]),
        (("other.onnx", "pruned"), ["other.onnx", "./pruned"]),
    ):
        ran = call(*command, *options, *(word for place in given for word in ("--teacher-checkpoint", place)))
        assert ran.code == 0, ran.err
        distilled = next(stage for stage in json.loads(ran.out)["stages"] if stage["kind"] == "distill")
        assert distilled["settings"]["teacher"] == teaching
    twice = call(*command, *options, "--teacher-checkpoint", "other.onnx", "--teacher-checkpoint", "other.onnx")
    assert twice.code == 1
    assert "the teacher other.onnx was given twice; name each once." in twice.err
    # images of any size are those of the network that learns
    write_foreign_onnx(Path("any.onnx"), ("n", 3, "h", "w"))
    monkeypatch.setattr(verb, "run_stages", stop)
    with pytest.raises(EnoughError) as ended:
        compress(
            small_artifacts["student"].path,
            latency_budget="0.7x",
            target="onnxruntime",
            teacher_checkpoint="any.onnx",
            data=DataOptions(image_folder),
            execution=ExecutionOptions(device="cpu", workers=0, progress="off", dry_run=True),
        )
    # also when the recipe is run again
    assert [teacher.preprocess.image_size for teacher in open_references(ended.value.recipe).values()] == [32]


def test_every_round_of_choices_is_work_of_its_own_length(
    small_artifacts: dict[str, Artifact], image_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first choice is too slow and is made again, which nobody knows before."""
    timed = iter([(2.8, 0.7), (2.2, 0.55)])
    monkeypatch.setattr(verb, "check_widths", lambda *_: next(timed))
    monkeypatch.setattr(verb, "run_stages", stop)
    progress = RecordingProgress()
    with pytest.raises(EnoughError):
        compress(
            small_artifacts["student"].path,
            latency_budget="0.6x",
            target="onnxruntime",
            out=tmp_path / "out",
            data=DataOptions(data=image_folder),
            execution=ExecutionOptions(device="cpu", workers=0, progress=progress),
        )
    choices = [task for task in progress.tasks if task.description == "choices of widths"]
    assert len(choices) == 3
    assert choices[0].done == choices[0].total
    for task in choices[1:]:
        assert 1 <= task.done <= task.total


@pytest.mark.heavy
def test_compress_prunes_distills_quantizes_and_says_what_to_ship(
    small_artifacts: dict[str, Artifact], image_folder: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"

    def run(drop: float) -> Any:
        return compress(
            small_artifacts["student"].path,
            latency_budget="0.6x",
            target="onnxruntime",
            out=out,
            data=DataOptions(data=image_folder),
            evaluation=EvaluationOptions(max_top1_drop_pp=drop),
            training=TrainingOptions(epochs=1, batch_size=16),
            execution=ExecutionOptions(device="cpu", workers=0, progress="off"),
        )

    found = run(100.0)
    assert found.executed == ("dense-int8", "dense-onnx", "pruned", "distilled", "int8", "onnx")
    report = read_report(out)
    rows = {row.name: row for row in report.rows}
    assert rows["onnx"].provenance.baseline == "source"
    assert rows["onnx"].accuracy is not None
    assert rows["onnx"].accuracy.drop is not None
    assert report.front is not None
    point = report.front.of("onnx")
    assert point is not None
    # the first choice was too slow by what files are slower than predicted, and was made again
    assert point.ratio <= 0.6
    assert point.prediction_error == pytest.approx(1 / SLOWER - 1, rel=0.02)
    assert rows["onnx"].verdict.passed
    spec = read_artifact(out / "stages" / "onnx").model
    assert spec.hidden_widths is not None
    names = {name: row.identity.variant for name, row in rows.items()}
    assert names["onnx"] == names["pruned"] == f"pruned {names['dense-onnx']}"
    assert "hidden units, saves" in " ".join(rows["pruned"].notes)
    page = (out / "report.html").read_text(encoding="utf-8")
    assert "What to ship" in page
    for text in ((out / "report.md").read_text(encoding="utf-8"), page):
        assert f"Ship onnx, {out / 'stages' / 'onnx'}" in text.replace("\\", "")
    # neither is anything made, timed or searched again, and another gate judges what was kept
    again, lost = run(0.0), rows["onnx"].accuracy.drop.top1_drop_pp
    assert again.executed == ()
    assert again.passed is (lost <= 0)
    text = (out / "report.md").read_text(encoding="utf-8")
    assert ("Ship dense-onnx" in text) is (lost > 0)
    made = load_recipe(_written(tmp_path, write_recipe(again.report)))
    assert made.latency_goals == (replace(made.latency_goals[0], stage="onnx", against="dense-onnx", max_ratio=0.6),)
    assert made.stages[-1].gate.against == "source"


def _written(folder: Path, text: str | None) -> Path:
    path = folder / "again.toml"
    path.write_text(text or "", encoding="utf-8")
    return path
