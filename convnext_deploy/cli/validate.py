"""`convnext-deploy validate`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from convnext_deploy.cli.options import collect_options, common_options


@click.command("validate")
@click.argument("artifact", type=click.Path(path_type=Path))
@click.option("--baseline", type=click.Path(path_type=Path), help="Compare with this artifact, image by image.")
@click.option("--model", help="Model that ARTIFACT must hold; found from its shapes if not given.")
@common_options("data", "out", "max_drop", "image_size", "crop_pct", "batch_size", "device", "workers")
def command(artifact: Path, baseline: Path | None, model: str | None, as_json: bool, **values: Any) -> None:
    """Measure top-1 and top-5 of ARTIFACT (a folder, a weights file or an ONNX file) with its own runner."""
    from convnext_deploy import api
    from convnext_deploy.cli.display import show_report

    report = api.validate(artifact, baseline=baseline, model=model, options=collect_options(values))
    show_report(report, as_json)
