"""The HTML page: complete, escaped, closed to the outside, and there for every kind of report."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from convnext_deploy.pipeline.ledger import write_report
from convnext_deploy.pipeline.run import RunResult
from convnext_deploy.reports.html.report_page import render_html
from convnext_deploy.reports.record import Report, read_report
from tests.reports.conftest import (
    BASELINE_ROW,
    ENGINE_ROW,
    INT8_ROW,
    PASSED_ROW,
    UNPROVEN_ROW,
    change,
    create_full_report,
    create_large_report,
    create_report,
)

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results"


LARGEST = 1_500_000  # bytes of a page


class Page(HTMLParser):
    """The parts of a page: its tags with their attributes, its styles, and all other text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self._inside = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._inside = tag if tag in ("script", "style") else self._inside

    def handle_endtag(self, tag: str) -> None:
        self._inside = "" if tag == self._inside else self._inside

    def handle_data(self, data: str) -> None:
        if not self._inside:
            self.texts.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.texts).split())

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]

    def plots(self, about: str = "") -> list[str]:
        """The descriptions of the plots that are about something."""
        found = [
            a.get("aria-label") or "" for a in self.all("svg") if a.get("role") == "img" and a.get("width") == "100%"
        ]
        return [label for label in found if about in label]

    def ids(self) -> list[str]:
        return [name for _, attributes in self.tags if (name := attributes.get("id"))]


def test_page_of_a_run_has_every_section_that_the_run_has_something_for(small_run: RunResult) -> None:
    page = Page(render_html(small_run.report))
    expected = {"stages", "latency", "quality", "classes", "confusions", "layers", "steps", "training", "environment"}
    assert expected <= set(page.ids())
    for row in small_run.report.rows:
        assert row.name in page.text
    assert "[[stages]]" in page.text
    assert len(page.plots("epochs")) == 9  # of teacher, student and QAT
    assert (Path(small_run.report.rows[0].identity.artifact).parents[1] / "report.html").read_text(
        "utf-8"
    ) == render_html(small_run.report)


def test_page_fetches_nothing_and_runs_no_script() -> None:
    page = Page(render_html(create_large_report()))
    (policy,) = [a["content"] for a in page.all("meta") if a.get("http-equiv") == "Content-Security-Policy"]
    assert policy is not None
    assert policy.startswith("default-src 'none';")
    assert "script-src" not in policy
    assert not page.all("script")
    places = [a.get("src") or a.get("href") or "" for _, a in page.tags]
    assert all(place.startswith(("data:", "#")) or not place for place in places)


@pytest.mark.parametrize("report", [create_large_report(), create_full_report(3), create_full_report(100)])
def test_names_of_users_never_become_tags_or_code(report: Report) -> None:
    page = Page(render_html(report))
    assert page.text.count("<script>alert('x')</script>") >= 5
    assert not page.all("script")
    assert {a.get("class") for a in page.all("b")} == {None}
    assert not [a for _, a in page.tags if any(name.startswith("on") for name in a)]


@pytest.mark.parametrize("classes", [2, 10, 30, 31, 1000])
def test_page_of_any_number_of_classes_is_small_and_whole(classes: int) -> None:
    report = create_full_report(classes)
    text = render_html(report)
    assert len(text.encode()) < LARGEST / 5
    page = Page(text)
    assert {"latency", "quality", "classes", "confusions", "errors", "flips"} <= set(page.ids())
    matrices = [a for a in page.all("table") if a.get("class") == "matrix"]
    answers = {row.accuracy.confusions for row in report.rows if row.accuracy is not None}
    counts = {tuple((pair.label, pair.prediction, pair.count) for pair in found) for found in answers}
    assert len(matrices) == (0 if classes > 30 else len(counts)) <= 3
    assert len(page.plots("classes with 95 % intervals")) == 3
    shown = {int(found) for label in page.plots("classes with 95") for found in re.findall(r"of (\d+) classes", label)}
    assert len(shown) == 1
    assert shown.pop() <= 30
    assert len(page.plots("Share of right answers")) == 3
    assert len(page.plots("Distribution of the latency of 3 artifacts")) == 1
    referred = {a["href"] for a in page.all("use")}
    assert {place[1:] for place in referred if place} <= set(page.ids())


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


