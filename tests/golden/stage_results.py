"""What every kind of stage makes of small fixed inputs, in numbers: `python -m tests.golden.stage_results` writes them down.

A kind whose numbers have changed is only written when its `result_version` has been raised, because artifacts that users have
made would otherwise be taken for current ones.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from torch import Tensor

from convnext_deploy.artifacts.artifact import Artifact
from convnext_deploy.artifacts.details import EngineDetails, TorchDetails
from convnext_deploy.artifacts.spec import ModelSpec, Preprocess
from convnext_deploy.config.choices import DistillMethod, PruneMethod, QuantizeMethod
from convnext_deploy.config.distill import DistillConfig
from convnext_deploy.config.engine import TensorRTConfig
from convnext_deploy.config.fit import FitConfig
from convnext_deploy.config.onnx import ONNXConfig
from convnext_deploy.config.prune import PruneConfig
from convnext_deploy.config.ptq import PTQConfig
from convnext_deploy.config.quantize import QATConfig, QuantizeConfig
from convnext_deploy.config.stage import StageConfig
from convnext_deploy.config.stages import stage_config
from convnext_deploy.config.train import ModelConfig, TrainConfig
from convnext_deploy.data.datasets import ArrayImages, Data
from convnext_deploy.models.checkpoints.load_network import load_network
from convnext_deploy.pipeline.open_artifact import open_input
from convnext_deploy.stages import run_stage
from convnext_deploy.stages.context import StageContext
from convnext_deploy.system.execution import Execution
from tests.weights import write_weights

FILE = Path(__file__).with_name("stage_results.json")
CLASSES = ("a", "b", "c")
SIDE = 32
PREPROCESS = Preprocess(SIDE, 1.0, "bicubic", (0.5, 0.45, 0.4), (0.25, 0.2, 0.3))
TOLERANCE = 2e-3
"""Of the largest number of a list: what rounding on another CPU changes in a float network, also while it is trained."""
QUANTIZED_TOLERANCE = 5e-2
"""The same where a value may be rounded to the next step of a grid."""
ELSEWHERE = 0.1
"""Share of the scales and biases that another CPU may choose otherwise, between two that are about as good."""

Numbers = dict[str, Any]
"""Lists of numbers, compared with a tolerance, and names and tables, which must be equal."""

FIT = FitConfig(
    epochs=3,
    batch_size=8,
    base_learning_rate=0.5,
    warmup_epochs=1.0,
    color_jitter=0.3,
    augmentation_policy="randaugment",
    random_erasing_probability=0.5,
    mixup_alpha=0.8,
    cutmix_alpha=1.0,
    layer_scale_init=0.1,
    layer_decay=0.9,
    gradient_clip_norm=1.0,
    accumulation_steps=2,
    head_only_epochs=1.0,
    ema_decay=0.9,
    autocast="off",
)
QAT_FIT = FitConfig(
    epochs=1, batch_size=8, base_learning_rate=1.0, warmup_epochs=0.0, drop_path_rate=0.0, autocast="off"
)
MODEL = ModelConfig("test_convnext", SIDE)


class Workshop:
    """Runs stages one after the other in a folder; `float` and `other` are artifacts with random weights."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        rng = np.random.default_rng(0)
        labels = np.arange(36) % len(CLASSES)
        # one colour and a gradient for each class, under noise
        ramp = np.linspace(0, 60, SIDE)[None, :, None, None] * np.array([1, 0.5, 0])
        pixels = rng.integers(0, 90, (36, SIDE, SIDE, 3)) + ramp + 50 * np.eye(3)[labels][:, None, None]
        images = ArrayImages(pixels.astype(np.uint8), labels)
        self.data = Data("fixed", images, ArrayImages(images.arrays[:6], labels[:6]), CLASSES)
        self.float, self.other = (self._weights(f"weights-{seed}", seed) for seed in (0, 1))

    def _weights(self, name: str, seed: int) -> Artifact:
        path = self.folder / f"{name}.safetensors"
        return open_input(write_weights(path, ModelSpec("test_convnext2", 3), CLASSES, PREPROCESS, seed=seed))

    def run(self, config: StageConfig, source: Artifact | None = None, **given: Any) -> Artifact:
        """Run a stage into a folder of its own."""
        name = f"{config.kind}-{len(list(self.folder.iterdir()))}"
        (self.folder / name).mkdir()
        context = StageContext(name, self.folder / name, self.data, Execution(seed=3), self.folder / "cache", **given)
        return run_stage(config, source, context)

    @functools.cached_property
    def ptq(self) -> Artifact:
        """The random weights, quantized after training."""
        return self.run(PTQConfig(calibration_images=12), self.float)

    @functools.cached_property
    def int8_graph(self) -> Artifact:
        """Its graph."""
        return self.run(ONNXConfig(precision="fp16", runtime="tensorrt-rtx", range_images=4, batch_size=2), self.ptq)

    def logits(self, artifact: Artifact) -> list[float]:
        """Return the logits of four fixed images."""
        images = torch.linspace(-2, 2, 4 * 3 * SIDE * SIDE).reshape(4, 3, SIDE, SIDE)
        images = images + torch.sin(torch.arange(SIDE) * images[:, :1] * 3)
        with torch.no_grad():
            return _rounded(load_network(artifact)(images))


