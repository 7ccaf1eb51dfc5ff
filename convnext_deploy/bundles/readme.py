"""Render the README of a bundle: contents, accuracy, how to build, verify, feed and serve it, history, limits."""

from collections.abc import Mapping, Sequence
from typing import Any

from convnext_deploy.artifacts.spec import Preprocess
from convnext_deploy.bundles.contents import Contents, Engine, Model
from convnext_deploy.bundles.golden import GoldenImages
from convnext_deploy.evaluation.metric import METRICS
from convnext_deploy.models.zoo.cost import describe_features
from convnext_deploy.reports.escaping import clean, code, markdown
from convnext_deploy.reports.phrases import describe_step, one_line, preprocessing_steps

_NO_LICENSE = "not recorded; that of the weights and images that it was trained from holds"


def render_card(contents: Contents, golden: GoldenImages, record: Mapping[str, Any]) -> str:
    """Return the text of `README.md`; `record` is what `bundle.json` says of the same."""
    spec, preprocess = contents.first.model, contents.first.preprocess
    models = {model["name"]: model for model in record["models"]}
    names = "" if contents.first.class_names is None else ", their names in `classes.txt`"
    sections = [
        f"# {contents.name}",
        f"{_kind(contents)}, {spec.variant}: {'RGB' if spec.in_channels == 3 else f'{spec.in_channels} channel(s)'}, "
        f"{preprocess.sides[0]}×{preprocess.sides[1]} pixels, "
        f"{f'{spec.num_classes} classes{names}' if spec.num_classes else _gives(contents)}. Written by {record['tool']}.",
        "## Files",
        _files(contents, models),
        *_measured_on(models),
        "`bundle.json` says all of this for programs. `golden/` holds images, as pixels, and what each model answers to them.",
        "## On the device",
        _building(contents, record.get("fp32") is not None),
        "## Images",
        _preprocessing(preprocess, contents.models),
        "## Triton",
        _triton(contents),
        "## How it was made",
        _histories(contents, models),
        f"Licence: {markdown(contents.license or _NO_LICENSE)}.",
        "## Golden answers and limits",
        "\n".join(f"- {text}" for text in _limits(contents, golden, models)),
    ]
    return clean("\n\n".join(sections) + "\n")


def _gives(contents: Contents) -> str:
    own = contents.first
    return f"without classes: it gives {own.model.output} {describe_features(own.model, own.preprocess.image_size)}"


def _kind(contents: Contents) -> str:
    return "An image classifier" if contents.first.model.num_classes else "A feature extractor"


def _files(contents: Contents, models: Mapping[str, Any]) -> str:
    found = [model["measured"]["scored"] for model in models.values() if model["measured"] is not None]
    scored = " / ".join(dict.fromkeys(found)) or "top-1"
    lines = [f"| file | precision | runs on | MB | {scored} % | drop pp [95 %] |", "|---|---|---|---|---|---|"]
    for model in contents.models:
        where = "ONNX Runtime" + ("" if model.obstacle else ", TensorRT")
        size = model.artifact.main_file.stat().st_size
        lines.append(_row(model.file, model.artifact.precision, where, size, models[model.name]["measured"]))
    for engine in contents.engines:
        where = (
            f"{engine.details.flavor} {engine.details.tensorrt}, {', '.join(engine.gpus) or 'the GPU that built it'}"
        )
        lines.append(_row(engine.file, engine.artifact.precision, where, engine.path.stat().st_size, None))
    return "\n".join(lines)


def _row(file: str, precision: str, where: str, size: int, found: Mapping[str, Any] | None) -> str:
    score = drop = "–"
    if found is not None:
        score = f"{100 * found['score']:.2f}"
        if found["drop_pp"] is not None:
            low, high = found["drop_interval_pp"] or (float("nan"), float("nan"))
            drop = f"{found['drop_pp']:+.2f} [{low:+.2f}, {high:+.2f}]"
    return f"| `{file}` | {precision} | {where} | {size / 1e6:.1f} | {score} | {drop} |"


def _measured_on(models: Mapping[str, Any]) -> list[str]:
    found = {
        f"{_title(m['scored'])} was measured on {m['total']} validation images of '{markdown(m['data'])}' with {m['runner']} "
        f"({markdown(m['cpu'])})"
        + (
            "."
            if m["baseline"] is None
            else f"; drops are against {_baseline(m['baseline'])}, a positive one is a loss."
        )
        for model in models.values()
        if (m := model["measured"]) is not None
    }
    return [*sorted(found), *_doubts(models, "warnings", "**Warning.** "), *_doubts(models, "assumptions", "Assumed: ")]


def _title(scored: str) -> str:
    return next(metric.title for metric in METRICS.values() if metric.name == scored)


def _baseline(kind: str) -> str:
    return "the FP32 network in PyTorch" if kind == "torch fp32" else f"the {kind} artifact that it was compared with"


def _doubts(models: Mapping[str, Any], key: str, before: str) -> list[str]:
    """Return what is to be known of the figures, each once."""
    texts = [text for model in models.values() if model["measured"] is not None for text in model["measured"][key]]
    return [f"{before}{text[0].upper()}{text[1:]}." for text in dict.fromkeys(texts)]


