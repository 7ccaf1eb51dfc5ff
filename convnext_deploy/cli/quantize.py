"""`convnext-deploy quantize`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from convnext_deploy.cli.options import collect_options, common_options


@click.command("quantize")
@click.argument("checkpoint", type=click.Path(path_type=Path))
@click.option(
    "--method",
    type=click.Choice(["ptq", "qat"]),
    default="ptq",
    show_default=True,
    help="ptq: calibration alone; qat: calibration, then training of weights and scales.",
)
@click.option(
    "--calibration-method",
    type=click.Choice(["percentile", "minmax"]),
    default="percentile",
    show_default=True,
    help="How the range of an activation is chosen.",
)
@click.option("--model", help="Model that CHECKPOINT must hold; found from its shapes if not given.")
@common_options(
    "data", "out", "max_drop", "calibration_images", "image_size", "crop_pct", "batch_size", "epochs", "base_learning_rate",
    "flip_probability", "compile", "seed", "device", "workers", "cache_dir", "tensorboard",
)  # fmt: skip
def command(checkpoint: Path, as_json: bool, **values: Any) -> None:
    """Quantize CHECKPOINT (an artifact folder or a weights file) to INT8 and measure what it cost."""
    from convnext_deploy import api
    from convnext_deploy.cli.display import show_report

    arguments = {name: values.pop(name) for name in ("method", "calibration_method", "model")}
    result = api.quantize(checkpoint, **arguments, options=collect_options(values))
    show_report(result.report, as_json)
