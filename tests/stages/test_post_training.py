"""What goes into post-training quantization: which images, decoded how often, and the folded network that takes them."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from convnext_deploy.artifacts.artifact import Artifact, read_artifact, write_manifest
from convnext_deploy.artifacts.details import TOLERANCES
from convnext_deploy.artifacts.spec import ModelSpec, Preprocess
from convnext_deploy.config.ptq import PTQConfig, PTQSteps
from convnext_deploy.config.quantize import QuantizeConfig
from convnext_deploy.data.datasets import ArrayImages, Data, ImageSet
from convnext_deploy.data.decoding import Encoded
from convnext_deploy.errors import ArtifactError, DataError
from convnext_deploy.models.checkpoints.load_network import load_network
from convnext_deploy.pipeline.open_artifact import open_input
from convnext_deploy.quantization.prepare import quantized_layers
from convnext_deploy.quantization.scheme import resolve_scheme
from convnext_deploy.stages import chosen_images, ptq, quantize
from convnext_deploy.stages.chosen_images import Images, choose_images, choose_images_to_judge
from convnext_deploy.stages.context import StageContext
from convnext_deploy.stages.ptq_steps import open_folded, quantize_network
from convnext_deploy.stages.selection import Enough, Judge
from convnext_deploy.system.execution import Execution
from tests.exporters.recorded_progress import RecordingProgress
from tests.weights import write_weights

SIDE, CLASSES = 32, ("cat", "dog", "owl")
PREPROCESS = Preprocess(SIDE, 1.0, "bilinear", (0.41, 0.46, 0.5), (0.21, 0.25, 0.3))
PIXELS = np.random.default_rng(0).integers(0, 256, (18, SIDE, SIDE, 3)).astype(np.uint8)
TRAIN = ArrayImages(PIXELS, np.repeat(np.arange(3), 6))
OTHERS = ArrayImages(255 - PIXELS[:6], np.arange(6) % 3)
STEM = "downsample_layers.0.0"
Place = Callable[..., StageContext]


class Watched:
    """A set of images that writes down which ones were decoded; of a secret one none may be, nor may labels be read."""

    def __init__(self, images: ImageSet, *, secret: bool = False) -> None:
        self.images, self.secret = images, secret
        self.loaded: list[int] = []

    @property
    def labels(self) -> NDArray[np.int64]:
        assert not self.secret, "labels of validation images were read"
        return self.images.labels

    def __len__(self) -> int:
        return len(self.images)

    def load(self, index: int) -> Image.Image:
        assert not self.secret, "a validation image was decoded"
        self.loaded.append(int(index))
        return self.images.load(index)

    def encoded(self, index: int) -> Encoded | None:
        assert not self.secret, "a validation image was opened"
        return self.images.encoded(index)

    def content(self, index: int) -> bytes:  # hashed, to tell a training image that is also a validation image
        return self.images.content(index)

    def size_hint(self, index: int) -> int:
        return self.images.size_hint(index)


def data_of(train: ImageSet = TRAIN, validation: ImageSet = OTHERS) -> Data:
    return Data("some", train, validation, CLASSES)


@pytest.fixture
def lines() -> RecordingProgress:
    return RecordingProgress()


@pytest.fixture
def place(tmp_path: Path, lines: RecordingProgress) -> Place:
    """A context with a new folder."""

    def create(data: Data | None = None, seed: int = 0) -> StageContext:
        folder = tmp_path / f"stage-{len(list(tmp_path.glob('stage-*')))}"
        folder.mkdir()
        return StageContext("ptq", folder, data or data_of(), Execution(seed=seed, progress=lines), tmp_path / "cache")

    return create


@pytest.fixture
def source(tmp_path: Path) -> Artifact:
    """A random network, in which every parameter changes the logits."""
    path = write_weights(tmp_path / "source.safetensors", ModelSpec("test_convnext2", 3), CLASSES, PREPROCESS)
    return open_input(path)


def images_of(data: Data, indices: list[int], batch_size: int = 4) -> Images:
    return Images(data.train, PREPROCESS, indices, batch_size, 0, "cpu")


def unit(pixels: NDArray[np.uint8]) -> Tensor:
    """Pixel values / 255, `(N, 3, S, S)`."""
    return torch.from_numpy(pixels.astype(np.float64) / 255).permute(0, 3, 1, 2).float()


def normalized(pixels: NDArray[np.uint8]) -> Tensor:
    values = (pixels.astype(np.float64) / 255 - np.array(PREPROCESS.mean)) / np.array(PREPROCESS.std)
    return torch.from_numpy(values).permute(0, 3, 1, 2).float()


def choose(place: Place, count: int, data: Data | None = None, seed: int = 0) -> list[int]:
    return list(choose_images(count, PREPROCESS, place(data, seed), 4).indices)


def choose_both(place: Place, counts: tuple[int, int], data: Data | None = None, seed: int = 0) -> list[list[int]]:
    chosen = choose_images_to_judge(counts, PREPROCESS, place(data, seed), 4)
    return [list(images.indices) for images in chosen]


@pytest.mark.parametrize("count", [6, 18, 30])
def test_chosen_images_are_all_different(count: int, place: Place, lines: RecordingProgress) -> None:
    chosen = choose(place, count)
    assert len(set(chosen)) == len(chosen) == min(18, count)
    assert set(chosen) <= set(range(18))
    fewer = ["ptq: 18 calibration images, as the training set has no more"]
    assert lines.said == (fewer if count > 18 else [])


@pytest.mark.parametrize(
    ("counts", "sizes"),
    [
        ((6, 4), (6, 4)),
        ((12, 6), (12, 6)),
        # where there are too few, a third calibrates, or what the judge does not need
        ((15, 10), (8, 10)),
        ((18, 10), (8, 10)),
        ((12, 99), (6, 12)),
        ((2, 99), (2, 16)),
        ((512, 4096), (6, 12)),
    ],
)
def test_images_are_divided_between_calibration_and_the_judge(
    counts: tuple[int, int], sizes: tuple[int, int], place: Place
) -> None:
    """Of 520 images, 512 calibrated once and 8 judged."""
    first, second = choose_both(place, counts)
    assert (len(first), len(second)) == sizes
    assert len({*first, *second}) == sum(sizes)


def test_chosen_images_are_in_no_order_of_classes_and_as_many_of_each(place: Place) -> None:
    first = choose(place, 6)
    assert np.bincount(TRAIN.labels[first]).tolist() == [2, 2, 2]
    assert first != sorted(first)


def test_calibration_has_as_many_images_of_each_class_and_the_judge_the_mix_of_the_data(place: Place) -> None:
    labels = np.repeat(np.arange(3), [60, 30, 10])
    pixels = np.random.default_rng(1).integers(0, 256, (100, 4, 4, 3)).astype(np.uint8)
    calibrating, judging = choose_both(place, (9, 50), data_of(ArrayImages(pixels, labels)))
    assert np.bincount(labels[calibrating]).tolist() == [3, 3, 3]
    assert np.bincount(labels[judging]).tolist() == [30, 15, 5]
    assert judging != sorted(judging)


def test_seed_decides_which_images_are_chosen(place: Place) -> None:
    assert choose(place, 8, seed=1) == choose(place, 8, seed=1) != choose(place, 8, seed=2)
    assert (
        choose_both(place, (4, 4), seed=1) == choose_both(place, (4, 4), seed=1) != choose_both(place, (4, 4), seed=2)
    )


def test_no_chosen_image_is_a_validation_image(place: Place) -> None:
    held_out = ArrayImages(np.concatenate([OTHERS.arrays, PIXELS[[3, 11, 12]]]), np.arange(9) % 3)
    others = [index for index in range(18) if index not in (3, 11, 12)]
    assert sorted(choose(place, 99, data_of(validation=held_out))) == others
    for seed in range(4):
        first, second = choose_both(place, (3, 99), data_of(validation=held_out), seed)
        assert (len(first), sorted(first + second)) == (3, others)


def test_training_images_that_are_all_validation_images_are_refused(place: Place) -> None:
    for run in (lambda data: choose(place, 4, data), lambda data: choose_both(place, (4, 4), data)):
        with pytest.raises(DataError, match="every training image of some is also a validation image; none is left"):
            run(data_of(validation=TRAIN))


def test_batches_are_decoded_once_and_normalized() -> None:
    train = Watched(TRAIN)
    order = [7, 0, 3, 16, 5, 9, 1, 2, 4]
    images, task = images_of(data_of(train), order), Mock()
    passes = [list(images.batches(task)) for _ in range(3)]
    assert train.loaded == order
    assert [call.args for call in task.advance.call_args_list] == [(4,), (4,), (1,)] * 3
    for batches in passes:
        assert [len(batch) for batch in batches] == [4, 4, 1]
        assert torch.allclose(torch.cat(batches), normalized(PIXELS[order]), atol=1e-6)
    assert images.labels.tolist() == [1, 0, 0, 2, 0, 1, 0, 0, 0]


@pytest.mark.parametrize(("room", "again"), [(0, []), (-1, [8]), (-6 * 3 * SIDE * SIDE, list(range(9)))])
def test_what_does_not_fit_is_decoded_for_every_pass(
    room: int, again: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The pixels of nine images fit exactly, miss by one byte, so that the third batch is left out, or not one batch fits."""
    monkeypatch.setattr(chosen_images, "_BYTES_IN_MEMORY", 9 * 3 * SIDE * SIDE + room)
    train = Watched(TRAIN)
    images = images_of(data_of(train), list(range(9)))
    found = [torch.cat(list(images.batches())) for _ in range(3)]
    assert train.loaded == [*range(9), *again, *again]
    assert all(torch.equal(found[0], other) for other in found[1:])


