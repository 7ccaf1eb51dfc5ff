"""The parts of `gpu.py` that measure, each in its own process: `python benchmarks/gpu_parts.py NAME --device cuda --out FILE`."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from gpu_commands import engine, resume, two_processes
from gpu_setting import Figures, Setting
from torch import Tensor, nn

from convnext_deploy.artifacts.spec import ModelSpec
from convnext_deploy.data.loaders import Batch, TrainingBatches
from convnext_deploy.exporters.onnx.trace import export_float
from convnext_deploy.models.variants import build_model, resolve_variant
from convnext_deploy.models.zoo.ranking import training_memory
from convnext_deploy.system.execution import Execution
from convnext_deploy.training.fit import fit
from convnext_deploy.training.schedule import Schedule
from convnext_deploy.training.torch_compile import compile_network

CLASSES = 1000
GIB = 2**30


class OnDevice:
    """The same batch on the device over and over: what `fit` uses of `TrainingBatches`."""

    def __init__(self, setting: Setting) -> None:
        shape = (setting.batch_size, 3, setting.side, setting.side)
        images = torch.randn(shape, device=setting.device).contiguous(memory_format=torch.channels_last)
        self.batch = Batch(images, torch.randint(CLASSES, (setting.batch_size,), device=setting.device))
        self.device, self.batch_size, self.steps = setting.device, setting.batch_size, setting.steps

    def __len__(self) -> int:
        return self.steps

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """Yield it."""
        for _ in range(start, self.steps):
            yield self.batch


def cross_entropy(network: nn.Module, batch: Batch) -> Tensor:
    return F.cross_entropy(network(batch.images).float(), batch.labels)


def ours(setting: Setting, *, compiled: bool) -> float:
    """Return images per second of the package's own training loop."""
    network = build_model(ModelSpec(setting.variant, CLASSES)).to(setting.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    if compiled:
        compile_network(network, setting.device)
    schedule = Schedule(setting.epochs, 0.01, weight_decay=0.05, autocast=setting.dtype)
    batches = cast(TrainingBatches, OnDevice(setting))
    history = fit(network, batches, cross_entropy, schedule, Execution(setting.device), description="ours")
    return float(np.median([row["images_per_s"] for row in history[1:]]))


def timms(setting: Setting, *, compiled: bool, last: bool) -> float:
    """Return images per second of timm's network in a plain loop with timm's optimizer."""
    import timm
    from timm.optim import create_optimizer_v2  # type: ignore[attr-defined]  # timm exports it without saying so

    network: Any = timm.create_model(setting.variant, num_classes=CLASSES).to(setting.device)
    network = network.to(memory_format=torch.channels_last) if last else network
    optimizer = create_optimizer_v2(network, opt="adamw", lr=1e-4, weight_decay=0.05)
    batch, speeds = OnDevice(setting).batch, []
    images = batch.images if last else batch.images.contiguous()
    called = torch.compile(network) if compiled else network
    dtype = setting.dtype
    for _ in range(setting.epochs):
        setting.wait()
        started = time.perf_counter()
        for _ in range(setting.steps):
            optimizer.zero_grad()
            with torch.autocast(setting.device, dtype=dtype) if dtype else nullcontext():
                loss = F.cross_entropy(called(images), batch.labels)
            loss.backward()
            optimizer.step()
        setting.wait()
        speeds.append(setting.steps * setting.batch_size / (time.perf_counter() - started))
    return float(np.median(speeds[1:]))


def training(setting: Setting) -> Figures:
    """Compare eager training with timm's."""
    found: Figures = {"ours, images/s": ours(setting, compiled=False)}
    for name, last in (("timm", False), ("timm, channels-last", True)):
        found[f"{name}, images/s"] = timms(setting, compiled=False, last=last)
    best = max(value for name, value in found.items() if name.startswith("timm"))
    return found | {"ours over the faster one": found["ours, images/s"] / best, "dtype": str(setting.dtype)}


def training_compiled(setting: Setting) -> Figures:
    """Compare compiled training with timm's."""
    found = {"ours, images/s": ours(setting, compiled=True)}
    found["timm, images/s"] = timms(setting, compiled=True, last=True)
    return found | {"ours over timm": found["ours, images/s"] / found["timm, images/s"]}


def memory(setting: Setting) -> Figures:
    """Compare the peak of a training with the estimate of `recommend`."""
    if setting.device != "cuda":
        return {"not run": "the memory of a GPU is measured on one"}
    free, total = torch.cuda.mem_get_info()
    ours(setting, compiled=False)
    estimate = training_memory(ModelSpec(setting.variant, CLASSES), setting.side, setting.batch_size)
    peak = torch.cuda.max_memory_reserved() / GIB
    outside = (total - torch.cuda.mem_get_info()[0] - (total - free) - torch.cuda.memory_reserved()) / GIB
    return {
        "peak reserved, GiB": peak,
        "peak allocated, GiB": torch.cuda.max_memory_allocated() / GIB,
        "outside of PyTorch, GiB": outside,
        "estimate of recommend, GiB": estimate,
        "estimate over peak": estimate / (peak + max(0.0, outside)),
    }


def onnxruntime(setting: Setting) -> Figures:
    """Time ONNX Runtime's provider for the device, and compare its logits with PyTorch's."""
    import onnxruntime as runtime

    provider = "CUDAExecutionProvider" if setting.device == "cuda" else "CPUExecutionProvider"
    if provider not in runtime.get_available_providers():
        return {"not run": f"the onnxruntime that is installed has no {provider}; pip install onnxruntime-gpu"}
    network = build_model(ModelSpec(setting.variant, CLASSES)).eval()
    content = export_float(network, 3, setting.side).SerializeToString()
    session = runtime.InferenceSession(content, providers=[provider])
    if session.get_providers()[0] != provider:
        raise RuntimeError(f"ONNX Runtime fell back to {session.get_providers()[0]}")
    found: Figures = {"provider": provider}
    network.to(setting.device)
    for count in (1, 8):
        images = torch.randn(count, 3, setting.side, setting.side)
        times = []
        for _ in range(12):
            started = time.perf_counter()
            (logits,) = session.run(None, {"images": images.numpy()})
            times.append(time.perf_counter() - started)
        found[f"batch {count}, ms"] = 1000 * float(np.median(times[2:]))
        with torch.inference_mode():
            expected = network(images.to(setting.device)).float().cpu().numpy()
        found[f"batch {count}, largest difference of logits"] = float(np.abs(logits - expected).max())
    return found


MEASURES: dict[str, Callable[[Setting], Figures]] = {
    "training": training,
    "training-compiled": training_compiled,
    "memory": memory,
    "onnxruntime": onnxruntime,
    "resume": resume,
    "two-processes": two_processes,
    "engine-fp16": lambda setting: engine(setting, None),
    "engine-int8": lambda setting: engine(setting, "tensorrt"),
    "engine-fp8": lambda setting: engine(setting, "tensorrt-fp8"),
}


def main() -> None:
    """Measure one part and write its figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("part", choices=list(MEASURES))
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    size = ("convnext_atto", 32, 2, 1, 2) if arguments.quick else (resolve_variant("tiny"), 224, 128, 10, 4)
    figures = MEASURES[arguments.part](Setting(arguments.device, *size))
    arguments.out.write_text(json.dumps(figures))


if __name__ == "__main__":
    main()
