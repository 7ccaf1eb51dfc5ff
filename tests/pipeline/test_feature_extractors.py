"""Networks without head, and classifiers whose features are asked for: exported, quantized, scored by kNN, bundled, used."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import timm
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from convnext_deploy.api.bundle import bundle
from convnext_deploy.api.convert import convert
from convnext_deploy.api.export import export
from convnext_deploy.api.options import DataOptions, EvaluationOptions, TrainingOptions
from convnext_deploy.api.predict import predict
from convnext_deploy.api.quantize import quantize
from convnext_deploy.api.validate import validate
from convnext_deploy.api.verify_bundle import verify_bundle
from convnext_deploy.artifacts.artifact import Artifact, read_artifact
from convnext_deploy.config.onnx import ONNXConfig
from convnext_deploy.config.recipe import Recipe, StageEntry
from convnext_deploy.config.recipe_toml import load_recipe
from convnext_deploy.data.datasets import open_data
from convnext_deploy.errors import ArtifactError, CheckpointError, DataError, RecipeError
from convnext_deploy.graphs.engine_plan import inspect_plan
from convnext_deploy.models.checkpoints.load_network import load_network
from convnext_deploy.pipeline.open_artifact import open_input, without_head
from convnext_deploy.pipeline.run import RunResult, run_recipe
from convnext_deploy.pipeline.stage import Settings
from convnext_deploy.reports.recipe_toml import write_recipe
from convnext_deploy.runners import open_runner
from convnext_deploy.system.execution import Execution
from tests.cli.conftest import call
from tests.models.conftest import random_weights
from tests.shared import make_once

SIDE, WIDTH = 64, 128
IMAGES = np.random.default_rng(0).standard_normal((3, 3, SIDE, SIDE)).astype(np.float32)


def timm_network(**options: Any) -> Any:
    network: nn.Module = timm.create_model("test_convnext2", **{"num_classes": 0, **options})
    network.load_state_dict(random_weights(network.state_dict(), 0))
    return network.eval()


def features_of(network: Any, output: str) -> NDArray[np.float32]:
    """What timm's own network gives: without head its features; the map with its last norm at every place."""
    images = torch.from_numpy(IMAGES)
    with torch.no_grad():
        found: Tensor = network.forward_features(images)
        if output == "feature-map":
            return np.asarray(network.head.norm(found).numpy())
        return np.asarray(network.forward_head(found, pre_logits=True).numpy())


def given_by(artifact: Artifact) -> dict[str, Any]:
    runner = open_runner(artifact)
    try:
        return dict(runner.run(runner.prepare(IMAGES)))
    finally:
        runner.close()


def run_of(name: str, image_folder: Path, make: Callable[[Path, DataOptions], RunResult]) -> tuple[Path, RunResult]:
    """Make a run once for all workers."""
    data = DataOptions(data=str(image_folder), image_size=SIDE)

    def run(folder: Path) -> tuple[Path, RunResult]:
        return folder / "run", make(folder, data)

    return make_once(f"features-{name}", run)


@pytest.fixture(scope="module")
def pooled(image_folder: Path, short_timing: None) -> tuple[Path, RunResult]:
    """A network without head, exported as it is."""

    def make(folder: Path, data: DataOptions) -> RunResult:
        torch.save(timm_network().state_dict(), folder / "w.pth")
        return export(folder / "w.pth", out=folder / "run", data=data)

    return run_of("pooled", image_folder, make)


@pytest.fixture(scope="module")
def quantized(image_folder: Path, short_timing: None) -> tuple[Path, RunResult]:
    """The feature map of a classifier, in INT8 for ONNX Runtime."""

    def make(folder: Path, data: DataOptions) -> RunResult:
        torch.save(timm_network(num_classes=3).state_dict(), folder / "w.pth")
        return quantize(
            folder / "w.pth", target="onnxruntime", method="ptq", output="feature-map", out=folder / "run", data=data
        )

    return run_of("quantized", image_folder, make)


