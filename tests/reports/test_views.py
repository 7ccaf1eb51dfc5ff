"""The table and the Markdown page: each number in its column, each verdict in its words."""

from __future__ import annotations

from pathlib import Path

import pytest

from convnext_deploy.cli.report_table import show_report
from convnext_deploy.config.recipe import Gate
from convnext_deploy.metrics.calibration import Calibration
from convnext_deploy.metrics.worst_class import WorstClass
from convnext_deploy.pipeline.run import RunResult
from convnext_deploy.reports.html.report_page import render_html
from convnext_deploy.reports.markdown import render_markdown
from convnext_deploy.reports.model_card import render_model_card
from convnext_deploy.reports.quality_table import quality_rows
from convnext_deploy.reports.record import Report, StageRow, read_report
from convnext_deploy.reports.rows import add_speed
from convnext_deploy.reports.stage_table import COLUMNS, cells, outcome, remarks, summary, verdict, warnings
from tests.reports.conftest import (
    BASELINE_ROW,
    ENGINE_ROW,
    INT8_ROW,
    PASSED_ROW,
    SPEED,
    UNPROVEN_ROW,
    change,
    create_report,
)


def table_of(markdown: str) -> list[list[str]]:
    """Return the cells of the page's only table, without the line under its head."""
    lines = [line for line in markdown.splitlines() if line.startswith("|")]
    assert lines[1] == "|" + "---|" * (lines[0].count("|") - 1)
    split = [line.replace("\\|", "\0").strip("|").split("|") for line in (lines[0], *lines[2:])]
    return [[cell.strip().replace("\0", "|") for cell in line] for line in split]


def test_cells_of_a_baseline() -> None:
    assert dict(zip(COLUMNS, cells(BASELINE_ROW), strict=True)) == {
        "stage": "student",
        "artifact": "convnext_atto torch fp32",
        "top-1 %": "96.48",
        "drop pp [95 %]": "baseline",
        "vs source pp": "–",
        "agree %": "–",
        "size MB": "13.5",
        "p50 ms": "1.24",
        "time s": "61.2",
        "verdict": "no gate",
    }


def test_cells_of_a_row_with_a_drop() -> None:
    assert cells(INT8_ROW) == (
        "onnx-INT8",
        "convnext_atto onnx int8",
        "96.11",
        "+0.37 [-0.50, +1.23]",
        "-0.19",
        "99.44",
        "3.8",
        "1.24",
        "0.0",
        "FAILED",
    )


def test_cells_of_an_artifact_that_was_not_run() -> None:
    expected = ("engine", "convnext_atto tensorrt int8", "–", "–", "–", "–", "9.0", "–", "30.0")
    assert cells(ENGINE_ROW) == (*expected, "built for SM86; not run: no GPU")


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        (PASSED_ROW, "passed"),
        (INT8_ROW, "FAILED"),
        (UNPROVEN_ROW, "passed, unproven"),
        (change(PASSED_ROW, proven=None), "passed"),
        (BASELINE_ROW, "no gate"),
        (ENGINE_ROW, "built for SM86; not run: no GPU"),
        (change(BASELINE_ROW, not_run="not validated: no --data"), "not validated: no --data"),
    ],
)
def test_verdict_says(row: StageRow, expected: str) -> None:
    assert verdict(row) == expected


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ((BASELINE_ROW, ENGINE_ROW), "no gates were set"),
        ((BASELINE_ROW, PASSED_ROW, ENGINE_ROW), "1 of 1 gates passed"),
        (
            (BASELINE_ROW, PASSED_ROW, change(ENGINE_ROW, gate=Gate(max_top1_drop_pp=0.5))),
            "1 of 1 gates passed; 1 not judged, because not run: engine",
        ),
        ((change(ENGINE_ROW, gate=Gate(min_speedup=2.0)),), "1 not judged, because not run: engine"),
        ((PASSED_ROW, INT8_ROW, change(INT8_ROW, name="qat")), "2 of 3 gates failed: onnx-INT8, qat"),
        ((PASSED_ROW, UNPROVEN_ROW), "2 of 2 gates passed, 1 unproven: qat"),
        ((PASSED_ROW, UNPROVEN_ROW, INT8_ROW), "1 of 3 gates failed: onnx-INT8; 1 unproven: qat"),
    ],
)
def test_summary_says(rows: tuple[StageRow, ...], expected: str) -> None:
    assert summary(create_report(*rows)) == expected


