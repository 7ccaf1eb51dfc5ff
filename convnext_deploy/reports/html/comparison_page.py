"""Render the comparison of several runs as one HTML page, with the table and the plot of a single run."""

from pathlib import Path

from convnext_deploy.reports.comparison import Comparison
from convnext_deploy.reports.html.accuracy_plot import accuracy_plot, find_points
from convnext_deploy.reports.html.answer_plots import latency_plot, latency_table
from convnext_deploy.reports.html.page import GENERATOR, render_page
from convnext_deploy.reports.html.tables import Cell, Table, create_table, point_table, verdict_cell
from convnext_deploy.reports.stage_table import SCORE, cells, metric_name, summary

_TEMPLATE = "comparison.html"
COLUMNS = ("run", "stage", "artifact", SCORE, "drop pp [95 %]", "size MB", "p50 ms", "verdict")
_FIRST, _LAST = ("run", "stage", "verdict", "drop pp [95 %]"), ("artifact",)  # on the page
_HEAD = 4096  # bytes, in which the head of a page tells who made it
_CELLS = (0, 1, 2, 3, 6, 7, 9)  # of the stage table


def comparison_cells(comparison: Comparison) -> list[tuple[str, ...]]:
    """Return the texts of all artifacts of all runs, in the order of `COLUMNS`."""
    return [(run.name, *(cells(row)[place] for place in _CELLS)) for run, row in comparison.rows]


def comparison_columns(comparison: Comparison) -> tuple[str, ...]:
    """Return `COLUMNS`, with what is scored under its name."""
    name = f"{metric_name([row for _, row in comparison.rows])} %"
    return tuple(name if title == SCORE else title for title in COLUMNS)


def is_comparison(path: Path) -> bool:
    """Whether a file is a page that `render_comparison` made. Raises: OSError: if it cannot be read."""
    with path.open("rb") as file:
        return f'<meta name="generator" content="{GENERATOR} {_TEMPLATE}">'.encode() in file.read(_HEAD)


def render_comparison(comparison: Comparison) -> str:
    """Return the text of the page."""
    points = [point for run in comparison.runs for point in find_points(run.report.rows, run.name)]
    comparable = not comparison.warnings
    spread = latency_plot(points)
    names = [run.name for run in comparison.runs]
    return render_page(
        _TEMPLATE,
        title=f"{' and '.join(names)}: comparison",
        names=names,
        comparison=comparison,
        artifacts=_artifacts(comparison),
        metric=metric_name([row for _, row in comparison.rows]),
        plot=accuracy_plot(points, comparable=comparable) if points else None,
        points=point_table(points, comparable=comparable) if points else None,
        spread=spread,
        spread_table=None if spread is None else latency_table(points),
        runs=_runs(comparison),
        differences=_differences(comparison) if comparison.differences else None,
    )


def _artifacts(comparison: Comparison) -> Table:
    """Return the table of all artifacts, what matters most first: a phone shows the columns on the left."""
    titles = comparison_columns(comparison)
    between = [title for title in COLUMNS if title not in (*_FIRST, *_LAST)]
    order = [COLUMNS.index(title) for title in (*_FIRST, *between, *_LAST)]
    verdict = COLUMNS.index("verdict")
    rows: list[tuple[str | Cell, ...]] = [
        tuple(verdict_cell(row) if place == verdict else texts[place] for place in order)
        for texts, (_, row) in zip(comparison_cells(comparison), comparison.rows, strict=True)
    ]
    return create_table([titles[place] for place in order], ("run", "stage", "artifact", "verdict"), rows)


def _runs(comparison: Comparison) -> Table:
    titles = ("run", "recipe", "outcome", "made by")
    rows = [
        (
            run.name,
            run.report.recipe,
            summary(run.report) if run.report.complete else f"not complete; {summary(run.report)}",
            run.report.command or "not recorded",
        )
        for run in comparison.runs
    ]
    return create_table(titles, titles, rows)


def _differences(comparison: Comparison) -> Table:
    titles = ("what", *(run.name for run in comparison.runs))
    return create_table(titles, titles, [(d.what, *d.values) for d in comparison.differences])
