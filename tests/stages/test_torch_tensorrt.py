"""The stage that compiles with Torch-TensorRT, run by the pipeline over a stand-in: artifact, validation, and what it refuses."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from convnext_deploy.artifacts.artifact import MANIFEST, Artifact, describe_file, read_artifact
from convnext_deploy.artifacts.details import ONNXDetails, TorchDetails, TorchTensorRTDetails
from convnext_deploy.artifacts.spec import ModelSpec, Preprocess
from convnext_deploy.config.engine import TorchTensorRTConfig
from convnext_deploy.config.recipe import Recipe, StageEntry
from convnext_deploy.config.recipe_toml import load_recipe
from convnext_deploy.data.datasets import Data
from convnext_deploy.errors import ArtifactError, BackendUnavailableError, ExportError, RecipeError
from convnext_deploy.exporters.tensorrt import torch_tensorrt
from convnext_deploy.models.checkpoints.load_network import load_network
from convnext_deploy.pipeline.open_artifact import open_input
from convnext_deploy.pipeline.run import RunResult, run_recipe
from convnext_deploy.pipeline.stage import Settings
from convnext_deploy.runners import open_runner
from convnext_deploy.system.execution import Execution
from convnext_deploy.system.progress import SilentProgress
from tests.conftest import CLASSES
from tests.exporters.recorded_progress import RecordingProgress
from tests.exporters.torch_tensorrt_stand_in import API, GPU, Script, install_stand_in
from tests.rows import accuracy_of, drop_of
from tests.weights import write_weights

SIDE = 32
PREPROCESS = Preprocess(SIDE, 1.0, "bilinear", (0.41, 0.46, 0.5), (0.21, 0.25, 0.3))


@pytest.fixture
def source(tmp_path: Path) -> Artifact:
    """A float network that no training has seen."""
    return open_input(
        write_weights(tmp_path / "weights.safetensors", ModelSpec("test_convnext2", 3), CLASSES, PREPROCESS)
    )


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Script:
    """A machine with the stand-in."""
    script = Script()
    install_stand_in(monkeypatch, script)
    return script


def run(
    config: TorchTensorRTConfig,
    source: Artifact,
    out: Path,
    data: Data | None = None,
    progress: SilentProgress | None = None,
) -> RunResult:
    recipe = Recipe("given", (StageEntry("program", config, "source"),), source="given")
    return run_recipe(recipe, Settings(out, Execution(progress=progress or SilentProgress())), source=source, data=data)


def folders(out: Path) -> list[str]:
    return [path.name for path in (out / "stages").iterdir()] if (out / "stages").is_dir() else []


def compiled(config: TorchTensorRTConfig, source: Artifact, out: Path) -> Artifact:
    run(config, source, out)
    return read_artifact(out / "stages" / "program")


@pytest.mark.parametrize(
    ("precision", "tolerance"), [pytest.param("fp32", 1e-5, marks=pytest.mark.heavy), ("fp16", 0.01)]
)
def test_program_computes_the_logits_of_its_source(
    script: Script, source: Artifact, tmp_path: Path, precision: str, tolerance: float
) -> None:
    config = TorchTensorRTConfig("fp16" if precision == "fp16" else "fp32", max_batch_size=4)
    artifact = compiled(config, source, tmp_path / "out")
    images = np.random.default_rng(0).normal(size=(6, 3, SIDE, SIDE)).astype(np.float32)
    with torch.no_grad():
        expected = load_network(source)(torch.from_numpy(images)).numpy()
    runner = open_runner(artifact)
    found = runner.logits(images)
    runner.close()
    assert found.dtype == np.float32
    assert np.abs(found - expected).max() <= tolerance * np.ptp(expected)


@pytest.mark.heavy
def test_stage_describes_the_program(script: Script, source: Artifact, tmp_path: Path) -> None:
    config = TorchTensorRTConfig("fp16", optimal_batch_size=2, max_batch_size=4)
    artifact = compiled(config, source, tmp_path / "out")
    assert (artifact.format, artifact.precision) == ("torch-tensorrt", "fp16")
    assert artifact.details == TorchTensorRTDetails(API["release"], f"SM{GPU[0]}{GPU[1]}", 4)
    assert (artifact.model, artifact.preprocess, artifact.class_names) == (source.model, PREPROCESS, CLASSES)
    assert [file.name for file in artifact.files] == ["model.ep"]
    assert describe_file(artifact.main_file) == artifact.files[0]
    assert {path.name for path in artifact.path.iterdir()} == {MANIFEST, "model.ep"}
    (record,) = artifact.lineage
    assert (record.kind, record.config) == ("torch-tensorrt", dataclasses.asdict(config))
    assert (record.data, record.inputs) == ("none", {"source": source.sha256})


@pytest.mark.heavy
def test_stage_compiles_the_folded_network_as_it_was_asked(script: Script, source: Artifact, tmp_path: Path) -> None:
    compiled(
        TorchTensorRTConfig("fp32", optimal_batch_size=3, max_batch_size=5, workspace_mib=64, optimization_level=1),
        source,
        tmp_path / "out",
    )
    (settings,) = script.compiled_with
    (images,) = settings["arg_inputs"]
    batches = [shape[0] for shape in images.specification["profiles"][0].values()]
    assert (batches, settings["workspace_size"], settings["optimization_level"]) == ([1, 3, 5], 64 << 20, 1)
    names = [name for name, _ in script.programs[0].named_parameters()]
    assert not [name for name in names if "gamma" in name]
    assert [name for name in names if name.endswith("norm.bias")] == []


@pytest.mark.heavy
def test_pipeline_validates_the_program(
    script: Script, source: Artifact, small_data: Data, short_timing: None, tmp_path: Path
) -> None:
    result = run(TorchTensorRTConfig("fp32"), source, tmp_path, small_data)
    row = {row.name: row for row in result.report.rows}["program"]
    assert (drop_of(row).top1_drop_pp, drop_of(row).agreement) == (0.0, 1.0)
    assert (accuracy_of(row).runner, accuracy_of(row).device) == ("torch-tensorrt", "cuda")


@pytest.mark.heavy
def test_pipeline_says_why_a_program_was_not_run(
    script: Script,
    source: Artifact,
    small_data: Data,
    short_timing: None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run(TorchTensorRTConfig("fp32"), source, tmp_path)
    monkeypatch.setattr(torch_tensorrt, "cuda_driver_error", lambda: "no GPU")
    result = run(TorchTensorRTConfig("fp32"), source, tmp_path, small_data)
    assert result.executed == ()
    row = {row.name: row for row in result.report.rows}["program"]
    assert (row.accuracy, row.not_run) == (None, "built for SM86; not run: no GPU")


@pytest.mark.heavy
def test_stage_reports_progress_to_the_end(script: Script, source: Artifact, tmp_path: Path) -> None:
    progress = RecordingProgress()
    run(TorchTensorRTConfig(), source, tmp_path, progress=progress)
    assert [(task.description, task.done, task.total) for task in progress.tasks] == [
        ("program: torch-tensorrt SM86", 3, 3)
    ]


@pytest.mark.parametrize("raised", [KeyboardInterrupt(), ExportError("it stopped")])
def test_stage_leaves_no_folder_when_it_is_interrupted(
    script: Script, source: Artifact, tmp_path: Path, raised: BaseException
) -> None:
    with pytest.raises(type(raised)):
        run(TorchTensorRTConfig(), source, tmp_path, progress=RecordingProgress(raised=raised))
    assert folders(tmp_path) == []


def test_stage_leaves_no_folder_when_the_build_fails(script: Script, source: Artifact, tmp_path: Path) -> None:
    script.fails = "out of memory"
    with pytest.raises(ExportError, match="out of memory"):
        run(TorchTensorRTConfig(), source, tmp_path)
    assert folders(tmp_path) == []


def test_stage_refuses_a_quantized_artifact_and_says_where_int8_goes(
    script: Script, source: Artifact, tmp_path: Path
) -> None:
    quantized = dataclasses.replace(source, precision="int8", details=TorchDetails("tensorrt"))
    with pytest.raises(
        ArtifactError, match=r"^[^\n]*is quantized[^\n]*through ONNX for INT8: --format tensorrt[^\n]*$"
    ):
        run(TorchTensorRTConfig(), quantized, tmp_path)
    assert (folders(tmp_path), script.programs) == ([], [])


def test_stage_refuses_an_artifact_that_is_no_pytorch_model(script: Script, source: Artifact, tmp_path: Path) -> None:
    wrong = dataclasses.replace(source, details=ONNXDetails())
    with pytest.raises(ArtifactError, match=r"^[^\n]*format onnx[^\n]*compiles a PyTorch artifact[^\n]*$"):
        run(TorchTensorRTConfig(), wrong, tmp_path)
    assert folders(tmp_path) == []


def test_stage_says_in_one_line_that_there_is_no_gpu(
    source: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch_tensorrt, "cuda_driver_error", lambda: "no GPU")
    with pytest.raises(BackendUnavailableError, match=r"^Torch-TensorRT builds on the GPU[^\n]*here is no GPU[^\n]*$"):
        run(TorchTensorRTConfig(), source, tmp_path)
    assert folders(tmp_path) == []


@pytest.mark.parametrize(
    "settings",
    [
        {"precision": "int8"},
        {"optimal_batch_size": 0},
        {"optimal_batch_size": 9},
        {"max_batch_size": 0},
        {"workspace_mib": 0},
        {"optimization_level": 6},
        {"optimization_level": -1},
    ],
)
def test_config_refuses_what_cannot_be_built(settings: dict[str, int]) -> None:
    with pytest.raises(RecipeError, match=rf"^[^\n]*{next(iter(settings))}[^\n]*$"):
        TorchTensorRTConfig(**settings)  # type: ignore[arg-type]  # int8 is what is wrong


def test_config_says_where_int8_goes() -> None:
    with pytest.raises(RecipeError, match=r"INT8 goes through ONNX"):
        TorchTensorRTConfig("int8")  # type: ignore[arg-type]  # that is what is wrong


def test_recipe_may_have_a_torch_tensorrt_stage(tmp_path: Path) -> None:
    path = tmp_path / "recipe.toml"
    path.write_text(
        'name = "x"\nsource = "given"\n[[stages]]\nkind = "torch-tensorrt"\nprecision = "fp32"\nmax_batch_size = 2\n'
    )
    assert load_recipe(path).stages[0].config == TorchTensorRTConfig("fp32", max_batch_size=2)
    path.write_text('name = "x"\nsource = "given"\n[[stages]]\nkind = "torch-tensorrt"\nprecision = "int8"\n')
    with pytest.raises(RecipeError, match=r"^[^\n]*precision[^\n]*$"):
        load_recipe(path)