@pytest.mark.parametrize("output", ["features", "feature-map"])
@pytest.mark.parametrize("classes", [0, 3])
def test_features_are_those_of_timm(output: Any, classes: int, tmp_path: Path) -> None:
    network = timm_network(num_classes=classes)
    torch.save(network.state_dict(), tmp_path / "w.pth")
    opened = without_head(open_input(tmp_path / "w.pth"), output, tmp_path / "w.pth")
    shape = "(N, 128)" if output == "features" else "(N, 128, 5, 5)"  # at the 160 pixels of the published network
    assert opened.class_names is None
    assert opened.model.output == opened.io.output == output
    assert any(note.endswith(f"it gives {shape}") or f"gives {output} {shape}" in note for note in opened.notes)
    with torch.no_grad():
        found = load_network(opened)(torch.from_numpy(IMAGES)).numpy()
    np.testing.assert_allclose(found, features_of(network, output), rtol=1e-5, atol=1e-5)


def test_export_gives_features_and_scores_them_by_nearest_neighbours(pooled: tuple[Path, RunResult]) -> None:
    folder, result = pooled
    artifact = read_artifact(folder / "stages" / "onnx")
    found = given_by(artifact)
    assert list(found) == ["features"]
    np.testing.assert_allclose(found["features"], features_of(timm_network(), "features"), rtol=1e-5, atol=1e-5)
    source, row = result.report.rows
    for each in (source, row):
        assert each.accuracy is not None
        assert (each.accuracy.metric, each.accuracy.total) == ("kNN top-1", 18)
        assert each.features is not None
        by = each.features.measured_by
        assert (each.features.shape, by.width, by.neighbours, by.gallery) == ("(N, 128)", WIDTH, 20, 36)
    assert row.features is not None
    assert row.features.similarity is not None
    assert row.features.similarity.mean > 1 - 1e-6
    assert row.verdict.passed
    assert "kNN top-1 drops by more than 0.50 pp" in row.verdict.notes[0]  # which 18 images cannot tell
    again = np.load(folder / "scores" / "onnx.features.npy")
    assert again.shape == (18, 1, WIDTH)


def test_views_say_what_it_is(pooled: tuple[Path, RunResult]) -> None:
    folder, _ = pooled
    card = (folder / "model_card.md").read_text()
    assert 'pipeline_tag: "image-feature-extraction"' in card
    assert "A feature extractor, test_convnext2, which gives 'features' (N, 128); cosine similarity" in card.replace(
        "\\", ""
    )
    assert "kNN top-1 %" in card
    assert "names one of them for any image" not in card
    for name in ("report.md", "report.html"):
        text = (folder / name).read_text()
        assert "kNN top-1" in text
        assert "cosine" in text
        assert "36 training images" in text


def test_a_network_without_head_gives_no_classes(pooled: tuple[Path, RunResult], tmp_path: Path) -> None:
    weights = pooled[0].parent / "w.pth"
    with pytest.raises(RecipeError, match="has no head, and gives no probabilities"):
        export(weights, output="probabilities", out=tmp_path / "out")
    with pytest.raises(ArtifactError, match="gives features and cannot give feature-map; give the PyTorch checkpoint"):
        export(pooled[0] / "stages" / "onnx", format="tensorrt-rtx", output="feature-map", out=tmp_path / "out")


