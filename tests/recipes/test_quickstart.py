"""README's first command, whole: what it trains, quantizes and exports passes every gate of the recipe that is shipped."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

import convnext_deploy as api

RECIPES = Path(__file__).parents[2] / "recipes"


@pytest.mark.slow
def test_every_gate_of_the_quickstart_holds(tmp_path: Path) -> None:
    # the other one has the same trainings and gates, and no engines; see install.md
    has_engines = importlib.util.find_spec("tensorrt_rtx") is not None
    recipe = RECIPES / ("quickstart.toml" if has_engines else "quickstart-onnx.toml")
    result = api.run(recipe, out=tmp_path / "quickstart")
    verdicts = {row.name: row.verdict for row in result.report.rows}
    assert result.report.complete
    assert {name: verdict.reasons for name, verdict in verdicts.items() if verdict.passed is False} == {}
    assert {"teacher", "student", "ptq", "qat", "onnx-fp32", "onnx-int8"} <= verdicts.keys()
    assert (tmp_path / "quickstart" / "report.html").is_file()
