"""Artifacts of an older release are taken for current ones while the `result_version` of their kind stays: so results must too."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from convnext_deploy.config.ptq import PTQConfig
from convnext_deploy.config.recipe import Recipe
from convnext_deploy.config.stages import STAGE_KINDS, stage_config
from convnext_deploy.data.datasets import Data
from convnext_deploy.pipeline.run import plan_recipe
from tests.golden.stage_results import FILE, RESULTS, Workshop, differences, is_quantized
from tests.shared import heavy_except

KNOWN = json.loads(FILE.read_text(encoding="utf-8"))
KNOWN_DRAW = -1.12584  # the first weight that PyTorch 2.14 and 2.15 draw for seed 0


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Workshop:
    """What the kinds share, such as the artifact that PTQ made."""
    return Workshop(tmp_path_factory.mktemp("results"))


@pytest.mark.parametrize("kind", heavy_except(("train", "ptq"), RESULTS))
def test_results_of_a_kind_are_those_of_its_version(kind: str, shop: Workshop) -> None:
    if kind == "tensorrt":
        pytest.importorskip("tensorrt_rtx")
    assert KNOWN[kind]["result_version"] == stage_config(kind).result_version, (
        "run python -m tests.golden.stage_results"
    )
    if kind == "train" and not _draws_the_known_weights():
        pytest.skip("this PyTorch draws other initial weights for a seed, as 2.10 does")
    changed = differences(RESULTS[kind](shop), KNOWN[kind]["numbers"], is_quantized(kind))
    assert not changed, (
        f"{kind} gives other results ({', '.join(changed)}). If that is meant, raise result_version in the settings of this kind "
        "and of those whose results changed with it, and run python -m tests.golden.stage_results"
    )


def _draws_the_known_weights() -> bool:
    drawn = nn.init.trunc_normal_(torch.empty(64), generator=torch.Generator().manual_seed(0))
    return drawn[0].item() == pytest.approx(KNOWN_DRAW, abs=1e-4)


def test_every_kind_that_runs_on_a_cpu_has_its_numbers() -> None:
    assert {*KNOWN} == {*RESULTS} == {*STAGE_KINDS} - {"torch-tensorrt"}


def test_differences_names_what_another_cpu_does_not_explain() -> None:
    known = {"logits": [1.0, -2.0], "nodes": {"Add": 1}, "one": {"bias": [0.5] * 20}}
    assert differences(known, known, quantized=False) == []
    near = {"logits": [1.003, -2.0], "nodes": {"Add": 1}, "one": {"bias": [0.5] * 19 + [9.0]}}
    assert differences(near, known, quantized=False) == []
    other = {"logits": [1.005, -2.0], "nodes": {"Add": 2}, "one": {"bias": [0.5] * 17 + [0.51] * 3}, "new": 1}
    assert differences(other, known, quantized=False) == ["logits", "nodes: Add", "one: bias", "new"]
    assert differences(other, known, quantized=True) == ["nodes: Add", "one: bias", "new"]
    assert differences({}, known, quantized=True) == ["logits", "nodes", "one"]


def test_plan_recipe_repeats_stages_whose_result_version_was_raised(
    light_recipe: Recipe, small_data: Data, copied: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def would_run() -> list[str]:
        return [stage.name for stage, runs in plan_recipe(light_recipe, copied, None, small_data, {}) if runs]

    assert would_run() == []
    monkeypatch.setattr(PTQConfig, "result_version", PTQConfig.result_version + 1)
    assert would_run() == ["ptq", "qat", "minmax", "onnx"]
