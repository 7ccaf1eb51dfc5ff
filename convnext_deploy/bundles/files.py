"""Write the files of a bundle: models, engines, golden answers, programs, Triton entries, checksums."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from convnext_deploy.artifacts.artifact import Artifact, describe_file
from convnext_deploy.bundles import device
from convnext_deploy.bundles.contents import Contents, Model, Tensor
from convnext_deploy.bundles.device import answers, verify
from convnext_deploy.bundles.fp32_answers import FP32Answers, write_fp32_answers
from convnext_deploy.bundles.golden import GoldenImages, allowed_errors, compute_outputs
from convnext_deploy.bundles.readme import render_card
from convnext_deploy.bundles.reported_accuracy import Reported, describe_measurement
from convnext_deploy.bundles.triton import model_config, write_entry
from convnext_deploy.data import pixels
from convnext_deploy.errors import ArtifactError
from convnext_deploy.graphs.onnx_io import fix_image, join_weights, load_onnx
from convnext_deploy.metrics import intervals
from convnext_deploy.reports.phrases import one_line
from convnext_deploy.system.environment import package_versions
from convnext_deploy.system.files import copy_file, write_array, write_bytes, write_text
from convnext_deploy.system.progress import Progress

_DEVICE = Path(device.__path__[0])
PROGRAMS = {
    **{
        name: _DEVICE / name
        for name in (
            "verify.py",
            "bundle_index.py",
            "answers.py",
            "open_models.py",
            "score_images.py",
            "tensorrt_device.py",
            "build_engine.py",
            "choose_engine.py",
            "build_on_device.sh",
        )
    },
    **{Path(str(module.__file__)).name: Path(str(module.__file__)) for module in (pixels, intervals)},
}
"""Programs in a bundle, and where they come from. Two are files that the package itself uses."""
CLASSES, CARD, TABLE, PIXELS = "classes.txt", "README.md", "models.tsv", "golden/pixels.npy"


@dataclass(frozen=True)
class BatchSizes:
    """What engines built on the device are tuned for, and the largest batch that they and Triton take."""

    optimal: int
    maximum: int


def assemble(
    folder: Path,
    contents: Contents,
    golden: GoldenImages,
    batch: BatchSizes,
    progress: Progress,
    reported: Mapping[str, Reported],
    fp32: FP32Answers | None = None,
) -> str:
    """Write all files of a bundle into an empty folder; return the SHA-256 of the list of their checksums.

    `reported`: what the reports of their runs say of the models, by name.

    Raises: ArtifactError: if an artifact is not what its manifest says, or cannot be run.
    """
    names = contents.first.class_names
    labels = None if names is None else "".join(f"{one_line(name)}\n" for name in names)
    write_array(folder / PIXELS, golden.pixels)
    records = []
    with progress.task("bundle", len(contents.models) + len(contents.engines), "files") as task:
        for model in contents.models:
            _copy(model.artifact.main_file, folder / model.file, model.artifact)
            if model.fixes_size or model.joins_weights:
                _write_anew(folder / model.file, model)
            records.append(_answer(folder, model, golden, batch, reported.get(model.name)))
            task.advance(note=model.name)
        for engine in contents.engines:
            _copy(engine.path, folder / engine.file, engine.artifact)
            task.advance(note=engine.file)
    for model in contents.models:
        _write_triton(folder / "triton", folder, contents, model, batch, labels)
    if labels is not None:
        write_text(folder / CLASSES, labels)
    for name, source in PROGRAMS.items():
        copy_file(source, folder / name)
    record = _describe(contents, golden, records)
    if fp32 is not None:
        record["fp32"] = write_fp32_answers(folder, fp32, progress)
    write_text(folder / verify.RECORD, json.dumps(record, indent=1) + "\n")
    write_text(folder / TABLE, _table(records))
    write_text(folder / CARD, render_card(contents, golden, record))
    return _write_sums(folder)


def _copy(source: Path, target: Path, artifact: Artifact) -> None:
    copy_file(source, target)
    expected = next(file.sha256 for file in artifact.files if file.name == source.name)
    if describe_file(target).sha256 != expected:
        raise ArtifactError(f"{source} is not the file that its manifest describes; make the artifact again.")


def _write_anew(path: Path, model: Model) -> None:
    """Write a graph as devices want it: one file, for images of one size.

    Raises: ArtifactError: if it is too large for one file.
    """
    source = model.artifact.main_file
    proto = load_onnx(source)
    if model.joins_weights:
        join_weights(proto, source)
    if model.fixes_size:
        fix_image(proto, tuple(size for size in model.input.shape[1:] if size is not None))
    write_bytes(path, proto.SerializeToString(deterministic=True))


def _answer(
    folder: Path, model: Model, golden: GoldenImages, batch: BatchSizes, reported: Reported | None
) -> dict[str, Any]:
    """Write the golden outputs of a model and return its entry in the record."""
    preprocess = model.artifact.preprocess.settings()
    takes = {**_signature(model.input), "layout": model.layout, "white": model.white}
    images = answers.model_inputs(golden.pixels, preprocess, takes)
    outputs = compute_outputs(model, folder / model.file, images)
    for tensor in model.outputs:
        write_array(folder / _golden_file(model, tensor), outputs[tensor.name])
    return {
        "name": model.name,
        "file": model.file,
        "artifact": model.artifact.sha256,
        "precision": model.artifact.precision,
        "input": takes,
        "outputs": [{**_signature(tensor), "golden": _golden_file(model, tensor)} for tensor in model.outputs],
        "tolerance": allowed_errors(model, folder / model.file, images, outputs),
        "batch": {"frozen": model.frozen_batch, "optimal": batch.optimal, "maximum": batch.maximum},
        "buildable": model.obstacle is None,
        **({"multi_label": True} if model.artifact.model.multi_label else {}),
        "triton": model.name,
        "measured": describe_measurement(reported),
        "history": model.artifact.history(),
    }


def _golden_file(model: Model, tensor: Tensor) -> str:
    return f"golden/{model.name}.{model.outputs.index(tensor)}.npy"


def _signature(tensor: Tensor) -> dict[str, Any]:
    return {"name": tensor.name, "dtype": tensor.dtype, "shape": list(tensor.shape)}


def _write_triton(
    root: Path, folder: Path, contents: Contents, model: Model, batch: BatchSizes, labels: str | None
) -> None:
    def config(runtime: str, largest: int) -> str:
        return model_config(model, runtime=runtime, max_batch_size=largest, has_labels=labels is not None)

    onnx = config("onnxruntime", batch.maximum)
    write_entry(root / "onnxruntime" / model.name, onnx, labels, folder / model.file)
    if model.obstacle is not None:
        return
    built = [e for e in contents.engines if e.model is model and e.details.flavor == "tensorrt"]
    largest = built[0].details.batch.maximum if built else batch.maximum
    plan = folder / built[0].file if built else None
    write_entry(root / "tensorrt" / model.name, config("tensorrt", largest), labels, plan)


def _describe(contents: Contents, golden: GoldenImages, models: list[dict[str, Any]]) -> dict[str, Any]:
    first = contents.first
    return {
        "schema": verify.SCHEMA,
        "name": contents.name,
        "tool": f"convnext_deploy {package_versions()['convnext_deploy']}",
        "model": first.model.settings(),
        "class_names": first.class_names,
        "license": contents.license,
        "preprocess": {**first.preprocess.settings(), "resize_size": first.preprocess.resize_size},
        "golden": {"pixels": PIXELS, "images": len(golden.pixels), "origin": golden.origin},
        "models": models,
        "engines": [
            {
                "file": engine.file,
                "kind": engine.details.flavor,
                "precision": engine.artifact.precision,
                "gpus": list(engine.gpus),
                "version": engine.details.tensorrt,
                "model": engine.model.name,
                "host_code": engine.details.version_compatible,
                "built_from_it": engine.is_exact,
            }
            for engine in contents.engines
        ],
    }


def _table(models: list[dict[str, Any]]) -> str:
    """Return what `build_on_device.sh` reads: a line per model that TensorRT can build, smallest first."""
    lines = []
    for model in models:
        if model["buildable"]:
            takes, batch = model["input"], model["batch"]
            item = "x".join(str(size) for size in takes["shape"][1:])
            sizes = (batch["frozen"] or 0, batch["optimal"], batch["maximum"])
            fields = (model["name"], model["precision"], model["file"], takes["name"], item, *sizes, model["triton"])
            lines.append("\t".join(map(str, fields)) + "\n")
    return "".join(lines)


def _write_sums(folder: Path) -> str:
    files = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    lines = [f"{verify.hash_file(folder / name)}  {name}\n" for name in files]
    write_text(folder / verify.SUMS, "".join(lines))
    return verify.hash_file(folder / verify.SUMS)
