"""Sentences that several views share: what was done to a model, what its images go through, what the words of a report mean."""

from collections.abc import Mapping
from typing import Any

from convnext_deploy.artifacts.spec import Preprocess
from convnext_deploy.config.image_size import show_size
from convnext_deploy.config.stages import STAGE_KINDS, stage_config
from convnext_deploy.reports.record import Report

_ALWAYS = (
    "{title} is measured on each artifact by its own runner. Drops are against the baseline, the nearest FP32 PyTorch ancestor or "
    "what the gate names, with the 95 % interval of the paired predictions; «vs source» is against the run's source, or its first "
    "row. A positive drop is a loss. Agree: share of equal answers. Latency is the median of single images in one process."
)
_QUALITY = (
    "ECE: expected calibration error, the gap between how sure an artifact is and how often it is right. Rise: how much more that "
    "is than the baseline's. Worst class: the one whose top-1 drops most; the interval holds for all classes at once."
)
_UNPROVEN = "Passed, unproven: what was measured is within the gate, its whole 95 % interval is not."
_SPEEDUP = (
    "Speedup: how many times as fast as its float baseline INT8 is on the runtime that it is for, in interleaved, isolated "
    "processes, with the 95 % interval."
)
_STEPS = (
    "Step: a method of quantization, the cheapest tried first, on training images set aside. Risk: the upper 95 % bound of the "
    "drop on new images, for all steps together. KL: divergence of the class probabilities from the float network's, in nats. "
    "SQNR: power of the float logits over that of their change."
)
_MORE = "The glossary of convnext_deploy, recipes/how-to/glossary.md, has all words."


def one_line(name: str) -> str:
    r"""Return a class name; one that is not printable with Python's escapes, such as `\n`, and `\\` for a backslash."""
    if name.isprintable():
        return name
    return "".join(c if c.isprintable() and c != "\\" else ascii(c)[1:-1] for c in name)


def describe_step(record: Mapping[str, Any]) -> str:
    """Say what one step of an artifact's history did, from its `kind`, `name`, `model`, `data` and `seed`."""
    kind = record["kind"]
    what = stage_config(kind).done if kind in STAGE_KINDS else kind
    model = f" {record['model']}" if record["model"] else ""
    data = f" on '{record['data']}'" if record["data"] else ""
    return f"{what}{model}{data} (stage {record['name']}, seed {record['seed']})"


def preprocessing_steps(preprocess: Preprocess) -> list[str]:
    """Return what is done to an image file before the network sees it; the last step normalizes."""
    height, width = preprocess.sides
    resize = show_size(preprocess.resize_size)
    how = (
        f"both sides to {resize}"
        if preprocess.crop_mode == "squash"
        else f"until {resize} is covered, keeping the aspect"
        if height != width
        else f"the shorter side to {resize}, keeping the aspect"
    )
    antialiased = "" if preprocess.interpolation == "nearest" else " with antialiasing"
    grey = "grey (ITU-R 601 luma)" if len(preprocess.mean) == 1 else "RGB"
    return [
        f"decode to 8-bit {grey}, turned upright as EXIF says;",
        f"resize {how}, {preprocess.interpolation}{antialiased};",
        f"cut out the centre, {height}×{width};",
        f"divide by 255, subtract {list(preprocess.mean)}, divide by {list(preprocess.std)} (per channel), as float32.",
    ]


def explain(report: Report) -> str:
    """Return what the words of the report's tables mean."""
    rows = report.rows
    texts = [_ALWAYS.format(title=report.metric.title)]
    if report.metric.name != "top-1":
        texts.append(report.metric.explained)
    if any(row.accuracy is not None and row.accuracy.calibration is not None for row in rows):
        texts.append(_QUALITY)
    if any(row.verdict.passed and row.verdict.proven is False for row in rows):
        texts.append(_UNPROVEN)
    if any(row.speed.against_float is not None for row in rows):
        texts.append(_SPEEDUP)
    if any(row.history.selection is not None for row in rows):
        texts.append(_STEPS)
    return " ".join([*texts, _MORE])
