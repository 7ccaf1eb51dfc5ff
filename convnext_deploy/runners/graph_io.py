"""Convert normalized images and logits, which all runners share, to and from what an exported graph takes and gives."""

from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

from convnext_deploy.artifacts.spec import GraphIO, Preprocess
from convnext_deploy.errors import ArtifactError

Outputs = Mapping[str, NDArray[np.generic]]
_SMALLEST = float(np.finfo(np.float32).tiny)  # a probability of 0 has no finite logarithm


def prepare_images(images: NDArray[np.float32], io: GraphIO, preprocess: Preprocess) -> NDArray[np.generic]:
    """Return normalized images `(N, C, S, S)` as the graph takes them.

    For a `uint8` graph the normalization is undone; what was made of 8-bit pixels gives them back exactly.
    """
    prepared: NDArray[np.generic] = images
    if io.input_type == "uint8":
        mean, std = (np.array(values, np.float32)[:, None, None] for values in (preprocess.mean, preprocess.std))
        prepared = np.clip(np.rint((images * std + mean) * 255.0), 0, 255).astype(np.uint8)
    if io.input_layout == "nhwc":
        prepared = prepared.transpose(0, 2, 3, 1)
    return np.ascontiguousarray(prepared)


def to_logits(outputs: Outputs, num_classes: int) -> NDArray[np.float32]:
    """Return logits `(N, num_classes)` float32 from a graph's outputs by name.

    Probabilities become their logarithms: logits that differ from the network's by one number per image. Of a top-k output the
    classes that it leaves out get the logarithm of the smallest normal float.

    Raises: ArtifactError: if it gives none of the outputs that `GraphIO` lists.
    """
    if {"scores", "classes"} <= set(outputs):
        scores, classes = outputs["scores"], outputs["classes"].astype(np.int64)
        probabilities = np.zeros((len(scores), num_classes), np.float32)
        if classes.size and not 0 <= classes.min() <= classes.max() < num_classes:
            raise ArtifactError(f"the graph names class {classes.max()}; there are {num_classes}.")
        np.put_along_axis(probabilities, classes, scores.astype(np.float32), axis=1)
    elif "probabilities" in outputs:
        probabilities = outputs["probabilities"].astype(np.float32)
    else:
        found = next((values for values in outputs.values() if values.shape[1:] == (num_classes,)), None)
        if found is None:
            shapes = ", ".join(f"{name} {values.shape}" for name, values in outputs.items())
            raise ArtifactError(f"the graph gives {shapes}; expected logits of shape (batch, {num_classes}).")
        return found.astype(np.float32)
    result: NDArray[np.float32] = np.log(np.maximum(probabilities, _SMALLEST))
    return result


def run_in_parts(
    images: NDArray[np.generic], run: Callable[[NDArray[np.generic]], Outputs], size: int, *, frozen: bool
) -> dict[str, NDArray[np.generic]]:
    """Run images through a graph that takes at most `size` at once, or exactly so many if that is `frozen`.

    The last part of a frozen batch is filled up with its last image, whose results are dropped.
    """
    parts = []
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
