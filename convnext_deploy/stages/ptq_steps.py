"""From a float network to a quantized one without training: the steps of post-training quantization in their order."""

import copy
import dataclasses
import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from convnext_deploy.artifacts.artifact import Artifact
from convnext_deploy.artifacts.details import PTQRecord
from convnext_deploy.config.choices import Target
from convnext_deploy.config.ptq import PTQSteps
from convnext_deploy.errors import ArtifactError
from convnext_deploy.models.channel_scaling import scale_inputs, smoothable
from convnext_deploy.models.checkpoints.load_network import load_network
from convnext_deploy.models.convnext import Block, ConvNeXt
from convnext_deploy.models.fold import Folding, fold
from convnext_deploy.models.variants import build_model
from convnext_deploy.quantization.bias_correction import correct_biases
from convnext_deploy.quantization.calibration import AUTO, fix_grids
from convnext_deploy.quantization.dead_channels import raise_dead_channels
from convnext_deploy.quantization.gptq import adjust_blocks
from convnext_deploy.quantization.observers import WITHOUT_HISTOGRAM
from convnext_deploy.quantization.prepare import prepare, quantized_layers, without_quantizers
from convnext_deploy.quantization.scheme import QuantizationScheme, resolve_scheme
from convnext_deploy.quantization.seen import Seen, join_seen, watch
from convnext_deploy.quantization.smoothquant import choose_smoothing
from convnext_deploy.stages.chosen_images import Images
from convnext_deploy.stages.context import StageContext
from convnext_deploy.stages.foresight import Given, Outlook
from convnext_deploy.system.distributed import world
from convnext_deploy.system.progress import Task
from convnext_deploy.system.shared_work import share_out

QUANTIZES_TORCH = "quantization starts from a PyTorch artifact"
STEM = "downsample_layers.0.0"
_SMOOTHING_IMAGES = 64
_STREAM_IMAGES = 8
_CORRECTION_IMAGES = 256
_LEAST_CORRECTION_IMAGES = 32
_CORRECTION_POSITIONS = 2048  # of the last stage, which has one for 32 by 32 pixels


Calibrated = dict[tuple[object, ...], tuple[ConvNeXt, PTQRecord]]
"""How the grids of a network were fixed → the network and what was decided; one at most."""


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
    method = steps.calibration_method
    with context.execution.progress.task(f"{context.name}: calibrate", len(images), "images") as task:
        seen = observe_images(network, images, len(images), method == AUTO, method not in WITHOUT_HISTOGRAM, task)
    fix_grids(network, seen.inputs, seen.outputs, method, steps.percentile)
    streams = {f"{name}.pwconv2": name for name, module in network.named_modules() if isinstance(module, Block)}
    raise_dead_channels(network, streams, images.first(_STREAM_IMAGES))
    calibrated[how] = network, record
    return network, record


@dataclass(frozen=True)
class _Observing:
    """What each of so many processes sees of a network's tensors for the first `count` images; `task` is told of those of all."""

    network: ConvNeXt
    images: Images
    count: int
    samples: bool
    histograms: bool
    processes: int
    task: Task | None

    def __reduce__(self) -> tuple[Any, ...]:
        return _Observing, (*(getattr(self, field.name) for field in dataclasses.fields(self)[:-1]), None)

    def __call__(self, numbers: range) -> Iterator[Seen]:
        size = self.images.batch_size
        lengths = [min(size, self.count - start) for start in range(0, self.count, size)]
        for number in numbers:
            yield watch(
                self.network,
                self._batches(range(number, len(lengths), self.processes), lengths),
                samples=self.samples,
                histograms=self.histograms,
                lengths=None if self.processes == 1 else lengths,
            )

    def _batches(self, own: range, lengths: Sequence[int]) -> Iterator[tuple[int, Tensor]]:
        done = 0
        for number, batch in zip(own, self.images.numbered(own), strict=True):
            yield number, batch[: lengths[number]]
            if self.task is not None:
                now = min(self.count, done + lengths[number] * self.processes)
                self.task.advance(now - done)
                done = now


def observe_images(
    network: ConvNeXt,
    images: Images,
    count: int,
    samples: bool = True,
    histograms: bool = True,
    task: Task | None = None,
) -> Seen:
    """Return what all processes see at the quantized layers of a network for the first `count` images; see `watch`.

    Raises: DeployError: if a value is not finite.
    """
    size = world().size
    return join_seen([*share_out(_Observing(network, images, count, samples, histograms, size, task), range(size))])


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
    seen = observe_images(prepared, images, count=min(len(images), _SMOOTHING_IMAGES))
    chosen = choose_smoothing(prepared, seen.inputs, places, alpha)
    scale_inputs(network, {name: found.scale for name, found in chosen.items() if found.alpha is not None})
    return {name: found.alpha for name, found in chosen.items()}
