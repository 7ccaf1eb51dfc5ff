"""`validate`: score an artifact, and compare it with a baseline image by image."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from convnext_deploy.api.open_inputs import (
    open_artifact,
    open_data_for,
    say_notes,
)
from convnext_deploy.api.options import DEFAULTS, Options, create_execution
from convnext_deploy.config.recipe import Gate
from convnext_deploy.data.datasets import check_classes
from convnext_deploy.errors import DataError, RecipeError
from convnext_deploy.reports.record import Report
from convnext_deploy.system.files import create_output_folder


def validate(
    artifact: Path,
    *,
    baseline: Path | None = None,
    model: str | None = None,
    gate_on: Literal["point", "upper"] = "point",
    options: Options = DEFAULTS,
) -> Report:
    """Score an artifact on the validation images, and compare it with a baseline image by image.

    Args:
        artifact: folder or file, or the name of published weights.
        baseline: likewise; None: nothing is compared.
        model: variant that both must hold.
        gate_on: what must be within `options.max_top1_drop_pp`, see `Gate`.
        options: see `Options`.

    Raises: RecipeError: if a gate is given for a drop that is not measured.
    """
    from convnext_deploy.pipeline.validate import compare_artifacts

    if baseline is None and options.max_top1_drop_pp is not None:
        raise RecipeError("--max-drop is about a drop, and there is nothing to compare with; give --baseline ARTIFACT.")
    if gate_on == "upper" and options.max_top1_drop_pp is None:
        raise RecipeError("--gate-on upper needs to know how much may be lost; give --max-drop.")
    paths = {"baseline": baseline, "artifact": Path(artifact)}
    opened = {name: open_artifact(path, model, options) for name, path in paths.items() if path is not None}
    data = open_data_for(opened["artifact"], options)
    if data is None:
        raise DataError("validation needs images: give the image folder with --data DIR.")
    say_notes(data, options.progress)
    if options.out is not None:
        create_output_folder(options.out)
    for name, entry in opened.items():
        check_classes(str(paths[name]), entry, data)
    gate = Gate(max_top1_drop_pp=options.max_top1_drop_pp, on=gate_on)
    return compare_artifacts(
        opened,
        gate,
        data,
        create_execution(options, data),
        batch_size=options.batch_size,
        out=options.out,
        command=options.command,
    )
