"""Several runs side by side: all artifacts, what differs, and what cannot be compared."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path
from typing import Any

import pytest

import convnext_deploy
from convnext_deploy.artifacts.preprocessing import assume, tell
from convnext_deploy.artifacts.spec import Preprocess
from convnext_deploy.errors import ArtifactError, OutputError
from convnext_deploy.pipeline.ledger import write_report
from convnext_deploy.reports.comparison import Comparison, distinct_names
from convnext_deploy.reports.html.comparison_page import COLUMNS, comparison_cells
from convnext_deploy.reports.record import Report
from tests.reports.conftest import BASELINE_ROW, ENGINE_ROW, ENVIRONMENT, INT8_ROW, PASSED_ROW, change, create_report
from tests.reports.test_html import Page

CONFIG = {"fit": {"epochs": 3, "batch_size": 64}, "temperature": 1.0}


def compare_reports(folder: Path, *reports: Report, out: Path | None = None) -> Comparison:
    paths = [folder / name for name in ("first", "second", "third")[: len(reports)]]
    for path, report in zip(paths, reports, strict=True):
        path.mkdir()
        write_report(report, path)
    return convnext_deploy.compare(paths, out=out)


def test_table_has_all_artifacts_of_all_runs_in_order(tmp_path: Path) -> None:
    found = compare_reports(tmp_path, create_report(BASELINE_ROW, INT8_ROW), create_report(PASSED_ROW, ENGINE_ROW))
    lines = comparison_cells(found)
    assert [line[:2] for line in lines] == [
        ("first", "student"),
        ("first", "onnx-INT8"),
        ("second", "ptq"),
        ("second", "engine"),
    ]
    assert dict(zip(COLUMNS, lines[1], strict=True)) == {
        "run": "first",
        "stage": "onnx-INT8",
        "artifact": "convnext_atto onnx int8",
        "top-1 %": "96.11",
        "drop pp [95 %]": "+0.37 [-0.50, +1.23]",
        "size MB": "3.8",
        "p50 ms": "1.24",
        "verdict": "FAILED",
    }


def test_runs_that_differ_in_nothing_have_no_differences(tmp_path: Path) -> None:
    row = change(BASELINE_ROW, config=CONFIG, inputs={"source": "source"})
    found = compare_reports(tmp_path, create_report(row), create_report(row))
    assert (found.differences, found.warnings, found.notes) == ((), (), ())


@pytest.mark.parametrize(
    ("changes", "what", "values"),
    [
        ({"seed": 8}, "seed", ("7", "8")),
        ({"recipe": "other"}, "recipe", ("small", "other")),
        ({"environment": {**ENVIRONMENT, "versions": {"python": "3.12.1"}}}, "torch", ("2.14.0", "–")),
    ],
)
def test_circumstances_that_differ_are_named(
    tmp_path: Path, changes: dict[str, Any], what: str, values: tuple[str, str]
) -> None:
    found = compare_reports(tmp_path, create_report(BASELINE_ROW), create_report(BASELINE_ROW, **changes))
    assert [(d.what, d.values) for d in found.differences] == [(what, values)]


def test_settings_that_differ_are_named_stage_by_stage(tmp_path: Path) -> None:
    other = {"fit": {"epochs": 5, "batch_size": 64}, "temperature": 2.0}
    rows = [change(BASELINE_ROW, config=config) for config in (CONFIG, other)]
    alone = change(PASSED_ROW, config=CONFIG)
    found = compare_reports(tmp_path, create_report(rows[0]), create_report(rows[1], alone))
    assert [(d.what, d.values) for d in found.differences] == [
        ("stages", ("student", "student, ptq")),
        ("student: fit.epochs", ("3", "5")),
        ("student: temperature", ("1.0", "2.0")),
    ]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"validation_images": 100}, ["top-1 was measured on different images and cannot be compared"]),
        ({"data": "others"}, ["top-1 was measured on data of different names"]),
        ({"data": "elsewhere/photos"}, []),
        ({"class_names": ("dog", "cat")}, ["and the classes differ"]),
        ({"environment": {**ENVIRONMENT, "cpu": "Other"}}, ["latency was measured on different machines"]),
        ({"environment": {**ENVIRONMENT, "cores": 64}}, ["latency was measured on different machines"]),
        ({"environment": {**ENVIRONMENT, "variables": "DNNL_MAX_CPU_ISA=AVX2"}}, ["latency was measured on different"]),
        ({"judged_on": "others"}, ["top-1 was measured on images of different names or sizes"]),
        ({"judged_on": None}, []),  # an old report
        ({"leaks": ("3 images are in train and val",)}, ["second: 3 images are in train and val"]),
        ({"rows": (change(BASELINE_ROW, warnings=("chance level",)),)}, ["second: student: chance level"]),
    ],
)
def test_figures_that_cannot_be_compared_are_warned_of(
    tmp_path: Path, changes: dict[str, Any], words: list[str]
) -> None:
    first = create_report(BASELINE_ROW, class_names=("cat", "dog"), judged_on="these")
    out = tmp_path / "page.html"
    found = compare_reports(tmp_path, first, dataclasses.replace(first, **changes), out=out)
    assert len(found.warnings) == len(words)
    for warning, word in zip(found.warnings, words, strict=True):
        assert word in warning
    text = Page(out.read_text("utf-8")).text
    assert ("No Pareto front is drawn" in text) is bool(words)


def test_unfinished_runs_and_old_ones_are_noted(tmp_path: Path) -> None:
    row = change(BASELINE_ROW, config=CONFIG)
    reports = (create_report(row), create_report(row, complete=False), create_report(complete=False))
    found = compare_reports(tmp_path, *reports)
    assert found.notes == ("second is not complete: 1 artifact so far", "third is not complete: 0 artifacts so far")
    assert found.warnings == ()


def test_reports_of_before_the_settings_are_noted(tmp_path: Path) -> None:
    found = compare_reports(tmp_path, create_report(BASELINE_ROW), create_report(BASELINE_ROW, seed=8))
    assert found.notes == ("the settings of first, second are not known: the report was written by an earlier version",)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), "no run was given"),
        (("first",), "1 run was given"),
        (("first", "first"), "are the same run; give each run once"),
        (("first", "first/report.json"), "are the same run; give each run once"),
        (("first", "."), "is not a finished run"),
        (("first", "none"), "is not a finished run"),
        (("first", "text"), "is not a report of this tool"),
    ],
)
def test_what_is_no_run_is_one_line(tmp_path: Path, arguments: tuple[str, ...], words: str) -> None:
    (tmp_path / "text").write_text("text")
    (tmp_path / "first").mkdir()
    write_report(create_report(BASELINE_ROW), tmp_path / "first")
    with pytest.raises(ArtifactError, match=words) as raised:
        convnext_deploy.compare([tmp_path / name for name in arguments])
    assert "\n" not in str(raised.value)


def test_page_holds_table_plot_and_differences(tmp_path: Path) -> None:
    out = tmp_path / "new" / "page.html"
    compare_reports(tmp_path, create_report(BASELINE_ROW, INT8_ROW), create_report(BASELINE_ROW, seed=8), out=out)
    page = Page(out.read_text("utf-8"))
    assert {"artifacts", "latency", "runs", "differences"} <= set(page.ids())
    assert page.plots() == ["top-1 against latency of 3 artifacts; the table has the figures"]
    assert "onnx-INT8" in page.text


def test_page_of_runs_without_artifacts_is_whole(tmp_path: Path) -> None:
    out = tmp_path / "page.html"
    compare_reports(tmp_path, create_report(complete=False), create_report(complete=False), out=out)
    page = Page(out.read_text("utf-8"))
    assert "No run has an artifact yet." in page.text
    assert page.plots() == []


def test_page_is_not_written_over_a_folder(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="is a folder; give the name of a file"):
        compare_reports(tmp_path, create_report(BASELINE_ROW), create_report(BASELINE_ROW), out=tmp_path)


def test_json_says_all(tmp_path: Path) -> None:
    found = json.loads(
        compare_reports(tmp_path, create_report(BASELINE_ROW), create_report(INT8_ROW, seed=8)).to_json()
    )
    assert [run["run"] for run in found["runs"]] == ["first", "second"]
    assert [(a["run"], a["stage"], a["top1"], a["verdict"]) for a in found["artifacts"]] == [
        ("first", "student", 521 / 540, "no gate"),
        ("second", "onnx-INT8", 519 / 540, "FAILED"),
    ]
    assert {"what": "seed", "values": {"first": "7", "second": "8"}} in found["differences"]


@pytest.mark.parametrize(
    ("folders", "expected"),
    [
        (("/a/x", "/a/y"), ["x", "y"]),
        (("/a/run", "/b/run"), ["a/run", "b/run"]),
        (("/a/run", "/run"), ["a/run", "//run"]),
        (("/a/r", "/b/r", "/c/z"), ["a/r", "b/r", "c/z"]),
    ],
)
def test_distinct_names_are_as_short_as_can_be(folders: tuple[str, ...], expected: list[str]) -> None:
    assert distinct_names([Path(folder) for folder in folders]) == expected


def test_page_takes_the_place_of_an_earlier_one_and_of_nothing_else(tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    reports = create_report(BASELINE_ROW), create_report(PASSED_ROW)
    compare_reports(tmp_path, *reports, out=page)
    runs = [tmp_path / "first", tmp_path / "second"]
    (tmp_path / "latest.html").symlink_to(page)
    convnext_deploy.compare(runs, out=tmp_path / "latest.html")
    assert (tmp_path / "latest.html").is_symlink()
    convnext_deploy.compare(runs, out=page)
    (tmp_path / "own.html").write_text("<html>mine</html>")
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("/dev/null")
    others = {
        "own.html": "is there already and is not a comparison",
        "first/report.html": "is there already and is not a comparison",
        "first": "is a folder",
        "pipe": "is no regular file but a device, pipe or socket",
        "link": "is no regular file but a device, pipe or socket",
    }
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    for name, words in others.items():
        with pytest.raises(OutputError, match=words):
            convnext_deploy.compare(runs, out=tmp_path / name)
    with pytest.raises(OutputError, match="/dev/null is no regular file but a device, pipe or socket"):
        convnext_deploy.compare(runs, out="/dev/null")
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
    assert not Path("/dev/null").is_file()
    assert not [path for path in tmp_path.rglob("*") if path.name.startswith(".")]


def test_networks_that_are_shown_other_images_are_warned_of(tmp_path: Path) -> None:
    own = Preprocess(64, 1.0, "bicubic", (0.5,) * 3, (0.5,) * 3)
    larger = dataclasses.replace(own, image_size=96)
    row = change(BASELINE_ROW, config=CONFIG, preprocess=own)

    def compared(name: str, other: Preprocess) -> Comparison:
        (tmp_path / name).mkdir()
        second = change(BASELINE_ROW, config=CONFIG, preprocess=other)
        return compare_reports(tmp_path / name, create_report(row), create_report(second))

    known = compared("known", larger)
    assert known.warnings == ()
    assert known.notes == (
        "the networks are shown other images (first: 64 pixels, center crop 1, bicubic | second: 96 pixels, center crop 1, "
        "bicubic): top-1 and latency are those of each with its own",
    )
    (warning,) = compared("assumed", assume(larger, "usual")).warnings
    assert (
        "second: 96 pixels, center crop 1, bicubic, mean 0.5 and std 0.5 assumed); some of it is only assumed"
        in warning
    )
    (warning,) = compared("only mean", tell(own, {"mean": (0.4,) * 3}, "assumed: usual")).warnings
    assert "mean 0.4 and std 0.5 assumed" in warning
    normalized = compared("told mean", dataclasses.replace(own, mean=(0.4,) * 3))
    assert (normalized.warnings, normalized.notes) == ((), ())


def test_what_is_assumed_of_runs_is_noted(tmp_path: Path) -> None:
    first = create_report(BASELINE_ROW, assumptions=("the order is timm's",))
    found = compare_reports(tmp_path, first, dataclasses.replace(first, assumptions=()))
    assert found.notes[0] == "first: assumed: the order is timm's"
