"""From a float network to a quantized one without training: the steps of post-training quantization in their order."""

import copy
import dataclasses
import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from convnext_deploy.artifacts.artifact import Artifact
from convnext_deploy.artifacts.details import PTQRecord
from convnext_deploy.artifacts.spec import Preprocess
from convnext_deploy.config.choices import Target
from convnext_deploy.config.ptq import PTQSteps
from convnext_deploy.data import transforms
from convnext_deploy.data.datasets import Data
from convnext_deploy.data.loaders import EvaluationBatches
from convnext_deploy.data.sampling import calibration_indices, divide_training_images
from convnext_deploy.errors import ArtifactError, DataError
from convnext_deploy.models.channel_scaling import scale_inputs, smoothable
from convnext_deploy.models.checkpoints.load_network import load_network
from convnext_deploy.models.convnext import Block, ConvNeXt
from convnext_deploy.models.fold import Folding, fold
from convnext_deploy.models.variants import build_model
from convnext_deploy.quantization.bias_correction import correct_biases
from convnext_deploy.quantization.calibration import calibrate, observe
from convnext_deploy.quantization.dead_channels import raise_dead_channels
from convnext_deploy.quantization.gptq import adjust_blocks
from convnext_deploy.quantization.prepare import prepare, quantized_layers, without_quantizers
from convnext_deploy.quantization.scheme import QuantizationScheme, resolve_scheme
from convnext_deploy.quantization.smoothquant import choose_smoothing
from convnext_deploy.stages.context import StageContext
from convnext_deploy.stages.foresight import Given, Outlook
from convnext_deploy.system.progress import Task

QUANTIZES_TORCH = "quantization starts from a PyTorch artifact"
STEM = "downsample_layers.0.0"
_SMOOTHING_IMAGES = 64
_STREAM_IMAGES = 8
_CORRECTION_IMAGES = 256
_LEAST_CORRECTION_IMAGES = 32
_CORRECTION_POSITIONS = 2048  # of the last stage, which has one for 32 by 32 pixels
PIXELS_AT_ONCE = 8 * 224 * 224  # more are not faster on a CPU and take memory
_BYTES_IN_MEMORY = 1 << 28  # images beyond are decoded again for every pass


Calibrated = dict[tuple[object, ...], tuple[ConvNeXt, PTQRecord]]
"""How the grids of a network were fixed → the network and what was decided; one at most."""


