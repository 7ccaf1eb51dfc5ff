"""Accuracy against latency: the front with its names, and the marks."""

from __future__ import annotations

import re
from typing import Any

import pytest

from convnext_deploy.reports.html.accuracy_plot import (
    Point,
    accuracy_plot,
    describe_point,
    family,
    find_points,
    pareto_front,
)
from convnext_deploy.reports.record import StageRow
from tests.reports.conftest import BASELINE_ROW, ENGINE_ROW, INT8_ROW, change


def row(name: str, latency_ms: float, top1: float, **changes: Any) -> StageRow:
    return change(BASELINE_ROW, name=name, p50_ms=latency_ms, top1=top1, **changes)


def test_find_points_takes_what_was_scored_and_timed() -> None:
    untimed = change(BASELINE_ROW, latency=None)
    assert [point.row.name for point in find_points([BASELINE_ROW, untimed, ENGINE_ROW, INT8_ROW])] == [
        "student",
        "onnx-INT8",
    ]


def test_pareto_front_keeps_what_nothing_beats() -> None:
    rows = [
        row("slow", 9, 0.9),
        row("fast", 1, 0.7),
        row("beaten", 5, 0.7),
        row("middle", 4, 0.8),
        row("twin", 4, 0.75),
    ]
    assert [point.row.name for point in pareto_front(find_points(rows))] == ["fast", "middle", "slow"]


def test_pareto_front_of_equal_points_has_one() -> None:
    assert len(pareto_front(find_points([row("a", 1, 0.5), row("b", 1, 0.5)]))) == 1


@pytest.mark.parametrize(
    ("precision", "format_", "expected"),
    [
        ("fp32", "torch", "FP32"),
        ("fp16", "onnx", "FP16"),
        ("int8", "onnx", "INT8"),
        ("int8", "torch", "INT8, simulated"),
        ("int8+fp16", "tensorrt", "INT8"),
        ("fp8", "torch", "FP8, simulated"),
        ("fp8-fp16", "onnx", "FP8"),
    ],
)
def test_family(precision: str, format_: str, expected: str) -> None:
    assert family(row("a", 1, 0.5, precision=precision, format=format_)) == expected


def marks_of(points: list[Point]) -> list[tuple[str, str, str]]:
    """Return mark, class and colour of each point, in order."""
    found = re.findall(
        r'<use href="#m-(\w+)" x="[^"]*%" y="[^"]*" class="(\w+)" style="color:var\(--(\w+)\)"', accuracy_plot(points)
    )
    return [entry for entry in found if entry]


def test_precisions_differ_in_mark_and_colour() -> None:
    rows = [row("a", 1, 0.5), row("b", 2, 0.6, precision="fp16"), row("c", 3, 0.7, precision="int8", format="onnx")]
    marks = marks_of(find_points(rows))
    assert len(marks) == 3
    assert len({mark for mark, _, _ in marks}) == len({color for _, _, color in marks}) == 3
    (simulated,) = marks_of(find_points([row("d", 1, 0.5, precision="int8")]))
    assert simulated[1] == "hollow"


def test_hovering_tells_everything_of_a_point() -> None:
    (point,) = find_points([INT8_ROW])
    text = "\n".join(describe_point(point))
    for part in (
        "onnx-INT8",
        "onnx int8",
        "onnxruntime",
        "96.11 %",
        "+0.37 pp [-0.50, +1.23]",
        "1.24 ms",
        "2.50 ms",
        "3.8 MB",
    ):
        assert part in text


def test_front_is_drawn_only_if_figures_can_be_compared() -> None:
    points = find_points([row("a", 1, 0.5), row("b", 2, 0.6)])
    assert ["Pareto front" in accuracy_plot(points, comparable=c) for c in (True, False)] == [True, False]


def test_runs_differ_in_colour() -> None:
    points = [*find_points([row("a", 1, 0.5)], "one"), *find_points([row("a", 2, 0.6)], "two")]
    plot = accuracy_plot(points)
    assert "one, FP32" in plot
    assert "two, FP32" in plot
    assert [color for _, _, color in marks_of(points)] == ["run0", "run1"]


def labels_of(rows: list[StageRow]) -> list[tuple[str, str, str]]:
    """Return the names in the plot, with their anchors and how far they are moved up, in order."""
    found = re.findall(
        r'dy="(-?\d+)" text-anchor="(\w+)" class="wide label">([^<]*)<', accuracy_plot(find_points(rows))
    )
    return [(name, anchor, dy) for dy, anchor, name in found]


def test_names_stand_at_the_front_and_close_ones_share_a_pile() -> None:
    rows = [row("onnx-int8", 1.09, 0.7166), row("float-onnxruntime", 1.52, 0.7168), row("onnx-fp32", 1.54, 0.7168)]
    rows += [row("quantize", 8.8, 0.7166), row("source", 3.28, 0.71681), row("teacher", 9.0, 0.75)]
    assert labels_of(rows) == [
        ("teacher", "end", "-9"),
        ("source", "end", "-9"),
        ("onnx-int8", "end", "-9"),
        ("float-onnxruntime", "end", "-24"),
    ]
    anchors = [anchor for _, anchor, _ in labels_of(rows[:1] + rows[-1:])]
    assert anchors == ["end", "start"], "room for the name of the fastest"


def test_names_of_users_are_no_tags_in_labels() -> None:
    assert [name for name, _, _ in labels_of([row("<b>x", 1.0, 0.9)])] == ["&lt;b&gt;x"]


def test_no_point_has_a_name_where_there_is_no_front() -> None:
    points = find_points([row("a", 1, 0.5), row("b", 2, 0.6)])
    assert "wide label" not in accuracy_plot(points, comparable=False)


@pytest.mark.parametrize("rows", [[row("a", 0.5, 0.5)], [row("a", 1, 1.0), row("b", 100, 1.0)]])
def test_every_point_and_its_interval_are_within_the_axes(rows: list[StageRow]) -> None:
    plot = accuracy_plot(find_points(rows))
    marks = re.findall(r'<use href="#m-\w+" x="([\d.]+)%" y="([\d.]+)%"', plot)
    assert len(marks) == len(rows)
    assert all(0 < float(x) < 100 and 0 <= float(y) < 100 for x, y in marks)
    errors = re.findall(r'y1="(-?[\d.]+)%" x2="[^"]*" y2="(-?[\d.]+)%" class="error"', plot)
    assert len(errors) == len(rows)
    assert all(0 <= float(end) <= 100 for pair in errors for end in pair)
