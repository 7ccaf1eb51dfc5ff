"""`convnext-deploy train`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from convnext_deploy.cli.options import collect_options, common_options


@click.command("train")
@click.option("--model", required=True, help="Model to train: atto to xlarge, v2-atto to v2-huge.")
@click.option("--checkpoint", type=click.Path(path_type=Path), help="Fine-tune these weights instead of fresh ones.")
@common_options(
    "data", "out", "image_size", "crop_pct", "patch_size", "batch_size", "epochs", "base_learning_rate", "flip_probability",
    "seed", "device", "workers",
)  # fmt: skip
def command(model: str, checkpoint: Path | None, as_json: bool, **values: Any) -> None:
    """Train a ConvNeXt from scratch, or fine-tune one, and validate it. Without --data: on the built-in digits."""
    from convnext_deploy import api
    from convnext_deploy.cli.display import show_report

    result = api.train(model, checkpoint=checkpoint, options=collect_options(values))
    show_report(result.report, as_json)
