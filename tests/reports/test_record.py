"""The report as JSON: nothing is lost on the way to the file and back, and damage is named."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from convnext_deploy.errors import ArtifactError
from convnext_deploy.evaluation.flips import ClassChange, Flip
from convnext_deploy.pipeline.run import RunResult
from convnext_deploy.pipeline.write_report import write_report
from convnext_deploy.reports.markdown import render_markdown
from convnext_deploy.reports.record import Layer, Report, StageRow, read_report
from convnext_deploy.system.environment import describe_environment, package_versions
from tests.reports.conftest import BASELINE_ROW, ENGINE_ROW, INT8_ROW, PASSED_ROW, create_report

TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
NUMBERS = st.floats(allow_nan=False, allow_infinity=False)
COUNTS = st.integers(0, 2**40)
CLASSES = st.builds(
    ClassChange,
    label=COUNTS,
    name=TEXTS,
    total=COUNTS,
    baseline_correct=COUNTS,
    correct=COUNTS,
    lost=COUNTS,
    gained=COUNTS,
    top1_drop_pp=NUMBERS,
    p_value=NUMBERS,
)
FLIPS = st.builds(
    Flip,
    index=COUNTS,
    image=st.none() | st.text(max_size=20),  # half of a surrogate pair as well, as in names that are no text
    label=COUNTS,
    baseline_prediction=COUNTS,
    prediction=COUNTS,
    change=st.sampled_from(["lost", "gained", "other"]),
)
ROWS = st.builds(
    StageRow,
    name=TEXTS,
    kind=TEXTS,
    artifact=TEXTS,
    variant=TEXTS,
    format=TEXTS,
    precision=TEXTS,
    size_bytes=st.integers(0, 2**63),
    wall_s=NUMBERS,
    correct=st.none() | st.integers(0, 2**40),
    total=st.none() | st.integers(1, 2**40),
    top1=st.none() | NUMBERS,
    top5=st.none() | NUMBERS,
    agreement=st.none() | NUMBERS,
    top1_drop_pp=st.none() | NUMBERS,
    top1_drop_interval_pp=st.none() | st.tuples(NUMBERS, NUMBERS),
    mcnemar_p=st.none() | NUMBERS,
    lost=st.none() | COUNTS,
    gained=st.none() | COUNTS,
    flipped=st.none() | COUNTS,
    not_run=st.none() | TEXTS,
    gate=st.dictionaries(TEXTS, st.none() | NUMBERS | TEXTS, max_size=2),
    passed=st.none() | st.booleans(),
    proven=st.none() | st.booleans(),
    images_needed=st.none() | COUNTS,
    reasons=st.lists(TEXTS, max_size=2).map(tuple),
    notes=st.lists(TEXTS, max_size=2).map(tuple),
    classes=st.lists(CLASSES, max_size=2).map(tuple),
    flips=st.lists(FLIPS, max_size=2).map(tuple),
    config=st.dictionaries(TEXTS, st.none() | NUMBERS | TEXTS | st.lists(NUMBERS, max_size=2), max_size=2),
    inputs=st.dictionaries(TEXTS, TEXTS, max_size=2),
    history=st.lists(st.dictionaries(TEXTS, st.none() | NUMBERS, max_size=2), max_size=2).map(tuple),
    layers=st.lists(st.builds(Layer, name=TEXTS, choice=TEXTS, weights=COUNTS, kl=st.none() | NUMBERS), max_size=2).map(
        tuple
    ),
)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(rows=st.lists(ROWS, max_size=3).map(tuple), recipe=TEXTS, data=TEXTS, complete=st.booleans())
def test_read_report_returns_exactly_what_was_written(
    tmp_path_factory: pytest.TempPathFactory, rows: tuple[StageRow, ...], recipe: str, data: str, complete: bool
) -> None:
    report = create_report(*rows, recipe=recipe, data=data, complete=complete)
    path = tmp_path_factory.getbasetemp() / "report-round-trip.json"
    path.write_text(report.to_json(), encoding="utf-8")
    assert read_report(path) == report


def test_read_report_returns_the_report_of_a_run(small_run: RunResult) -> None:
    out = Path(small_run.report.rows[0].artifact).parents[1]
    assert read_report(out) == small_run.report
    assert read_report(out / "report.json") == small_run.report


NEW_KEYS = (
    "mcnemar_p", "lost", "gained", "flipped", "proven", "images_needed", "classes", "flips", "rungs", "chosen", "reason",
    "config", "inputs", "history", "layers", "lineage", "base_model", "license", "num_classes", "file", "graph", "preprocess",
)  # fmt: skip
NEW_KEYS_OF_THE_RUN = ("command", "source", "class_names", "thumbnails")


def test_read_report_reads_reports_of_before_the_statistics(tmp_path: Path) -> None:
    rows = (BASELINE_ROW, INT8_ROW, ENGINE_ROW)
    content = json.loads(create_report(*rows).to_json())
    for key in NEW_KEYS_OF_THE_RUN:
        del content[key]
    for row in content["rows"]:
        for key in NEW_KEYS:
            del row[key]
        row["gate"].pop("on", None)
    (tmp_path / "report.json").write_text(json.dumps(content))
    defaults: dict[str, Any] = {
        field.name: {} if field.name in ("config", "inputs") else field.default
        for field in dataclasses.fields(StageRow)
        if field.name in NEW_KEYS
    }
    old = [dataclasses.replace(row, **defaults) for row in rows]
    old[1] = dataclasses.replace(old[1], gate={"max_top1_drop_pp": 0.1, "min_top1": None})
    assert read_report(tmp_path) == create_report(*old)


@pytest.mark.parametrize("name", ["quickstart.json", "cifar10.json"])
def test_read_report_reads_the_published_reports(name: str) -> None:
    path = Path(__file__).parents[2] / "benchmarks" / "results" / name
    report = read_report(path)
    assert report.rows
    assert "drop pp [95 %]" in render_markdown(report)


@pytest.mark.parametrize("key", ["classes", "flips", "layers", "history"])
@pytest.mark.parametrize("damage", [5, [5], [{"index": {}}, 1], "ab", None])
def test_read_report_raises_when_the_changes_are_damaged(tmp_path: Path, key: str, damage: object) -> None:
    content = json.loads(create_report(INT8_ROW).to_json())
    content["rows"][0][key] = damage
    (tmp_path / "report.json").write_text(json.dumps(content))
    with pytest.raises(ArtifactError, match=r"report\.json is no report of this tool"):
        read_report(tmp_path)


def test_write_report_writes_the_report_with_its_views_and_nothing_else(tmp_path: Path) -> None:
    report = create_report(BASELINE_ROW, INT8_ROW)
    write_report(report, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "model_card.md",
        "report.html",
        "report.json",
        "report.md",
    ]
    assert read_report(tmp_path) == report


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ((), True),
        ((BASELINE_ROW, ENGINE_ROW), True),
        ((BASELINE_ROW, PASSED_ROW), True),
        ((PASSED_ROW, INT8_ROW), False),
    ],
)
def test_passed_is_false_only_when_a_gate_failed(rows: tuple[StageRow, ...], expected: bool) -> None:
    report = create_report(*rows)
    assert report.passed is expected
    assert json.loads(report.to_json())["passed"] is expected


def test_read_report_raises_when_there_is_none(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=rf"{tmp_path} is no finished run: it has no report\.json"):
        read_report(tmp_path)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "null",
        "5",
        '{"schema": 1}',
        '{"passed": true, "schema": 1, "rows": [5]}',
        '{"passed": 1, "schema": 1}',
    ],
)
def test_read_report_raises_when_the_file_is_damaged(tmp_path: Path, text: str) -> None:
    (tmp_path / "report.json").write_text(text)
    with pytest.raises(ArtifactError, match=r"report\.json is no report of this tool"):
        read_report(tmp_path)


@pytest.mark.parametrize("key", ["recipe", "rows", "environment", "passed", "schema"])
def test_read_report_raises_when_a_key_is_missing(tmp_path: Path, key: str) -> None:
    content = json.loads(create_report(BASELINE_ROW).to_json())
    del content[key]
    (tmp_path / "report.json").write_text(json.dumps(content))
    with pytest.raises(ArtifactError, match=r"report\.json is no report of this tool"):
        read_report(tmp_path)


def test_read_report_raises_when_it_is_of_another_version(tmp_path: Path) -> None:
    content = json.loads(create_report(BASELINE_ROW).to_json()) | {"schema": 99}
    (tmp_path / "report.json").write_text(json.dumps(content))
    with pytest.raises(ArtifactError, match="was written by another version of this tool; run the recipe again"):
        read_report(tmp_path)


def test_package_versions_names_what_results_depend_on() -> None:
    versions = package_versions()
    assert {"python", "convnext_deploy", "torch", "numpy", "onnx", "onnxruntime"} <= set(versions)
    assert all(version[0].isdigit() for version in versions.values())


def test_describe_environment_is_plain_data() -> None:
    environment = describe_environment()
    assert json.loads(json.dumps(environment)) == environment
    assert environment["cores"] >= 1
    assert environment["cpu"]


def test_report_is_kept_in_order_of_its_rows() -> None:
    report: Report = create_report(INT8_ROW, BASELINE_ROW, ENGINE_ROW)
    assert [row["name"] for row in json.loads(report.to_json())["rows"]] == ["onnx-INT8", "student", "engine"]
