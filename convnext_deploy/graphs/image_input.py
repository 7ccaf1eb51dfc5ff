"""What a graph of another origin takes: the order of its dimensions, the size of its images, and the range of their values."""

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from convnext_deploy.config.choices import InputRange
from convnext_deploy.config.image_size import LARGEST_SIDE, ImageSize, plain_size, show_size, sides_of
from convnext_deploy.errors import ArtifactError, SizeUntoldError
from convnext_deploy.graphs.onnx_view import GraphView, Shape, array, attribute, inputs_of, shape_of, shape_words

_CHANNELS = (1, 3)  # images of no other library have 1 or 3 rows
_MOST_CHANNELS = 10_000  # of any camera; what is told of each would take the memory of more
_SHAPES = ("Shape", "Size")  # read no pixels
_FIRST = ("Cast", "Identity", "Transpose")
Numbers = NDArray[np.float64]


@dataclass(frozen=True)
class Normalization:
    """What a graph does to pixels of a range before anything else; `mean` and `std` per channel, for pixel values in [0, 1]."""

    range: InputRange
    mean: tuple[float, ...]
    std: tuple[float, ...]


@dataclass(frozen=True)
class ImageInput:
    """The input of a graph. `size` is that of its images, and was asked for where it `is_dynamic`; `batch_size` is None
    where it is dynamic, and `normalization` where its first nodes do not tell that they take pixels.
    """

    is_uint8: bool
    channels_last: bool
    channels: int
    batch_size: int | None
    size: ImageSize
    is_dynamic: bool
    normalization: Normalization | None


def count_channels(view: GraphView) -> int:
    """Return the channels of the images that a graph takes. Raises: ArtifactError: if it takes none; without the file's name."""
    return _layout(view)[0]


def _layout(view: GraphView) -> tuple[int, bool, Shape]:
    """Return the number of channels, whether it is the last dimension, and the shape of the input."""
    # of a sequence only the shape of its tensors is known
    shapes = [shape_of(value) if isinstance(value.type, ir.TensorType) else () for value in view.inputs]
    # of a size below 0 runtimes take any, as some exporters mean it
    shape = tuple(None if isinstance(size, int) and size < 0 else size for size in shapes[0]) if shapes else ()
    last = len(shape) == 4 and shape[3] in _CHANNELS and shape[1] not in _CHANNELS
    channels = shape[3 if last else 1] if len(shape) == 4 else None
    if len(shapes) != 1 or not isinstance(channels, int) or channels > _MOST_CHANNELS:
        found = ", ".join(shape_words(shape) for shape in shapes)
        raise ArtifactError(
            "is not an image classifier: expected one input (batch, channels, height, width) with fixed channels, found "
            f"{len(shapes)} input(s), {found or 'nothing'}."
        )
    return channels, last, shape


def find_image_input(
    view: GraphView, image_size: ImageSize | None = None, usual_size: ImageSize | None = None
) -> ImageInput:
    """Return what a graph takes.

    Args:
        view: the graph.
        image_size: of the images, for a graph in which height or width are dynamic.
        usual_size: those that are told of such a graph, where `image_size` is None.

    Raises: ArtifactError: if that is not one image of a known size and number of channels; without the file's name.
    """
    channels, last, shape = _layout(view)
    sides = shape[1:3] if last else shape[2:]
    is_dynamic = not all(isinstance(side, int) for side in sides)
    given = [image_size, usual_size if is_dynamic else None]
    fitting = [size for size in given if size is not None and _fits(size, sides)]
    if image_size is not None and image_size not in fitting:
        fixed = "×".join(str(side) if isinstance(side, int) else "any" for side in sides)
        fix = "give its fixed side and another, --image-size HEIGHTxWIDTH" if is_dynamic else "leave --image-size out"
        raise ArtifactError(f"takes images of {fixed} pixels, not of {show_size(image_size)}; {fix}.")
    if is_dynamic and not fitting:
        raise SizeUntoldError(
            f"takes images of any size, {shape_words(shape)}; say with --image-size which to evaluate at, such as 224, or 32x48 "
            "for 32 rows of 48 pixels."
        )
    size = fitting[0] if fitting else plain_size((int(str(sides[0])), int(str(sides[1]))))
    if not all(1 <= side <= LARGEST_SIDE for side in sides_of(size)):
        raise ArtifactError(f"takes images of {show_size(size)} pixels; expected 1 to {LARGEST_SIDE}.")
    batch = shape[0] if isinstance(shape[0], int) else None
    is_uint8 = view.inputs[0].dtype == ir.DataType.UINT8
    return ImageInput(is_uint8, last, channels, batch, size, is_dynamic, find_normalization(view, channels))


