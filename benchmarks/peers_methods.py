"""The peers of `quantization_peers.py`, each to be run in a process of its own; see there. Needs NumPy and the peer, nothing else.

    python benchmarks/peers_methods.py METHOD --work DIR [--batch-size N] [--threads N]

Reads `float.onnx`, `calibration.npy` and, for accuracy control, `control.npy` and `control_labels.npy` from `--work`; writes
`METHOD/model.onnx` (or `model.xml`) and `METHOD/result.json`.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.metadata
import json
import math
import os
import platform
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from peers_meter import Meter

INPUT_NAME = "images"
SPEED = "speed"
_PACKAGES = ("onnxruntime", "onnxruntime-gpu", "onnx", "nncf", "openvino", "nvidia-modelopt", "torch", "numpy")


@dataclass
class Task:
    """What a peer gets. It runs what is to be measured inside `meter`; `prepared_s` are seconds of documented steps before."""

    work: Path
    folder: Path
    batch_size: int
    control_drop: float
    meter: Meter = field(default_factory=Meter)
    prepared_s: float = 0.0

    @property
    def model(self) -> Path:
        """The FP32 ONNX file."""
        return self.work / "float.onnx"

    @property
    def output(self) -> Path:
        """Where the INT8 ONNX file goes."""
        return self.folder / "model.onnx"

    def images(self) -> NDArray[np.float32]:
        """Read the calibration images, `(N, C, S, S)`."""
        return np.asarray(np.load(self.work / "calibration.npy"))


@dataclass(frozen=True)
class Method:
    """A way to quantize: `target` is one of ours at which it aims too, or `SPEED` for `latency.py` alone; `quantize` does it.

    `package` is what pip installs.
    """

    target: str
    package: str
    quantize: Callable[[Task], None]


class _Reader:
    """What ONNX Runtime calls for one batch after the other."""

    def __init__(self, images: NDArray[np.float32], batch_size: int) -> None:
        self._batches = iter(_batches(images, batch_size))

    def get_next(self) -> dict[str, NDArray[np.float32]] | None:
        """Return the next batch, None after the last."""
        return next(self._batches, None)


def _batches(images: NDArray[np.float32], batch_size: int) -> Iterator[dict[str, NDArray[np.float32]]]:
    for start in range(0, len(images), batch_size):
        yield {INPUT_NAME: images[start : start + batch_size]}


def _onnxruntime(
    calibration: str, *, defaults: bool = False, signed: bool = True, operators: Sequence[str] | None = None
) -> Callable[[Task], None]:
    def quantize(task: Task) -> None:
        onnx, quantization = importlib.import_module("onnx"), importlib.import_module("onnxruntime.quantization")
        shapes = importlib.import_module("onnxruntime.quantization.shape_inference")
        importlib.import_module("sympy")  # the preprocessing's; a missing one should be named
        started = time.perf_counter()
        prepared = task.folder / "prepared.onnx"
        try:
            shapes.quant_pre_process(str(task.model), str(prepared))
        except TypeError:
            # it does not know the shape that ReduceL2 gives, which is in timm's GRN; its options are to skip this step
            shapes.quant_pre_process(str(task.model), str(prepared), skip_symbolic_shape=True)
        task.prepared_s = time.perf_counter() - started
        settings: dict[str, Any] = {}
        if not defaults:
            activation = quantization.QuantType.QInt8 if signed else quantization.QuantType.QUInt8
            settings = {
                "activation_type": activation,
                "weight_type": quantization.QuantType.QInt8,
                "per_channel": True,
                "extra_options": {"ActivationSymmetric": signed, "WeightSymmetric": True},
                "op_types_to_quantize": operators,
            }
        images, model = task.images(), onnx.load(prepared)
        reader = _Reader(images, task.batch_size)
        method = quantization.CalibrationMethod[calibration]
        with task.meter:
            quantization.quantize_static(model, str(task.output), reader, calibrate_method=method, **settings)

    return quantize


def _nncf(
    backend: str, *, transformer: bool = False, control: bool = False, fp8: bool = False
) -> Callable[[Task], None]:
    def quantize(task: Task) -> None:
        nncf = importlib.import_module("nncf")
        images = task.images()
        # In batches, like the others, though NNCF's examples often go image by image: its ranges are means over the batches of each
        # batch's extremes, and single images cut off what is in few of them, which makes the KL several times as large.
        size = math.gcd(task.batch_size, len(images))
        calibration = nncf.Dataset(list(_batches(images, size)))
        settings: dict[str, Any] = {"subset_size": calibration.get_length()}
        if fp8:
            settings["mode"] = nncf.QuantizationMode.FP8_E4M3
        if transformer:
            settings["model_type"] = nncf.ModelType.TRANSFORMER
        run: Callable[..., Any] = nncf.quantize
        if control:
            run = nncf.quantize_with_accuracy_control
            settings["validation_dataset"] = nncf.Dataset(
                _control_batches(task, size), lambda pair: {INPUT_NAME: pair[0]}
            )
            settings["validation_fn"] = _accuracy_onnx if backend == "onnx" else _accuracy_openvino
            settings |= {"max_drop": task.control_drop, "drop_type": nncf.DropType.ABSOLUTE}
        if backend == "onnx":
            onnx = importlib.import_module("onnx")
            model = onnx.load(task.model)
        else:
            openvino = importlib.import_module("openvino")
            model = openvino.Core().read_model(task.model)
            # OpenVINO does not compile what NNCF makes of a dynamic batch with TRANSFORMER.
            model.reshape([size, *images.shape[1:]])
        with task.meter:
            found = run(model, calibration, **settings)
        if backend == "onnx":
            onnx.save(found, task.output)
        else:
            openvino.save_model(found, task.folder / "model.xml", compress_to_fp16=False)

    return quantize


Pairs = Iterable[tuple[NDArray[np.float32], NDArray[np.int64]]]
Controlled = tuple[float, list[list[NDArray[np.float32]]]]


def _control_batches(task: Task, size: int) -> list[tuple[NDArray[np.float32], NDArray[np.int64]]]:
    """Return whole batches of control images and their labels, in an order in which each has all classes."""
    images, labels = np.load(task.work / "control.npy"), np.load(task.work / "control_labels.npy")
    count = len(labels) // size
    return [(images[start::count][:size], labels[start::count][:size]) for start in range(count)]


def _accuracy_onnx(model: Any, pairs: Pairs) -> Controlled:
    session = importlib.import_module("onnxruntime").InferenceSession(model.SerializeToString())
    name = session.get_outputs()[0].name
    return _accuracy(lambda images: session.run([name], {INPUT_NAME: images})[0], pairs)


def _accuracy_openvino(model: Any, pairs: Pairs) -> Controlled:
    return _accuracy(lambda images: np.array(model(images)[0]), pairs)


def _accuracy(run: Callable[[NDArray[np.float32]], NDArray[np.float32]], pairs: Pairs) -> Controlled:
    """Return top-1 and the logits of each batch, from which NNCF ranks the layers."""
    logits, labels = [], []
    for images, truth in pairs:
        logits.append(run(images))
        labels.append(truth)
    right = np.concatenate(logits).argmax(axis=1) == np.concatenate(labels)
    return float(right.mean()), [[batch] for batch in logits]


def _modelopt(calibration: str, mode: str = "int8") -> Callable[[Task], None]:
    def quantize(task: Task) -> None:
        quantization = importlib.import_module("modelopt.onnx.quantization")
        onnx = importlib.import_module("onnx")
        images, model = task.images(), onnx.load(task.model)
        # Without a shape it takes one image at a time, and whatever fills no batch is left out.
        shape = "x".join(str(size) for size in (math.gcd(task.batch_size, len(images)), *images.shape[1:]))
        with task.meter:
            del model  # it takes a path and loads for itself, where the others go on with what was loaded
            quantization.quantize(
                str(task.model),
                quantize_mode=mode,
                calibration_data=images,
                calibration_method=calibration,
                calibration_eps=["cpu"],
                calibration_shapes=f"{INPUT_NAME}:{shape}",
                output_path=str(task.output),
                high_precision_dtype="fp32",  # by default FP16, whose error would count as that of INT8
                log_level="WARNING",
            )

    return quantize


_ORT, _NNCF, _MODELOPT = "onnxruntime onnx sympy", "nncf openvino onnx onnxruntime", "nvidia-modelopt[onnx]"
METHODS: dict[str, Method] = {
    "ort-defaults": Method("onnxruntime", _ORT, _onnxruntime("MinMax", defaults=True)),
    **{
        f"ort-{types}-{calibration.lower()}": Method(target, _ORT, _onnxruntime(calibration, signed=types == "s8s8"))
        for types, target in (("s8s8", "tensorrt"), ("u8s8", "onnxruntime"))
        for calibration in ("MinMax", "Entropy", "Percentile")
    },
    **{
        f"nncf-{backend}{suffix}": Method("openvino", _NNCF, _nncf(backend, **settings))
        for backend in ("onnx", "openvino")
        for suffix, settings in (("", {}), ("-transformer", {"transformer": True}), ("-control", {"control": True}))
    },
    "ort-u8s8-products": Method(
        SPEED, _ORT, _onnxruntime("MinMax", signed=False, operators=("MatMul", "Gemm", "Conv"))
    ),
    "modelopt-max": Method("tensorrt", _MODELOPT, _modelopt("max")),
    "modelopt-entropy": Method("tensorrt", _MODELOPT, _modelopt("entropy")),
    "nncf-openvino-fp8": Method("tensorrt-fp8", _NNCF, _nncf("openvino", fp8=True)),
    "nncf-openvino-fp8-transformer": Method("tensorrt-fp8", _NNCF, _nncf("openvino", fp8=True, transformer=True)),
    "modelopt-fp8": Method("tensorrt-fp8", _MODELOPT, _modelopt("max", "fp8")),
}
LOGITS = "logits-openvino"


def _logits_openvino(task: Task, model: Path) -> None:
    """Write `logits.npy` of the validation images for an OpenVINO model."""
    # On a CPU with AMX it would compute the rest in bfloat16, whose error would count as that of INT8.
    compiled = importlib.import_module("openvino").compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    shape = compiled.input(0).get_partial_shape()
    size = shape[0].get_length() if shape[0].is_static else task.batch_size
    images = np.load(task.work / "validation.npy", mmap_mode="r")
    found = []
    for start in range(0, len(images), size):
        batch = images[start : start + size]
        whole = np.concatenate([batch, np.zeros((size - len(batch), *batch.shape[1:]), np.float32)])
        found.append(np.array(compiled(whole)[0])[: len(batch)])
    np.save(task.folder / "logits.npy", np.concatenate(found))


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def main() -> None:
    """Quantize, or compute logits, and write the result."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("method", choices=[*METHODS, LOGITS])
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--model", type=Path, help=f"with {LOGITS}: what to run")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--control-drop", type=float, default=0.001)
    arguments = parser.parse_args()
    if arguments.threads is not None and hasattr(os, "sched_setaffinity"):
        # Not all of them can be told a number of threads where they open sessions of their own; all count the cores they may use.
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: arguments.threads])
    work = arguments.work.resolve()
    folder = arguments.model.resolve().parent if arguments.method == LOGITS else work / arguments.method
    folder.mkdir(exist_ok=True)
    task = Task(work, folder, arguments.batch_size, arguments.control_drop)
    if arguments.method == LOGITS:
        _logits_openvino(task, arguments.model)
        return
    method = METHODS[arguments.method]
    result: dict[str, Any]
    try:
        method.quantize(task)
        result = {"seconds": task.meter.seconds, "prepared_s": task.prepared_s, "peak_bytes": task.meter.peak_bytes}
    except ImportError as error:
        print(error, file=sys.stderr)
        result = {"failure": f"not installed: pip install {method.package}"}
    (folder / "result.json").write_text(json.dumps({**result, "versions": _versions()}))


if __name__ == "__main__":
    main()
