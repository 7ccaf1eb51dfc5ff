"""What `quantization_peers.py` gives to all: the float ONNX file, and the calibration, control and validation images."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from convnext_deploy.artifacts.artifact import Artifact
from convnext_deploy.artifacts.spec import ModelSpec, default_preprocess, file_header
from convnext_deploy.data.agreement import check_classes
from convnext_deploy.data.datasets import Data, ImageSet, open_data
from convnext_deploy.data.evaluation_batches import EvaluationBatches
from convnext_deploy.data.sampling import calibration_indices
from convnext_deploy.exporters.onnx.trace import export_float
from convnext_deploy.graphs.onnx_io import save_onnx
from convnext_deploy.models.checkpoints.load_network import load_network
from convnext_deploy.models.checkpoints.safe_reader import save_state
from convnext_deploy.models.variants import build_model, resolve_variant
from convnext_deploy.pipeline.open_artifact import open_input

SEED = 0  # that of the verbs, so that ours calibrates on the same images
_FRESH_CLASSES = 16


def create_fresh(variant: str, image_size: int, images: int, validation: int, work: Path) -> tuple[Path, Path]:
    """Write random weights, and random images of `_FRESH_CLASSES` classes; return the checkpoint and the image folder."""
    torch.manual_seed(0)
    spec, preprocess = ModelSpec(resolve_variant(variant), _FRESH_CLASSES), default_preprocess(image_size)
    names = tuple(f"class{number:02d}" for number in range(_FRESH_CLASSES))
    checkpoint = work / "fresh.safetensors"
    save_state(checkpoint, build_model(spec).state_dict(), file_header(spec, preprocess, names, "fp32"))
    rng = np.random.default_rng(0)
    for part, count in (("train", images), ("val", validation)):
        for number in range(max(count, _FRESH_CLASSES)):
            folder = work / "fresh-images" / part / names[number % _FRESH_CLASSES]
            folder.mkdir(parents=True, exist_ok=True)
            pixels = rng.integers(0, 256, (image_size, image_size, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / f"{number}.png")
    return checkpoint, work / "fresh-images"


def write_inputs(
    checkpoint: Path, folder: str, calibration: int, control: int, validation: int | None, work: Path
) -> tuple[Artifact, NDArray[np.int64]]:
    """Write `float.onnx`, `calibration.npy`, `control.npy`, `control_labels.npy` and `validation.npy`.

    Control images are training images that are not for calibration. Fewer validation images than there are come from everywhere
    in their order, which is by class.

    Returns: the artifact, and the labels of the validation images.
    """
    artifact = open_input(checkpoint)
    data = open_data(folder)
    check_classes(str(checkpoint), artifact, data)
    save_onnx(
        export_float(load_network(artifact), artifact.model.in_channels, artifact.preprocess.image_size),
        work / "float.onnx",
        file_header(artifact.model, artifact.preprocess, artifact.class_names, artifact.precision),
    )
    chosen = calibration_indices(data.train, data.validation, calibration, SEED)
    _write_images(data.train, artifact, chosen, work / "calibration.npy")
    others = _choose_control(data, chosen, control)
    _write_images(data.train, artifact, others, work / "control.npy")
    np.save(work / "control_labels.npy", data.train.labels[others])
    total = len(data.validation)
    rows = np.unique(np.linspace(0, total - 1, min(total, validation or total)).round().astype(np.int64)).tolist()
    _write_images(data.validation, artifact, rows, work / "validation.npy")
    return artifact, data.validation.labels[rows]


def _choose_control(data: Data, chosen: list[int], count: int) -> list[int]:
    taken = set(chosen)
    drawn = calibration_indices(data.train, data.validation, len(chosen) + count, SEED + 1)
    free = np.array([index for index in drawn if index not in taken], dtype=np.int64)
    # they are in the order of the classes: the first ones would be of some classes only
    shuffled = np.random.default_rng(SEED).permutation(free)[:count]
    return sorted(shuffled.tolist())


def _write_images(images: ImageSet, artifact: Artifact, indices: list[int], path: Path) -> None:
    sides, channels = artifact.preprocess.sides, artifact.model.in_channels
    # written as they are decoded: all validation images of ImageNet are more than memory holds
    target = np.lib.format.open_memmap(path, "w+", np.float32, (len(indices), channels, *sides))
    start = 0
    for batch, _ in EvaluationBatches(images, artifact.preprocess, 64, indices=indices):
        target[start : start + len(batch)] = batch.numpy()
        start += len(batch)
    target.flush()
