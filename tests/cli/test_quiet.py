"""`--quiet` and `--json`: nothing but the result on standard output, nothing but errors on standard error."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from convnext_deploy.artifacts.artifact import Artifact
from tests.cli.conftest import FailedRun, call

HERE = ("--workers", "0", "--device", "cpu")


@pytest.mark.parametrize(
    "verb",
    ["run", "validate", "inspect", "bundle", "verify-bundle", "convert", "models", "recommend", "report", "predict"],
)
@pytest.mark.parametrize("as_json", [True, False], ids=["json", "text"])
def test_quiet_verb_prints_its_result_alone(
    verb: str,
    as_json: bool,
    small_artifacts: dict[str, Artifact],
    image_folder: Path,
    failed_run: FailedRun,
    tmp_path: Path,
) -> None:
    student, graph = small_artifacts["student"], small_artifacts["onnx-fp32"]
    if verb == "verify-bundle":
        assert call("bundle", graph.path, "--out", tmp_path / "bundle").code == 0
    arguments = {
        "run": failed_run.command[1:],
        "validate": (student.path, "--data", image_folder, *HERE),
        "inspect": (graph.main_file,),
        "bundle": (graph.path, "--out", tmp_path / "bundle"),
        "verify-bundle": (tmp_path / "bundle",),
        "convert": (student.path, "--to", "timm", "--out", tmp_path / "timm"),
        "models": (),
        "recommend": ("--images", "1000", "--classes", "10"),
        "report": (failed_run.out,),
        "predict": (student.path, image_folder / "val", *HERE),
    }[verb]
    outcome = call(verb, *arguments, "--quiet", *(["--json"] if as_json else []))
    assert outcome.code == (3 if verb in ("run", "report") else 0)
    assert outcome.err == ""
    assert outcome.out
    if as_json:
        json.loads(outcome.out)


@pytest.mark.parametrize(
    "order",
    [("--quiet", "VERB"), ("-q", "VERB"), ("VERB", "--quiet"), ("VERB", "-q"), ("-q", "VERB", "--quiet")],
    ids=str,
)
def test_quiet_may_stand_before_or_behind_the_verb(
    order: tuple[str, ...], small_artifacts: dict[str, Artifact], image_folder: Path
) -> None:
    line = ("validate", small_artifacts["student"].path, "--data", image_folder, *HERE)
    loud = call(*line)
    assert "validate: done in" in loud.err
    arguments: list[str | Path] = []
    for word in order:
        arguments += line if word == "VERB" else [word]
    quiet = call(*arguments)
    assert (quiet.code, quiet.err) == (0, "")
    assert quiet.out.splitlines()[0] == loud.out.splitlines()[0]


def test_quiet_does_not_outlast_its_command(small_artifacts: dict[str, Artifact], image_folder: Path) -> None:
    line = ("predict", small_artifacts["student"].path, image_folder / "val", *HERE)
    assert call("-q", *line).err == ""
    assert "predict: done in" in call(*line).err


def test_quiet_keeps_errors(tmp_path: Path) -> None:
    outcome = call("--quiet", "run", tmp_path / "none.toml")
    assert (outcome.code, outcome.out) == (1, "")
    assert outcome.err.startswith("error: there is no recipe ")


def test_plan_is_printed_as_json(failed_run: FailedRun) -> None:
    outcome = call(*failed_run.command, "--dry-run", "--json")
    assert outcome.code == 0
    (stage,) = json.loads(outcome.out)["stages"]
    settings = stage.pop("settings")
    assert stage == {"name": "guess", "kind": "train", "inputs": {}, "would_run": False}
    assert settings["model"]["name"] == "test_convnext2"