SUSPECT_ROW = change(BASELINE_ROW, warnings=("top-1 10.00 % on 540 images is chance level",))


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ((BASELINE_ROW, ENGINE_ROW), "plain"),
        ((BASELINE_ROW, PASSED_ROW), "passed"),
        ((PASSED_ROW, UNPROVEN_ROW), "warned"),
        ((PASSED_ROW, INT8_ROW, UNPROVEN_ROW), "failed"),
        ((SUSPECT_ROW,), "warned"),
        ((SUSPECT_ROW, PASSED_ROW), "warned"),
    ],
)
def test_outcome_colours_the_page(rows: tuple[StageRow, ...], expected: str) -> None:
    report = create_report(*rows)
    assert outcome(report) == expected
    assert f'<div class="verdict {expected}" role="status">' in render_html(report)


def test_warnings_stand_at_the_head_of_every_view(capsys: pytest.CaptureFixture[str]) -> None:
    report = create_report(SUSPECT_ROW, change(SUSPECT_ROW, name="other"), PASSED_ROW)
    text = "student, other: top-1 10.00 % on 540 images is chance level"
    assert warnings(report) == [text]
    markdown = render_markdown(report)
    assert markdown.index(f"**Warning.** {text}.") < markdown.index("Data: photos")
    html = render_html(report)
    assert html.index(f'<div class="verdict warned notice" role="status">{text}.</div>') < html.index("<table>")
    card = render_model_card(report)
    assert card.index(f"**Warning.** {text}.") < card.index("## Intended use")
    show_report(report, as_json=False)
    assert f"warning: {text}\n1 of 1 gates passed\n" in capsys.readouterr().out


def test_model_card_names_what_passed_unproven() -> None:
    assert "**Passed unproven: `qat`.**" in render_model_card(create_report(PASSED_ROW, UNPROVEN_ROW))
    assert "unproven" not in render_model_card(create_report(PASSED_ROW))


MEASURED_ROW = change(
    UNPROVEN_ROW,
    calibration=Calibration(0.0234, (0.01, 0.05), 1.32, (-0.4, 2.5)),
    worst_class=WorstClass(0, 270, 4, 2, 270, 100 * 2 / 270, (-0.9, 3.1)),
    max_ece_increase_pp=2.0,
    max_class_drop_pp=5.0,
)


def test_every_view_has_calibration_and_the_worst_class(capsys: pytest.CaptureFixture[str]) -> None:
    own = change(BASELINE_ROW, calibration=Calibration(0.0102, (0.0, 0.03)))
    report = create_report(own, MEASURED_ROW, ENGINE_ROW, data="photos")
    expected = [
        ("student", "1.02 [0.00, 3.00]", "baseline", "–", "baseline", "–"),
        ("qat", "2.34 [1.00, 5.00]", "+1.32 [-0.40, +2.50]", "cat", "+0.74 [-0.90, +3.10]", "270 of 540"),
    ]
    assert quality_rows(report.rows) == expected
    show_report(report, as_json=False)
    views = [capsys.readouterr().out, render_markdown(report), render_html(report), render_model_card(report)]
    for view in views:
        assert all(text in view.replace("\\[", "[").replace("\\]", "]") for text in ("ECE % [95 %]", *expected[1][1:]))
    assert all("expected calibration error" in view for view in views[1:])
    assert "--max-drop 0.1 --max-ece-increase 2 --max-class-drop 5" in views[2]
    none = change(MEASURED_ROW, drop_pp=0.0)
    assert quality_rows([none])[0][3:5] == ("none loses", "+0.00 [-0.90, +3.10]")
    assert quality_rows([BASELINE_ROW, ENGINE_ROW]) == []
    for text in (render_markdown(create_report(INT8_ROW)), render_html(create_report(INT8_ROW))):
        assert "ECE %" not in text


def test_calibration_and_worst_class_are_read_as_they_were_written(tmp_path: Path) -> None:
    report = create_report(BASELINE_ROW, MEASURED_ROW)
    (tmp_path / "report.json").write_text(report.to_json())
    assert read_report(tmp_path) == report


def test_remarks_name_the_stage_of_each_reason_and_note() -> None:
    silent = change(INT8_ROW, drop=None)
    assert remarks(create_report(BASELINE_ROW, silent, ENGINE_ROW)) == [
        "onnx-INT8: top-1 drops by 0.37 pp, more than the 0.10 pp allowed",
        "onnx-INT8: not faster | than student",
    ]


def test_remarks_say_once_what_holds_for_several_stages() -> None:
    rows = [
        change(BASELINE_ROW, name=name, notes=notes)
        for name, notes in (("a", ("x", "y")), ("b", ("z",)), ("c", ("y", "x")))
    ]
    assert remarks(create_report(*rows)) == ["a, c: x", "a, c: y", "b: z"]


