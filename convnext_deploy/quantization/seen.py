"""What calibration sees: at every quantized site the range and a sample, of all batches or of some, which are then joined."""

import functools
import itertools
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from convnext_deploy.errors import DeployError
from convnext_deploy.quantization.observers import ActivationObserver
from convnext_deploy.quantization.prepare import QuantizedLayer, channel_dim, quantized_layers, quantizers_disabled

_SAMPLE_VALUES = 1 << 20  # of each quantized input; 4 MiB, 160 MiB for the 39 of ConvNeXt-Tiny
_PARTS = 16  # a sample is taken from so many batches at least, once there are as many


class InputSample:
    """Some inputs of one layer, evenly from everything seen, in constant memory.

    Rows `(R, C)` of a linear layer, whole images `(N, C, H, W)` of a convolution, whose outputs need neighbours.
    """

    def __init__(self, layer: QuantizedLayer) -> None:
        self._is_linear = isinstance(layer, nn.Linear)
        self._parts: dict[int, Tensor] = {}  # by the numbers of their batches
        self._number, self._step = 0, 1
        self._items_of_image, self._item_size = 1, 1

    def observe(self, x: Tensor) -> None:
        """Take in one batch, of which a share is kept. When there are too many, every other one goes."""
        number, self._number = self._number, self._number + 1
        items = x.reshape(-1, x.shape[-1]) if self._is_linear else x
        self._items_of_image, self._item_size = max(1, len(items) // max(1, len(x))), max(1, items[:1].numel())
        if number % self._step:
            return
        count = self._taken(len(items))
        # the places move from batch to batch, so that not always the same pixels are taken
        places = (torch.arange(count, device=x.device) * len(items) // count + 7919 * (number + 1)) % len(items)
        self._parts[number] = items[places].float()
        if _is_too_much([part.numel() for part in self._parts.values()]):
            self._thin(2 * self._step)

    def _taken(self, items: int) -> int:
        """Return how many of the items of a batch are kept."""
        return min(items, max(1, _SAMPLE_VALUES // (_PARTS * self._item_size)))

    def _thin(self, step: int) -> None:
        self._step = step
        self._parts = {number: part for number, part in self._parts.items() if number % step == 0}

    def skip_to(self, number: int) -> None:
        """Let the next batch be the one with this number, from 0."""
        self._number = number

    def leave_to_others(self, lengths: Sequence[int]) -> None:
        """Keep what would be kept of these batches if they had been seen all, of which `lengths` are the numbers of images."""
        step, sizes = 1, dict[int, int]()
        for number, images in enumerate(lengths):
            if number % step == 0:
                sizes[number] = self._taken(images * self._items_of_image) * self._item_size
                if _is_too_much(sizes.values()):
                    step *= 2
                    sizes = {kept: size for kept, size in sizes.items() if kept % step == 0}
        self._thin(step)

    def join(self, other: "InputSample") -> None:
        """Take in what another one kept of other batches, after `leave_to_others`."""
        self._parts |= other._parts

    def values(self) -> Tensor:
        """Return what was kept, `(R, C)` or `(N, C, H, W)` float32."""
        return torch.cat([self._parts[number] for number in sorted(self._parts)])


def _is_too_much(sizes: Collection[int]) -> bool:
    """Whether parts with so many values are too many, or too large, to keep all of them."""
    return len(sizes) > 2 * _PARTS or sum(sizes) > 2 * _SAMPLE_VALUES


class SiteObserver:
    """What calibration sees of one quantized tensor: its range and, of an input, a sample."""

    def __init__(
        self, layer: QuantizedLayer, clock: Iterator[int], *, sample: bool, histogram: bool, is_alone: bool
    ) -> None:
        self.clock: Iterator[int] | None = clock
        self.turn = -1  # which of all sites it was to see something first
        self.range = ActivationObserver(channel_dim(layer), histogram=histogram, is_alone=is_alone)
        self.sample = InputSample(layer) if sample else None

    def observe(self, x: Tensor) -> None:
        """Take in one batch."""
        if self.turn < 0 and self.clock is not None:
            self.turn = next(self.clock)
        self.range.observe(x)
        if self.sample is not None:
            self.sample.observe(x)

    def skip_to(self, number: int) -> None:
        """Let the next batch be the one with this number, from 0."""
        for part in (self.range, self.sample):
            if part is not None:
                part.skip_to(number)

    def join(self, other: "SiteObserver") -> None:
        """Take in what another one saw of the same tensor in other batches."""
        self.turn = max(self.turn, other.turn)
        self.range.join(other.range)
        if self.sample is not None and other.sample is not None:
            self.sample.join(other.sample)


@dataclass(frozen=True)
class Seen:
    """What was seen at the `inputs` and at the `outputs` of layers, by their names, on so many `images`."""

    inputs: dict[str, SiteObserver]
    outputs: dict[str, SiteObserver]
    images: int = 0

    def sites(self) -> list[tuple[SiteObserver, str, str]]:
        """Return every observer, and of which side of which layer it is."""
        sides = (("input", self.inputs), ("output", self.outputs))
        return [(observer, side, name) for side, observers in sides for name, observer in observers.items()]


@torch.no_grad()
def watch(
    model: nn.Module,
    batches: Iterable[tuple[int, Tensor]],
    *,
    samples: bool = True,
    histograms: bool = True,
    lengths: Sequence[int] | None = None,
) -> Seen:
    """Run images through the float model and return what was seen, which may be nothing; see `observe`.

    Args:
        model: prepared; in evaluation mode.
        batches: numbers of batches, and normalized images `(N, C, H, W)` on the model's device.
        samples: whether to keep samples of the inputs.
        histograms: whether to count values.
        lengths: of all batches, where these are some of them, to be joined with what was seen of the others.
    """
    inputs: dict[str, SiteObserver] = {}
    outputs: dict[str, SiteObserver] = {}
    make = functools.partial(SiteObserver, clock=itertools.count(), histogram=histograms, is_alone=lengths is None)
    for name, layer in quantized_layers(model):
        layer.input_quantizer.observer = inputs[name] = make(layer, sample=samples)
        if layer.output_quantizer is not None:
            layer.output_quantizer.observer = outputs[name] = make(layer, sample=False)
    seen = 0
    try:
        with quantizers_disabled(model):
            for number, images in batches:
                for site in (*inputs.values(), *outputs.values()):
                    site.skip_to(number)
                model(images)
                seen += len(images)
    finally:
        for _, layer in quantized_layers(model):
            layer.input_quantizer.observer = None
            if layer.output_quantizer is not None:
                layer.output_quantizer.observer = None
    for site in (*inputs.values(), *outputs.values()):
        site.clock = None
        if site.sample is not None and lengths is not None and seen:
            site.sample.leave_to_others(lengths)
    return Seen(inputs, outputs, seen)


def join_seen(parts: Sequence[Seen]) -> Seen:
    """Return what was seen in all parts, which are used up, as if one had seen it. Raises: DeployError: as `observe`."""
    first, *others = parts
    for other in others:
        for (own, _, _), (added, _, _) in zip(first.sites(), other.sites(), strict=True):
            own.join(added)
    return _checked(Seen(first.inputs, first.outputs, sum(part.images for part in parts)))


def observe(
    model: nn.Module, batches: Iterable[Tensor], *, samples: bool = True, histograms: bool = True
) -> tuple[dict[str, SiteObserver], dict[str, SiteObserver]]:
    """Run images through the float model and return what was seen at the inputs and at the outputs, by layer name.

    Args:
        model: prepared; in evaluation mode.
        batches: normalized images `(N, C, H, W)` on the model's device.
        samples: whether to keep samples of the inputs.
        histograms: whether to count values, which all range methods but `minmax` and `moving_average` need.

    Raises: DeployError: if there is no image, or a value is not finite.
    """
    seen = _checked(watch(model, enumerate(batches), samples=samples, histograms=histograms))
    return seen.inputs, seen.outputs


def _checked(seen: Seen) -> Seen:
    """Return what was seen. Raises: DeployError: if there is no image, or a value is not finite."""
    if seen.images == 0:
        raise DeployError("there are no calibration images; at least one is needed.")
    for observer, side, name in sorted(
        seen.sites(), key=lambda site: site[0].turn
    ):  # it goes on from the first to all others
        low, high = observer.range.channel_minimum.min().item(), observer.range.channel_maximum.max().item()
        if not (np.isfinite(low) and np.isfinite(high)):
            raise DeployError(f"the {side} of '{name}' is not finite on the calibration images ({low} to {high}).")
    return seen
