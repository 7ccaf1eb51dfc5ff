"""`convnext-deploy quantize`."""

import re
from pathlib import Path
from typing import Any, get_args

import click

from convnext_deploy.cli.completions import artifacts
from convnext_deploy.cli.options import arguments_of, common_options, gpu_option, model_option
from convnext_deploy.cli.values import POSITIVE
from convnext_deploy.cli.verbs import Verb
from convnext_deploy.config.choices import CalibrationMethod, FeatureOutput, QuantizeMethod, TargetOrAuto

_SECONDS = {"s": 1.0, "m": 60.0, "h": 3600.0}


class Duration(click.ParamType):  # type: ignore[type-arg]  # not generic in click 8.2
    """`90`, `90s`, `20m` or `1.5h`, in seconds."""

    name = "duration"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Return seconds."""
        if isinstance(value, float):
            return value
        found = re.fullmatch(r"(\d+(?:\.\d+)?)([smh]?)", str(value).strip())
        if found is None or float(found[1]) <= 0:
            self.fail(f"{value!r} is not a time; expected such as 90s, 20m or 1.5h.", param, ctx)
        return float(found[1]) * _SECONDS[found[2] or "s"]


@click.command("quantize", cls=Verb)
@click.argument("checkpoint", type=click.Path(path_type=Path), shell_complete=artifacts)
@click.option(
    "--target",
    type=click.Choice(get_args(TargetOrAuto)),
    default="tensorrt",
    show_default=True,
    help="Runtime that it is for, which decides what is quantized, and how; tensorrt-fp8: to FP8, all others to INT8; auto: all "
    "that --gpu computes, for a bundle.",
)
@gpu_option("With --target auto: the GPU (rtx-4070, orin, sm89, …) that is to choose.")
@click.option(
    "--method",
    type=click.Choice(get_args(QuantizeMethod)),
    default="auto",
    show_default=True,
    help="ptq: without training; qat: with training at once; auto: training only if nothing else is good enough.",
)
@click.option(
    "--calibration-method",
    type=click.Choice(get_args(CalibrationMethod)),
    help="Quantize once, with ranges chosen in this way, instead of trying one method after the other.",
)
@click.option(
    "--time-budget",
    "time_budget_s",
    type=Duration(),
    metavar="TIME",
    help="Start no step that would not end within it, such as 90s, 20m or 1h.  [default: no limit]",
)
@click.option(
    "--output",
    type=click.Choice(get_args(FeatureOutput)),
    help="Quantize CHECKPOINT without its head, for features, pooled or the map before the pooling.  [default: logits; of a "
    "network without head features]",
)
@model_option("CHECKPOINT")
@click.option(
    "--calibration-images", type=POSITIVE, help="Training images that fix the quantization ranges.  [default: 512]"
)
@click.option(
    "--selection-images", type=POSITIVE, help="Other training images, by which the method is chosen.  [default: 4096]"
)
@common_options("quantize", "out")
def command(as_json: bool, **values: Any) -> None:
    """Quantize CHECKPOINT (an artifact folder or a weights file) to INT8 or FP8 and measure what it cost.

    The methods are tried from the cheapest to the strongest, up to the first that keeps the drop of top-1 within --max-drop,
    judged on training images set aside; the validation images judge the result.
    """
    from convnext_deploy.api.quantize import quantize
    from convnext_deploy.cli.report_table import show_result

    show_result(quantize(**arguments_of("quantize", values)), as_json, values)