def _building(contents: Contents, has_fp32: bool) -> str:
    buildable = [model for model in contents.models if model.obstacle is None]
    lines = []
    if buildable:
        lines = [
            "An engine belongs to a TensorRT version and a GPU, so it is built where it runs (TensorRT 10.3, which is JetPack 6.1, "
            "to 11). With TensorRT's `trtexec`, or where there is none with its Python bindings:",
            "```sh\nbash build_on_device.sh\npython3 build_engine.py      # without trtexec\n```",
            f"This builds `{buildable[0].name}`; `--model NAME`, `--all`, `--max-batch N` and `--help` for more. Then prove it:",
            "```sh\npython3 verify.py --require engine\n```",
            "And score it on images of your own, with the numbers of this page beside, "
            + _needs_images(has_fp32)
            + ":",
            "```sh\npython3 verify.py --data photos\n```",
            "Networks are strongly typed: what the ONNX file says is what runs, and TensorRT 10 and 11 get no precision flags. If "
            "TensorRT 10 cannot build one of INT8, `bash build_on_device.sh --weakly-typed` lets it choose the types.",
        ]
    if any(engine.details.flavor == "tensorrt-rtx" for engine in contents.engines):
        lines.append(
            "The engines in `engines/` are for TensorRT-RTX and run on the GPUs in their names; no Jetson is among them."
        )
    lines.append(
        "`verify.py` checks all files (as does `sha256sum -c SHA256SUMS`), runs every ONNX file and engine that this machine can "
        "run on the golden images, and says of the others why not. It needs Python 3.8; numpy and onnxruntime for ONNX files, "
        "numpy, a GPU and TensorRT's Python bindings for engines."
    )
    return "\n\n".join(lines)


def _needs_images(has_fp32: bool) -> str:
    if has_fp32:
        return "where the folder holds the validation images, whose answers in FP32 are in `fp32_answers.tsv`, with what was lost"
    return "in folders that are called as the classes"


def _preprocessing(preprocess: Preprocess, models: Sequence[Model]) -> str:
    *steps, normalize = preprocessing_steps(preprocess)
    takes = [
        f"`{model.name}` takes {code(model.input.name)} {_shape(model.input.shape)} {model.input.dtype} {model.layout}"
        + ("" if model.white is None else f", pixels from 0 to {model.white:g}: it normalizes them itself")
        + " and gives "
        + ", ".join(f"{code(output.name)} {_shape(output.shape)} {output.dtype}" for output in model.outputs)
        + "."
        for model in models
    ]
    if any(model.white is None for model in models):
        steps.append(normalize)
    numbered = "\n".join(f"{number}. {step}" for number, step in enumerate(steps, 1))
    return numbered + "\n\n" + "\n".join(f"- {text}" for text in takes)


def _shape(shape: Sequence[int | None]) -> str:
    return "(" + ", ".join("N" if size is None else str(size) for size in shape) + ")"


def _triton(contents: Contents) -> str:
    lines = [
        "`triton/onnxruntime` is a model repository as it is: `tritonserver --model-repository=triton/onnxruntime`."
    ]
    if any(model.obstacle is None for model in contents.models):
        lines.append(
            "`triton/tensorrt` becomes one when engines are built: the build puts `1/model.plan` there. Keep in it the models that "
            "were built, and build with the TensorRT version of the server (`polygraphy` or `trtexec` in its own image)."
        )
    return "\n".join(lines)


def _histories(contents: Contents, models: Mapping[str, Any]) -> str:
    lines = []
    for model in contents.models:
        steps = [markdown(describe_step(record)) for record in models[model.name]["history"]]
        lines.append(f"- `{model.name}`: {'; '.join(steps) or 'not recorded'}.")
    lines += [f"- `{engine.file}`: {_origin(engine)}." for engine in contents.engines]
    return "\n".join(lines)


def _origin(engine: Engine) -> str:
    if engine.is_exact:
        return f"built from `{engine.model.file}`"
    return f"built from another ONNX file of the same precision than `{engine.model.file}`, with whose answers it is compared"


def _limits(contents: Contents, golden: GoldenImages, models: Mapping[str, Any]) -> list[str]:
    texts = [f"Golden images: {markdown(golden.origin)} (`golden/pixels.npy`), answered by ONNX Runtime on a CPU."]
    if golden.kind == "synthetic":
        texts.append("They show whether a machine computes what it should, and nothing of accuracy on photographs.")
    unclear = ", and no clear first class may change" if contents.first.model.num_classes else ""
    texts += [
        "`{}`: answers may differ by {onnx:g} under ONNX Runtime and {engine:g} in an engine, as the largest error of an image "
        "over the usual length of an output{}.".format(name, unclear, **model["tolerance"])
        for name, model in models.items()
    ]
    for model in contents.models:
        if model.obstacle is not None:
            texts.append(f"`{model.name}` is for CPUs and is not built with TensorRT: {markdown(model.obstacle)}.")
        if model.frozen_batch is not None:
            texts.append(f"`{model.name}` takes batches of {model.frozen_batch} and no others.")
    if any(one_line(name) != name for name in contents.first.class_names or ()):
        texts.append("Class names that are not printable are written with escapes; `bundle.json` has them as they are.")
    texts.append("Checksums show damage. They are not a signature: who can change a file can change its checksum.")
    return texts
