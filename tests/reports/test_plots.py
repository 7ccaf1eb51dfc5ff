"""Axes, curves, sensitivity, distributions and reliability: what is drawn lies where its figures say, within what is possible."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from convnext_deploy.metrics.calibration import Bin, Calibration
from convnext_deploy.reports.html.accuracy_plot import find_points
from convnext_deploy.reports.html.answer_plots import latency_plot, latency_table, reliability_plot
from convnext_deploy.reports.html.axes import linear_axis, percent_axis, positive_axis
from convnext_deploy.reports.html.plots import curves, sensitivity_plot
from convnext_deploy.reports.record import Layer
from tests.reports.conftest import BASELINE_ROW, change

VALUES = st.lists(st.floats(-1e9, 1e9, allow_subnormal=False), min_size=1, max_size=5)


@given(VALUES)
def test_linear_axis_holds_its_values_and_has_few_round_numbers(values: list[float]) -> None:
    axis = linear_axis("", values)
    assert all(axis.low <= value <= axis.high for value in values)
    assert 1 <= len(axis.ticks) <= 12
    assert all(-1e-6 <= axis.place(value) <= 100 + 1e-6 for value, _ in axis.ticks)


@given(st.lists(st.floats(0, 100), min_size=1, max_size=5))
def test_axis_of_percentages_stays_within_0_and_100(values: list[float]) -> None:
    axis = percent_axis("", values)
    assert 0 <= axis.low <= min(values) <= max(values) <= axis.high <= 100
    assert axis.high - axis.low >= 0.99


@given(st.lists(st.floats(1e-9, 1e6), min_size=1, max_size=5))
def test_axis_of_positive_values_is_logarithmic_where_they_differ_much(values: list[float]) -> None:
    axis = positive_axis("", values)
    assert axis.log is (max(values) / min(values) >= 4)
    assert all(0 <= axis.place(value) <= 100 for value in values)
    assert axis.ticks or max(values) / min(values) < 10


def marks(plot: str, shape: str = r"\w+") -> list[tuple[float, float]]:
    return [(float(x), float(y)) for x, y in re.findall(rf'<use href="#m-{shape}" x="([\d.]+)%" y="([\d.]+)%"', plot)]


def test_curve_of_top1_has_a_band_and_leaves_out_what_was_not_measured() -> None:
    history: list[dict[str, float | None]] = [
        {"epoch": 1.0, "validation_top1": 0.5, "train_loss": 2.0},
        {"epoch": 2.0, "validation_top1": None},
        {},
        {"epoch": 4.0, "validation_top1": 1.0, "train_loss": None},
    ]
    drawn = curves(history, 100)
    assert list(drawn) == ["loss", "top-1"]
    places = marks(drawn["top-1"])
    assert len(places) == 2
    assert places[0][0] < places[1][0]
    assert places[0][1] > places[1][1]  # further down
    assert drawn["top-1"].count('class="area"') == 2  # the plot and the band in it
    assert 'class="area" style="color' not in curves(history)["top-1"]


def test_sensitivity_is_drawn_whenever_there_is_one() -> None:
    layers = (
        Layer("stages.0.0.dwconv", "int8", 10, kl=0.0),
        Layer("head", "float", 10, kl=0.5),
        Layer("stem", "int8", 10),
    )
    plot = sensitivity_plot(layers)
    assert plot is not None
    (first, second) = marks(plot)
    assert first[1] > second[1]
    assert sensitivity_plot((Layer("a", "int8", 1, kl=0.0),)) is not None
    assert sensitivity_plot((Layer("a", "int8", 1),)) is None


@pytest.mark.parametrize("times", [(1.0,), (2.0,) * 50, (1.0, 2.0, 1e6)])
def test_distribution_of_any_times_is_drawn(times: tuple[float, ...]) -> None:
    points = find_points([change(BASELINE_ROW, times_ms=times), change(BASELINE_ROW, name="old")])
    plot = latency_plot(points)
    assert plot is not None
    assert "Distribution of the latency of 1 artifacts" in plot
    (row,) = latency_table(points).rows
    assert [cell.text for cell in row[:3]] == ["student", str(len(times)), f"{min(times):.2f}"]
    assert latency_plot(points[1:]) is None  # of an earlier version


def test_reliability_diagram_has_each_bin_where_it_is() -> None:
    found = Calibration(0.1, (0.0, 0.2), bins=(Bin(10, 0.5, 0.4), Bin(30, 0.95, 1.0)))
    (low, high) = marks(reliability_plot(found, None, "fp32"), "circle")
    assert low[1] == pytest.approx(60, abs=0.01)
    assert high[1] == pytest.approx(0, abs=0.01)
    assert low[0] < high[0]
    errors = re.findall(
        r'y1="([\d.]+)%" x2="[^"]*" y2="([\d.]+)%" class="error"', reliability_plot(found, found, "fp32")
    )
    assert len(errors) == 2
    assert all(0 <= float(end) <= 100 for pair in errors for end in pair)
