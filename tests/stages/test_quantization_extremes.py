"""Quantization at its limits: few or odd images, dead and huge channels, broken weights. A sensible result, or one clear line."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from convnext_deploy.artifacts.artifact import Artifact, write_manifest
from convnext_deploy.artifacts.details import TorchDetails
from convnext_deploy.config.choices import Target
from convnext_deploy.config.fit import FitConfig
from convnext_deploy.config.ptq import PTQConfig
from convnext_deploy.config.quantize import QuantizeConfig
from convnext_deploy.config.train import ModelConfig, TrainConfig
from convnext_deploy.data.datasets import ArrayImages, Data, ImageSet
from convnext_deploy.data.evaluation_batches import EvaluationBatches
from convnext_deploy.errors import ArtifactError, DeployError
from convnext_deploy.models.checkpoints.load_network import load_network
from convnext_deploy.models.convnext import ConvNeXt
from convnext_deploy.stages import ptq, quantize, train
from convnext_deploy.stages.context import StageContext
from convnext_deploy.stages.write_artifact import write_torch_artifact
from convnext_deploy.system.execution import Execution
from tests.cli.conftest import call
from tests.details import ptq_of, selection_of
from tests.shared import heavy_except
from tests.weights import random_network

pytestmark = pytest.mark.heavy

# with the usual LayerScale of 1e-6 a block says nothing after so few steps, be it broken or not
FIT = FitConfig(
    epochs=8, batch_size=12, base_learning_rate=0.256, warmup_epochs=0, layer_scale_init=1.0, autocast="off"
)
TARGETS = pytest.mark.parametrize("target", ["tensorrt", "onnxruntime"])
ONE_QUICK = pytest.mark.parametrize("target", heavy_except(("onnxruntime",), ("tensorrt", "onnxruntime")))
BLOCK = "stages.1.0"
Place = Callable[..., StageContext]
Change = Callable[[ConvNeXt], None]


@pytest.fixture
def place(tmp_path: Path, small_data: Data) -> Place:
    """A context with a new folder for every stage."""

    def create(data: Data = small_data) -> StageContext:
        folder = tmp_path / f"stage-{len(list(tmp_path.glob('stage-*')))}"
        folder.mkdir()
        return StageContext("stage", folder, data, Execution(), tmp_path / "cache")

    return create


@pytest.fixture(scope="module")
def source(small_data: Data, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """A very small network that tells the three colours apart."""
    return learn(small_data, tmp_path_factory.mktemp("source"))


def learn(data: Data, folder: Path, channels: int = 3) -> Artifact:
    context = StageContext("float", folder, data, Execution(), folder / "cache")
    config = TrainConfig(ModelConfig("test_convnext2", 32, in_channels=channels), FIT)
    artifact = train.run(config, None, context)
    write_manifest(artifact)
    return artifact


def rewrite(source: Artifact, network: ConvNeXt, context: StageContext) -> Artifact:
    """Write a float network in the place of another artifact's."""
    artifact = write_torch_artifact(
        network,
        context,
        model=dataclasses.replace(source.model, num_classes=network.head.out_features),
        preprocess=source.preprocess,
        class_names=source.class_names,
        precision="fp32",
        details=TorchDetails(),
        source=None,
    )
    write_manifest(artifact)
    return artifact


@torch.no_grad()
def change(source: Artifact, how: Change, context: StageContext) -> Artifact:
    """Write a changed copy of an artifact's network."""
    network = load_network(source)
    how(network)
    return rewrite(source, network, context)


def run_quantize(source: Artifact, context: StageContext, **settings: Any) -> Artifact:
    given = {"method": "ptq", "calibration_images": 12, "selection_images": 12, "batch_size": 8, **settings}
    return quantize.run(QuantizeConfig(**given), source, context)


@torch.no_grad()
def logits(artifact: Artifact, images: ImageSet) -> Tensor:
    network = load_network(artifact)
    return torch.cat([network(batch) for batch, _ in EvaluationBatches(images, artifact.preprocess, 18)])


def assert_as_good(quantized: Artifact, source: Artifact, images: ImageSet, within: float = 0.005) -> None:
    """The float network is right about all 18 images, INT8 about all but one at most, and its logits are hardly others."""
    before, now = logits(source, images), logits(quantized, images)
    assert torch.equal(before.argmax(1), torch.from_numpy(images.labels))
    assert (before.argmax(1) != now.argmax(1)).sum() <= 1
    assert (now - before).abs().mean() <= within * before.abs().mean()


