"""The report as JSON: nothing is lost on the way to the file and back, and damage is named."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from convnext_deploy.artifacts.details import Selection
from convnext_deploy.artifacts.spec import GraphIO, Preprocess
from convnext_deploy.config.recipe import Gate
from convnext_deploy.errors import ArtifactError, OutputError
from convnext_deploy.evaluation.flips import ClassChange, Flip
from convnext_deploy.evaluation.gate import Verdict
from convnext_deploy.evaluation.latency import Latency
from convnext_deploy.metrics.paired import Drop
from convnext_deploy.pipeline.ledger import write_report
from convnext_deploy.pipeline.run import RunResult
from convnext_deploy.reports.markdown import render_markdown
from convnext_deploy.reports.record import (
    Accuracy,
    History,
    Identity,
    Layer,
    MeasuredSpeed,
    Provenance,
    Report,
    StageRow,
    read_report,
)
from convnext_deploy.system.environment import describe_environment, package_versions
from tests.reports.conftest import BASELINE_ROW, ENGINE_ROW, INT8_ROW, PASSED_ROW, SPEED, create_report

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
    image=st.none() | st.text(max_size=20),  # half of a surrogate pair as well, as in names that are not text
    label=COUNTS,
    baseline_prediction=COUNTS,
    prediction=COUNTS,
    change=st.sampled_from(["lost", "gained", "other"]),
)
TEXT_TUPLES = st.lists(TEXTS, max_size=2).map(tuple)
DROPS = st.builds(
    Drop,
    both=COUNTS,
    lost=COUNTS,
    gained=COUNTS,
    neither=COUNTS,
    agreement=NUMBERS,
    top1_drop_pp=NUMBERS,
    interval_pp=st.tuples(NUMBERS, NUMBERS),
    p_value=NUMBERS,
)
ROWS = st.builds(
    StageRow,
    identity=st.builds(
        Identity,
        name=TEXTS,
        kind=TEXTS,
        artifact=TEXTS,
        variant=TEXTS,
        format=TEXTS,
        precision=TEXTS,
        size_bytes=st.integers(0, 2**63),
        file=st.none() | TEXTS,
        num_classes=st.none() | COUNTS,
    ),
    accuracy=st.none()
    | st.builds(
        Accuracy,
        runner=TEXTS,
        device=TEXTS,
        correct=COUNTS,
        total=st.integers(1, 2**40),
        top1=NUMBERS,
        top5=NUMBERS,
        source_drop_pp=st.none() | NUMBERS,
        drop=st.none() | DROPS,
        flipped=st.none() | COUNTS,
        classes=st.lists(CLASSES, max_size=2).map(tuple),
        flips=st.lists(FLIPS, max_size=2).map(tuple),
    ),
    not_run=st.none() | TEXTS,
    verdict=st.builds(
        Verdict,
        passed=st.none() | st.booleans(),
        reasons=TEXT_TUPLES,
        proven=st.none() | st.booleans(),
        images_needed=st.none() | COUNTS,
        notes=TEXT_TUPLES,
    ),
    speed=st.builds(
        MeasuredSpeed,
        latency=st.none() | st.builds(Latency, batch_size=COUNTS, p50_ms=NUMBERS, p90_ms=NUMBERS),
        against_float=st.none() | st.just(SPEED),
        not_measured=st.none() | TEXTS,
        ship=st.none() | TEXTS,
    ),
    history=st.builds(
        History,
        wall_s=NUMBERS,
        epochs=st.lists(st.dictionaries(TEXTS, st.none() | NUMBERS, max_size=2), max_size=2).map(tuple),
        selection=st.none()
        | st.builds(Selection, steps=st.just(()), chosen=TEXTS, reason=TEXTS, max_drop_pp=st.just(0.5)),
        layers=st.lists(
            st.builds(Layer, name=TEXTS, choice=TEXTS, weights=COUNTS, kl=st.none() | NUMBERS), max_size=2
        ).map(tuple),
    ),
    provenance=st.builds(
        Provenance,
        baseline=st.none() | TEXTS,
        gate=st.builds(Gate, max_top1_drop_pp=st.floats(0, 100), on=st.sampled_from(["point", "upper"])),
        config=st.dictionaries(TEXTS, st.none() | NUMBERS | TEXTS | st.lists(NUMBERS, max_size=2), max_size=2),
        inputs=st.dictionaries(TEXTS, TEXTS, max_size=2),
        lineage=st.lists(st.dictionaries(TEXTS, TEXTS, max_size=2), max_size=2).map(tuple),
        base_model=st.none() | TEXTS,
        license=st.none() | TEXTS,
        graph=st.none() | st.just(GraphIO("uint8", "nhwc", "top-k", 3, 2)),
        preprocess=st.none() | st.just(Preprocess(32, 1.0, "bilinear", (0.5,), (0.25,), "squash")),
        for_comparison=st.booleans(),
    ),
    notes=TEXT_TUPLES,
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
    out = Path(small_run.report.rows[0].identity.artifact).parents[1]
    assert read_report(out) == small_run.report
    assert read_report(out / "report.json") == small_run.report


@pytest.mark.parametrize("name", ["quickstart.json", "cifar10.json"])
def test_read_report_reads_the_published_reports(name: str) -> None:
    path = Path(__file__).parents[2] / "benchmarks" / "results" / name
    report = read_report(path)
    assert report.rows
    assert "drop pp [95 %]" in render_markdown(report)


def damaged(group: str, key: str, value: object) -> str:
    """Return a report whose only row has another value at a place."""
    content = json.loads(create_report(INT8_ROW).to_json())
    content["rows"][0][group][key] = value
    return json.dumps(content)


@pytest.mark.parametrize("key", ["classes", "flips", "layers", "epochs"])
@pytest.mark.parametrize("damage", [5, [5], [{"index": {}}, 1], "ab", None])
def test_read_report_raises_when_the_changes_are_damaged(tmp_path: Path, key: str, damage: object) -> None:
    group = "accuracy" if key in ("classes", "flips") else "history"
    (tmp_path / "report.json").write_text(damaged(group, key, damage))
    with pytest.raises(ArtifactError, match=r"report\.json is not a report of this tool"):
        read_report(tmp_path)


@pytest.mark.parametrize(
    ("group", "key", "value", "words"),
    [
        ("identity", "size_bytes", 1.5, "rows[0]: identity: size_bytes = 1.5 has the wrong type; expected int"),
        ("identity", "name", None, "rows[0]: identity: name = None has the wrong type; expected str"),
        ("accuracy", "top1", "0.5", "rows[0]: accuracy: top1 = '0.5' has the wrong type; expected float"),
        ("accuracy", "total", True, "rows[0]: accuracy: total = True has the wrong type; expected int"),
        ("accuracy", "Top1", 0.5, "rows[0]: accuracy: unknown key 'Top1'. Did you mean 'top1'?"),
        ("accuracy", "drop", {"lost": 1}, "drop: 'both' is missing"),
        ("provenance", "gate", {"max_top1_drop_pp": -1}, "max_top1_drop_pp = -1.0 is out of range"),
        ("provenance", "gate", {"on": "middle"}, "on = 'middle' is unknown; expected one of 'point', 'upper'"),
        ("provenance", "inputs", {"source": 5}, "inputs: source = 5 has the wrong type; expected str"),
        ("provenance", "preprocess", {"image_size": -1}, "preprocess: 'crop_pct' is missing"),
        (
            "provenance",
            "preprocess",
            {"image_size": -1, "crop_pct": 1.0, "interpolation": "bicubic", "mean": [0.5], "std": [0.5]},
            "image_size = -1 is out of range; expected 1 to 16384",
        ),
    ],
)
def test_read_report_says_which_field_is_damaged(
    tmp_path: Path, group: str, key: str, value: object, words: str
) -> None:
    (tmp_path / "report.json").write_text(damaged(group, key, value))
    with pytest.raises(ArtifactError, match=r"report\.json is not a report of this tool") as raised:
        read_report(tmp_path)
    assert words in str(raised.value)
    assert "\n" not in str(raised.value)


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
    "view", ["markdown.render_markdown", "html.report_page.render_html", "model_card.render_model_card"]
)
def test_a_view_that_fails_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, view: str) -> None:
    write_report(create_report(BASELINE_ROW), tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def fail(report: Report) -> str:
        raise ZeroDivisionError

    monkeypatch.setattr(f"convnext_deploy.reports.{view}", fail)
    with pytest.raises(ZeroDivisionError):
        write_report(create_report(BASELINE_ROW, INT8_ROW), tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_view_that_cannot_be_written_changes_nothing(tmp_path: Path) -> None:
    write_report(create_report(BASELINE_ROW), tmp_path)
    (tmp_path / "model_card.md").unlink()
    (tmp_path / "model_card.md").mkdir()
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()}
    with pytest.raises(OutputError, match=r"model_card\.md is a folder"):
        write_report(create_report(BASELINE_ROW, INT8_ROW), tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()} == before


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
    with pytest.raises(ArtifactError, match=rf"{tmp_path} is not a finished run: it has no report\.json"):
        read_report(tmp_path)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "null",
        "5",
        '{"schema": 2}',
        '{"passed": true, "schema": 2, "rows": [5]}',
        '{"passed": 1, "schema": 2}',
    ],
)
def test_read_report_raises_when_the_file_is_damaged(tmp_path: Path, text: str) -> None:
    (tmp_path / "report.json").write_text(text)
    with pytest.raises(ArtifactError, match=r"report\.json is not a report of this tool"):
        read_report(tmp_path)


@pytest.mark.parametrize("key", ["recipe", "rows", "environment", "passed", "schema"])
def test_read_report_raises_when_a_key_is_missing(tmp_path: Path, key: str) -> None:
    content = json.loads(create_report(BASELINE_ROW).to_json())
    del content[key]
    (tmp_path / "report.json").write_text(json.dumps(content))
    with pytest.raises(ArtifactError, match=r"report\.json is not a report of this tool"):
        read_report(tmp_path)


@pytest.mark.parametrize("schema", [1, 99])
def test_read_report_raises_when_it_is_of_another_version(tmp_path: Path, schema: int) -> None:
    content = json.loads(create_report(BASELINE_ROW).to_json()) | {"schema": schema}
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
    assert [row["identity"]["name"] for row in json.loads(report.to_json())["rows"]] == [
        "onnx-INT8",
        "student",
        "engine",
    ]
