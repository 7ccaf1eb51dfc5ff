"""`convnext-deploy export`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from convnext_deploy.cli.options import POSITIVE, collect_options, common_options


@click.command("export")
@click.argument("artifact", type=click.Path(path_type=Path))
@click.option(
    "--format",
    type=click.Choice(["onnx", "tensorrt-rtx", "tensorrt"]),
    default="onnx",
    show_default=True,
    help="tensorrt-rtx builds engines without a GPU; tensorrt builds on the device that runs them.",
)
@click.option(
    "--gpu",
    "gpus",
    multiple=True,
    metavar="SMxx",
    help="Build for this GPU, with tensorrt-rtx; repeatable.  [default: sm86, sm89]",
)
@click.option(
    "--optimal-batch-size", type=POSITIVE, default=1, show_default=True, help="Batch size that engines are tuned for."
)
@click.option(
    "--max-batch-size", type=POSITIVE, default=8, show_default=True, help="Largest batch that engines accept."
)
@click.option("--model", help="Model that ARTIFACT must hold; found from its shapes if not given.")
@common_options("data", "out", "max_drop", "image_size", "crop_pct", "device", "workers")
def command(artifact: Path, gpus: tuple[str, ...], as_json: bool, **values: Any) -> None:
    """Export ARTIFACT (a folder, a weights file or an ONNX file) to ONNX or to TensorRT engines.

    FP32 artifacts give FP32 graphs, quantized ones explicit Q/DQ. With --data each result is validated.
    """
    from convnext_deploy import api
    from convnext_deploy.cli.display import show_report

    arguments = {name: values.pop(name) for name in ("format", "optimal_batch_size", "max_batch_size", "model")}
    if gpus:
        arguments["gpus"] = gpus
    result = api.export(artifact, **arguments, options=collect_options(values))
    show_report(result.report, as_json)
