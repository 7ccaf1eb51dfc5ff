"""README's first command, whole: what it trains, quantizes and exports passes every gate of the recipe that is shipped."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

import convnext_deploy as api
from convnext_deploy.config.recipe_toml import load_recipe

RECIPES = Path(__file__).parents[2] / "recipes"


@pytest.mark.slow
def test_every_gate_of_the_quickstart_holds(tmp_path: Path) -> None:
    # the other one is for platforms without engines; see install.md
    has_engines = importlib.util.find_spec("tensorrt_rtx") is not None
    recipe = RECIPES / ("quickstart.toml" if has_engines else "quickstart-onnx.toml")
    result = api.run(recipe, out=tmp_path / "quickstart")
    verdicts = {row.name: row.verdict for row in result.report.rows}
    assert result.report.complete
    assert {name: verdict.reasons for name, verdict in verdicts.items() if verdict.passed is False} == {}
    assert {stage.name for stage in load_recipe(recipe).stages} <= verdicts.keys()
    assert (tmp_path / "quickstart" / "report.html").is_file()
