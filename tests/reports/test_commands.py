"""The commands and the recipe that a report prints, run as printed from another folder: they work, and give the same figures."""

from __future__ import annotations

import dataclasses
import shlex
import shutil
import sys
from pathlib import Path

import pytest
import torch

from convnext_deploy.api.export import export
from convnext_deploy.api.options import DataOptions, ExecutionOptions
from convnext_deploy.api.quantize import quantize
from convnext_deploy.api.validate import validate
from convnext_deploy.artifacts.artifact import Artifact
from convnext_deploy.cli import main
from convnext_deploy.config.preprocess import PreprocessSettings
from convnext_deploy.models.checkpoints.load_network import load_network
from convnext_deploy.reports.commands import again_commands, data_words, recipe_command
from convnext_deploy.reports.model_card import render_model_card
from convnext_deploy.reports.recipe_toml import write_recipe
from convnext_deploy.reports.record import Report, read_report
from tests.conftest import write_image_folder
from tests.reports.conftest import BASELINE_ROW, INT8_ROW, change, create_report


def run_as_printed(lines: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Do what a shell would; `convnext-deploy` runs in this process."""
    for line in lines:
        program, *words = shlex.split(line)
        if program == "cd":
            monkeypatch.chdir(words[0])
            continue
        assert program == "convnext-deploy"
        monkeypatch.setattr(sys, "argv", [program, *words])
        with pytest.raises(SystemExit) as ended:
            main()
        assert ended.value.code == 0, line


def figures(report: Report) -> list[tuple[int | None, int, str | None]]:
    return [
        (row.accuracy.correct, row.accuracy.total, row.identity.sha256)
        for row in report.rows
        if row.accuracy is not None
    ]


def test_commands_and_recipe_of_a_run_give_the_same_figures_from_anywhere(
    tmp_path: Path, small_artifacts: dict[str, Artifact], short_timing: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    start, elsewhere = tmp_path / "my work", tmp_path / "elsewhere"
    elsewhere.mkdir()
    shutil.move(write_image_folder(tmp_path / "drawn", train=10) / "train", start / "photos & co")
    shutil.copytree(small_artifacts["student"].path, start / "model")
    monkeypatch.chdir(start)
    data = DataOptions("photos & co", validation_fraction=0.4)
    report = export("model", out="runs/first", data=data, execution=ExecutionOptions(workers=0)).report
    assert [row.accuracy and row.accuracy.total for row in report.rows] == [12, 12]

    monkeypatch.chdir(elsewhere)
    lines = list(again_commands(report))
    assert lines[0] == f"cd {shlex.quote(str(start))}"
    assert len(lines) == 3
    run_as_printed(
        [f"{line} --workers 0 --out {tmp_path}/again{n}" if n else line for n, line in enumerate(lines)], monkeypatch
    )
    again = [read_report(tmp_path / f"again{n}") for n in (1, 2)]
    assert [figures(found)[-1] for found in again] == figures(report)
    assert again[1].data_options == ("--validation-fraction", "0.4")

    monkeypatch.chdir(elsewhere)
    (start / "recipe.toml").write_text(write_recipe(report) or "", encoding="utf-8")
    run_as_printed(recipe_command(report).splitlines(), monkeypatch)
    assert figures(read_report(start / "runs" / "again")) == figures(report)

    card = render_model_card(report).split("From the folder that this card lies in:")[1].split("```")[1]
    monkeypatch.chdir(start / "runs" / "first")
    run_as_printed([line for line in card.splitlines() if "validate" in line], monkeypatch)


def test_artifact_in_the_folder_where_one_stands_is_found_again(
    tmp_path: Path,
    small_artifacts: dict[str, Artifact],
    image_folder: Path,
    short_timing: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(shutil.copytree(small_artifacts["student"].path, tmp_path / "here"))
    report = validate(".", data=DataOptions(image_folder), execution=ExecutionOptions(workers=0))
    monkeypatch.chdir(tmp_path)
    run_as_printed(list(again_commands(report)), monkeypatch)


def test_commands_of_an_export_say_what_was_asked_of_the_ancestor_of_its_source(
    tmp_path: Path,
    image_folder: Path,
    short_timing: None,
    small_artifacts: dict[str, Artifact],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save(load_network(small_artifacts["student"]).state_dict(), "best.pth")  # which tells none of it
    asked = DataOptions(image_folder, image_size=(32, 48), crop_pct=0.9, mean=(0.48145466, 0.4, 0.3), std=0.25)
    here = ExecutionOptions(workers=0)
    quantize("best.pth", calibration_method="minmax", calibration_images=8, out="int8", data=asked, execution=here)
    report = export("int8/stages/ptq", out="graph", data=DataOptions(image_folder), execution=here).report
    go, *lines = again_commands(report)
    ready = "--image-size 32x48 --crop-pct 0.9 --mean 0.48145466,0.4,0.3 --std 0.25,0.25,0.25"
    assert all(f" {ready} " in f"{line} " for line in lines)
    printed = [f"{line} --workers 0 --out again{n}" for n, line in enumerate(lines)]
    run_as_printed([go, *printed], monkeypatch)
    again = [read_report(tmp_path / f"again{n}") for n in range(len(lines))]
    assert [figures(found)[-1] for found in again] == figures(report)


def test_commands_say_how_the_source_is_made_ready_and_what_was_asked_for() -> None:
    source = change(BASELINE_ROW, name="source", kind="source", artifact="best.pth")
    made = change(INT8_ROW, baseline="source", max_top1_drop_pp=0.1, on="upper", artifact="runs/a/stages/int8")
    report = create_report(
        source,
        made,
        started_in="/work",
        data="my data",
        data_options=("--labels", "labels.csv", "--split", "lists.json", "--groups", "p[0-9]+"),
        source_preprocess=PreprocessSettings(image_size=64, mean=(0.5,), std=(0.25, 0.5, 1.0), output_name="logits"),
    )
    ready = "--image-size 64 --mean 0.5 --std 0.25,0.5,1 --output-name logits"
    read = "--data 'my data' --labels labels.csv --split lists.json --groups 'p[0-9]+'"
    assert list(again_commands(report)) == [
        "cd /work",
        f"convnext-deploy validate best.pth {read} {ready}",
        f"convnext-deploy validate runs/a/stages/int8 --baseline best.pth {read} {ready} --max-drop 0.1 --gate-on upper",
    ]
    words = [
        "--data",
        "../../my data",
        "--labels",
        "../../labels.csv",
        "--split",
        "../../lists.json",
        "--groups",
        "p[0-9]+",
    ]
    assert data_words(report, "runs/a") == words
    assert data_words(dataclasses.replace(report, started_in=None), "runs/a")[1] == "my data"  # of an earlier version
    assert list(again_commands(create_report(source, data="none"))) == []
