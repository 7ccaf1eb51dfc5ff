"""`compare`: what several runs made, side by side."""

import os
from collections.abc import Sequence
from pathlib import Path

from convnext_deploy.api.options import verb
from convnext_deploy.artifacts.places import check_run
from convnext_deploy.errors import ArtifactError, OutputError
from convnext_deploy.reports.comparison import Comparison, Run, compare_runs, distinct_names
from convnext_deploy.reports.record import REPORT_JSON, read_report
from convnext_deploy.system.files import create_output_folder, resolve_target, write_text


@verb
def compare(runs: Sequence[Path | str], *, out: Path | str | None = None) -> Comparison:
    """Put the artifacts of several runs side by side.

    Args:
        runs: at least two folders of runs, or their `report.json`; unfinished ones are compared as far as they are.
        out: HTML file to write, with the table, the plot and what differs; None: none is written.

    Raises:
        ArtifactError: if there are fewer than two runs, one of them has no report, or the same is given twice.
        OutputError: if `out` cannot be written, or is something else than such a page.
    """
    paths = [Path(path) for path in runs]
    if len(paths) < 2:
        raise ArtifactError(
            f"{len(paths) or 'no'} run was given, and comparing needs two; name the folders of more runs."
        )
    for path in paths:
        check_run(path)
    folders = [
        Path(os.path.realpath(path if path.is_dir() or path.name != REPORT_JSON else path.parent)) for path in paths
    ]
    for place, folder in enumerate(folders):
        if folder in folders[:place]:
            raise ArtifactError(
                f"{paths[folders.index(folder)]} and {paths[place]} are the same run; give each run once."
            )
    if out is not None:
        _check_output(Path(out))
    comparison = compare_runs(tuple(map(Run, distinct_names(folders), paths, map(read_report, paths))))
    if out is not None:
        from convnext_deploy.reports.html.comparison_page import render_comparison

        out = Path(out)
        create_output_folder(Path(os.path.realpath(out)).parent)
        write_text(out, render_comparison(comparison))
    return comparison


def _check_output(out: Path) -> None:
    from convnext_deploy.reports.html.comparison_page import is_comparison

    if out.is_dir():
        raise OutputError(f"{out} is a folder; give the name of a file, such as {out / 'comparison.html'}.")
    target = resolve_target(out)
    try:
        if target.exists() and not is_comparison(target):
            raise OutputError(
                f"{out} is there already and is not a comparison; give the name of another file with --out."
            )
    except OSError as error:
        raise OutputError(
            f"{out} cannot be read ({error.strerror}); give the name of another file with --out."
        ) from None