def test_int8_map_is_judged_against_the_map_of_the_classifier(
    quantized: tuple[Path, RunResult], image_folder: Path, tmp_path: Path
) -> None:
    folder, result = quantized
    source, row = result.report.rows
    assert row.accuracy is not None
    assert row.accuracy.metric == "kNN top-1"
    assert row.features is not None
    assert row.features.shape == "(N, 128, 2, 2)"
    assert row.features.similarity is not None
    assert row.features.similarity.places == 4
    assert 0.99 < row.features.similarity.mean < 1
    assert source.features is not None
    assert source.features.similarity is None
    selection = read_artifact(folder / "stages" / "quantize").details
    assert any(step.passed or step.risk_pp < 100 for step in selection.selection.steps)  # type: ignore[attr-defined]
    recipe = write_recipe(result.report)
    assert recipe is not None
    assert 'source_output = "feature-map"' in recipe
    (tmp_path / "r.toml").write_text(recipe)
    assert load_recipe(tmp_path / "r.toml").source_output == "feature-map"
    report = validate(
        folder / "stages" / "quantize",
        baseline=folder.parent / "w.pth",
        data=DataOptions(data=str(image_folder), image_size=SIDE),
        evaluation=EvaluationOptions(max_top1_drop_pp=100.0),
    )
    assert report.rows[1].features == row.features
    assert report.rows[1].verdict.passed


def test_inspect_says_what_it_gives(pooled: tuple[Path, RunResult], tmp_path: Path) -> None:
    file = pooled[0] / "stages" / "onnx" / "model.onnx"
    said = "model test_convnext2, a feature extractor: features of 128 numbers"
    shown = call("inspect", file).out
    assert said in " ".join(shown.split())
    assert "None" not in shown
    graph = onnx.load(file)
    for _ in range(2):
        graph.graph.output[0].type.tensor_type.shape.dim.add().dim_value = 5
    onnx.save(graph, tmp_path / "map.onnx")
    assert f"{said}, at each place of a map" in " ".join(call("inspect", tmp_path / "map.onnx").out.split())


def test_features_of_other_tools_are_refused_with_what_helps(
    pooled: tuple[Path, RunResult], image_folder: Path, tmp_path: Path
) -> None:
    graph = onnx.load(pooled[0] / "stages" / "onnx" / "model.onnx")
    del graph.metadata_props[:]
    onnx.save(graph, tmp_path / "other.onnx")
    data = DataOptions(data=str(image_folder))
    with pytest.raises(ArtifactError, match=r"none of which is known to be scores. Features .* --output features'"):
        validate(tmp_path / "other.onnx", data=data)
    with pytest.raises(
        DataError, match=r"has 128 classes, .* has 3. If 'features' holds features .* --output features'"
    ):
        validate(tmp_path / "other.onnx", data=dataclasses.replace(data, output_name="features"))


def test_images_without_classes_are_refused_with_what_takes_them(
    pooled: tuple[Path, RunResult], image_folder: Path, tmp_path: Path
) -> None:
    flat = tmp_path / "flat"
    flat.mkdir()
    for path in sorted((image_folder / "val" / "cat").glob("*.png"))[:3]:
        shutil.copy(path, flat)
    with pytest.raises(
        DataError, match=r"has 3 images in no folder of a class, such as .* 'convnext-deploy predict' takes them"
    ):
        export(pooled[0].parent / "w.pth", out=tmp_path / "out", data=DataOptions(data=str(flat)))
    assert not (tmp_path / "out").exists()
    assert len(predict(pooled[0] / "stages" / "onnx", [flat])) == 3