def test_pass_that_breaks_off_keeps_nothing() -> None:
    images = images_of(data_of(), list(range(9)))
    assert len(list(itertools.islice(images.batches(), 1))) == 1
    assert [len(batch) for batch in images.batches()] == [4, 4, 1]
    assert [len(batch) for batch in images.batches()] == [4, 4, 1]


@pytest.mark.parametrize("count", [1, 4, 6, 9, 50])
@pytest.mark.parametrize("kept", [False, True])
def test_first_images_are_those_of_the_first_batches(count: int, kept: bool) -> None:
    train, order = Watched(TRAIN), [7, 0, 3, 16, 5, 9, 1, 2, 4]
    images = images_of(data_of(train), order)
    if kept:
        list(images.batches())
    found = images.first(count)
    assert torch.allclose(found, normalized(PIXELS[order[:count]]), atol=1e-6)
    # no more is decoded than is asked for, and nothing twice
    assert train.loaded == (order if kept else order[:count])
    assert torch.equal(images.first(count), found)
    assert torch.cat(list(images.batches())).shape[0] == 9


@pytest.mark.parametrize(
    ("target", "sites", "takes_pixels"),
    [
        ("tensorrt", {}, False),
        ("onnxruntime", {}, True),
        ("tensorrt", {STEM: "int8"}, True),
        ("onnxruntime", {STEM: "float"}, False),
    ],
)
@torch.no_grad()
def test_mean_and_std_go_into_a_stem_that_is_quantized(
    target: str, sites: dict[str, str], takes_pixels: bool, source: Artifact, place: Place
) -> None:
    folding = open_folded(source, resolve_scheme(target, sites), place())
    expected = load_network(source)(normalized(PIXELS))
    assert torch.allclose(folding.network(normalized(PIXELS)), expected, atol=1e-4)
    assert folding.preprocess == PREPROCESS
    assert (folding.network.stem.std is not None) == takes_pixels
    seen: list[Tensor] = []
    folding.network.get_submodule(STEM).register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    folding.network(normalized(PIXELS))
    assert torch.allclose(seen[0], unit(PIXELS) if takes_pixels else normalized(PIXELS), atol=1e-6)
    assert not folding.network.training


