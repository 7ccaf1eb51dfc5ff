"""`convnext-deploy distill`."""

from pathlib import Path
from typing import Any, get_args

import click

from convnext_deploy.cli.completions import artifacts, variants, weights, weights_or_artifacts
from convnext_deploy.cli.options import arguments_of, common_options
from convnext_deploy.cli.verbs import Verb
from convnext_deploy.config.choices import DistillMethod


@click.command("distill", cls=Verb)
@click.option(
    "--teacher",
    metavar="MODEL|timm:NAME|torchvision:NAME",
    shell_complete=variants,
    help="Teacher model, found from its weights if they are given; or a network of another library, with the weights that it "
    "publishes or those of --teacher-checkpoint.",
)
@click.option("--student", shell_complete=variants, help="Student model; found from its weights if they are given.")
@click.option(
    "--teacher-checkpoint",
    type=click.Path(path_type=Path),
    multiple=True,
    shell_complete=artifacts,
    help="Artifact, checkpoint, ONNX file, .pt2 program, folder of timm or transformers, or a file of predictions (safetensors, "
    "Parquet). Given several times, all teach. Without any weights the teacher is trained first.",
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
    help="What the student starts from, such as timm/convnext_tiny.fb_in1k; its head may be for other classes.",
)
@click.option(
    "--distill-method",
    type=click.Choice(get_args(DistillMethod)),
    default="kd",
    show_default=True,
    help="What is learned from the teacher: its probabilities (kd; without the labels: teacher-only; decoupled: dkd), its "
    "ranking (dist), its best class (hard-label), or probabilities and features (feature).",
)
@click.option(
    "--temperature",
    type=click.FloatRange(0.01, 100),
    help="Softens the logits of teacher and student; not for hard-label.  [default: 4]",
)
@click.option(
    "--distill-loss-weight",
    type=click.FloatRange(0, 1),
    help="Weight of the teacher's loss, the labels get the rest; not for teacher-only.  [default: 0.9; digits: 0.5]",
)
@click.option(
    "--teacher-cache",
    is_flag=True,
    help="Keep the teacher's predictions in --cache-dir; what is there, for the same crops, is not computed again.",
)
@click.option(
    "--teacher-cache-top-k",
    type=click.IntRange(min=0),
    help="Keep only the most probable classes, with --teacher-cache, to save space.  [default: 0, all]",
)
@click.option(
    "--compare-alone",
    is_flag=True,
    help="Train the student without its teacher too, with the same settings and seed, and report the gain.",
)
@click.option(
    "--unlabelled-share",
    type=click.FloatRange(0, 1),
    help="Share of each batch that is of --unlabelled; 1, with teacher-only: all of it.  [default: as among all images, at most "
    "7/8]",
)
@common_options("distill", "out")
def command(as_json: bool, **values: Any) -> None:
    """Train a student on the labels and on a larger teacher's logits, and validate both.

    The loss of --distill-method kd is (1-w)*CE + w*T^2*KL(teacher || student); the teacher sees the same crop as the
    student, at its own image size. Without --data it runs on the built-in digits.
    """
    from convnext_deploy.api.distill import distill
    from convnext_deploy.cli.report_table import show_result

    if values["teacher_cache"] and values["distill_method"] == "feature":
        raise click.UsageError("--teacher-cache keeps predictions, and --distill-method feature needs features.")
    if values["teacher_checkpoint"] and values["teacher_weights"] is not None:
        raise click.UsageError("--teacher-checkpoint and --teacher-weights were both given; use one teacher.")
    for who, given in (
        ("teacher", ("teacher", "teacher_checkpoint", "teacher_weights")),
        ("student", ("student", "student_weights")),
    ):
        if not any(values[name] for name in given):
            raise click.UsageError(f"give --{who}, or its weights.")
    show_result(distill(**arguments_of("distill", values)), as_json, values)