def _rounded(values: Tensor) -> list[float]:
    return [float(f"{value:.5g}") for value in values.flatten().double().tolist()]


def _train(shop: Workshop) -> Numbers:
    return {"logits": shop.logits(shop.run(TrainConfig(MODEL, FIT)))}


def _distill(shop: Workshop) -> Numbers:
    found: Numbers = {}
    methods: tuple[DistillMethod, ...] = ("kd", "dkd", "hard-label", "feature")
    for method in methods:
        config = DistillConfig(
            MODEL, ("one", "two"), FIT, method, temperature=2.0, distill_loss_weight=0.5, teacher_cache=method == "kd"
        )
        found[method] = shop.logits(shop.run(config, teachers=(shop.float, shop.other)))
    return found


def _prune(shop: Workshop) -> Numbers:
    found: Numbers = {}
    methods: tuple[PruneMethod, ...] = ("second-order", "taylor")
    for method in methods:
        config = PruneConfig(widths=(64, 0, 192, 256), method=method, calibration_images=12)
        found[method] = shop.logits(shop.run(config, shop.float))
    return found


def _of_quantized(shop: Workshop, artifact: Artifact) -> Numbers:
    state = load_network(artifact).state_dict()
    found: Numbers = {"logits": shop.logits(artifact)}
    for name in ("log2_scale", "bias"):
        values = [tensor.flatten()[:2] for key, tensor in state.items() if key.endswith(f".{name}")]
        found[name] = _rounded(torch.cat(values))
    return found


def _ptq(shop: Workshop) -> Numbers:
    plain = shop.run(PTQConfig(target="onnxruntime", calibration_method="minmax", calibration_images=12), shop.float)
    return {"all steps": _of_quantized(shop, shop.ptq), "min-max": _of_quantized(shop, plain)}


def _qat(shop: Workshop) -> Numbers:
    return _of_quantized(shop, shop.run(QATConfig(QAT_FIT, distill_loss_weight=0.5), shop.ptq, baseline=shop.float))


def _quantize(shop: Workshop) -> Numbers:
    found: Numbers = {}
    config = QuantizeConfig(
        calibration_images=8, selection_images=16, fit=QAT_FIT, max_drop_pp=100.0, distill_loss_weight=0.5
    )
    methods: tuple[QuantizeMethod, ...] = ("ptq", "qat")
    for method in methods:
        made = shop.run(dataclasses.replace(config, method=method), shop.float)
        assert isinstance(made.details, TorchDetails)
        assert made.details.selection is not None
        tried = {"steps": [step.name for step in made.details.selection.steps]}
        found[method] = {**_of_quantized(shop, made), **tried}
    return found


