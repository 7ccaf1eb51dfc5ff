"""Accuracy against latency in the views of a report: what was timed, what was explored, and what to ship."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from convnext_deploy.config.recipe import Gate, LatencyGoal
from convnext_deploy.config.recipe_toml import load_recipe
from convnext_deploy.evaluation.gate import Verdict
from convnext_deploy.evaluation.timing.front import ExploredPoint, Front, TimedPoint, judge_latency
from convnext_deploy.evaluation.timing.speedup import Speed, Speedup
from convnext_deploy.pipeline.run_result import RunResult
from convnext_deploy.reports.front_table import add_latency, explored_cells, front_cells
from convnext_deploy.reports.html.report_page import render_html
from convnext_deploy.reports.markdown import render_markdown
from convnext_deploy.reports.model_card import shipped_row
from convnext_deploy.reports.recipe_toml import write_recipe
from convnext_deploy.reports.record import Report
from convnext_deploy.reports.rows import add_speed
from convnext_deploy.reports.to_ship import what_to_ship
from convnext_deploy.viewer.library import best_artifact

DENSE = TimedPoint("student", "runs/x/stages/student", "onnxruntime", 2.0, (1.9, 2.1), "student")
FAST = TimedPoint(
    "onnx-int8", "runs/x/stages/onnx-int8", "onnxruntime", 1.1, (1.0, 1.2), "student", 0.55, (0.52, 0.58), 0.5775, 0.6
)
EXPLORED = (ExploredPoint(1.8, 0.9, 0.01, 0.02, 0.99, (64, 128)), ExploredPoint(1.2, 0.6, 0.2, 0.3, 0.9, (0, 128)))


def with_front(report: Report, *points: TimedPoint, loaded: str | None = None) -> Report:
    front = Front(points, EXPLORED, loaded=loaded)
    rows = (add_latency(row, point, front) if (point := front.of(row.name)) else row for row in report.rows)
    return replace(report, rows=tuple(rows), front=front)


@pytest.mark.parametrize(
    ("point", "loaded", "passed", "proven", "said"),
    [
        (FAST, None, True, True, "takes 0.550 of the time of student [95 %: 0.520 to 0.580]"),
        (replace(FAST, ratio_interval=(0.5, 0.7)), None, True, False, "0.6× was asked for"),
        (replace(FAST, ratio=0.65, ratio_interval=(0.62, 0.7)), None, False, True, "0.6× was asked for"),
        (replace(FAST, ratio=0.65, ratio_interval=(0.58, 0.7)), None, False, False, "0.6× was asked for"),
        (replace(FAST, max_ratio=None, max_ms=1.0), None, False, False, "takes 1.100 ms [95 %: 1.000 to 1.200]"),
        (FAST, "load 17 on 2 cores", True, False, "times are not to be relied on"),
    ],
)
def test_the_medians_decide_and_the_intervals_tell_what_is_proven(
    point: TimedPoint, loaded: str | None, passed: bool, proven: bool, said: str
) -> None:
    found = judge_latency(point, loaded)
    assert (found.passed, found.proven) == (passed, proven)
    assert said in "; ".join((*found.reasons, *found.notes))


def test_nothing_is_judged_that_was_not_asked_for() -> None:
    assert judge_latency(replace(FAST, max_ratio=None), None) == Verdict()


def test_views_show_both_axes_with_intervals_the_error_of_the_prediction_and_what_to_ship(small_run: RunResult) -> None:
    report = with_front(small_run.report, DENSE, FAST)
    cells = front_cells(report.front or Front(()), report.rows)
    assert cells[0][1:4] == ("2.000 [1.900, 2.100]", "1", "–")
    assert cells[1][1:4] == ("1.100 [1.000, 1.200]", "0.550 [0.520, 0.580] of student", "0.578 (+5.0%)")
    assert explored_cells(EXPLORED)[1] == ("1.200", "0.600", "0.2", "0.3", "90.0", "0 128")
    ship = what_to_ship(report)
    assert ship is not None
    assert ship.startswith(
        "ship onnx-int8, runs/x/stages/onnx-int8: it takes 1.100 ms, 0.550 [0.520, 0.580] of the time of student"
    )
    for text in (render_markdown(report), render_html(report)):
        for part in ("0.550 [0.520, 0.580]", "0.578 (+5.0%)", "Ship onnx-int8", "What was explored before training"):
            assert part in text.replace("\\", ""), part
    assert "5.0% more than measured" in render_markdown(report).replace("\\", "")


def test_where_nothing_keeps_its_goal_the_dense_one_is_shipped(small_run: RunResult) -> None:
    report = with_front(small_run.report, DENSE, replace(FAST, ratio=0.7, ratio_interval=(0.68, 0.72)))
    assert not report.passed
    assert what_to_ship(report) == "ship student, runs/x/stages/student: onnx-int8 did not reach what was asked for"
    assert what_to_ship(replace(small_run.report, front_not_timed="no GPU")) == "not timed: no GPU"
    assert what_to_ship(small_run.report) is None


def test_what_is_slower_than_its_float_form_alone_leaves_that_to_ship_and_every_page_says_the_same(
    small_run: RunResult,
) -> None:
    speedup = Speedup(1, 0.9, 0.85, 0.95, 1.1, 1.0)
    slow = Speed("onnx-fp32", "runs/x/stages/onnx-fp32", "onnxruntime", "onnxruntime", "cpu", (speedup,))
    rows = tuple(
        add_speed(replace(row, provenance=replace(row.provenance, gate=Gate(0.3))), slow)
        if row.name == "onnx-int8"
        else row
        for row in small_run.report.rows
    )
    report = with_front(replace(small_run.report, rows=rows), DENSE, FAST)
    path = next(row.identity.artifact for row in rows if row.name == "onnx-fp32")
    ship = what_to_ship(report)
    assert ship is not None
    assert ship.startswith(
        f"ship onnx-fp32, {path}: onnx-int8 takes 1.100 ms, 0.550 [0.520, 0.580] of the time of student"
    )
    assert ship.endswith("and in float the same network takes less time still")
    for chosen in (shipped_row(report), best_artifact(report)):
        assert chosen is not None
        assert chosen.name == "onnx-fp32"
    # nor is the float baseline taken where it loses more than the INT8 file may
    worse = tuple(
        replace(row, accuracy=replace(row.accuracy, correct=0, top1=0.0))
        if row.name == "onnx-fp32" and row.accuracy is not None
        else row
        for row in rows
    )
    dense = what_to_ship(with_front(replace(small_run.report, rows=worse), DENSE, FAST))
    assert dense is not None
    assert dense.startswith("ship student, ")
    # of what fails for another reason as well, the float baseline has not been asked whether it keeps that
    late = with_front(
        replace(small_run.report, rows=rows), DENSE, replace(FAST, ratio=0.7, ratio_interval=(0.68, 0.72))
    )
    assert what_to_ship(late) == "ship student, runs/x/stages/student: onnx-int8 did not reach what was asked for"


def test_the_recipe_of_the_report_has_the_goals(small_run: RunResult, tmp_path: Path) -> None:
    goals = (LatencyGoal("onnx-int8", "onnx-fp32", 0.6, None, 0.58),)
    text = write_recipe(replace(small_run.report, latency_goals=goals))
    path = tmp_path / "again.toml"
    path.write_text(text or "", encoding="utf-8")
    assert load_recipe(path).latency_goals == goals