@dataclass
class Images:
    """Some training images, in an order that has nothing to do with their classes.

    The first of them are kept in memory, as pixels; others are decoded again in every pass.
    """

    data: Data
    preprocess: Preprocess
    indices: Sequence[int]
    batch_size: int
    workers: int
    device: str

    def __post_init__(self) -> None:
        self._kept: list[Tensor] = []

    def __len__(self) -> int:
        return len(self.indices)

    @property
    def labels(self) -> Tensor:
        """Return the classes, `(N,)` int64."""
        return torch.from_numpy(self.data.train.labels[list(self.indices)])

    def batches(self, task: Task | None = None, start: int = 0, stop: int | None = None) -> Iterator[Tensor]:
        """Yield normalized batches `(n, C, S, S)` on the device, of the images from `start`, where a batch begins, to `stop`."""
        for pixels in self._pixels(start, len(self) if stop is None else min(stop, len(self))):
            yield transforms.normalize(pixels, self.preprocess).to(self.device)
            if task is not None:
                task.advance(len(pixels))

    def _pixels(self, place: int, stop: int) -> Iterator[Tensor]:
        for pixels in self._kept[place // self.batch_size :]:
            if place >= stop:
                return
            yield pixels[: stop - place]
            place += len(pixels)
        rest = self.indices[place:stop]
        if not rest:
            return
        room = _BYTES_IN_MEMORY // (math.prod(self.preprocess.sides) * len(self.preprocess.mean))
        batches = EvaluationBatches(
            self.data.train, self.preprocess, self.batch_size, self.workers, rest, as_pixels=True
        )
        for pixels, _ in batches:
            whole = len(pixels) == self.batch_size or place + len(pixels) == len(self)
            if whole and place == len(self._kept) * self.batch_size and place + len(pixels) <= room:
                self._kept.append(pixels)
            place += len(pixels)
            yield pixels

    def first(self, count: int) -> Tensor:
        """Return the first images as one tensor, `(min(N, count), C, S, S)` on the device."""
        return torch.cat(list(self.batches(stop=count)))


def choose_images(count: int, preprocess: Preprocess, context: StageContext, batch_size: int) -> Images:
    """Return so many training images for calibration, as many of each class, none of them a validation image.

    Raises: DataError: if there is no image at all.
    """
    data = context.need_data()
    chosen = calibration_indices(data.train, data.validation, count, context.execution.seed, (), data.contents)
    images = _images(chosen, preprocess, context, batch_size)
    if len(images) < count:
        context.execution.progress.say(
            f"{context.name}: {len(images)} calibration images, as the training set has no more"
        )
    return images


def choose_images_to_judge(
    counts: tuple[int, int], preprocess: Preprocess, context: StageContext, batch_size: int
) -> tuple[Images, Images]:
    """Return training images for calibration and others to judge by, as `divide_training_images` chooses them.

    Raises: DataError: if there is no image at all.
    """
    data = context.need_data()
    calibrating, judging = divide_training_images(
        data.train, data.validation, counts, context.execution.seed, data.contents
    )
    images = _images(calibrating, preprocess, context, batch_size)
    return images, (
        _images(judging, preprocess, context, batch_size) if judging else dataclasses.replace(images, indices=())
    )


def _images(chosen: Sequence[int], preprocess: Preprocess, context: StageContext, batch_size: int) -> Images:
    """Return training images in an order that has nothing to do with their classes. Raises: DataError: if there is none."""
    data = context.need_data()
    if not chosen:
        raise DataError(
            f"every training image of {data.name} is also a validation image; none is left for calibration."
        )
    order = [chosen[i] for i in np.random.default_rng((context.execution.seed, 0x5E7)).permutation(len(chosen))]
    batch_size = min(batch_size, max(1, PIXELS_AT_ONCE // math.prod(preprocess.sides)))
    return Images(data, preprocess, order, batch_size, context.execution.workers, context.execution.exact_device)


def foresee_quantization(target: Target, sites: Mapping[str, str], source: Outlook, given: Given) -> Outlook:
    """Return what quantization for a target would make of a source.

    Raises:
        ArtifactError: if that is no network in PyTorch, or quantized already.
        RecipeError: if `sites` does not fit its layers.
    """
    given.need_data()
    given.expect(source, "torch", QUANTIZES_TORCH)
    if source.precision != "fp32":
        raise ArtifactError(f"{given.called(source)} is already {source.precision}; quantize its FP32 ancestor.")
    with torch.device("meta"):  # names alone are looked up
        network = build_model(source.model)
    layers = (name for name, layer in network.named_modules() if isinstance(layer, nn.Linear | nn.Conv2d))
    scheme = resolve_scheme(target, dict(sites))
    scheme.select(layers)
    return source.made(given.name, precision=scheme.precision, target=target)


def open_folded(source: Artifact, scheme: QuantizationScheme, context: StageContext) -> Folding:
    """Return the folded float network of an artifact, on the device where it is calibrated.

    Where the scheme quantizes the stem, mean and std go into it too if that is exact: pixel values of 8 bits then lie on a grid
    of 256 steps without any error. The network takes the images that its source takes all the same, and undoes their
    normalization before the stem's first layer.

    Raises: ArtifactError: if folding changed more than rounding does.
    """
    pixels: Any = "unit" if scheme.is_site(STEM) else "normalized"
    folding = fold(load_network(source), source.preprocess, pixels=pixels)
    if not folding.certificate.holds:
        worst = max(difference.relative for difference in folding.certificate.differences)
        raise ArtifactError(f"{source.place}: folding moved a logit by {worst:.1e} of the largest one; it is not safe.")
    if folding.preprocess != source.preprocess:
        folding.network.stem.undo_normalization(source.preprocess.mean, source.preprocess.std)
        folding = dataclasses.replace(folding, preprocess=source.preprocess)
    folding.network.to(context.execution.exact_device)
    return folding


def quantize_network(
    folded: ConvNeXt,
    scheme: QuantizationScheme,
    steps: PTQSteps,
    images: Images,
    context: StageContext,
    calibrated: Calibrated | None = None,
) -> tuple[ConvNeXt, PTQRecord]:
    """Return a quantized copy of a folded network, and what was decided on the way.

    Args:
        folded: from `open_folded`; left alone.
        scheme: which tensors are quantized.
        steps: what to do.
        images: for calibration.
        context: of the stage, for its name and progress.
        calibrated: remembers the last network that was calibrated, of the same float one on the same images, for steps that go on
            from there; None: nothing is remembered.
    """
    network, record = _calibrate(folded, scheme, steps, images, context, {} if calibrated is None else calibrated)
    if steps.gptq or steps.bias_correction:
        network = network if calibrated is None else copy.deepcopy(network)
        return network, _adjust(network, record, steps, images, context)
    return network, record


def _calibrate(
    folded: ConvNeXt,
    scheme: QuantizationScheme,
    steps: PTQSteps,
    images: Images,
    context: StageContext,
    calibrated: Calibrated,
) -> tuple[ConvNeXt, PTQRecord]:
    """Smooth a copy of the float network and fix its grids, or return the one that was made last if it was made alike."""
    how = (steps.calibration_method, steps.percentile, steps.smoothing, steps.smoothing_alpha)
    if how in calibrated:
        return calibrated[how]
    calibrated.clear()
    network = without_quantizers(folded)
    record = PTQRecord(len(images))
    if steps.smoothing:
        smoothing = _smooth(network, scheme, steps.smoothing_alpha, images)
        record = dataclasses.replace(record, smoothing=smoothing)
    network = prepare(network, scheme)
    progress = context.execution.progress
    with progress.task(f"{context.name}: calibrate", len(images), "images") as task:
        calibrate(network, images.batches(task), steps.calibration_method, steps.percentile)
    streams = {f"{name}.pwconv2": name for name, module in network.named_modules() if isinstance(module, Block)}
    raise_dead_channels(network, streams, images.first(_STREAM_IMAGES))
    calibrated[how] = network, record
    return network, record


def _adjust(network: ConvNeXt, record: PTQRecord, steps: PTQSteps, images: Images, context: StageContext) -> PTQRecord:
    """Round weights and correct biases in place, as the steps say, and return the record with it."""
    progress = context.execution.progress
    blocks, asked = network.trunk(), len(images)
    positions = math.prod(max(1, side // 32) for side in images.preprocess.sides)
    corrected = min(_CORRECTION_IMAGES, max(_LEAST_CORRECTION_IMAGES, _CORRECTION_POSITIONS // positions))
    if steps.gptq:
        with progress.task(f"{context.name}: round weights", len(blocks), "blocks") as task:
            seen = adjust_blocks(
                blocks, images.first(asked), task.advance, correct_on=corrected if steps.bias_correction else 0
            )
        record = dataclasses.replace(record, layers_rounded=sum(1 for _ in quantized_layers(network)))
    else:
        asked = min(asked, corrected)
        with progress.task(f"{context.name}: correct biases", len(blocks), "blocks") as task:
            seen = correct_biases(blocks, images.first(asked), task.advance)
    if seen < asked:
        progress.say(
            f"{context.name}: memory has room for {seen} of the {asked} images in the first blocks, and for more later"
        )
    return record


def _smooth(
    network: ConvNeXt, scheme: QuantizationScheme, alpha: float | None, images: Images
) -> Mapping[str, float | None]:
    """Smooth a float network in place, and return the alpha of each layer that could be smoothed."""
    places: Collection[str] = smoothable(network).keys()
    prepared = prepare(without_quantizers(network), scheme)
    inputs, _ = observe(prepared, images.first(_SMOOTHING_IMAGES).split(images.batch_size))
    chosen = choose_smoothing(prepared, inputs, places, alpha)
    scale_inputs(network, {name: found.scale for name, found in chosen.items() if found.alpha is not None})
    return {name: found.alpha for name, found in chosen.items()}
