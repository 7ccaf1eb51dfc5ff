"""Classifiers as other tools write them, in a few nodes: class `c` has the mean of channel `c`, times a number, as its logit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper
from PIL import Image

SIDE = 16
MEAN, STD = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
WEIGHT = np.diag([4.0, 4.0, 4.0]).astype(np.float32)
POOL = "p = GlobalAveragePool (images) f = Flatten (p)"
LOGITS = f"{POOL} logits = MatMul (f, w)"
IMAGES = f"float[n,3,{SIDE},{SIDE}] images"


def write_graph(path: Path, body: str, *outputs: str, images: str = IMAGES, opset: int = 20, **tensors: Any) -> Path:
    """Write a graph in ONNX's own text; `w` is a weight of three classes unless `tensors` say otherwise."""
    given = ", ".join(outputs or ["float[n,3] logits"])
    model = onnx.parser.parse_model(
        f'<ir_version: 9, opset_import: ["" : {opset}]>\ng ({images}) => ({given}) {{ {body} }}'
    )
    for name, values in ({"w": WEIGHT} | tensors).items():
        if values is not None:
            model.graph.initializer.append(numpy_helper.from_array(np.asarray(values), name))
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, path)
    return path


def per_channel(values: NDArray[Any]) -> NDArray[np.float32]:
    """Return a constant that images `(N, 3, S, S)` are computed with."""
    return values.astype(np.float32).reshape(1, 3, 1, 1)


def coloured_folder(folder: Path, side: int = SIDE) -> Path:
    """Write grey images of three classes, each a little brighter in a channel of its own."""
    rng = np.random.default_rng(0)
    for part in ("train", "val"):
        for channel, name in enumerate(("blau", "gruen", "rot")):
            (folder / part / name).mkdir(parents=True)
            for number in range(4):
                pixels = rng.integers(110, 120, (side, side, 3))
                pixels[..., channel] += 40
                Image.fromarray(pixels.astype(np.uint8)).save(folder / part / name / f"{number}.png")
    return folder