def only(images: ImageSet, indices: list[int]) -> ArrayImages:
    arrays = np.stack([np.asarray(images.load(index)) for index in indices])
    return ArrayImages(arrays, images.labels[indices])


@TARGETS
def test_three_images_calibrate_three_colours(target: str, source: Artifact, small_data: Data, place: Place) -> None:
    artifact = run_quantize(source, place(), target=target, calibration_images=3, selection_images=3)
    assert_as_good(artifact, source, small_data.validation)


@TARGETS
def test_one_image_does_for_all(target: str, source: Artifact, small_data: Data, place: Place) -> None:
    data = dataclasses.replace(small_data, train=only(small_data.train, [0]))
    artifact = run_quantize(source, place(data), target=target)
    assert ptq_of(artifact).calibration_images == 1
    assert logits(artifact, small_data.validation).isfinite().all()


@TARGETS
def test_calibration_on_one_class_serves_the_others(
    target: str, source: Artifact, small_data: Data, place: Place
) -> None:
    indices = [int(index) for index in np.flatnonzero(small_data.train.labels == 1)]
    data = dataclasses.replace(small_data, train=only(small_data.train, indices))
    assert_as_good(run_quantize(source, place(data), target=target), source, small_data.validation, 0.05)


@TARGETS
def test_network_of_one_class_gives_finite_logits(
    target: str, source: Artifact, small_data: Data, place: Place
) -> None:
    single = rewrite(source, random_network(dataclasses.replace(source.model, num_classes=1)), place())
    artifact = run_quantize(single, place(), target=target)
    # there is but one answer, so none can change
    assert {(step.agreement, step.expected_drop_pp) for step in selection_of(artifact).steps} == {(1.0, 0.0)}
    before, now = (logits(each, small_data.validation) for each in (single, artifact))
    assert (now - before).abs().max() <= 0.1 * before.abs().max()


def grey(images: ImageSet, channels: int) -> ArrayImages:
    """The classes are dark, middling and bright; the noise stays."""
    arrays = np.stack([np.asarray(images.load(index)) for index in range(len(images))])
    noise = arrays.min(axis=3).astype(np.int64)
    light = (noise + 80 * images.labels[:, None, None]).astype(np.uint8)
    return ArrayImages(light if channels == 1 else np.repeat(light[..., None], 3, axis=3), images.labels)


@ONE_QUICK
@pytest.mark.parametrize("channels", [1, 3])
def test_grey_images_keep_their_answers(
    target: str, channels: int, small_data: Data, tmp_path: Path, place: Place
) -> None:
    train_images, validation = grey(small_data.train, channels), grey(small_data.validation, channels)
    data = dataclasses.replace(small_data, train=train_images, validation=validation)
    source = learn(data, tmp_path, channels)
    assert source.model.in_channels == channels
    assert_as_good(run_quantize(source, place(data), target=target), source, data.validation, 0.012)


@TARGETS
def test_colours_of_grey_files_are_finite(target: str, source: Artifact, small_data: Data, place: Place) -> None:
    """A network for colours sees nothing that it knows, and black and white images have three values at most."""
    arrays = np.zeros((9, 32, 32), np.uint8)
    arrays[3:6], arrays[6:, ::2] = 255, 255
    data = dataclasses.replace(small_data, train=ArrayImages(arrays, np.repeat(np.arange(3), 3)))
    artifact = run_quantize(source, place(data), target=target)
    assert logits(artifact, data.train).isfinite().all()
    assert logits(artifact, small_data.validation).isfinite().all()


def dead_input(network: ConvNeXt) -> None:
    """The norm of a block gives 0 in every channel, whatever comes."""
    block = network.get_submodule(BLOCK)
    for parameter in block.get_submodule("norm").parameters():
        parameter.zero_()


def dead_convolution(network: ConvNeXt) -> None:
    """A depthwise convolution gives 0 everywhere, and so does the norm behind it, before its affine."""
    for parameter in network.get_submodule(f"{BLOCK}.dwconv").parameters():
        parameter.zero_()


def dead_outputs(network: ConvNeXt) -> None:
    """One output channel of each layer of a block is 0, and one of a downsampling layer."""
    for name in (f"{BLOCK}.pwconv1", f"{BLOCK}.pwconv2", f"{BLOCK}.dwconv", "downsample_layers.2.1"):
        for parameter in network.get_submodule(name).parameters():
            parameter[3] = 0


def dead_with_bias(network: ConvNeXt) -> None:
    """A channel of zero weights has a bias, which must survive the smallest scale of all."""
    for name in (f"{BLOCK}.pwconv1", f"{BLOCK}.dwconv", "downsample_layers.2.1"):
        weight, bias = network.get_submodule(name).parameters()
        weight[3], bias[3] = 0, 0.5


