"""`convnext-deploy recommend`."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from convnext_deploy.cli.console import write
from convnext_deploy.cli.next_steps import carried, tell_next, tell_to_do, tell_where
from convnext_deploy.cli.options import arguments_of, common_options
from convnext_deploy.cli.values import POSITIVE
from convnext_deploy.cli.verbs import Verb

if TYPE_CHECKING:
    from rich.console import Console

    from convnext_deploy.api.recommend import Recommendation
    from convnext_deploy.models.zoo.ranking import Candidate


@click.command("recommend", cls=Verb)
@click.option("--images", type=POSITIVE, help="Training images that you have.  [default: those of --data]")
@click.option("--classes", type=click.IntRange(min=2), help="Classes that they belong to.  [default: those of --data]")
@click.option(
    "--gpu-memory",
    "gpu_memory_gb",
    type=click.FloatRange(min=0, min_open=True),
    metavar="GB",
    help="Memory of the one GPU to train on, as it is sold.  [default: this machine's GPU, or its cores]",
)
@click.option(
    "--latency-budget",
    "latency_budget_ms",
    type=click.FloatRange(min=0, min_open=True),
    metavar="MS",
    help="Longest time for one image in FP32 PyTorch, measured on this machine.  [default: no limit, no measurement]",
)
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="New file for the recipe.  [default: print it after the list]",
)
@common_options("recommend", "image_size")
def command(as_json: bool, out: Path | None, **values: Any) -> None:
    """Recommend models for a data set, with reasons and a recipe to start from.

    Give the folder with --data, or --images and --classes. The order is for this machine: without a GPU, what its cores
    train in a night comes first. With --gpu-memory it is for a GPU elsewhere.
    """
    from convnext_deploy.api.recommend import recommend
    from convnext_deploy.cli.tables import create_console

    folder = values["data"]
    missing = [f"--{name}" for name in ("images", "classes") if values[name] is None]
    if folder is None and missing:
        raise click.UsageError(f"{' and '.join(missing)} missing; give the folder with --data DIR, or both numbers.")
    found = recommend(**arguments_of("recommend", {**values, "out": out}))
    if as_json:
        import json

        write(json.dumps(found.to_dict(), indent=1))
        return
    _print_list(found, console := create_console())
    console.print()
    console.print(
        "See also, in the project's repository: "
        f"{found.size_recipe} for networks like {found.candidates[0].variant}, {found.data_recipe} for so many images."
    )
    images = ["--data", "DIR"] if folder is None else list(carried("run", values))
    if out is None:
        write(f"\nA recipe to start from:\n\n{found.recipe_text}", end="")
        tell_to_do(f"--out FILE writes this recipe; then convnext-deploy run FILE {shlex.join(images)}")
    else:
        tell_where("recipe", out)
        tell_next("run", out, *images)


def _print_list(found: Recommendation, console: Console) -> None:
    from convnext_deploy.cli.tables import print_items, print_table

    if found.data is not None:
        console.print(found.data.describe())
    if found.machine is not None:
        console.print(f"To train on this machine: {found.machine}")
    console.print(
        f"For {found.images:,} training images of {found.classes} classes at {found.image_size} pixels, best first:"
    )
    columns = _columns(found)
    cells = ([cell(candidate) for cell in columns.values()] for candidate in found.candidates)
    print_table(console, list(columns), cells, left=("model",))
    for place, candidate in enumerate(found.candidates, start=1):
        console.print()
        console.print(f"{place}. {candidate.variant}", style="bold")
        print_items(console, candidate.reasons)
    console.print()
    console.print("Left out", style="bold")
    variants: dict[str, list[str]] = {}
    for exclusion in found.exclusions:
        variants.setdefault(exclusion.reason, []).append(exclusion.variant)
    print_items(console, (f"{', '.join(names)}: {reason}" for reason, names in variants.items()))


def _columns(found: Recommendation) -> dict[str, Callable[[Candidate], str]]:
    """Titles and contents of the columns."""
    from convnext_deploy.api.list_models import describe_variant
    from convnext_deploy.models.zoo.training_settings import format_setting
    from convnext_deploy.system.progress import describe_time

    rows = {candidate.variant: describe_variant(candidate.variant) for candidate in found.candidates}

    def top1(candidate: Candidate) -> str:
        published = rows[candidate.variant].published
        return "–" if published is None else f"{published.top1:.1f}"

    columns: dict[str, Callable[[Candidate], str]] = {
        "": lambda candidate: f"{found.candidates.index(candidate) + 1}",
        "model": lambda candidate: candidate.variant,
        "params\nM": lambda candidate: f"{rows[candidate.variant].parameters / 1e6:.1f}",
        "top-1\n%": top1,
        "batch": lambda candidate: f"{candidate.batch_size}",
        "memory\nGB": lambda candidate: f"{candidate.memory_gib:.1f}",
        "lr at\nbatch 128": lambda candidate: format_setting(candidate.settings.learning_rate),
        "drop\npath": lambda candidate: format_setting(candidate.settings.drop_path_rate),
        "epochs": lambda candidate: f"{candidate.settings.epochs}",
        "mixup,\nCutMix": lambda candidate: "yes" if candidate.settings.mixup else "no",
    }
    if any(candidate.cpu_hours is not None for candidate in found.candidates):
        columns["training\nhere"] = lambda candidate: describe_time(3600 * (candidate.cpu_hours or 0))
    if found.device is not None:
        columns[f"ms on\n{found.device}"] = lambda candidate: f"{candidate.latency_ms:.1f}"
    return columns
