"""`convnext-deploy distill`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from convnext_deploy.cli.completions import artifacts, variants, weights, weights_or_artifacts
from convnext_deploy.cli.options import TRAINING, collect_options, common_options


@click.command("distill")
@click.option("--teacher", shell_complete=variants, help="Teacher model; found from its weights if they are given.")
@click.option("--student", shell_complete=variants, help="Student model, likewise.")
@click.option(
    "--teacher-checkpoint",
    type=click.Path(path_type=Path),
    shell_complete=artifacts,
    help="Artifact folder or checkpoint of the teacher; without any weights the teacher is trained first.",
)
@click.option(
    "--teacher-weights",
    metavar="NAME",
    shell_complete=weights,
    help="Published weights of the teacher, trained on the data's classes.",
)
@click.option(
    "--student-weights",
    metavar="NAME|PATH",
    shell_complete=weights_or_artifacts,
    help="What the student starts from, such as timm/convnext_tiny.fb_in1k; its head may be another.",
)
@click.option(
    "--distill-method",
    type=click.Choice(["kd", "teacher-only", "hard-label", "dkd", "feature"]),
    default="kd",
    show_default=True,
    help="What is learned from the teacher: its probabilities (kd; without the labels: teacher-only; decoupled: dkd), its best "
    "class (hard-label), or probabilities and features (feature).",
)
@click.option(
    "--temperature",
    type=click.FloatRange(0.01, 100),
    default=1.0,
    show_default=True,
    help="Softening of both logits.",
)
@click.option(
    "--distill-loss-weight",
    type=click.FloatRange(0, 1),
    default=0.5,
    show_default=True,
    help="Weight of the teacher; labels get the rest.",
)
@click.option(
    "--teacher-cache",
    is_flag=True,
    help="Keep the teacher's predictions in --cache-dir; what is there, for the same crops, is not computed again.",
)
@click.option(
    "--teacher-cache-top-k",
    type=click.IntRange(min=0),
    default=0,
    show_default=True,
    help="Keep the most probable classes only; 0: all. For hundreds of classes.",
)
@common_options(*TRAINING)
def command(as_json: bool, **values: Any) -> None:
    """Train a student on the labels and on a larger teacher's logits, and validate both.

    The loss of --distill-method kd is (1-w)*CE + w*T^2*KL(teacher || student); the teacher sees the same crop as the
    student, at its own image size. Without --data it runs on the built-in digits.
    """
    from convnext_deploy.api.distill import distill
    from convnext_deploy.cli.report_table import show_report

    own = (
        "teacher", "student", "teacher_checkpoint", "teacher_weights", "student_weights", "distill_method", "temperature",
        "distill_loss_weight", "teacher_cache", "teacher_cache_top_k",
    )  # fmt: skip
    arguments = {name: values.pop(name) for name in own}
    if arguments["teacher_cache"] and arguments["distill_method"] == "feature":
        raise click.UsageError("--teacher-cache keeps predictions, and --distill-method feature needs features.")
    if arguments["teacher_checkpoint"] is not None and arguments["teacher_weights"] is not None:
        raise click.UsageError("--teacher-checkpoint and --teacher-weights were both given; use one teacher.")
    for who, given in (
        ("teacher", ("teacher", "teacher_checkpoint", "teacher_weights")),
        ("student", ("student", "student_weights")),
    ):
        if not any(arguments[name] for name in given):
            raise click.UsageError(f"give --{who}, or its weights.")
    result = distill(**arguments, options=collect_options(values))
    show_report(result.report, as_json)
