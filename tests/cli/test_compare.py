"""`convnext-deploy compare`, and the views that `run` and `report` write."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from tests.cli.conftest import FailedRun, call

VIEWS = ("report.md", "report.html", "model_card.md")


@pytest.fixture
def two_runs(failed_run: FailedRun, tmp_path: Path) -> tuple[Path, Path]:
    other = tmp_path / "other"
    other.mkdir()
    shutil.copy(failed_run.out / "report.json", other)
    return failed_run.out, other


def test_compare_prints_both_runs(two_runs: tuple[Path, Path]) -> None:
    outcome = call("compare", *two_runs)
    assert outcome.code == 0
    assert outcome.err.count("\n") == 1
    rows, _, warnings = outcome.out.partition("warning: ")
    assert rows.count("guess") == 2
    assert "chance level" in warnings


def test_compare_prints_json_and_writes_the_page(two_runs: tuple[Path, Path], tmp_path: Path) -> None:
    outcome = call("compare", *two_runs, "--json", "--out", tmp_path / "page.html")
    assert outcome.code == 0
    assert len(json.loads(outcome.out)["artifacts"]) == 2
    assert "<!doctype html>" in (tmp_path / "page.html").read_text("utf-8")


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        ((), 2, "Missing argument 'RUN RUN...'"),
        (("a",), 2, "give at least two runs"),
        (("a", "b"), 1, "is not a finished run: it has no report.json"),
    ],
)
def test_compare_says_what_is_wrong(arguments: tuple[str, ...], code: int, words: str) -> None:
    outcome = call("compare", *arguments)
    assert outcome.code == code
    assert words in outcome.err


def test_run_writes_its_views_and_the_command_that_was_typed(failed_run: FailedRun) -> None:
    content = json.loads((failed_run.out / "report.json").read_text("utf-8"))
    assert content["command"].startswith("convnext-deploy run ")
    assert "--workers 0" in content["command"]
    for name in VIEWS:
        assert (failed_run.out / name).stat().st_size > 0


def test_report_writes_the_views_again_from_the_report_alone(two_runs: tuple[Path, Path]) -> None:
    first, other = two_runs
    assert call("report", other).code == 3
    for name in VIEWS:
        assert (other / name).read_text("utf-8") == (first / name).read_text("utf-8")