def _fits(size: ImageSize, sides: Shape) -> bool:
    """Whether images of a size have the sides that a graph fixes."""
    return all(not isinstance(fixed, int) or fixed == side for fixed, side in zip(sides, sides_of(size), strict=True))


def find_normalization(view: GraphView, channels: int) -> Normalization | None:
    """Return how a graph normalizes pixels, told by the constants of its first nodes; None: they do not.

    A normalization `(x - m) / s` has its `m` within the range of the pixels, and its `s` is a part of it.
    """
    found = _first_affine(view, channels)
    if found is None or not (found[0] > 0).all():
        return None
    middle, spread = -found[1] / found[0], 1 / found[0]
    kind = _range_of(float(middle.mean()), float(spread.mean()))
    if kind is None:
        return None
    white = 255.0 if kind == "0-255" else 1.0
    mean, std = (np.broadcast_to(values / white, channels).tolist() for values in (middle, spread))
    return Normalization(kind, tuple(mean), tuple(std))


def _range_of(middle: float, spread: float) -> InputRange | None:
    if 20 <= middle <= 240 or (abs(middle) < 1 and 20 <= spread <= 256):
        return "0-255"
    # a spread of 1 is a mean that is subtracted and no more; a norm of normalized images has its middle near 0
    is_part = spread < 0.7 or abs(spread - 1) < 1e-6
    return "0-1" if (0.05 <= middle <= 0.95 and is_part) or (abs(middle) < 0.01 and spread < 0.1) else None


def _first_affine(view: GraphView, channels: int) -> tuple[Numbers, Numbers] | None:
    """Return scale and shift, `(channels,)` or `(1,)` each, of what is done to images before anything else; None: nothing is."""
    value, scale, shift = view.inputs[0], np.ones(1), np.zeros(1)
    changed = False
    while True:
        reading = [node for node in value.consumers() if node.op_type not in _SHAPES]
        if len(reading) != 1:
            break
        node = reading[0]
        step = (np.ones(1), np.zeros(1)) if node.op_type in _FIRST else _step(node, value, channels)
        if step is None:
            break
        changed = changed or node.op_type not in _FIRST
        scale, shift, value = scale * step[0], shift * step[0] + step[1], node.outputs[0]
    return (scale, shift) if changed else None


def _step(node: ir.Node, value: ir.Value, channels: int) -> tuple[Numbers, Numbers] | None:
    """Return what a node multiplies a value by and adds to it; None if it does something else."""
    constants = [_numbers(other, channels) for other in inputs_of(node) if other is not value]
    if not constants or any(numbers is None for numbers in constants):
        return None
    first, *others = [numbers for numbers in constants if numbers is not None]
    one, zero = np.ones(1), np.zeros(1)
    is_first = node.inputs[0] is value
    match node.op_type:
        case "Mul":
            return first, zero
        case "Div" if is_first and first.all():
            return 1 / first, zero
        case "Add":
            return one, first
        case "Sub":
            return (one, -first) if is_first else (-one, first)
        case "BatchNormalization" if len(others) == 3:
            scale = first / np.sqrt(others[2] + attribute(node, "epsilon", 1e-5))
            return scale, others[0] - scale * others[1]
    return None


def _numbers(value: ir.Value, channels: int) -> Numbers | None:
    """Return a constant of one number, or one for each channel."""
    found = array(value)
    if found is None or found.size not in (1, channels) or not np.issubdtype(found.dtype, np.number):
        return None
    return found.astype(np.float64).reshape(-1)
