"""What a training stage starts from: the body of the given weights bit for bit, and a head that fits the data."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from convnext_deploy.api.convert import convert
from convnext_deploy.artifacts.artifact import Artifact, read_artifact, write_manifest
from convnext_deploy.artifacts.spec import ModelSpec, Preprocess
from convnext_deploy.config.distill import DistillConfig
from convnext_deploy.config.fit import FitConfig
from convnext_deploy.config.train import ModelConfig, TrainConfig
from convnext_deploy.data.datasets import Data
from convnext_deploy.errors import ArtifactError, DataError
from convnext_deploy.models.checkpoints.load_network import load_network
from convnext_deploy.models.convnext import Block, ConvNeXt
from convnext_deploy.models.variants import build_model
from convnext_deploy.pipeline.open_artifact import open_input
from convnext_deploy.stages import distill, train
from convnext_deploy.stages.context import StageContext
from convnext_deploy.system.execution import Execution
from convnext_deploy.system.progress import SilentProgress
from tests.weights import PREPROCESS, random_network, write_weights

CLASSES = ("cat", "dog", "owl")
SEED = 5
SPEC = ModelSpec("test_convnext", 3)
MODEL = ModelConfig("test_convnext", 64, crop_pct=1.0)


@dataclass
class Told(SilentProgress):
    """Keeps what was said."""

    lines: list[str] = field(default_factory=list)

    def say(self, message: str) -> None:
        """See `Progress.say`."""
        self.lines.append(message)


@dataclass(frozen=True)
class Start:
    """The network of a stage before its first step, what the user was told, and the artifact that came out."""

    network: ConvNeXt
    state: dict[str, Tensor]
    told: list[str]
    artifact: Artifact


Begin = Callable[..., Start]


@pytest.fixture
def begin(tmp_path: Path, small_data: Data, monkeypatch: pytest.MonkeyPatch) -> Begin:
    """Run a training stage without its training."""

    def run(
        start: Artifact | None,
        model: ModelConfig = MODEL,
        fit: FitConfig | None = None,
        *,
        as_source: bool = False,
        teacher: Artifact | None = None,
    ) -> Start:
        seen: list[ConvNeXt] = []

        def keep(network: ConvNeXt, *_: Any) -> list[dict[str, float]]:
            seen.append(network)
            return []

        progress, output = Told(), tmp_path / "stage"
        output.mkdir()
        source, weights = (start, None) if as_source else (None, start)
        context = StageContext(
            "stage",
            output,
            small_data,
            Execution(seed=SEED, progress=progress),
            tmp_path / "cache",
            teachers=() if teacher is None else (teacher,),
            weights=weights,
        )
        settings = fit or FitConfig(epochs=1)
        if teacher is None:
            monkeypatch.setattr(train, "fit_network", keep)
            artifact = train.run(TrainConfig(model, settings), source, context)
        else:
            monkeypatch.setattr(distill, "fit_network", keep)
            artifact = distill.run(DistillConfig(model, "teacher", settings), source, context)
        (network,) = seen
        write_manifest(artifact)
        return Start(network, network.state_dict(), progress.lines, read_artifact(output))

    return run


def write(
    tmp_path: Path, spec: ModelSpec = SPEC, names: tuple[str, ...] | None = CLASSES, preprocess: Preprocess = PREPROCESS
) -> Artifact:
    return open_input(write_weights(tmp_path / "start.safetensors", spec, names, preprocess))


def fresh_names(start: Start, given: ModelSpec = SPEC) -> list[str]:
    """Return the names whose values are not those of the given weights; these must be those that the seed gives."""
    weights = random_network(given).state_dict()
    names = [key for key, value in start.state.items() if key not in weights or not torch.equal(value, weights[key])]
    with torch.random.fork_rng([]):
        torch.manual_seed(SEED)
        drawn = build_model(start.artifact.model).state_dict()
    for name in names:
        assert torch.equal(start.state[name], drawn[name]), name
    return names


@pytest.mark.parametrize("as_source", [False, True])
@pytest.mark.parametrize("names", [CLASSES, None], ids=["same-names", "unknown-names"])
def test_stage_keeps_every_weight_when_the_classes_are_the_same(
    begin: Begin, names: tuple[str, ...] | None, as_source: bool, tmp_path: Path
) -> None:
    start = begin(write(tmp_path, names=names), as_source=as_source)
    assert fresh_names(start) == []
    assert start.told == []
    assert (start.artifact.model, start.artifact.class_names) == (SPEC, CLASSES)


HEAD = ["head.weight", "head.bias"]


@pytest.mark.parametrize("as_source", [False, True])
@pytest.mark.parametrize(
    ("classes", "names", "why"),
    [
        (7, None, "7 classes"),
        (7, tuple("abcdefg"), "7 classes"),
        (3, ("cat", "dog", "yak"), "other classes"),
        (3, ("dog", "cat", "owl"), "other classes"),
    ],
    ids=["count", "count-names", "name", "order"],
)
def test_stage_starts_a_fresh_head_and_says_so_when_the_classes_are_others(
    begin: Begin, classes: int, names: tuple[str, ...] | None, why: str, as_source: bool, tmp_path: Path
) -> None:
    given = dataclasses.replace(SPEC, num_classes=classes)
    start = begin(write(tmp_path, given, names), as_source=as_source)
    assert fresh_names(start, given) == HEAD
    (line,) = start.told
    assert line.startswith("stage: head.weight, head.bias start fresh")
    assert why in line
    assert (start.artifact.model, start.artifact.class_names) == (SPEC, CLASSES)


def test_stage_starts_last_norm_and_head_fresh_when_the_weights_are_a_backbone(begin: Begin, tmp_path: Path) -> None:
    state = random_network(SPEC).state_dict()
    torch.save({k: v for k, v in state.items() if not k.startswith(("head.", "norm."))}, tmp_path / "backbone.pth")
    start = begin(open_input(tmp_path / "backbone.pth"))
    fresh = ["norm.weight", "norm.bias", *HEAD]
    assert fresh_names(start) == fresh
    (line,) = start.told
    assert line.startswith(f"stage: {', '.join(fresh)} start fresh")
    assert start.artifact.model == SPEC


HIDDEN = dataclasses.replace(SPEC, head_hidden_size=8, head_activation="relu")
PRE_LOGITS = ["pre_logits.weight", "pre_logits.bias"]


@pytest.mark.parametrize(
    ("given", "asked", "expected", "fresh"),
    [
        (HIDDEN, MODEL, HIDDEN, []),
        (
            SPEC,
            dataclasses.replace(MODEL, head_hidden_size=6),
            dataclasses.replace(SPEC, head_hidden_size=6),
            [*PRE_LOGITS, *HEAD],
        ),
        (HIDDEN, dataclasses.replace(MODEL, head_hidden_size=0), dataclasses.replace(SPEC, head_hidden_size=0), HEAD),
        (
            HIDDEN,
            dataclasses.replace(MODEL, head_hidden_size=6, head_activation="relu"),
            dataclasses.replace(HIDDEN, head_hidden_size=6),
            [*PRE_LOGITS, *HEAD],
        ),
    ],
    ids=["kept", "new", "removed", "resized"],
)
def test_stage_keeps_or_replaces_the_hidden_layer_as_asked(
    begin: Begin, given: ModelSpec, asked: ModelConfig, expected: ModelSpec, fresh: list[str], tmp_path: Path
) -> None:
    start = begin(write(tmp_path, given), asked)
    assert start.artifact.model == expected
    assert fresh_names(start, given) == fresh
    assert (len(start.told) == 1) == bool(fresh)
    assert load_network(start.artifact).head.in_features == (expected.head_hidden_size or 64)


def test_stage_starts_from_the_files_of_every_library_alike(begin: Begin, tmp_path: Path) -> None:
    spec = ModelSpec("convnext_atto", 3)
    source = write_weights(tmp_path / "own.safetensors", spec, CLASSES, PREPROCESS)
    expected = random_network(spec).state_dict()
    for dialect in ("timm", "torchvision", "facebook", "huggingface"):
        weights = open_input(convert(source, dialect, tmp_path / dialect).path)
        start = begin(weights, dataclasses.replace(MODEL, name="atto"))
        assert all(torch.equal(start.state[key], expected[key]) for key in expected)
        assert start.told == []
        start.artifact.path.rename(tmp_path / f"done-{dialect}")


def test_stage_keeps_what_is_unusual_in_the_weights_network(begin: Begin, tmp_path: Path) -> None:
    unusual = dataclasses.replace(SPEC, activation="relu", norm_eps=1e-3, head_norm_eps=1e-2)
    start = begin(write(tmp_path, unusual))
    assert start.artifact.model == unusual
    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        assert torch.equal(load_network(start.artifact)(images), random_network(unusual)(images))


@pytest.mark.parametrize("squash", [False, True])
@pytest.mark.parametrize(
    ("size", "crop_pct", "expected"),
    [(64, None, 0.8), (64, 0.9, 0.9), (160, None, 0.875), (96, None, 1.0)],
    ids=["same-size", "crop", "large", "small"],
)
def test_stage_keeps_the_evaluation_of_the_weights_but_for_size_and_crop(
    begin: Begin, squash: bool, size: int, crop_pct: float | None, expected: float, tmp_path: Path
) -> None:
    mode: Any = "squash" if squash else "center"
    preprocess = dataclasses.replace(PREPROCESS, crop_mode=mode)
    asked = dataclasses.replace(MODEL, image_size=size, crop_pct=crop_pct)
    found = begin(write(tmp_path, preprocess=preprocess), asked).artifact.preprocess
    assert found == dataclasses.replace(preprocess, image_size=size, crop_pct=expected)


@pytest.mark.parametrize("as_source", [False, True])
@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"name": "test_convnext2"}, "its variant is test_convnext, this stage asks for test_convnext2"),
        ({"in_channels": 1}, "its in_channels is 3, this stage asks for 1"),
        ({"patch_size": 8}, "its patch_size is 4, this stage asks for 8"),
    ],
    ids=["variant", "in_channels", "patch_size"],
)
def test_stage_refuses_before_training_when_the_weights_are_of_another_network(
    begin: Begin, changes: dict[str, Any], expected: str, as_source: bool, tmp_path: Path
) -> None:
    with pytest.raises(ArtifactError, match=rf"^[^\n]*start\.safetensors cannot be fine-tuned as asked: {expected}"):
        begin(write(tmp_path), dataclasses.replace(MODEL, **changes), as_source=as_source)
    assert list((tmp_path / "stage").iterdir()) == []


def test_stage_gives_the_network_the_settings_that_count_in_training_only(begin: Begin, tmp_path: Path) -> None:
    fit = FitConfig(
        epochs=1, drop_path_rate=0.5, head_input_dropout=0.25, head_dropout=0.125, gradient_checkpointing=True
    )
    network = begin(write(tmp_path), fit=fit).network
    assert (network.head_input_dropout.p, network.head_dropout.p) == (0.25, 0.125)
    assert network.gradient_checkpointing
    assert max(block.drop_path_rate for block in network.modules() if isinstance(block, Block)) == 0.5


def test_distill_starts_the_student_from_weights_with_a_fresh_head(begin: Begin, tmp_path: Path) -> None:
    teacher = open_input(write_weights(tmp_path / "teacher.safetensors", SPEC, CLASSES, PREPROCESS, seed=1))
    given = dataclasses.replace(SPEC, num_classes=7)
    start = begin(write(tmp_path, given, None), teacher=teacher)
    assert fresh_names(start, given) == HEAD
    assert len(start.told) == 1


def test_distill_refuses_when_the_teacher_has_other_classes(begin: Begin, tmp_path: Path) -> None:
    names = ("cat", "dog", "yak")
    teacher = open_input(write_weights(tmp_path / "teacher.safetensors", SPEC, names, PREPROCESS))
    with pytest.raises(DataError, match="was trained with class 'yak' where"):
        begin(write(tmp_path), teacher=teacher)
