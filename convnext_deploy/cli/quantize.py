"""`convnext-deploy quantize`."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import click

from convnext_deploy.cli.completions import artifacts, variants
from convnext_deploy.cli.options import collect_options, common_options

_SECONDS = {"s": 1.0, "m": 60.0, "h": 3600.0}


class Duration(click.ParamType[float]):
    """`90`, `90s`, `20m` or `1.5h`, in seconds."""

    name = "duration"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Return seconds."""
        if isinstance(value, float):
            return value
        found = re.fullmatch(r"(\d+(?:\.\d+)?)([smh]?)", str(value).strip())
        if found is None or float(found[1]) <= 0:
            self.fail(f"{value!r} is no time; expected such as 90s, 20m or 1.5h.", param, ctx)
        return float(found[1]) * _SECONDS[found[2] or "s"]


@click.command("quantize")
@click.argument("checkpoint", type=click.Path(path_type=Path), shell_complete=artifacts)
@click.option(
    "--target",
    type=click.Choice(["tensorrt", "tensorrt-depthwise", "onnxruntime", "openvino"]),
    default="tensorrt",
    show_default=True,
    help="Where it will run; that decides what is quantized, and how.",
)
@click.option(
    "--method",
    type=click.Choice(["auto", "ptq", "qat"]),
    default="auto",
    show_default=True,
    help="ptq: without training; qat: with training at once; auto: training only if nothing else is good enough.",
)
@click.option(
    "--calibration-method",
    type=click.Choice(["auto", "minmax", "moving_average", "percentile", "mse", "entropy"]),
    help="Quantize once, with ranges chosen so, instead of looking for the cheapest method that does.",
)
@click.option(
    "--time-budget",
    "time_budget_s",
    type=Duration(),
    metavar="TIME",
    help="Begin nothing that would not end within it, such as 90s, 20m or 1h.  [default: no limit]",
)
@click.option(
    "--model",
    shell_complete=variants,
    help="Model that CHECKPOINT must hold; found from its shapes if not given.",
)
@common_options(
    "data", "out", "max_drop", "calibration_images", "selection_images", "image_size", "crop_pct", "batch_size", "epochs",
    "base_learning_rate", "flip_probability", "compile", "seed", "device", "workers", "cache_dir", "tensorboard",
)  # fmt: skip
def command(checkpoint: Path, as_json: bool, **values: Any) -> None:
    """Quantize CHECKPOINT (an artifact folder or a weights file) to INT8 and measure what it cost.

    It climbs from the cheapest method to the strongest and stops at the first that keeps the drop of top-1 within --max-drop,
    judged on training images set aside; the validation images judge the result.
    """
    from convnext_deploy.api.quantize import quantize
    from convnext_deploy.cli.report_table import show_report

    names = ("target", "method", "calibration_method", "time_budget_s", "model")
    arguments = {name: values.pop(name) for name in names}
    result = quantize(checkpoint, **arguments, options=collect_options(values))
    show_report(result.report, as_json)
