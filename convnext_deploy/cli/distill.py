"""`convnext-deploy distill`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from convnext_deploy.cli.options import collect_options, common_options


@click.command("distill")
@click.option("--teacher", required=True, help="Teacher model: atto to xlarge, v2-atto to v2-huge.")
@click.option("--student", required=True, help="Student model, likewise.")
@click.option(
    "--teacher-checkpoint",
    type=click.Path(path_type=Path),
    help="Artifact folder or checkpoint of the teacher; without it the teacher is trained first.",
)
@click.option(
    "--temperature",
    type=click.FloatRange(min=0, min_open=True),
    default=2.0,
    show_default=True,
    help="Softening of both logits.",
)
@click.option(
    "--distill-loss-weight",
    type=click.FloatRange(0, 1),
    default=0.7,
    show_default=True,
    help="Weight of the teacher; labels get the rest.",
)
@common_options(
    "data", "out", "image_size", "crop_pct", "patch_size", "batch_size", "epochs", "base_learning_rate", "flip_probability",
    "seed", "device", "workers",
)  # fmt: skip
def command(as_json: bool, **values: Any) -> None:
    """Train a student on the labels and on a larger teacher's logits, and validate both.

    The loss is (1-w)*CE + w*T^2*KL(teacher || student); the teacher sees the same crop as the student. Without --data it
    runs on the built-in digits.
    """
    from convnext_deploy import api
    from convnext_deploy.cli.display import show_report

    own = ("teacher", "student", "teacher_checkpoint", "temperature", "distill_loss_weight")
    arguments = {name: values.pop(name) for name in own}
    result = api.distill(**arguments, options=collect_options(values))
    show_report(result.report, as_json)