@pytest.mark.parametrize("stage", [ptq, quantize])
@torch.no_grad()
def test_artifact_takes_the_images_that_its_source_takes(stage: Any, source: Artifact, place: Place) -> None:
    config: Any = PTQConfig(target="onnxruntime", calibration_images=12)
    if stage is quantize:
        config = QuantizeConfig(target="onnxruntime", calibration_images=12, max_drop_pp=100.0)
    artifact = stage.run(config, source, place())
    write_manifest(artifact)
    found = read_artifact(artifact.path)
    assert found.preprocess == source.preprocess
    assert open_input(artifact.main_file).preprocess == found.preprocess
    before, now = (load_network(each)(normalized(PIXELS)) for each in (source, found))
    assert (now - before).square().mean() < 0.01 * before.square().mean()


def test_folding_that_changes_more_than_rounding_is_refused(
    source: Artifact, place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(TOLERANCES, "float32", 1e-12)
    with pytest.raises(ArtifactError, match="of the largest one; it is not safe"):
        open_folded(source, resolve_scheme("tensorrt"), place())


def test_folded_network_is_left_alone(source: Artifact, place: Place) -> None:
    scheme = resolve_scheme("onnxruntime")
    folding = open_folded(source, scheme, place())
    before = {key: tensor.clone() for key, tensor in folding.network.state_dict().items()}
    steps = PTQSteps()
    network, record = quantize_network(folding.network, scheme, steps, images_of(data_of(), list(range(9))), place())
    after = folding.network.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(tensor, after[key]) for key, tensor in before.items())
    assert network.state_dict().keys() > before.keys()
    assert record.smoothing
    assert record.layers_rounded == sum(1 for _ in quantized_layers(network))


