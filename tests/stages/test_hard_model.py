"""Networks as real ones are: one channel is far larger than the others, and the layer after it takes it back.

Where a norm makes it large, folding alone mends it: the weight of the norm goes into the layer after it. Where a GRN does, it takes
smoothing.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from convnext_deploy.artifacts.artifact import Artifact, write_manifest
from convnext_deploy.artifacts.details import TorchDetails
from convnext_deploy.config.choices import Target
from convnext_deploy.config.fit import FitConfig
from convnext_deploy.config.quantize import QuantizeConfig
from convnext_deploy.config.train import ModelConfig, TrainConfig
from convnext_deploy.data.datasets import Data, open_data
from convnext_deploy.data.evaluation_batches import EvaluationBatches
from convnext_deploy.models.channel_scaling import scale_inputs, smoothable
from convnext_deploy.models.checkpoints.load_network import load_network
from convnext_deploy.models.convnext import ConvNeXt
from convnext_deploy.models.variants import VARIANTS
from convnext_deploy.quantization.calibration import calibrate
from convnext_deploy.quantization.prepare import prepare
from convnext_deploy.quantization.scheme import resolve_scheme
from convnext_deploy.stages import quantize, train
from convnext_deploy.stages.context import StageContext
from convnext_deploy.stages.write_artifact import write_torch_artifact
from convnext_deploy.system.execution import Execution
from tests.details import selection_of

pytestmark = pytest.mark.heavy  # a network is trained until it knows the digits

FIT = FitConfig(epochs=20, batch_size=64, base_learning_rate=0.256, warmup_epochs=1, drop_path_rate=0, autocast="off")
OUTLIER = 2000.0  # times the others


@pytest.fixture(scope="module")
def digits() -> Data:
    return open_data("digits")


def context_in(folder: Path, data: Data) -> StageContext:
    folder.mkdir(exist_ok=True)
    return StageContext(folder.name, folder, data, Execution(), folder.parent / "cache")


@pytest.fixture(scope="module")
def trained(digits: Data, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Artifact]:
    """A trained v2 network."""
    folder = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(VARIANTS, "test_convnext2", dataclasses.replace(VARIANTS["test_convnext2"], version=2))
        config = TrainConfig(ModelConfig("test_convnext2", 32), FIT)
        yield train.run(config, None, context_in(folder / "easy", digits))


@pytest.fixture(scope="module", params=["pwconv1", "pwconv2"])
def source(
    request: pytest.FixtureRequest, trained: Artifact, digits: Data, tmp_path_factory: pytest.TempPathFactory
) -> Artifact:
    """The network with outliers planted before one layer of every block, which changes none of its answers."""
    return make_hard(request.param, trained, digits, tmp_path_factory.mktemp("hard"))


def make_hard(before: str, trained: Artifact, digits: Data, folder: Path) -> Artifact:
    network = load_network(trained)
    scales = {}
    for place, name in enumerate(smoothable(network)):
        if name.endswith(before):
            channels = network.get_parameter(f"{name}.weight").shape[1]
            scales[name] = torch.ones(channels)
            scales[name][(7 * place) % channels] = 1 / OUTLIER
    assert len(scales) == 4
    scale_inputs(network, scales)
    context = context_in(folder / "hard", digits)
    hard = write_torch_artifact(
        network,
        context,
        model=trained.model,
        preprocess=trained.preprocess,
        class_names=trained.class_names,
        precision="fp32",
        details=TorchDetails(),
        source=trained,
    )
    write_manifest(hard)
    assert top1(hard, digits) == top1(trained, digits) >= 0.85
    return dataclasses.replace(hard, notes=(before,))


def top1(artifact: Artifact, data: Data) -> float:
    """Return the share of validation images that the artifact's network has right."""
    return share_right(load_network(artifact), artifact, data)


@torch.no_grad()
def share_right(network: ConvNeXt, artifact: Artifact, data: Data) -> float:
    """Return the share of validation images, prepared as the artifact says, that a network has right."""
    right = 0
    for images, labels in EvaluationBatches(data.validation, artifact.preprocess, 128, 0):
        right += int((network(images).argmax(1) == labels).sum())
    return right / len(data.validation)


@pytest.mark.parametrize("target", ["tensorrt", "onnxruntime"])
def test_min_max_loses_what_the_sequence_keeps(target: Target, source: Artifact, digits: Data, tmp_path: Path) -> None:
    before = top1(source, digits)
    # min-max as others do it: the network as it comes, and a range that covers everything
    naive = prepare(load_network(source), resolve_scheme(target))
    calibrate(
        naive, [images for images, _ in EvaluationBatches(digits.train, source.preprocess, 64, 0, range(128))], "minmax"
    )
    assert 100 * (before - share_right(naive, source, digits)) > 5.0
    config = QuantizeConfig(target=target, method="ptq", calibration_images=128, selection_images=512, max_drop_pp=0.5)
    sequence = quantize.run(config, source, context_in(tmp_path / "sequence", digits))
    assert 100 * (before - top1(sequence, digits)) < 0.2
    selection = selection_of(sequence)
    if source.notes == ("pwconv2",):
        assert not selection.steps[0].passed, "folding does not reach into GRN"
        assert 100 * selection.steps[0].top1 < 100 * before - 5.0
        assert selection.chosen in ("smoothing", "bias correction", "GPTQ")
