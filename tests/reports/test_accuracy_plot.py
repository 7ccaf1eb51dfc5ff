"""Accuracy against latency: the front with its names, and the marks."""

from __future__ import annotations

from typing import Any

import pytest

from convnext_deploy.reports.html.accuracy_plot import accuracy_plot, describe_point, family, find_points, pareto_front
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
    ],
)
def test_family(precision: str, format_: str, expected: str) -> None:
    assert family(row("a", 1, 0.5, precision=precision, format=format_)) == expected


def test_precisions_differ_in_mark_and_colour() -> None:
    rows = [row("a", 1, 0.5), row("b", 2, 0.6, precision="fp16"), row("c", 3, 0.7, precision="int8", format="onnx")]
    marks = [t["marker"] for t in accuracy_plot(find_points(rows))["data"] if t["mode"] == "markers"]
    assert len({mark["symbol"] for mark in marks}) == len({mark["color"] for mark in marks}) == 3


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
    names = [[t.get("name") for t in accuracy_plot(points, comparable=c)["data"]] for c in (True, False)]
    assert ["Pareto front" in found for found in names] == [True, False]


def test_runs_differ_in_colour() -> None:
    points = [*find_points([row("a", 1, 0.5)], "one"), *find_points([row("a", 2, 0.6)], "two")]
    marks = [t for t in accuracy_plot(points)["data"] if t["mode"] == "markers"]
    assert [mark["name"] for mark in marks] == ["one, FP32", "two, FP32"]
    assert marks[0]["marker"]["color"] != marks[1]["marker"]["color"]


def labels_of(rows: list[StageRow]) -> dict[str, Any]:
    labels: dict[str, Any]
    (labels,) = [t for t in accuracy_plot(find_points(rows))["data"] if t["mode"] == "markers+text"]
    return labels


def test_names_stand_at_the_front_and_close_ones_share_a_pile() -> None:
    rows = [row("onnx-int8", 1.09, 0.7166), row("float-onnxruntime", 1.52, 0.7168), row("onnx-fp32", 1.54, 0.7168)]
    rows += [row("quantize", 8.8, 0.7166), row("source", 3.28, 0.71681), row("teacher", 9.0, 0.75)]
    labels = labels_of(rows)
    assert labels["text"] == ["teacher", "source", "float-onnxruntime<br>onnx-int8"]
    assert (labels["x"], labels["y"]) == ([9.0, 3.28, 1.52], pytest.approx([75.0, 71.681, 71.68]))
    assert labels["textposition"] == ["top left"] * 3
    assert labels_of(rows[:1] + rows[-1:])["textposition"] == ["top left", "top center"], (
        "room for the name of the fastest"
    )
    assert labels["meta"] == {"when": "wide"}


def test_names_of_users_are_no_tags_in_labels() -> None:
    assert labels_of([row("<b>x", 1.0, 0.9)])["text"] == ["&lt;b&gt;x"]


def test_no_point_has_a_name_where_there_is_no_front() -> None:
    points = find_points([row("a", 1, 0.5), row("b", 2, 0.6)])
    assert all(trace["mode"] == "markers" for trace in accuracy_plot(points, comparable=False)["data"])


@pytest.mark.parametrize("rows", [[row("a", 0.5, 0.5)], [row("a", 1, 1.0), row("b", 100, 1.0)]])
def test_ranges_hold_every_point(rows: list[StageRow]) -> None:
    layout = accuracy_plot(find_points(rows))["layout"]
    low, high = layout["yaxis"]["range"]
    points = find_points(rows)
    assert all(low < point.score_percent < high for point in points)
    left, right = layout["xaxis"]["range"]
    if layout["xaxis"].get("type") == "log":
        left, right = 10**left, 10**right
    assert all(left < point.latency.p50_ms < right for point in points)
