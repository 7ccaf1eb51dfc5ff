"""A kind of stage that the package does not know: one record with its `run`, and one line in the table of kinds."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import pytest
import torch

from convnext_deploy.artifacts.artifact import Artifact, read_artifact
from convnext_deploy.artifacts.details import TorchDetails
from convnext_deploy.artifacts.spec import ModelSpec, default_preprocess
from convnext_deploy.config.checks import require
from convnext_deploy.config.choices import HeadActivation
from convnext_deploy.config.recipe_toml import load_recipe
from convnext_deploy.config.stage import StageConfig
from convnext_deploy.config.stages import STAGE_KINDS
from convnext_deploy.data.datasets import Data
from convnext_deploy.errors import OutputError, RecipeError
from convnext_deploy.models.checkpoints.load_network import load_network
from convnext_deploy.pipeline.open_artifact import open_input
from convnext_deploy.pipeline.run import run_recipe
from convnext_deploy.pipeline.stage import Settings
from convnext_deploy.reports.recipe_toml import write_recipe
from convnext_deploy.reports.record import read_report
from convnext_deploy.stages.context import StageContext, require_source
from convnext_deploy.stages.write_artifact import write_torch_artifact
from convnext_deploy.system.execution import Execution
from tests.cli.conftest import call
from tests.cli.drawn import tables_in
from tests.weights import write_weights


@dataclass(frozen=True)
class PruneConfig(StageConfig):
    """Set the smallest weights of every linear layer to zero."""

    kind: ClassVar[str] = "sparsify"
    done: ClassVar[str] = "pruned by magnitude"
    share: float
    then: HeadActivation = "gelu"

    def __post_init__(self) -> None:
        super().__post_init__()
        require(0 <= self.share <= 1, "share", self.share, "0 to 1")

    @property
    def reads_images(self) -> bool:
        """Weights alone are looked at."""
        return False


def check(config: PruneConfig) -> None:
    """Refuse what no work is worth."""
    if config.share == 1:
        raise RecipeError("nothing is left.")


def run(config: PruneConfig, source: Artifact | None, context: StageContext) -> Artifact:
    """Write the network with the `share` of its smallest weights set to zero."""
    source = require_source(source, config.kind)
    network = load_network(source)
    layers = [module for module in network.modules() if isinstance(module, torch.nn.Linear)]
    with context.execution.progress.task(f"{context.name}: sparsify", len(layers), "layers") as task, torch.no_grad():
        for layer in layers:
            least = layer.weight.abs().flatten().kthvalue(max(1, round(config.share * layer.weight.numel()))).values
            layer.weight.mul_(layer.weight.abs() > least)
            task.advance()
    return write_torch_artifact(
        network,
        context,
        model=source.model,
        preprocess=source.preprocess,
        class_names=source.class_names,
        precision="fp32",
        details=TorchDetails(),
        source=source,
    )


RECIPE = """
name = "sparse"
seed = 3
source = {source}
speed_check = false
[[stages]]
kind = "sparsify"
share = 0.5
gate = {{ max_top1_drop_pp = 100.0 }}
[[stages]]
kind = "onnx"
"""
ROWS = ["source", "sparsify", "onnx"]


@pytest.fixture(autouse=True)
def _line(monkeypatch: pytest.MonkeyPatch) -> None:
    """The one line in the package."""
    monkeypatch.setitem(STAGE_KINDS, PruneConfig.kind, f"{__name__}:PruneConfig")


@pytest.fixture
def recipe(small_data: Data, tmp_path: Path) -> Path:
    """A recipe in which a stage of the new kind works on random weights."""
    spec = ModelSpec("test_convnext", 3)
    weights = write_weights(tmp_path / "net.safetensors", spec, small_data.class_names, default_preprocess(32))
    path = tmp_path / "sparse.toml"
    path.write_text(RECIPE.format(source=json.dumps(str(weights))), encoding="utf-8")
    return path


def test_command_line_runs_validates_and_reports_a_new_kind(
    recipe: Path, small_data: Data, image_folder: Path, short_timing: None, tmp_path: Path
) -> None:
    command = ("run", recipe, "--data", image_folder, "--out", tmp_path / "out", "--device", "cpu", "--workers", "0")
    planned = call(*command, "--dry-run")
    assert planned.code == 0
    assert "sparsify: sparsify from source: would run" in planned.out
    ran = call(*command)
    assert ran.code == 0, ran.err
    assert "sparsify: sparsify: done" in ran.err
    assert [line.split()[0] for line in next(tables_in(ran.out))] == ROWS
    assert "sparsify: sparsify from source: up to date" in call(*command, "--dry-run").out

    artifact = read_artifact(tmp_path / "out" / "stages" / "sparsify")
    weights = load_network(artifact).state_dict()["stages.0.0.pwconv1.weight"]
    assert (weights == 0).double().mean().item() == pytest.approx(0.5, abs=0.01)
    (record,) = artifact.lineage
    assert (record.kind, record.config, record.data) == ("sparsify", {"share": 0.5, "then": "gelu"}, "none")

    report = read_report(tmp_path / "out")
    assert [row.name for row in report.rows] == ROWS
    row = report.rows[1]
    assert row.accuracy is not None
    assert (row.identity.kind, row.accuracy.total) == ("sparsify", len(small_data.validation))
    assert (
        "- `sparsify`: pruned by magnitude (stage sparsify, seed 3)" in (tmp_path / "out" / "model_card.md").read_text()
    )
    for view in ("report.md", "report.html"):
        assert "sparsify" in (tmp_path / "out" / view).read_text(encoding="utf-8")
    written = write_recipe(report)
    assert written is not None
    again = tmp_path / "again.toml"
    again.write_text(written, encoding="utf-8")
    assert load_recipe(again).stages == load_recipe(recipe).stages


def test_new_kind_is_made_again_when_its_result_version_rises(
    recipe: Path, small_data: Data, short_timing: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded, settings = load_recipe(recipe), Settings(tmp_path / "out", Execution())
    source = open_input(Path(str(loaded.source)))
    assert run_recipe(loaded, settings, source, small_data).executed == ("sparsify", "onnx")
    assert run_recipe(loaded, settings, source, small_data).executed == ()
    monkeypatch.setattr(PruneConfig, "result_version", 2)
    with pytest.raises(
        OutputError, match="sparsify \\(version of the results of sparsify 1 → 2: this release gives others"
    ):
        run_recipe(loaded, settings, source, small_data)
    again = dataclasses.replace(settings, restart=True)
    assert run_recipe(loaded, again, source, small_data).executed == ("sparsify",)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("share = 2.0", "stage 'sparsify': share = 2.0 is out of range; expected 0 to 1."),
        ('share = 0.5\nthen = "silu"', "stage 'sparsify': then = 'silu' is unknown; expected one of 'gelu', 'relu'."),
        ("share = 1.0", "nothing is left."),
        ("", "stage 'sparsify': 'share' is missing."),
    ],
)
def test_command_line_refuses_settings_of_a_new_kind(
    line: str, said: str, recipe: Path, image_folder: Path, tmp_path: Path
) -> None:
    recipe.write_text(recipe.read_text().replace("share = 0.5", line))
    refused = call("run", recipe, "--data", image_folder, "--out", tmp_path / "out")
    assert refused.code == 1
    assert said in refused.err
    assert not (tmp_path / "out").exists()
