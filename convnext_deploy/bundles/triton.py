"""Write model repositories for the Triton inference server: of ONNX files, and of engines built on the device."""

import contextlib
from pathlib import Path

from convnext_deploy.bundles.contents import Model, Tensor
from convnext_deploy.reports.escaping import quoted
from convnext_deploy.system.files import copy_file, write_text

LABELS, CONFIG = "labels.txt", "config.pbtxt"
_TYPES = {
    "float32": "TYPE_FP32",
    "float16": "TYPE_FP16",
    "uint8": "TYPE_UINT8",
    "int32": "TYPE_INT32",
    "int64": "TYPE_INT64",
}
_QUEUE_DELAY_US = 2000


def model_config(model: Model, *, runtime: str, max_batch_size: int, has_labels: bool) -> str:
    """Return the text of `config.pbtxt`.

    Args:
        model: the ONNX file, or that of the engine.
        runtime: `onnxruntime` or `tensorrt`.
        max_batch_size: of the engine; a graph with a frozen batch is served as one without batching.
        has_labels: whether `labels.txt` lies beside it.
    """
    frozen = model.frozen_batch is not None
    classes = model.artifact.model.num_classes
    lines = [
        f"name: {quoted(model.name)}",
        'backend: "onnxruntime"' if runtime == "onnxruntime" else 'platform: "tensorrt_plan"',
        f'default_model_filename: "{"model.onnx" if runtime == "onnxruntime" else "model.plan"}"',
        f"max_batch_size: {0 if frozen else max_batch_size}",
        f"input [ {{ {_signature(model.input, frozen)} }} ]",
    ]
    for output in model.outputs:
        is_scores = output.dtype.startswith("float") and classes and output.shape[1] == classes
        labels = f" label_filename: {quoted(LABELS)}" if has_labels and is_scores else ""
        lines.append(f"output [ {{ {_signature(output, frozen)}{labels} }} ]")
    if not frozen and max_batch_size > 1:
        preferred = sorted({max(1, max_batch_size // 2), max_batch_size})
        lines.append(
            f"dynamic_batching {{ preferred_batch_size: {preferred} max_queue_delay_microseconds: {_QUEUE_DELAY_US} }}"
        )
    kind = "KIND_GPU" if runtime == "tensorrt" else "KIND_AUTO"
    lines.append(f"instance_group [ {{ count: 1 kind: {kind} }} ]")
    if runtime == "tensorrt":
        lines.append("optimization { cuda { graphs: true } }")
    for size in sorted({1, 1 if frozen else max_batch_size}):
        data = f"data_type: {_TYPES[model.input.dtype]} dims: {_dims(model.input, frozen)} zero_data: true"
        lines.append(
            f'model_warmup [ {{ name: "batch of {model.frozen_batch or size}" batch_size: {size} '
            f"inputs {{ key: {quoted(model.input.name)} value: {{ {data} }} }} }} ]"
        )
    return "\n".join(lines) + "\n"


def _signature(tensor: Tensor, frozen: bool) -> str:
    return f"name: {quoted(tensor.name)} data_type: {_TYPES[tensor.dtype]} dims: {_dims(tensor, frozen)}"


def _dims(tensor: Tensor, frozen: bool) -> list[int | None]:
    """Return the shape, without the batch where Triton adds it."""
    return list(tensor.shape if frozen else tensor.shape[1:])


def write_entry(folder: Path, config: str, labels: str | None, file: Path | None) -> None:
    """Write a model's folder, with `file` as version 1; without one, which the device builds, there is no version yet."""
    write_text(folder / CONFIG, config)
    if labels is not None:
        write_text(folder / LABELS, labels)
    if file is not None:
        link_or_copy(file, folder / "1" / f"model{file.suffix}")


def link_or_copy(source: Path, target: Path) -> None:
    """Give a file a second name where the file system can, and copy it where it cannot."""
    with contextlib.suppress(OSError):
        target.parent.mkdir(parents=True, exist_ok=True)
        target.hardlink_to(source)
        return
    copy_file(source, target)
