"""A stage that prunes: its artifact, what the report says of it, its recovery by distillation, and INT8 of what came out."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import onnxruntime
import pytest
import torch

from convnext_deploy.artifacts.artifact import read_artifact
from convnext_deploy.artifacts.details import EngineDetails
from convnext_deploy.artifacts.spec import ModelSpec, default_preprocess
from convnext_deploy.config.prune import PruneConfig
from convnext_deploy.config.recipe_toml import load_recipe
from convnext_deploy.data.datasets import Data
from convnext_deploy.errors import ArtifactError, DeployError, RecipeError
from convnext_deploy.models.checkpoints.load_network import load_network
from convnext_deploy.models.variants import build_model
from convnext_deploy.models.zoo.cost import count_macs
from convnext_deploy.pipeline.open_artifact import open_input
from convnext_deploy.pipeline.run import run_recipe
from convnext_deploy.pipeline.stage import Settings
from convnext_deploy.reports.record import read_report
from convnext_deploy.stages import prune
from convnext_deploy.stages.foresight import Given, Outlook, outlook_of
from convnext_deploy.system.execution import Execution
from tests.cli.conftest import call
from tests.weights import write_weights

WIDTHS = (64, 0, 96, 256)  # of 128, 256, 384 and 512
FIT = "fit = {{ epochs = 1, batch_size = 12, base_learning_rate = 1e-4, warmup_epochs = 0 }}"
PRUNE = """
name = "narrow"
source = {source}
speed_check = false
[[stages]]
kind = "prune"
widths = [64, 0, 96, 256]
calibration_images = 24
gate = {{ max_top1_drop_pp = 100.0 }}
"""
RECOVER = f"""
[[stages]]
kind = "distill"
name = "recover"
source = "prune"
teacher = "source"
model = {{{{ name = "test_convnext2", image_size = 32 }}}}
{FIT}
[[stages]]
kind = "prune"
name = "again"
macs_share = 0.8
method = "taylor"
activation = "relu"
calibration_images = 24
[[stages]]
kind = "ptq"
target = "onnxruntime"
calibration_images = 12
[[stages]]
kind = "qat"
teacher = "source"
{FIT}
[[stages]]
kind = "onnx"
"""


ENGINES = """
[[stages]]
kind = "onnx"
name = "float"
source = "prune"
runtime = "openvino"
[[stages]]
kind = "ptq"
source = "prune"
calibration_images = 12
[[stages]]
kind = "onnx"
name = "int8"
precision = "fp16"
runtime = "tensorrt-rtx"
[[stages]]
kind = "tensorrt"
name = "engine"
gpus = ["sm86", "sm89"]
"""


@pytest.fixture
def source(small_data: Data, tmp_path: Path) -> Path:
    spec = ModelSpec("test_convnext2", 3)
    return write_weights(tmp_path / "net.safetensors", spec, small_data.class_names, default_preprocess(32))


def write(tmp_path: Path, source: Path, text: str) -> Path:
    path = tmp_path / "narrow.toml"
    path.write_text(text.format(source=json.dumps(str(source))), encoding="utf-8")
    return path


def test_a_pruned_artifact_is_judged_against_its_source_and_made_once(
    source: Path, small_data: Data, short_timing: None, tmp_path: Path
) -> None:
    recipe, settings = load_recipe(write(tmp_path, source, PRUNE)), Settings(tmp_path / "out", Execution())
    assert run_recipe(recipe, settings, open_input(source), small_data).executed == ("prune",)
    artifact = read_artifact(tmp_path / "out" / "stages" / "prune")
    assert artifact.model == ModelSpec("test_convnext2", 3, hidden_widths=WIDTHS)
    assert (artifact.precision, artifact.class_names) == ("fp32", small_data.class_names)
    assert open_input(artifact.main_file).model == artifact.model
    row = read_report(tmp_path / "out").rows[1]
    assert (row.name, row.identity.kind) == ("prune", "prune")
    assert row.accuracy is not None
    assert row.accuracy.drop is not None
    assert run_recipe(recipe, settings, open_input(source), small_data).executed == ()
    card = (tmp_path / "out" / "model_card.md").read_text(encoding="utf-8")
    assert "- `prune`: pruned on '" in card

    # nothing reads the labels, and both networks see the same images
    with torch.no_grad():
        network = load_network(artifact)
        assert network(torch.zeros(1, 3, 32, 32)).isfinite().all()


@pytest.mark.heavy
def test_recovery_rounds_and_int8_of_a_pruned_network(
    source: Path, image_folder: Path, short_timing: None, tmp_path: Path
) -> None:
    recipe = write(tmp_path, source, PRUNE + RECOVER)
    command = ("run", recipe, "--data", image_folder, "--out", tmp_path / "out", "--device", "cpu", "--workers", "0")
    ran = call(*command)
    assert ran.code == 0, ran.err
    folder = tmp_path / "out" / "stages"
    recovered, again = read_artifact(folder / "recover"), read_artifact(folder / "again")
    assert recovered.model.hidden_widths == WIDTHS
    assert count_macs(again.model, 32) <= 0.8 * count_macs(recovered.model, 32)
    assert again.model.activation == "relu"
    for name in ("ptq", "qat"):
        assert read_artifact(folder / name).model == again.model
    assert read_artifact(folder / "onnx").model == again.model
    report = read_report(tmp_path / "out")
    assert {row.name: row.provenance.baseline for row in report.rows} == {
        "source": None, "prune": "source", "recover": None, "again": "recover", "ptq": "recover", "qat": "recover",
        "onnx": "recover",
    }  # fmt: skip
    refused = call("convert", folder / "again", "--to", "timm", "--out", tmp_path / "timm")
    assert refused.code in (1, 2)
    assert "lacks blocks of different hidden widths" in refused.err
    assert not (tmp_path / "timm").exists()


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({}, "neither of widths and macs_share are given; expected one of the two."),
        ({"widths": (32,), "macs_share": 0.5}, "both of widths and macs_share are given; expected one of the two."),
        ({"macs_share": 1.5}, "macs_share = 1.5 is out of range; expected > 0, at most 1."),
        ({"widths": (32, -1, 32, 32)}, r"widths[1] = -1 is out of range; expected 0 to 1000000."),
        ({"macs_share": 0.5, "calibration_images": 0}, "calibration_images = 0 is out of range; expected >= 1."),
        (
            {"macs_share": 0.5, "method": "magnitude"},
            "method = 'magnitude' is unknown; expected one of 'second-order', 'taylor'.",
        ),
    ],
)
def test_settings_out_of_range_are_refused(settings: dict[str, object], said: str) -> None:
    with pytest.raises(RecipeError) as refused:
        PruneConfig(**settings)  # type: ignore[arg-type]  # on purpose
    assert str(refused.value) == said


def test_what_cannot_be_pruned_is_refused_before_any_work(source: Path, small_data: Data) -> None:
    def foresee(given: Outlook, config: PruneConfig, data: Data | None = small_data) -> ModelSpec:
        return prune.foresee(config, Given("prune", {"source": given}, data, "cpu")).model

    opened = outlook_of(open_input(source))
    assert foresee(opened, PruneConfig(widths=WIDTHS)).hidden_widths == WIDTHS
    assert foresee(opened, PruneConfig(widths=(128, 256, 384, 512))) == opened.model
    for widths, said in (
        ((64, 64), r"^hidden_widths has 2 entries; expected 4, one for each block of test_convnext2\.$"),
        ((160, 0, 96, 256), r"^widths\[0\] = 160 is out of range; expected 0 to 128, as the block has\.$"),
    ):
        with pytest.raises(RecipeError, match=said):
            foresee(opened, PruneConfig(widths=widths))
    with pytest.raises(ArtifactError, match="prune its FP32 ancestor, and quantize that"):
        foresee(replace(opened, precision="int8"), PruneConfig(macs_share=0.5))
    with pytest.raises(DeployError, match="needs images"):
        foresee(opened, PruneConfig(macs_share=0.5), None)
    assert build_model(foresee(opened, PruneConfig(macs_share=0.5))) is not None


@pytest.mark.slow
def test_engines_and_graphs_of_a_pruned_network_compute_what_it_does(
    source: Path, image_folder: Path, tmp_path: Path
) -> None:
    pytest.importorskip("tensorrt_rtx")
    text = PRUNE + ENGINES
    recipe = write(tmp_path, source, text)
    command = ("run", recipe, "--data", image_folder, "--out", tmp_path / "out", "--device", "cpu", "--workers", "0")
    ran = call(*command)
    assert ran.code == 0, ran.err
    folder = tmp_path / "out" / "stages"
    engine = read_artifact(folder / "engine")
    assert engine.model.hidden_widths == WIDTHS
    assert isinstance(engine.details, EngineDetails)
    reports = engine.details.precisions
    assert {*reports} == {"SM86", "SM89"}
    assert all(report is not None and not report.fallbacks for report in reports.values())
    network = load_network(read_artifact(folder / "prune"))
    images = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    graph = onnxruntime.InferenceSession(
        str(read_artifact(folder / "float").main_file), providers=["CPUExecutionProvider"]
    )
    (found,) = graph.run(None, {graph.get_inputs()[0].name: images.numpy()})
    with torch.no_grad():
        assert torch.allclose(torch.from_numpy(found), network(images), atol=1e-4)
    bundled = call("bundle", folder / "engine", folder / "int8", folder / "float", "--out", tmp_path / "bundle")
    assert bundled.code == 0, bundled.err