def test_sequence_calibrates_and_judges_on_other_images_and_sees_no_validation_image(
    source: Artifact, place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every step is tried, and then layers in float: none may look at what will judge the result. Only the float network may."""
    compare, make = Judge.compare, vars(quantize)["quantize_network"]
    judged: list[int] = []
    calibrated: list[list[int]] = []

    def may_look(name: str) -> None:
        look = vars(quantize)[name]

        def look_and_hide(*arguments: Any) -> Any:
            others.secret = False
            found = look(*arguments)
            others.secret = True
            return found

        monkeypatch.setattr(quantize, name, look_and_hide)

    def fail(self: Judge, *arguments: Any) -> Any:
        if self.level is not None:  # no rehearsal
            judged[:] = self.images.indices
        return dataclasses.replace(compare(self, *arguments), passed=False)

    def watch(folded: Any, scheme: Any, steps: Any, images: Images, *rest: Any, **options: Any) -> Any:
        calibrated.append(list(images.indices))
        return make(folded, scheme, steps, images, *rest, **options)

    monkeypatch.setattr(Judge, "compare", fail)
    monkeypatch.setattr(quantize, "quantize_network", watch)
    may_look("choose_unseen")
    may_look("ask_about_unseen")
    monkeypatch.setattr(Enough, "__bool__", lambda _: True)
    train, others = Watched(TRAIN), Watched(OTHERS, secret=True)
    data = data_of(train, others)
    quantize.run(QuantizeConfig(method="ptq", calibration_images=7, selection_images=9), source, place(data))
    assert calibrated == [calibrated[0]] * 5
    assert (len(calibrated[0]), len(judged)) == (7, 9)
    assert set(calibrated[0]).isdisjoint(judged)
    # what is kept in memory is decoded once, and nothing else is
    assert sorted(train.loaded) == sorted(calibrated[0] + judged)
    assert others.loaded == list(range(6))


def test_sequence_says_that_it_judges_by_the_images_of_calibration(
    source: Artifact, place: Place, lines: RecordingProgress
) -> None:
    quantize.run(QuantizeConfig(max_drop_pp=100.0), source, place(data_of(ArrayImages(PIXELS[:1], TRAIN.labels[:1]))))
    assert "ptq: no training images are left to select by; those of calibration are used" in lines.said


def test_program_around_it_does_not_change_what_quantization_computes(source: Artifact, place: Place) -> None:
    config = PTQConfig(calibration_method="minmax", smoothing=False, gptq=False, calibration_images=6)
    before = ptq.run(config, source, place()).main_file.read_bytes()
    torch.set_float32_matmul_precision("medium")
    try:
        with torch.autocast("cpu", torch.bfloat16):
            assert ptq.run(config, source, place()).main_file.read_bytes() == before
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision("highest")
