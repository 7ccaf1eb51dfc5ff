"""What verbs return shows itself: in a line, as a table in a notebook, as plain Python, and as a data frame where pandas is."""

from __future__ import annotations

import html
import importlib
import inspect
import io
import json
import pydoc
import sys
import typing
from pathlib import Path
from typing import Any

import pytest

import convnext_deploy as api
from convnext_deploy.api.predictions import Guess, Prediction, Predictions
from convnext_deploy.errors import BackendUnavailableError
from convnext_deploy.pipeline.run_result import RunResult
from convnext_deploy.reports.comparison import Run, compare_runs
from convnext_deploy.reports.record import Report
from convnext_deploy.system.results import Result
from tests.reports.conftest import BASELINE_ROW, INT8_ROW, create_report

VERBS = [name for name in api.__all__ if name.islower()]


def results() -> dict[str, Result]:
    report = create_report(BASELINE_ROW, INT8_ROW)
    guess = Guess("<b>owl</b>", 2, 0.75)
    return {
        "report": report,
        "run": RunResult(report, ("ptq",)),
        "comparison": compare_runs((Run("a", Path("a"), report), Run("b", Path("b"), report))),
        "models": api.list_models(),
        "recommendation": api.recommend(5000, 10),
        "predictions": Predictions([Prediction(Path("a.png"), (guess,)), Prediction(Path("b.png"), (), "cut off")]),
    }


def test_every_verb_returns_a_result_of_which_help_tells() -> None:
    for name in VERBS:
        function = getattr(api, name)
        returned = typing.get_type_hints(function)["return"]
        kinds = [kind for kind in (typing.get_args(returned) or (returned,)) if inspect.isclass(kind)]
        assert any(issubclass(kind, Result) for kind in kinds), name
        assert all(kind.__doc__ for kind in kinds if issubclass(kind, Result))
        assert name in pydoc.render_doc(function)
        assert "Return" in (function.__doc__ or "") or "Raises" in (function.__doc__ or "")


def test_dir_and_help_show_every_verb_and_record() -> None:
    assert {*api.__all__} <= {*dir(api)}
    assert [name for name in dir(api) if not name.startswith("_")] == sorted(api.__all__)
    out = io.StringIO()
    pydoc.Helper(output=out).help(api)
    shown = pydoc.plain(out.getvalue())
    assert all(f"{name}(" in shown for name in VERBS)


def test_results_show_themselves_shortly_and_as_a_table() -> None:
    for name, result in results().items():
        assert len(repr(result)) < 300, name
        assert repr(result).startswith(f"<{type(result).__name__}: ")
        assert "\n" not in repr(result)
        rows = result.to_rows()
        shown = result._repr_html_()
        assert len(rows) == shown.count("<tr>") - 1, name
        assert json.loads(json.dumps(result.to_dict())), name
        values = [value for row in rows for value in row.values()]
        assert all(isinstance(value, str | int | float | list | tuple | None) for value in values), name
    assert repr(results()["predictions"]) == "<Predictions: 2 images, 1 of which cannot be read>"
    assert html.escape("<b>owl</b>") in results()["predictions"]._repr_html_()
    assert "<b>owl</b>" not in results()["predictions"]._repr_html_()


def test_report_says_what_failed_and_what_is_not_complete() -> None:
    report = create_report(BASELINE_ROW, INT8_ROW)
    assert repr(report) == f"<Report: small, 2 artifacts, 540 validation images of photos: FAILED: {INT8_ROW.name}>"
    assert repr(create_report(BASELINE_ROW, complete=False)).endswith(
        "1 artifact, 540 validation images of photos: not complete>"
    )
    assert report.to_rows()[0]["top1"] == pytest.approx(521 / 540)
    assert RunResult(report, ()).to_dict() == {**json.loads(report.to_json()), "executed": []}
    assert isinstance(report, Report)


def test_data_frame_has_the_rows_and_a_missing_pandas_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    models = api.list_models()
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(BackendUnavailableError, match=r"^to_pandas needs the package pandas: pip install pandas\. "):
        models.to_pandas()
    monkeypatch.undo()
    if importlib.util.find_spec("pandas") is None:
        pytest.skip("pandas is not installed")
    frame: Any = models.to_pandas()
    assert list(frame["variant"]) == [row.variant for row in models]
    assert frame["parameters"].max() == max(row.parameters for row in models)
