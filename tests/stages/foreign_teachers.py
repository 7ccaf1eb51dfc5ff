"""Teachers of fourteen kinds, each written as its own library writes it, and what that library says of images."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import timm
import torch
import torchvision
import transformers
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from safetensors.numpy import save_file
from timm.models import save_for_hf
from torch import Tensor, nn

from tests.weights import fill

CLASSES = ("cat", "dog", "owl")
SIDE = 32
MEAN, STD = (0.4, 0.45, 0.5), (0.2, 0.25, 0.3)
"""Unlike every default."""


@dataclass(frozen=True)
class Kind:
    """A kind of teacher: `write` returns what is given to `--teacher-checkpoint`, and what maps pixels in 0..1 to logits."""

    name: str
    write: Callable[[Path], tuple[str | Path, Callable[[Tensor], Tensor]]]


def normalized(pixels: Tensor, mean: tuple[float, ...] = MEAN, std: tuple[float, ...] = STD) -> Tensor:
    """Return images under a normalization."""
    return (pixels - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]


def _timm(name: str, **arguments: Any) -> Callable[[Path], tuple[Path, Callable[[Tensor], Tensor]]]:
    def write(folder: Path) -> tuple[Path, Callable[[Tensor], Tensor]]:
        network: Any = timm.create_model(name, num_classes=3, **arguments)
        _fill(network)
        config = {
            "mean": list(MEAN), "std": list(STD), "input_size": (3, SIDE, SIDE), "label_names": list(CLASSES), "num_classes": 3,
            "crop_pct": 1.0, "interpolation": "bilinear",
        }  # fmt: skip
        network.pretrained_cfg.update(config)
        save_for_hf(network, str(folder), model_args={**arguments, "num_classes": 3}, safe_serialization=True)
        return folder, lambda pixels: network(normalized(pixels))

    return write


def _torchvision(folder: Path) -> tuple[str, Callable[[Tensor], Tensor]]:
    network = torchvision.models.resnet18(num_classes=3)
    _fill(network)
    torch.save({"model": {f"module.{key}": value for key, value in network.state_dict().items()}}, folder / "best.pth")
    usual = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    return f"torchvision:resnet18@{folder / 'best.pth'}", lambda pixels: network(normalized(pixels, *usual))


def _transformers(config: transformers.PretrainedConfig) -> Callable[[Path], tuple[Path, Callable[[Tensor], Tensor]]]:
    def write(folder: Path) -> tuple[Path, Callable[[Tensor], Tensor]]:
        config.id2label = dict(enumerate(CLASSES))
        config.label2id = {name: number for number, name in enumerate(CLASSES)}
        network = transformers.AutoModelForImageClassification.from_config(config).eval()
        _fill(network)
        network.save_pretrained(folder)
        processor = {
            "size": {"height": SIDE, "width": SIDE},
            "resample": 2,
            "image_mean": list(MEAN),
            "image_std": list(STD),
        }
        (folder / "preprocessor_config.json").write_text(json.dumps(processor))
        return folder, lambda pixels: network(normalized(pixels)).logits

    return write


def _onnx(dtype: int) -> Callable[[Path], tuple[Path, Callable[[Tensor], Tensor]]]:
    """Return a writer of a graph that pools an image to a grid of 4 and classifies that; as uint8 it takes pixels of 0 to 255."""

    def write(folder: Path) -> tuple[Path, Callable[[Tensor], Tensor]]:
        element, weight = (np.float16 if dtype == TensorProto.FLOAT16 else np.float32), _matrix(48)
        nodes = [
            helper.make_node("AveragePool", ["x"], ["p"], kernel_shape=[8, 8], strides=[8, 8]),
            helper.make_node("Flatten", ["p"], ["f"]),
            helper.make_node("MatMul", ["f", "w"], ["logits"]),
        ]
        tensors = [numpy_helper.from_array(weight.astype(element), "w")]
        if dtype == TensorProto.UINT8:
            scale, shift = (
                _per_channel(values) for values in (1 / (255 * np.array(STD)), -np.array(MEAN) / np.array(STD))
            )
            tensors += [numpy_helper.from_array(values, name) for values, name in ((scale, "s"), (shift, "b"))]
            nodes = [
                helper.make_node("Cast", ["images"], ["c"], to=TensorProto.FLOAT),
                helper.make_node("Mul", ["c", "s"], ["m"]),
                helper.make_node("Add", ["m", "b"], ["x"]),
                *nodes,
            ]
        else:
            nodes[0].input[0] = "images"
        of_logits = TensorProto.FLOAT16 if dtype == TensorProto.FLOAT16 else TensorProto.FLOAT
        graph = helper.make_graph(
            nodes,
            "teacher",
            [helper.make_tensor_value_info("images", dtype, ["n", 3, SIDE, SIDE])],
            [helper.make_tensor_value_info("logits", of_logits, ["n", 3])],
            tensors,
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
        helper.set_model_props(model, {"names": str(dict(enumerate(CLASSES)))})
        onnx.save(model, folder / "teacher.onnx")
        usual = (MEAN, STD) if dtype == TensorProto.UINT8 else ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))

        def reference(pixels: Tensor) -> Tensor:
            images = (pixels * 255).round() / 255 if dtype == TensorProto.UINT8 else pixels
            pooled = nn.functional.avg_pool2d(normalized(images, *usual), 8).flatten(1)
            return pooled @ torch.from_numpy(weight)

        return folder / "teacher.onnx", reference

    return write


class _Program(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, 8, 4, 4), nn.Linear(8, 3)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(torch.relu(self.stem(images)).mean((2, 3)))  # type: ignore[no-any-return]


def write_program(folder: Path, network: nn.Module | None = None) -> tuple[Path, Callable[[Tensor], Tensor]]:
    """Write a program of torch.export for batches of any size."""
    network = network or _Program().eval()
    _fill(network)
    batch = torch.export.Dim("batch", min=1, max=4096)
    program = torch.export.export(network, (torch.zeros(2, 3, SIDE, SIDE),), dynamic_shapes=({0: batch},))
    torch.export.save(program, folder / "teacher.pt2")
    usual = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    return folder / "teacher.pt2", lambda pixels: network(normalized(pixels, *usual))


def write_table(folder: Path, names: list[str], vectors: NDArray[np.float32], content: str) -> Path:
    """Write a file of predictions, one tensor for each image."""
    path = folder / f"{content}.safetensors"
    told = {"content": content} | ({} if content == "features" else {"class_names": json.dumps(CLASSES)})
    save_file(dict(zip(names, vectors, strict=True)), path, metadata=told)
    return path


NETWORKS = (
    Kind("timm CNN", _timm("resnet18")),
    Kind("timm ViT", _timm("vit_tiny_patch16_224", img_size=SIDE, patch_size=8, depth=2)),
    Kind(
        "timm Swin",
        _timm("swin_tiny_patch4_window7_224", img_size=SIDE, window_size=4, depths=(1, 1), num_heads=(3, 6)),
    ),
    Kind("torchvision", _torchvision),
    Kind(
        "transformers ViT",
        _transformers(
            transformers.ViTConfig(
                image_size=SIDE,
                patch_size=8,
                hidden_size=24,
                num_hidden_layers=2,
                num_attention_heads=3,
                intermediate_size=48,
            )
        ),
    ),
    Kind(
        "transformers ConvNeXt",
        _transformers(
            transformers.ConvNextConfig(image_size=SIDE, hidden_sizes=[40, 80, 160, 320], depths=[2, 2, 6, 2])
        ),
    ),
    Kind("ONNX float", _onnx(TensorProto.FLOAT)),
    Kind("ONNX uint8", _onnx(TensorProto.UINT8)),
    Kind("ONNX FP16", _onnx(TensorProto.FLOAT16)),
    Kind(".pt2", write_program),
)
"""Ten kinds; the others are two files, an ensemble and our own, which need more than a folder."""


def _fill(network: nn.Module) -> None:
    network.eval()
    fill(network, 1)


def _matrix(rows: int) -> NDArray[np.float32]:
    return np.random.default_rng(0).normal(size=(rows, 3)).astype(np.float32)


def _per_channel(values: NDArray[np.float64]) -> NDArray[np.float32]:
    return values.astype(np.float32).reshape(1, 3, 1, 1)
