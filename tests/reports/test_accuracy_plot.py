"""Accuracy against latency: the front, the marks, and labels that keep apart."""

from __future__ import annotations

import dataclasses
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
from tests.reports.conftest import BASELINE_ROW, ENGINE_ROW, INT8_ROW


def row(name: str, latency_ms: float, top1: float, **changes: Any) -> StageRow:
    return dataclasses.replace(BASELINE_ROW, name=name, latency_p50_ms=latency_ms, top1=top1, **changes)


def test_find_points_takes_what_was_scored_and_timed() -> None:
    untimed = dataclasses.replace(BASELINE_ROW, latency_p50_ms=None)
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
    points = [Point(row("a", 1, 0.5), "one"), Point(row("a", 2, 0.6), "two")]
    marks = [t for t in accuracy_plot(points)["data"] if t["mode"] == "markers"]
    assert [mark["name"] for mark in marks] == ["one, FP32", "two, FP32"]
    assert marks[0]["marker"]["color"] != marks[1]["marker"]["color"]


@pytest.mark.parametrize(
    ("names", "text"),
    [(("onnx-fp32", "onnx-int8"), "onnx-fp32<br>onnx-int8"), (tuple("abcdef"), "a<br>b<br>c<br>and 3 more")],
)
def test_labels_of_points_at_one_place_share_a_pile_and_none_covers_another(names: tuple[str, ...], text: str) -> None:
    rows = [row(name, 1.0 + 1e-4 * place, 0.9) for place, name in enumerate(names)]
    labels = [t for t in accuracy_plot(find_points(rows))["data"] if t["mode"] == "markers+text"]
    wide = [t for t in labels if t["meta"]["when"] == "wide"]
    assert len(wide) == 1
    assert wide[0]["text"] == [text]


@pytest.mark.parametrize("when", ["wide", "narrow"])
def test_no_label_stands_with_those_of_points_far_away(when: str) -> None:
    rows = [row("onnx-int8", 1.09, 0.7166), row("float-onnxruntime", 1.52, 0.7168), row("onnx-fp32", 1.54, 0.7168)]
    rows += [row("source", 3.28, 0.7168), row("quantize", 8.8, 0.7166)]
    labels = [t for t in accuracy_plot(find_points(rows))["data"] if t["mode"] == "markers+text"]
    texts = {t["text"][0] for t in labels if t["meta"]["when"] == when}
    assert texts == {"float-onnxruntime<br>onnx-fp32", "onnx-int8", "source", "quantize"}


@pytest.mark.parametrize("rows", [[row("a", 0.5, 0.5)], [row("a", 1, 1.0), row("b", 100, 1.0)]])
def test_ranges_hold_every_point(rows: list[StageRow]) -> None:
    layout = accuracy_plot(find_points(rows))["layout"]
    low, high = layout["yaxis"]["range"]
    assert all(low < 100 * (r.top1 or 0.0) < high for r in rows)
    left, right = layout["xaxis"]["range"]
    if layout["xaxis"].get("type") == "log":
        left, right = 10**left, 10**right
    assert all(left < (r.latency_p50_ms or 0.0) < right for r in rows)
