"""The HTML page: complete, escaped, closed to the outside, and there for every kind of report."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import plotly.graph_objects as go
import pytest

from convnext_deploy.pipeline.ledger import write_report
from convnext_deploy.pipeline.run import RunResult
from convnext_deploy.reports.html.report_page import render_html
from convnext_deploy.reports.record import Report, read_report
from tests.reports.conftest import (
    BASELINE_ROW,
    ENGINE_ROW,
    HOSTILE,
    INT8_ROW,
    PASSED_ROW,
    UNPROVEN_ROW,
    change,
    create_large_report,
    create_report,
)

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results"


class Page(HTMLParser):
    """The parts of a page: its tags with their attributes, its scripts, its styles, and all other text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self.texts: list[str] = []
        self._inside = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._inside = tag if tag in ("script", "style") else self._inside
        if tag == "script":
            self.scripts.append("")

    def handle_endtag(self, tag: str) -> None:
        self._inside = "" if tag == self._inside else self._inside

    def handle_data(self, data: str) -> None:
        if self._inside == "script":
            self.scripts[-1] += data
        elif not self._inside:
            self.texts.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.texts).split())

    @property
    def figures(self) -> dict[str, dict[str, Any]]:
        found: dict[str, dict[str, Any]] = json.loads(self.scripts[0]) if self.scripts else {}
        return found

    def ids(self) -> list[str]:
        return [name for _, attributes in self.tags if (name := attributes.get("id"))]


def test_page_of_a_run_has_every_section_that_the_run_has_something_for(small_run: RunResult) -> None:
    page = Page(render_html(small_run.report))
    expected = {"stages", "latency", "layers", "steps", "training", "environment"}
    assert expected <= set(page.ids())
    for row in small_run.report.rows:
        assert row.name in page.text
    assert "[[stages]]" in page.text
    assert len([name for name in page.figures if name.startswith("plot-training")]) == 9  # of teacher, student and QAT
    assert (Path(small_run.report.rows[0].identity.artifact).parents[1] / "report.html").read_text(
        "utf-8"
    ) == render_html(small_run.report)


def test_page_fetches_nothing_and_runs_its_own_scripts_alone() -> None:
    page = Page(render_html(create_large_report()))
    (policy,) = [
        a["content"] for tag, a in page.tags if tag == "meta" and a.get("http-equiv") == "Content-Security-Policy"
    ]
    assert policy is not None
    assert policy.startswith("default-src 'none';")
    assert "unsafe-eval" not in policy
    assert "script-src 'unsafe-inline'" not in policy
    allowed = re.findall(r"'sha256-([^']+)'", policy)
    executed = page.scripts[1:]
    assert allowed == [base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in executed]
    assert len(executed) == 2
    places = [
        a.get("src") or a.get("href") or "" for tag, a in page.tags if tag in ("script", "link", "img", "a", "iframe")
    ]
    assert all(place.startswith(("data:", "#")) or not place for place in places)


def test_names_of_users_never_become_tags_or_code() -> None:
    page = Page(render_html(create_large_report()))
    assert page.text.count("<script>alert('x')</script>") >= 5
    assert len(page.scripts) == 3
    assert not [tag for tag, _ in page.tags if tag == "b" and not page.tags]
    assert not [a for _, a in page.tags if any(name.startswith("on") for name in a)]
    texts = json.dumps(page.figures)
    assert HOSTILE[:8] not in texts
    assert "&lt;script&gt;" in texts


@pytest.mark.parametrize(
    "report",
    [
        create_report(),
        create_report(complete=False),
        create_report(BASELINE_ROW),
        create_report(ENGINE_ROW),
        create_report(ENGINE_ROW, data="none", validation_images=0, environment={}),
        create_report(BASELINE_ROW, INT8_ROW, complete=False),
        create_report(change(INT8_ROW, classes=(), flips=(), flipped=None, drop=None)),
        create_report(change(INT8_ROW, baseline="gone")),
        create_report(change(BASELINE_ROW, epochs=({}, {"epoch": 2, "train_loss": None}))),
        create_report(change(BASELINE_ROW, artifact="odd \udcff name"), recipe="\udcff", data="\udcff"),
    ],
    ids=[
        "nothing",
        "begun",
        "one",
        "not run",
        "no data",
        "unfinished",
        "few fields",
        "no baseline",
        "empty epochs",
        "no text",
    ],
)
def test_page_of_any_report_is_whole(report: Report) -> None:
    page = Page(render_html(report))
    assert "environment" in page.ids()
    assert ("not complete" in page.text) is not report.complete
    assert "None" not in page.text
    assert "nan" not in page.text.split()
    page.text.encode("utf-8")
    for name in page.figures:
        assert name in page.ids()


@pytest.mark.parametrize("name", ["quickstart.json", "cifar10.json"])
def test_page_of_the_published_reports_shows_accuracy_against_latency(name: str) -> None:
    page = Page(render_html(read_report(RESULTS / name)))
    assert "plot-accuracy" in page.figures


def test_every_plot_is_one_that_plotly_accepts() -> None:
    for figure in Page(render_html(create_large_report())).figures.values():
        assert go.Figure(figure).data  # raises for an unknown property or value


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ((BASELINE_ROW,), "No gates were set."),
        ((BASELINE_ROW, PASSED_ROW), "1 of 1 gates passed."),
        ((BASELINE_ROW, PASSED_ROW, INT8_ROW), "1 of 2 gates failed: onnx-INT8."),
        ((BASELINE_ROW, UNPROVEN_ROW), "Passed, unproven: what was measured is within the gate"),
    ],
)
def test_page_says_the_verdict(rows: tuple[object, ...], words: str) -> None:
    assert words in Page(render_html(create_report(*rows))).text  # type: ignore[arg-type]


def test_large_report_shows_the_worst_and_best_classes_in_plot_and_table() -> None:
    page = Page(render_html(create_large_report()))
    figure = page.figures["plot-classes-1"]
    shown = sum(len(trace.get("x", [])) for trace in figure["data"])
    assert shown == 24
    assert page.text.count("Shown: the largest drops and gains") == 2


def test_pictures_come_from_the_report_and_only_pictures_do() -> None:
    page = Page(render_html(create_large_report()))
    pictures = [a["src"] for tag, a in page.tags if tag == "img"]
    assert len(pictures) == 4  # two images, flipped in two stages
    assert all(str(picture).startswith("data:image/") for picture in pictures)


def test_report_is_rendered_again_without_data_or_artifacts(tmp_path: Path) -> None:
    write_report(create_large_report(), tmp_path)
    first = (tmp_path / "report.html").read_text("utf-8")
    write_report(read_report(tmp_path), tmp_path)
    assert (tmp_path / "report.html").read_text("utf-8") == first