def _onnx(shop: Workshop) -> Numbers:
    found: Numbers = {}
    graphs = {
        "float": shop.run(ONNXConfig(runtime="onnxruntime", output="probabilities", input_type="uint8"), shop.float),
        "INT8": shop.int8_graph,
    }
    for name, artifact in graphs.items():
        model = onnx.load(artifact.main_file)
        found[f"{name}: nodes"] = dict(sorted(Counter(node.op_type for node in model.graph.node).items()))
        session = onnxruntime.InferenceSession(str(artifact.main_file), providers=["CPUExecutionProvider"])
        images = np.linspace(0, 255, 2 * 3 * SIDE * SIDE, dtype=np.float32).reshape(2, 3, SIDE, SIDE)
        taken = session.get_inputs()[0]
        given = images.astype(np.uint8) if "uint8" in taken.type else images / 128 - 1
        found[f"{name}: outputs"] = _rounded(torch.from_numpy(session.run(None, {taken.name: given})[0]))
    return found


def _tensorrt(shop: Workshop) -> Numbers:
    made = shop.run(TensorRTConfig(gpus=("sm89",), max_batch_size=2), shop.int8_graph)
    assert isinstance(made.details, EngineDetails)
    report = made.details.precisions["SM89"]
    assert report is not None
    return {
        "files": [file.name for file in made.files],
        "requested INT8": report.requested_int8,
        "other": list(report.fallbacks),
    }


RESULTS: dict[str, Callable[[Workshop], Numbers]] = {
    "train": _train,
    "distill": _distill,
    "prune": _prune,
    "ptq": _ptq,
    "qat": _qat,
    "quantize": _quantize,
    "onnx": _onnx,
    "tensorrt": _tensorrt,
}
"""All kinds but `torch-tensorrt`, which compiles on a GPU alone."""
FED_BY = {"qat": "ptq", "onnx": "ptq", "tensorrt": "onnx"}
"""Kind → the one whose result it is given here: when that has another version, so may its numbers under the same one."""


def differences(found: Numbers, expected: Numbers, quantized: bool, where: str = "") -> list[str]:
    """Return the names of the numbers that another CPU does not explain."""
    others = []
    for name in {**found, **expected}:
        one, other = found.get(name), expected.get(name)
        if isinstance(one, dict) and isinstance(other, dict):
            others += differences(one, other, quantized, f"{where}{name}: ")
        elif not _is_same(name, one, other, QUANTIZED_TOLERANCE if quantized else TOLERANCE):
            others.append(f"{where}{name}")
    return others


def _is_same(name: str, one: Any, other: Any, tolerance: float) -> bool:
    if one == other:
        return True
    if not (isinstance(one, list) and isinstance(other, list) and all(isinstance(v, float) for v in [*one, *other])):
        return False
    if len(one) != len(other):
        return False
    distances = np.abs(np.subtract(one, other))
    if name in ("log2_scale", "bias"):
        return bool((distances > TOLERANCE).mean() <= ELSEWHERE)
    return bool(distances.max() <= tolerance * np.abs(other).max())


def is_quantized(kind: str) -> bool:
    """Whether the results of a kind are on grids, or chosen among things that are about as good."""
    return kind not in ("train", "distill")


def main() -> int:
    """Write the numbers of all kinds, unless a kind has others under the same version."""
    known = json.loads(FILE.read_text()) if FILE.exists() else {}
    raised, refused = set(), []
    with tempfile.TemporaryDirectory() as folder:
        shop = Workshop(Path(folder))
        for kind, compute in RESULTS.items():
            new: dict[str, Any] = {"result_version": stage_config(kind).result_version, "numbers": compute(shop)}
            if (
                kind not in known
                or known[kind]["result_version"] != new["result_version"]
                or FED_BY.get(kind) in raised
            ):
                raised.add(kind)
                known[kind] = new
            elif differences(new["numbers"], known[kind]["numbers"], is_quantized(kind)):
                refused.append(kind)
    FILE.write_text(json.dumps(known, indent=1) + "\n", encoding="utf-8")
    if refused:
        print(f"{', '.join(refused)}: other results under the same result_version; raise it in config/ and run again.")
    return int(bool(refused))


if __name__ == "__main__":
    sys.exit(main())