def test_remarks_end_with_the_images_that_changed() -> None:
    same = change(PASSED_ROW, lost=0, gained=0, flipped=0)
    many = change(UNPROVEN_ROW, lost=1200, gained=34, flipped=5678)
    assert remarks(create_report(BASELINE_ROW, same, many, ENGINE_ROW, validation_images=10_000)) == [
        "images whose first guess changed, of 10,000: ptq none; qat 5,678 (1,200 lost, 34 gained)"
    ]


def test_render_markdown_has_one_row_per_stage_with_the_cells_of_the_table() -> None:
    report = create_report(BASELINE_ROW, INT8_ROW, ENGINE_ROW)
    table = table_of(render_markdown(report))
    assert table == [list(COLUMNS), *(list(cells(row)) for row in report.rows)]


def test_render_markdown_of_a_run_shows_every_stage(small_run: RunResult) -> None:
    table = table_of(render_markdown(small_run.report))
    (tried,) = (row.history.selection for row in small_run.report.rows if row.history.selection is not None)
    steps = [step.name for step in tried.steps]
    scored = [row.name for row in small_run.report.rows if row.accuracy is not None]
    stages = [row.name for row in small_run.report.rows]
    assert [line[0] for line in table[1:]] == [*stages, "stage", "---", *scored, "step", "---", *steps]
    out = Path(small_run.report.rows[0].identity.artifact).parents[1]
    assert (out / "report.md").read_text(encoding="utf-8") == render_markdown(small_run.report)


@pytest.mark.parametrize(
    ("row", "unproven", "flips"), [(BASELINE_ROW, 0, 0), (PASSED_ROW, 0, 1), (UNPROVEN_ROW, 1, 1), (INT8_ROW, 0, 1)]
)
def test_render_markdown_explains_what_it_shows(row: StageRow, unproven: int, flips: int) -> None:
    text = render_markdown(create_report(row))
    assert text.count("Passed, unproven: what was measured is within the gate") == unproven
    assert text.count("`flips/STAGE.json` lists the images") == flips


def test_render_markdown_keeps_a_bar_inside_its_cell() -> None:
    row = change(ENGINE_ROW, not_run="a | b")
    assert table_of(render_markdown(create_report(row)))[1][-1] == "a | b"


def test_render_markdown_tells_what_was_run_and_where() -> None:
    lines = render_markdown(create_report(PASSED_ROW, INT8_ROW)).splitlines()
    assert lines[0] == "# small"
    assert "1 of 2 gates failed: onnx-INT8." in lines
    assert "Data: photos, 540 validation images. Seed 7. Machine: AMD EPYC, 2 cores." in lines
    assert "- onnx-INT8: top-1 drops by 0.37 pp, more than the 0.10 pp allowed" in lines
    assert "Versions: python 3.12.1, torch 2.14.0." in lines


@pytest.mark.parametrize(
    ("report", "line"),
    [
        (create_report(BASELINE_ROW), "No gates were set."),
        (create_report(PASSED_ROW), "1 of 1 gates passed."),
        (create_report(PASSED_ROW, complete=False), "The run is not complete."),
    ],
)
def test_render_markdown_opens_with_the_outcome(report: Report, line: str) -> None:
    assert render_markdown(report).splitlines()[2] == line


def test_views_have_the_speedup_where_one_was_measured_and_not_elsewhere() -> None:
    slow = add_speed(change(INT8_ROW, accuracy=None, not_run="not validated: no --data"), SPEED)
    assert verdict(slow) == "FAILED"
    report = create_report(BASELINE_ROW, slow)
    table = table_of(render_markdown(report))
    place = table[0].index("speedup [95 %]")
    assert (table[1][place], table[2][place]) == ("–", "0.50× [0.40, 0.60]")
    assert "interleaved" in render_markdown(report)
    assert "speedup" not in render_markdown(create_report(BASELINE_ROW, INT8_ROW))
    html = render_html(report)
    for text in (
        'id="speed"',
        "0.50× [0.40, 0.60]",
        "stages.0.0.pwconv1",
        f"Ship {SPEED.compared_with} instead",
        "9.310",
    ):
        assert text in html
    assert 'id="speed"' not in render_html(create_report(BASELINE_ROW, INT8_ROW))
    card = render_model_card(report)
    assert "0.50× as fast as student-float-onnxruntime" in card
    assert "do not ship these" in card


def test_speed_is_read_as_it_was_written(tmp_path: Path) -> None:
    report = create_report(BASELINE_ROW, add_speed(INT8_ROW, SPEED), add_speed(ENGINE_ROW, "no GPU"))
    (tmp_path / "report.json").write_text(report.to_json())
    assert read_report(tmp_path) == report
