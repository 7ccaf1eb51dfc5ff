"""Every verb ends with where its results are and what follows, and that runs as it is printed.

The way from a checkpoint to a verified bundle, each command being the one that the verb before it printed, is README's:
see `tests/documentation/test_readme.py`.
"""

from __future__ import annotations

import shlex
import shutil
from pathlib import Path

import pytest
import torch

from convnext_deploy.artifacts.artifact import Artifact
from convnext_deploy.cli.next_steps import conclude_run, tell_following
from convnext_deploy.models.checkpoints.load_network import load_network
from convnext_deploy.pipeline.run import RunResult
from tests.cli.conftest import FailedRun, Outcome, call

HERE = ("--workers", "0", "--device", "cpu")


def next_of(outcome: Outcome) -> list[str]:
    """Return the words after `next: convnext-deploy`, as a shell reads them."""
    (line,) = [line for line in outcome.err.splitlines() if line.startswith("next: ")]
    program, *words = shlex.split(line.removeprefix("next: "))
    assert program == "convnext-deploy", line
    return words


@pytest.mark.parametrize(
    ("artifacts", "form", "precision", "values", "base", "expected"),
    [
        (["a.pth"], "torch", "fp32", {"data": "d"}, "runs/a", "quantize a.pth --data d --out runs/a-int8"),
        (["a.pth"], "torch", "fp32", {}, None, "export a.pth"),
        (["q"], "torch", "int8", {"data": "d", "split": Path("s")}, "r", "export q --data d --split s --out r-onnx"),
        (["my r/o"], "onnx", "int8", {"data": "my d"}, "my r", "bundle 'my r/o' --data 'my d' --out 'my r-bundle'"),
        (["m.onnx"], "onnx", "fp32", {"skip_unreadable": True}, None, "bundle m.onnx --skip-unreadable --out m-bundle"),
        (["o", "e"], "tensorrt", "fp16", {}, "r", "bundle o e --out r-bundle"),
        (["t"], "torch-tensorrt", "fp16", {}, "r", "bench t"),
    ],
)
def test_what_follows_an_artifact(
    artifacts: list[str],
    form: str,
    precision: str,
    values: dict[str, object],
    base: str | None,
    expected: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    tell_following(artifacts, form, precision, values, None if base is None else Path(base))
    assert capsys.readouterr().err == f"next: convnext-deploy {expected}\n"


def test_options_of_the_images_are_carried_on(capsys: pytest.CaptureFixture[str]) -> None:
    values = {"data": "d", "mean": (0.5, 0.25), "image_size": (64, 96), "max_top1_drop_pp": 1.0, "crop_pct": None}
    tell_following(["a.pth"], "torch", "fp32", values, fields=[*values])
    expected = "next: convnext-deploy quantize a.pth --data d --image-size 64x96 --mean 0.5,0.25\n"
    assert capsys.readouterr().err == expected


@pytest.mark.parametrize(
    ("precision", "values", "expected"),
    [
        ("int8", {"data": "d", "max_top1_drop_pp": 1.0, "max_class_drop_pp": 2.5}, "--max-drop 1 --max-class-drop 2.5"),
        ("int8", {"data": "d", "max_ece_increase_pp": 3.0, "max_top1_drop_pp": None}, "--max-ece-increase 3"),
        ("int8", {"data": "d"}, ""),
        ("fp32", {"max_top1_drop_pp": 1.0}, ""),  # that was said of another comparison
    ],
)
def test_what_passed_a_gate_is_exported_with_that_gate(
    precision: str, values: dict[str, object], expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    tell_following(["q"], "torch", precision, values)
    words = [
        "next: convnext-deploy export q",
        *(["--data d"] if "data" in values else []),
        *([expected] if expected else []),
    ]
    assert capsys.readouterr().err == " ".join(words) + "\n"


def test_bench_carries_the_input_that_it_timed(
    small_artifacts: dict[str, Artifact], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    short = ("--rounds", "1", "--seconds", "0.02", "--device", "cpu")
    torch.save(load_network(small_artifacts["student"]).state_dict(), "best.pth")
    outcome = call("bench", "best.pth", "--image-size", "48x32", *short)
    assert next_of(outcome) == ["export", "best.pth", "--image-size", "48x32"]


def test_run_of_every_kind_of_stage_ends_with_its_page_and_a_bundle(
    small_run: RunResult, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = Path(small_run.report.rows[0].identity.artifact).parents[1]
    conclude_run(small_run.report, {})
    where, follows = capsys.readouterr().err.splitlines()
    assert where == f"report: {folder / 'report.html'}"
    assert follows.startswith("next: ")


def test_failed_gate_points_at_the_report_and_not_at_a_command(failed_run: FailedRun) -> None:
    where, follows = failed_run.outcome.err.splitlines()[-2:]
    assert where == f"report: {failed_run.out / 'report.html'}"
    assert (failed_run.out / "report.html").is_file()
    assert follows.startswith("next: look at the warning first")  # nothing was learned in two steps


def test_quiet_and_json_leave_it_out(failed_run: FailedRun) -> None:
    assert call("report", failed_run.out, "-q").err == ""
    assert call("report", failed_run.out, "--json").err == ""


@pytest.mark.parametrize(
    "words",
    [("models",), ("models", "tiny"), ("inspect", "ONNX"), ("compare", "RUN", "COPY"), ("predict", "ONNX", "IMAGE")],
)
def test_command_that_follows_a_verb_that_only_shows_runs_as_printed(
    words: tuple[str, ...],
    small_artifacts: dict[str, Artifact],
    failed_run: FailedRun,
    image_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    (graph := tmp_path / "a graph.onnx").write_bytes(small_artifacts["onnx-int8"].main_file.read_bytes())
    shutil.copytree(failed_run.out, copied := tmp_path / "a copy")
    image = next(path for path in sorted(image_folder.rglob("*.png")))
    known = {"IMAGE": str(image), "ONNX": str(graph), "RUN": str(failed_run.out), "COPY": str(copied)}
    follows = next_of(call(*(known.get(word, word) for word in words)))
    if follows[0] == "bench":
        follows += ["--rounds", "1", "--seconds", "0.02"]
    outcome = call(*follows)
    assert outcome.code == 0, outcome.err
    if follows[0] == "bench":
        assert next_of(outcome) == ["bundle", str(graph), "--out", "a graph-bundle"]  # as `predict` of the same, below
    assert (tmp_path / "a graph-bundle" / "verify.py").is_file() is (words[0] == "predict")
    assert (tmp_path / "comparison.html").is_file() is (words[0] == "compare")


def test_dry_run_ends_with_the_command_that_runs(failed_run: FailedRun) -> None:
    verb, recipe, *rest = failed_run.command
    assert next_of(call(verb, recipe, "--dry-run", *rest)) == [verb, str(recipe), *map(str, rest)]
