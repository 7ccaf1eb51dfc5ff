"""Python code that runs an ONNX artifact on one image, with nothing but NumPy, Pillow and ONNX Runtime."""

from convnext_deploy.artifacts.spec import GraphIO, Preprocess
from convnext_deploy.config.image_size import sides_of
from convnext_deploy.reports.escaping import quoted


def write_usage(
    folder: str,
    file: str,
    preprocess: Preprocess,
    graph: GraphIO | None,
    *,
    precision: str = "fp32",
    multi_label: bool = False,
) -> str:
    """Return the code, which prints the five most probable classes of `image.jpg`, or its labels.

    Args:
        folder: of the artifact, from where the code will run.
        file: the ONNX file in it.
        preprocess: what the network was trained to see.
        graph: what the file takes and gives; None: the usual.
        precision: of the file, such as `fp32` or `fp8-fp16`.
        multi_label: the network answers each label by itself.
    """
    io = graph or GraphIO()
    height, width = preprocess.sides
    rows, columns = sides_of(preprocess.resize_size)
    grey = len(preprocess.mean) == 1
    size = f"({columns}, {rows})"
    if preprocess.crop_mode != "squash" and rows == columns:
        size = f"tuple(int({rows} * length / min(image.size)) for length in image.size)"
    elif preprocess.crop_mode != "squash":
        scale = f"max({columns} / image.width, {rows} / image.height)"
        size = f"tuple(round({scale} * length) for length in image.size)"
    lines = [
        "import json",
        "",
        "import numpy as np",
        "import onnxruntime",
        "from PIL import Image, ImageOps",
        "",
        f"FOLDER, FILE = {quoted(folder)}, {quoted(file)}",
        f'image = ImageOps.exif_transpose(Image.open("image.jpg")).convert("{"L" if grey else "RGB"}")',
        f"image = image.resize({size}, Image.Resampling.{preprocess.interpolation.upper()})",
        f"left, top = round((image.width - {width}) / 2), round((image.height - {height}) / 2)",
        f"pixels = np.asarray(image.crop((left, top, left + {width}, top + {height})))"
        + (f".reshape({height}, {width}, 1)" if grey else ""),
    ]
    if io.white is None:
        mean, std = list(preprocess.mean), list(preprocess.std)
        lines.append(f"pixels = ((pixels / 255 - {mean}) / {std}).astype(np.float32)")
    elif io.input_type != "uint8":
        lines.append(f"pixels = (pixels / {255 / io.white:g}).astype(np.float32)")
    if io.input_layout == "nchw":
        lines.append("pixels = pixels.transpose(2, 0, 1)")
    batch = "pixels[None]" if io.batch_size in (None, 1) else f"np.stack([pixels] * {io.batch_size})"
    given = ""
    if precision.startswith("fp8"):
        lines += [
            "options = onnxruntime.SessionOptions()",
            "# before 1.32 ONNX Runtime refuses FP8 without this",
            'options.add_session_config_entry("session.disable_quant_qdq", "1")',
        ]
        given = "options, "
    lines += [
        f'session = onnxruntime.InferenceSession(f"{{FOLDER}}/{{FILE}}", {given}providers=["CPUExecutionProvider"])',
        f"outputs = session.run({list(io.output_names) or None}, {{session.get_inputs()[0].name: {batch}}})",
    ]
    if multi_label:
        probabilities = "outputs[0][0]" if io.output == "probabilities" else "1 / (1 + np.exp(-outputs[0][0]))"
        lines += [
            f"scores = {probabilities}",
            "classes = np.flatnonzero(scores >= 0.5)  # the labels that the image has",
            "scores = scores[classes]",
        ]
    elif len(io.output_names) > 1:
        lines.append("scores, classes = outputs[0][0], outputs[1][0]")
    elif io.output == "top-k":
        lines += [
            "by_name = dict(zip((output.name for output in session.get_outputs()), outputs))",
            'scores, classes = by_name["scores"][0], by_name["classes"][0]',
        ]
    else:
        lines += ["scores = outputs[0][0]", "classes = scores.argsort()[::-1][:5]", "scores = scores[classes]"]
    lines += [
        'with open(f"{FOLDER}/manifest.json", encoding="utf-8") as manifest:',
        '    names = json.load(manifest)["class_names"]',
        "for label, score in zip(classes, scores):",
        "    print(names[label] if names else label, float(score))",
    ]
    return "\n".join(lines)
