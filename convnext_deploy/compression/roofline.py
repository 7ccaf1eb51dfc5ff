"""A proxy for the time of an engine where there is no GPU: a roofline of bytes and multiply-accumulates at the precision.

Each kernel takes as long as its bytes or its multiply-accumulates need, whichever is more, and the time to start it. A block is
four kernels: depthwise convolution, norm, and the two linear layers, of which TensorRT fuses activation, quantization and residual
sum into the ends. The rates are those of one card, an L4; what counts is how times relate, and a measured time sets their scale.

Sources: Williams, Waterman, Patterson 2009, "Roofline", CACM 52(4); NVIDIA's data sheet of the L4: 300 GB/s, 242 TOPS INT8 and 121
TFLOPS FP16, dense.
"""

import math
from collections.abc import Sequence

import numpy as np

from convnext_deploy.artifacts.spec import ModelSpec
from convnext_deploy.compression.time_model import Curve, TimeModel
from convnext_deploy.config.image_size import ImageSize, sides_of
from convnext_deploy.metrics.nonnegative import solve_nonnegative
from convnext_deploy.models.block_shapes import BlockShape, block_shapes, candidate_widths
from convnext_deploy.models.zoo.cost import count_macs

_BYTES_PER_MS = 300e6
_MACS_PER_MS = {1: 121e9, 2: 60.5e9}  # of values of so many bytes
_START_MS = 2.5e-3  # of a kernel
_FIXED_KERNELS = 10  # stem, downsampling and head with their norms

PROXY = "a proxy (bytes and multiply-accumulates at the precision, on an L4's rates), not a measurement"


def estimate_times(spec: ModelSpec, image_size: ImageSize) -> TimeModel:
    """Return the times of single images in an INT8 or FP8 engine, in milliseconds of the card that the module names."""
    shapes = block_shapes(spec, image_size)
    curves: list[Curve] = []
    for stage in range(1 + max(shape.stage for shape in shapes)):
        widest = max((shape for shape in shapes if shape.stage == stage), key=lambda shape: shape.hidden)
        widths = candidate_widths(widest.hidden)[1:] or (1,)
        curves.append(Curve(widths, tuple(_block_ms(widest, width) for width in widths)))
    side = round(math.sqrt(math.prod(sides_of(image_size))))
    macs = count_macs(spec, side) - sum(_macs(shape, shape.hidden) for shape in shapes if shape.hidden)
    fixed = _FIXED_KERNELS * _START_MS + max(macs, 0) / _MACS_PER_MS[2]
    return TimeModel(fixed, tuple(curves))


def _block_ms(shape: BlockShape, width: int) -> float:
    channels, places = shape.channels, shape.height * shape.width
    taps = shape.kernel_size**2
    kernels = (
        (2 * channels * (2 * places + taps), taps * channels * places, 2),
        (3 * channels * places, 0, 2),
        (channels * places + channels * width + width * places, channels * width * places, 1),
        (width * places + channels * width + 4 * channels * places, channels * width * places, 1),
    )
    return sum(_START_MS + max(size / _BYTES_PER_MS, macs / _MACS_PER_MS[kind]) for size, macs, kind in kernels)


def _macs(shape: BlockShape, width: int) -> int:
    places = shape.height * shape.width
    return (shape.kernel_size**2 * shape.channels + 2 * shape.channels * width) * places


def scale_times(
    times: TimeModel, shapes: Sequence[BlockShape], measured: Sequence[tuple[Sequence[int], float]]
) -> TimeModel:
    """Return times that agree with what was measured on a device.

    Args:
        times: the estimate.
        shapes: blocks of the dense network.
        measured: hidden widths of networks, and the milliseconds that each takes, at least one. With several different ones the
            blocks and the rest get scales of their own.
    """
    known = np.array([[times.fixed_ms, times.predict_ms(shapes, widths) - times.fixed_ms] for widths, _ in measured])
    found = np.array([ms for _, ms in measured])
    if len({tuple(widths) for widths, _ in measured}) > 1:
        fixed, blocks = solve_nonnegative(known / found[:, None], np.ones(len(found))).tolist()
    else:
        fixed = blocks = float(np.median(found / known.sum(axis=1)))
    curves = tuple(Curve(curve.widths, tuple(blocks * ms for ms in curve.ms)) for curve in times.curves)
    return TimeModel(fixed * times.fixed_ms, curves)