@pytest.mark.heavy
def test_engine_of_tensorrt_rtx_gives_features(pooled: tuple[Path, RunResult], tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX has no wheel for this platform")
    result = export(pooled[0] / "stages" / "onnx", format="tensorrt-rtx", gpus=("sm89",), out=tmp_path / "run")
    engine = read_artifact(Path(result.report.rows[-1].identity.artifact))
    assert (engine.format, engine.model.output, engine.io.output) == ("tensorrt", "features", "features")
    plan = inspect_plan(engine.main_file)
    assert (plan.flavor, plan.notes) == ("tensorrt-rtx", ())
    assert sum(plan.nodes.values()) == 16  # the stem, three downsamplings and three layers in each of four blocks


def test_predict_gives_one_vector_for_each_image(
    pooled: tuple[Path, RunResult], quantized: tuple[Path, RunResult], image_folder: Path
) -> None:
    artifact, images = pooled[0] / "stages" / "onnx", sorted((image_folder / "val" / "cat").glob("*.png"))
    found = predict(artifact, images)
    assert [each.features.shape for each in found if each.features is not None] == [(WIDTH,)] * 6
    record = json.loads(json.dumps(found[0].to_record()))
    assert found[0].features is not None
    np.testing.assert_array_equal(np.float32(record["features"]), found[0].features)
    kept = np.load(pooled[0] / "scores" / "onnx.features.npy")[:6, 0].astype(np.float64)
    own = np.stack([each.features for each in found if each.features is not None]).astype(np.float64)
    np.testing.assert_allclose(own / np.linalg.norm(own, axis=1, keepdims=True), kept, atol=1e-3)
    with pytest.raises(RecipeError, match="gives a feature map, which is no vector of an image"):
        predict(quantized[0] / "stages" / "quantize", images)


def test_bundle_is_verified_by_its_features(pooled: tuple[Path, RunResult], image_folder: Path, tmp_path: Path) -> None:
    data = DataOptions(data=str(image_folder))
    made = bundle([pooled[0] / "stages" / "onnx"], out=tmp_path / "b", data=data)
    readme = (made.path / "README.md").read_text()
    assert "A feature extractor, test_convnext2" in readme
    assert "it gives features (N, 128)" in readme
    assert "clear first class" not in readme
    verdict = verify_bundle(made.path)
    assert any("features of" in check.detail for check in verdict.checks)


def test_timm_reads_what_is_converted_without_head(pooled: tuple[Path, RunResult], tmp_path: Path) -> None:
    weights = pooled[0].parent / "w.pth"
    convert(weights, "timm", tmp_path / "timm")
    again = timm.create_model(f"local-dir:{tmp_path / 'timm'}", pretrained=True).eval()
    np.testing.assert_array_equal(features_of(again, "features"), features_of(timm_network(), "features"))
    with pytest.raises(
        CheckpointError, match="torchvision, whose ConvNeXt lacks a form without head; those of timm and"
    ):
        convert(weights, "torchvision", tmp_path / "other")


def test_a_stage_cannot_drop_the_head_of_a_classifier(tmp_path: Path) -> None:
    torch.save(timm_network(num_classes=3).state_dict(), tmp_path / "w.pth")
    recipe = Recipe("r", (StageEntry("onnx", ONNXConfig(output="features"), "source"),), source="x")
    with pytest.raises(ArtifactError, match="is a classifier, and its features cannot be compared with its logits"):
        run_recipe(recipe, Settings(tmp_path / "run", Execution()), open_input(tmp_path / "w.pth"))


def test_without_training_images_the_others_are_the_gallery(pooled: tuple[Path, RunResult], image_folder: Path) -> None:
    from convnext_deploy.evaluation.measure import measure_artifact

    data = open_data(str(image_folder))
    empty = dataclasses.replace(data.train, paths=(), labels=np.zeros(0, np.int64))  # type: ignore[type-var]  # a record
    artifact = read_artifact(pooled[0] / "stages" / "onnx")
    found = measure_artifact(artifact, dataclasses.replace(data, train=empty), Execution(), "onnx")
    assert found.features is not None
    assert (found.features.gallery, found.features.neighbours, found.features.leave_one_out) == (17, 17, True)
    assert "the other validation images" in str(found.features)
    assert found.score is not None
    assert found.score.total == 18


@pytest.mark.heavy
def test_training_under_quantization_follows_the_features(image_folder: Path, tmp_path: Path) -> None:
    torch.save(timm_network().state_dict(), tmp_path / "w.pth")
    result = quantize(
        tmp_path / "w.pth",
        method="qat",
        out=tmp_path / "run",
        data=DataOptions(data=str(image_folder), image_size=SIDE),
        training=TrainingOptions(epochs=1, batch_size=12),
    )
    row = result.report.rows[-1]
    assert row.features is not None
    assert row.features.similarity is not None
    assert row.features.similarity.mean > 0.99
    (epoch,) = row.history.epochs
    assert 0 < float(epoch["validation_loss"] or 0) < 0.01
