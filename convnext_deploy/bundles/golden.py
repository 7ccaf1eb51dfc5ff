"""Choose golden images, answer them here, and decide how far another machine's answers may differ."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from convnext_deploy.artifacts.artifact import Artifact
from convnext_deploy.bundles.contents import Model
from convnext_deploy.bundles.device import answers
from convnext_deploy.data.agreement import check_classes
from convnext_deploy.data.datasets import BUILT_IN, Data
from convnext_deploy.data.sampling import rarest_labels
from convnext_deploy.data.transforms import evaluation_transform
from convnext_deploy.errors import ArtifactError

Outputs = dict[str, NDArray[np.generic]]

# What each arithmetic may differ by, as `answers.relative_error`: (ONNX Runtime on another CPU, an engine). FP32 sums are ordered
# otherwise (measured: 5e-7), and a GPU multiplies them with the 10 bits of TF32; FP16 has 10 bits everywhere; a value of INT8
# that lies between two steps falls to the other one (measured: 1e-3 to 6e-3).
_ALLOWED = {"fp32": (1e-4, 1e-2), "fp16": (1e-2, 2e-2), "int8": (3e-2, 5e-2), "fp8": (3e-2, 5e-2)}
_MOST_ALLOWED = 0.3  # an answer that is further off is another answer
# Relative noise on the images that moves a network's answers about as far as another machine's rounding in all layers does, and
# how much further than this noise a machine may go.
_NOISE = {"onnx": 1e-5, "engine": 1e-3}
_HEADROOM = 10.0
_SEED = 0x601D


@dataclass(frozen=True)
class GoldenImages:
    """`pixels (N, S, S, C)` uint8, as the evaluation transform leaves them, and in words where they come from.

    `kind`: the user's own images, the built-in digits, or synthetic ones.
    """

    pixels: NDArray[np.uint8]
    origin: str
    kind: Literal["own", "built-in", "synthetic"]


def choose_images(artifact: Artifact, count: int, data: Data | None) -> GoldenImages:
    """Return validation images of the data, spread over the classes, always the same; or synthetic ones without data.

    Args:
        artifact: whose evaluation transform is used.
        count: how many; all when there are fewer.
        data: the user's; None: there is none.

    Raises: DataError: if the data has other classes than the artifact, or an image cannot be read.
    """
    if data is None:
        pixels = _synthetic_pixels(count, artifact.preprocess.sides, len(artifact.preprocess.mean))
        return GoldenImages(pixels, f"{count} synthetic images (waves and noise), of no class", "synthetic")
    check_classes(str(artifact.place), artifact, data)
    chosen = spread_over_classes(rarest_labels(data.validation.labels), count)
    pixels = np.stack([evaluation_transform(data.validation.load(i), artifact.preprocess) for i in chosen])
    if data.name == BUILT_IN:
        return GoldenImages(pixels, f"{len(chosen)} validation images of the built-in {BUILT_IN}", "built-in")
    return GoldenImages(pixels, f"{len(chosen)} validation images of '{Path(data.name).resolve().name}'", "own")


def spread_over_classes(labels: NDArray[np.int64], count: int) -> list[int]:
    """Return indices into `labels (N,)`: the first image of each class, then the second, …; of many classes every n-th."""
    rank = np.zeros(len(labels), np.int64)
    for label in np.unique(labels):
        places = np.flatnonzero(labels == label)
        rank[places] = np.arange(len(places))
    order = np.lexsort((labels, rank))
    firsts = int((rank == 0).sum())
    if count < firsts:
        return [int(order[place]) for place in np.linspace(0, firsts - 1, count).round().astype(int)]
    return [int(index) for index in order[:count]]


def _synthetic_pixels(count: int, sides: tuple[int, int], channels: int) -> NDArray[np.uint8]:
    rng = np.random.default_rng(_SEED)
    rows, columns = (places / side for places, side in zip(np.mgrid[: sides[0], : sides[1]], sides, strict=True))
    shape = (count, 1, 1, channels)
    slopes = rng.uniform(-15, 15, (2, *shape))
    wave = np.sin(slopes[0] * rows[..., None] + slopes[1] * columns[..., None] + rng.uniform(0, 6, shape))
    level = rng.uniform(60, 200, shape) + 50 * wave + rng.normal(0, 12, (count, *sides, channels))
    pixels: NDArray[np.uint8] = np.clip(level, 0, 255).astype(np.uint8)
    return pixels


def compute_outputs(model: Model, path: Path, images: NDArray[np.generic]) -> Outputs:
    """Run an ONNX file as `verify.py` will on another machine.

    Raises: ArtifactError: if ONNX Runtime refuses, or an answer is not finite.
    """
    try:
        outputs: Outputs = answers.open_onnx(path, model.frozen_batch, model.artifact.precision)(images)
    except Exception as error:
        # ONNX Runtime raises classes of its C++ module that have no common public base
        raise ArtifactError(
            f"ONNX Runtime cannot run {model.artifact.main_file}: {' '.join(str(error).split())}"
        ) from None
    for name, values in outputs.items():
        if not np.isfinite(values).all():
            raise ArtifactError(f"{model.artifact.main_file} answers '{name}' with numbers that are not finite.")
    return outputs


def allowed_errors(model: Model, path: Path, images: NDArray[np.generic], outputs: Outputs) -> dict[str, float]:
    """Return the tolerance of ONNX Runtime elsewhere (`onnx`) and of an engine (`engine`), as `answers.relative_error`.

    What the precision's arithmetic may differ by; more for a network whose answers move further when its images are changed by
    as little as rounding. Images of uint8 cannot be changed by so little.
    """
    known = [pair for name, pair in _ALLOWED.items() if name in model.artifact.precision] or [_ALLOWED["int8"]]
    allowed = {"onnx": max(pair[0] for pair in known), "engine": max(pair[1] for pair in known)}
    if images.dtype == np.uint8:
        return allowed
    rng = np.random.default_rng(_SEED)
    noise = rng.standard_normal(images.shape)
    for kind, floor in allowed.items():
        size = _NOISE["engine"] if images.dtype == np.float16 else _NOISE[kind]
        moved = compute_outputs(
            model, path, np.multiply(images.astype(np.float64), 1 + size * noise).astype(images.dtype)
        )
        errors = [answers.relative_error(v, moved[name]) for name, v in outputs.items() if v.dtype.kind == "f"]
        allowed[kind] = min(_MOST_ALLOWED, max(floor, _HEADROOM * max(errors)))
    return {kind: float(f"{value:.2g}") for kind, value in allowed.items()}