@pytest.mark.parametrize("name", ["quickstart.json", "cifar10.json"])
def test_page_of_the_published_reports_shows_accuracy_against_latency(name: str) -> None:
    page = Page(render_html(read_report(RESULTS / name)))
    assert page.plots("top-1 against latency")


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


def test_verdict_that_is_unproven_is_amber() -> None:
    for rows, badge in (((BASELINE_ROW, PASSED_ROW), "passed"), ((BASELINE_ROW, PASSED_ROW, UNPROVEN_ROW), "warned")):
        page = Page(render_html(create_report(*rows)))
        assert [a["class"] for a in page.all("div") if a.get("role") == "status"] == [f"verdict {badge}"]


def test_table_of_stages_begins_with_drop_and_verdict() -> None:
    text = render_html(create_report(BASELINE_ROW, INT8_ROW))
    assert re.findall(r"<th scope=\"col\"[^>]*>([^<]*)</th>", text)[:4] == [
        "stage",
        "verdict",
        "drop pp [95 %]",
        "top-1 %",
    ]


def test_matrix_shows_counts_and_what_changed() -> None:
    text = render_html(create_full_report(3))
    first, last = text.split('<table class="matrix">')[1], text.split('<table class="matrix">')[-1]
    cells = [re.sub(r"<[^>]*>", "", cell) for cell in re.findall(r"<td class=\"[de]\d[^>]*>(.*?)</td>", first)]
    assert sum(map(int, cells)) == 30
    assert "<sup>" not in first
    changes = [int(found) for found in re.findall(r"<sup>([+-]\d+)</sup>", last)]
    assert changes
    assert sum(changes) == 0  # an image leaves a cell for another one of its row


def test_stage_that_answers_alike_is_not_shown_twice() -> None:
    report = create_full_report(10)
    twin = change(report.rows[0], name="twin")
    page = Page(render_html(create_report(report.rows[0], twin, class_names=report.class_names)))
    assert len([a for a in page.all("table") if a.get("class") == "matrix"]) == 1
    assert len(page.plots("Share of right answers")) == 1
    assert "As student." in page.text
    assert "twin is as sure as student." in page.text


def test_pictures_come_from_the_report_once_and_only_pictures_do() -> None:
    page = Page(render_html(create_large_report()))
    pictures = page.all("image")
    assert len(pictures) == 2
    assert all(str(picture["href"]).startswith("data:image/") for picture in pictures)
    assert len([a for a in page.all("svg") if a.get("class") == "picture"]) == 4  # two images, flipped in two stages
    assert "javascript:" not in render_html(create_large_report())


def test_intervals_of_top1_stay_between_0_and_100() -> None:
    perfect = change(BASELINE_ROW, correct=540, top1=1.0, p50_ms=2.0)
    nothing = change(BASELINE_ROW, name="untrained", correct=0, top1=0.0)
    for rows in ((perfect,), (nothing,), (perfect, nothing)):
        text = render_html(create_report(*rows))
        ticks = re.findall(
            r'class="tick">(-?[\d.]+)</text>', text.split('aria-label="top-1 against')[1].split("</svg>")[0]
        )
        assert ticks
        assert all(0 <= float(tick) <= 100 for tick in ticks)
        assert 'y1="-' not in text


def test_report_is_rendered_again_without_data_or_artifacts(tmp_path: Path) -> None:
    write_report(create_large_report(), tmp_path)
    first = (tmp_path / "report.html").read_text("utf-8")
    write_report(read_report(tmp_path), tmp_path)
    assert (tmp_path / "report.html").read_text("utf-8") == first
