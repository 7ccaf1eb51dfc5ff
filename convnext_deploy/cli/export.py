"""`convnext-deploy export`."""

from pathlib import Path
from typing import Any, get_args

import click

from convnext_deploy.cli.completions import artifacts
from convnext_deploy.cli.options import arguments_of, common_options, gpu_option, model_option
from convnext_deploy.cli.values import POSITIVE
from convnext_deploy.cli.verbs import Verb
from convnext_deploy.config.choices import ExportFormat, GraphOutput, InputLayout, InputType, Precision, Runtime


@click.command("export", cls=Verb)
@click.argument("artifact", type=click.Path(path_type=Path), shell_complete=artifacts)
@click.option(
    "--format",
    type=click.Choice(get_args(ExportFormat)),
    default="onnx",
    show_default=True,
    help="tensorrt-rtx builds engines without a GPU; tensorrt and torch-tensorrt build on the device that runs them.",
)
@click.option(
    "--precision",
    type=click.Choice(get_args(Precision)),
    help="Precision of all that is not INT8 or FP8; with fp16, what would overflow stays in FP32.  [default: fp32 for onnx, fp16 "
    "for engines]",
)
@click.option(
    "--runtime",
    type=click.Choice(get_args(Runtime)),
    help="Runtime that a float or FP16 graph is written for; INT8 is for its own target.  [default: that of the engines, tensorrt "
    "for onnx]",
)
@click.option("--fixed-batch-size", type=POSITIVE, help="Batch size that the graph is fixed to.  [default: any]")
@click.option(
    "--input-type",
    type=click.Choice(get_args(InputType)),
    help="float32: normalized images, as the artifact takes them; the others are pixels, with white at 255, 1 and 255, which the "
    "graph normalizes itself, and the name of its input says so.  [default: float32]",
)
@click.option(
    "--input-layout", type=click.Choice(get_args(InputLayout)), help="Order of the dimensions.  [default: nchw]"
)
@click.option(
    "--output",
    type=click.Choice(get_args(GraphOutput)),
    help="What the graph returns: scores of the classes, or without the head features, pooled or the map before the pooling.  "
    "[default: logits; of a network without head features]",
)
@click.option("--top-k", type=POSITIVE, help="How many classes --output top-k gives.  [default: 5]")
@click.option("--range-images", type=POSITIVE, help="Training images that show what overflows in FP16.  [default: 64]")
@click.option("--license", help="License of the weights, written into the file.  [default: what is known of it]")
@gpu_option(
    "Build for this GPU (rtx-4070, sm86, …), with tensorrt-rtx; repeatable, or separated by commas.  [default: sm86, sm89; "
    "for FP8 sm89, sm120]"
)
@click.option("--optimal-batch-size", type=POSITIVE, help="Batch size that engines are tuned for.  [default: 1]")
@click.option("--max-batch-size", type=POSITIVE, help="Largest batch that engines accept.  [default: 8]")
@click.option("--workspace-mib", type=POSITIVE, help="Limit of an engine's scratch memory.  [default: 1024]")
@click.option(
    "--optimization-level", type=click.IntRange(0, 5), help="0: fastest build, 5: fastest engine.  [default: 3]"
)
@click.option(
    "--timing-cache", type=click.Path(), metavar="FILE", help="Keep the timings for the next build, with tensorrt."
)
@click.option(
    "--version-compatible", is_flag=True, default=None, help="Build an engine for later releases too, with tensorrt."
)
@click.option("--stripped", is_flag=True, default=None, help="Build an engine without weights, to be refitted.")
@click.option("--strict", is_flag=True, default=None, help="Fail if an engine runs INT8 or FP8 layers in float.")
@model_option("ARTIFACT")
@common_options("export", "out")
def command(as_json: bool, **values: Any) -> None:
    """Export ARTIFACT (a folder, a weights file or an ONNX file) to ONNX or to TensorRT engines.

    FP32 artifacts give float graphs, quantized ones explicit Q/DQ. With --data each result is validated.
    INT8 and FP8 are timed against the float baseline of its network where its runtime is installed.
    """
    from convnext_deploy.api.export import export
    from convnext_deploy.cli.report_table import show_report

    show_report(export(**arguments_of("export", values)).report, as_json, values)
