"""Convert pixels or normalized images, and logits, which all runners share, to and from what an exported graph takes and gives."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from convnext_deploy.artifacts.spec import GraphIO, Preprocess
from convnext_deploy.errors import ArtifactError

Images = NDArray[np.uint8] | NDArray[np.float32]
Outputs = Mapping[str, NDArray[np.generic]]
_SMALLEST = float(np.finfo(np.float32).tiny)  # a probability of 0 has no finite logarithm


def prepare_images(images: Images, io: GraphIO, preprocess: Preprocess, dtype: Any = np.float32) -> NDArray[np.generic]:
    """Return images as the graph takes them.

    Args:
        images: pixels `(N, S, S, C)` uint8, as the evaluation transform leaves them; or normalized images `(N, C, S, S)` float32,
            of which those that were made of 8-bit pixels give them back exactly, where the graph takes pixels.
        io: what the graph takes.
        preprocess: of the network.
        dtype: of the graph's input, where that takes floats.
    """
    mean, std = (np.array(values, np.float32) for values in (preprocess.mean, preprocess.std))
    layout = "nhwc" if images.dtype == np.uint8 else "nchw"
    prepared: NDArray[np.generic] = images
    if layout == "nchw" and io.white is not None:
        prepared = (images * std[:, None, None] + mean[:, None, None]) * np.float32(io.white)
    elif layout == "nhwc" and io.white is None:
        prepared = (images.astype(np.float32) / np.float32(255) - mean) / std
    elif layout == "nhwc" and io.white != 255.0:
        prepared = images.astype(np.float32) / np.float32(255)
    if io.input_type != "uint8":
        prepared = prepared.astype(dtype, copy=False)
    elif prepared.dtype != np.uint8:
        prepared = np.clip(np.rint(prepared), 0, 255).astype(np.uint8)
    if layout != io.input_layout:
        prepared = prepared.transpose((0, 2, 3, 1) if layout == "nchw" else (0, 3, 1, 2))
    return np.ascontiguousarray(prepared)


def to_logits(outputs: Outputs, num_classes: int, io: GraphIO = GraphIO()) -> NDArray[np.float32]:
    """Return logits `(N, num_classes)` float32 from a graph's outputs by name, or features as they are.

    Probabilities become their logarithms: logits that differ from the network's by one number per image. Of a top-k output the
    classes that it leaves out get the logarithm of the smallest normal float. One score for two classes is that of the second
    against the first.

    Raises: ArtifactError: if it gives none of the outputs that `GraphIO` lists.
    """
    missing = [name for name in io.output_names if name not in outputs]
    if missing:
        raise ArtifactError(f"the graph gives no output '{missing[0]}', only {', '.join(outputs)}.")
    if io.gives_features:
        return next(iter(outputs.values())).astype(np.float32, copy=False)  # they are all that such a graph gives
    if io.gives_best_only or {"scores", "classes"} <= set(outputs):
        scores, classes = (outputs[name] for name in io.output_names or ("scores", "classes"))
        return _spread(scores, classes, num_classes, io)
    if io.output_names:
        found = outputs[io.output_names[0]].astype(np.float32)
        return (
            _log(_columns(found, num_classes, io)) if io.output == "probabilities" else _columns(found, num_classes, io)
        )
    if "probabilities" in outputs:
        return _log(outputs["probabilities"].astype(np.float32))
    logits = next((values for values in outputs.values() if values.shape[1:] == (num_classes,)), None)
    if logits is None:
        shapes = ", ".join(f"{name} {values.shape}" for name, values in outputs.items())
        raise ArtifactError(f"the graph gives {shapes}; expected logits of shape (batch, {num_classes}).")
    return logits.astype(np.float32)


def _spread(
    scores: NDArray[np.generic], classes: NDArray[np.generic], num_classes: int, io: GraphIO
) -> NDArray[np.float32]:
    """Return logits `(N, num_classes)` from the scores of the best classes."""
    indices = classes.astype(np.int64)
    if indices.size and not 0 <= indices.min() <= indices.max() < num_classes:
        raise ArtifactError(f"the graph names class {indices.max()}; there are {num_classes}.")
    values = scores.astype(np.float32)
    # of the best logits too the first gets 0, so that the others, and those left out, lie below
    values = values - values.max(axis=1, keepdims=True) if io.gives_best_logits else _log(values)
    logits = np.full((len(values), num_classes), np.log(_SMALLEST), np.float32)
    np.put_along_axis(logits, indices, values, axis=1)
    return logits


def _columns(scores: NDArray[np.float32], num_classes: int, io: GraphIO) -> NDArray[np.float32]:
    """Return scores with a column for each class, where one stands for two of them."""
    scores = scores.reshape(len(scores), -1)
    if scores.shape[1] == 1 and num_classes == 2:
        first = 1 - scores if io.output == "probabilities" else np.zeros_like(scores)
        return np.concatenate([first, scores], axis=1)
    if scores.shape[1] != num_classes:
        raise ArtifactError(f"the graph gives {scores.shape[1]} scores for an image; there are {num_classes} classes.")
    return scores


def _log(probabilities: NDArray[np.float32]) -> NDArray[np.float32]:
    result: NDArray[np.float32] = np.log(np.maximum(probabilities, _SMALLEST))
    return result


def run_in_parts(
    images: NDArray[np.generic], run: Callable[[NDArray[np.generic]], Outputs], size: int, *, frozen: bool
) -> dict[str, NDArray[np.generic]]:
    """Run images through a graph that takes at most `size` at once, or exactly so many if that is `frozen`.

    The last part of a frozen batch is filled up with its last image, whose results are dropped.
    """
    parts: list[Outputs] = []
    if len(images) == size:  # no copies
        return dict(run(images))
    for start in range(0, len(images), size):
        part = images[start : start + size]
        missing = size - len(part) if frozen else 0
        filled = np.concatenate([part, np.repeat(part[-1:], missing, axis=0)]) if missing else part
        parts.append({name: values[: len(part)] for name, values in run(filled).items()})
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def run_in_two_sizes(
    images: NDArray[np.generic], run: Callable[[NDArray[np.generic]], Outputs], many: int, *, single: bool = True
) -> dict[str, NDArray[np.generic]]:
    """Run images through a graph that is compiled for batches of `many`, and if `single` for one image as well."""
    size = 1 if single and len(images) == 1 else many
    return run_in_parts(images, run, size, frozen=True)