def outlier(network: ConvNeXt) -> None:
    """One hidden channel is 1000 times what it was, and the layer behind it takes a thousandth of it."""
    first, second = (network.get_submodule(f"{BLOCK}.{name}") for name in ("pwconv1", "pwconv2"))
    for parameter in first.parameters():
        parameter[5] *= 1000
    next(second.parameters())[:, 5] /= 1000


@ONE_QUICK
@pytest.mark.parametrize(
    "how",
    heavy_except((dead_with_bias, outlier), [dead_input, dead_convolution, dead_outputs, dead_with_bias, outlier]),
)
def test_dead_and_huge_channels_keep_the_answers(
    target: Target, how: Change, source: Artifact, small_data: Data, place: Place
) -> None:
    changed = change(source, how, place())
    within = 0.03 if how is outlier else 0.005  # one range for all channels costs the others much of their grid
    assert_as_good(run_quantize(changed, place(), target=target), changed, small_data.validation, within)
    steps = PTQConfig(target=target, calibration_images=12)
    assert_as_good(ptq.run(steps, changed, place()), changed, small_data.validation)


def test_better_steps_take_most_of_what_an_outlier_costs(source: Artifact, small_data: Data, place: Place) -> None:
    changed, noise = change(source, outlier, place()), {}
    for name in ("min-max", "ranges by error", "smoothing"):
        steps = dataclasses.asdict(quantize.SEQUENCE[name])
        artifact = ptq.run(PTQConfig(**steps, calibration_images=12), changed, place())
        before, now = (logits(each, small_data.validation) for each in (changed, artifact))
        noise[name] = (now - before).square().mean().item()
    assert noise["ranges by error"] < 0.3 * noise["min-max"]
    assert noise["smoothing"] < 0.3 * noise["min-max"]


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (math.nan, rf"'{BLOCK}.pwconv1.weight' holds values that are not finite"),
        (math.inf, rf"'{BLOCK}.pwconv1.weight' holds values that are not finite"),
        (3e38, "the logits are not finite in float32; such a network cannot be folded"),
    ],
)
def test_weights_that_are_not_finite_or_overflow_are_refused(
    value: float, message: str, source: Artifact, place: Place
) -> None:
    def spoil(network: ConvNeXt) -> None:
        next(network.get_submodule(f"{BLOCK}.pwconv1").parameters()).fill_(value)

    changed = change(source, spoil, place())
    with pytest.raises(DeployError, match=message):
        run_quantize(changed, place())


@pytest.mark.parametrize("step", ["min-max", "smoothing"])
@pytest.mark.parametrize("block", ["stages.3.0", "stages.1.0"])
def test_activations_that_are_not_finite_name_the_layer_that_gets_them(
    block: str, step: str, source: Artifact, place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where the calibration images overflow, though those that folding was tried on do not."""
    open_folded = vars(quantize)["open_folded"]

    def spoil(*arguments: Any) -> Any:
        folding = open_folded(*arguments)
        with torch.no_grad():
            dict(folding.network.named_parameters())[f"{block}.pwconv1.bias"][2] = math.nan
        return folding

    monkeypatch.setattr(quantize, "open_folded", spoil)
    monkeypatch.setattr(quantize, "SEQUENCE", {step: quantize.SEQUENCE[step]})
    with pytest.raises(DeployError, match=rf"the input of '{block}.pwconv2' is not finite on the calibration images"):
        run_quantize(source, place())


def test_network_that_is_int8_already_is_refused(source: Artifact, place: Place) -> None:
    first = run_quantize(source, place())
    with pytest.raises(ArtifactError, match="is already int8; quantize its FP32 ancestor"):
        run_quantize(first, place())
    with pytest.raises(ArtifactError, match="is already int8; quantize its FP32 ancestor"):
        ptq.run(PTQConfig(), first, place())


@pytest.mark.parametrize("options", [(), ("--calibration-method", "minmax")])
def test_command_refuses_int8_in_one_line(
    options: tuple[str, ...], source: Artifact, small_data: Data, place: Place, tmp_path: Path
) -> None:
    first = ptq.run(PTQConfig(calibration_images=6), source, place())
    write_manifest(first)
    rest = ("--data", small_data.name, "--out", tmp_path / "out", "--device", "cpu", "--workers", "0")
    outcome = call("quantize", first.path, *rest, *options)
    assert (outcome.code, outcome.out) == (1, "")
    assert outcome.err == f"error: {first.path} is already int8; quantize its FP32 ancestor.\n"
