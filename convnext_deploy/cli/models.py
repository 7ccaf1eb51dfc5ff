"""`convnext-deploy models`."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

import click

from convnext_deploy.cli.completions import variants
from convnext_deploy.cli.console import write
from convnext_deploy.cli.next_steps import tell_next
from convnext_deploy.cli.options import common_options
from convnext_deploy.cli.verbs import Verb
from convnext_deploy.config.image_size import show_size

if TYPE_CHECKING:
    from rich.console import Console

    from convnext_deploy.api.list_models import ModelRow
    from convnext_deploy.models.zoo.published import Published
    from convnext_deploy.models.zoo.training_settings import Span

# widths of the terminal from which the training settings, and the names of the weights, fit into the table as well
_WIDTH_WITH_SETTINGS, _WIDTH_WITH_WEIGHTS = 100, 150

Record = TypeVar("Record")


@click.command("models", cls=Verb)
@click.argument("name", required=False, shell_complete=variants)
@common_options("models")
def command(name: str | None, as_json: bool) -> None:
    """List all models: parameters, GMACs, published top-1, how to train them. With NAME: everything about that one."""
    from convnext_deploy.api.list_models import list_models

    rows = list_models(name)
    if as_json:
        write(rows.to_json())
        return
    from convnext_deploy.cli.tables import create_console

    console = create_console()
    if name is None:
        _print_table(rows, console)
        tell_next("models", "tiny")
    else:
        _print_one(rows[0], console)
        tell_next("recommend", "--images", 5000, "--classes", 10)


def _print_table(rows: tuple[ModelRow, ...], console: Console) -> None:
    from convnext_deploy.cli.tables import print_table

    columns = _columns(console.width)
    left = [title for title in columns if title.split("\n")[0] not in ("params", "GMACs", "top-1")]
    print_table(console, list(columns), ([cell(row) for cell in columns.values()] for row in rows), left)
    console.print()
    for line in _legend():
        console.print(line)


def _columns(width: int) -> dict[str, Callable[[ModelRow], str]]:
    """Titles and contents of the columns that fit into a width."""
    columns: dict[str, Callable[[ModelRow], str]] = {
        "model": lambda row: row.short_name,
        "params\nM": lambda row: f"{row.parameters / 1e6:.2f}",
        "GMACs": lambda row: f"{row.macs / 1e9:.2f}",
        "depths": lambda row: "-".join(map(str, row.depths)),
        "widths": lambda row: "-".join(map(str, row.widths)),
        "top-1\n%": lambda row: _of(row.published, lambda published: f"{published.top1:.1f}"),
        "evaluated\nat": lambda row: _of(row.published, _evaluated_at),
    }
    if width >= _WIDTH_WITH_SETTINGS:
        columns |= {
            "lr at\nbatch 128": lambda row: _of(row.settings, lambda settings: _compact(settings.learning_rate)),
            "drop\npath": lambda row: _of(row.settings, lambda settings: _compact(settings.drop_path_rate)),
        }
    if width >= _WIDTH_WITH_WEIGHTS:
        columns["published weights"] = lambda row: _of(row.published, lambda published: published.weights)
    return columns


def _of(record: Record | None, describe: Callable[[Record], str]) -> str:
    return "–" if record is None else describe(record)


def _legend() -> tuple[str, ...]:
    from convnext_deploy.models.zoo.training_settings import CUTMIX_ALPHA, MIXUP_ALPHA, WEIGHT_DECAY

    return (
        "params: with 1000 classes. GMACs: multiply-accumulates of convolutions and linear layers, at 224 pixels.",
        "top-1: on ImageNet-1k, evaluated at image size/crop fraction. –: nobody has published weights.",
        f"All: AdamW, betas 0.9 and 0.999, weight decay {WEIGHT_DECAY}, 300 epochs with 20 of warm-up, label smoothing 0.1; "
        f"mixup {MIXUP_ALPHA} and CutMix {CUTMIX_ALPHA} from tiny on. lr scales linearly with the batch.",
        "All about one: convnext-deploy models NAME. Which one to take: convnext-deploy recommend --images N --classes N.",
    )


def _compact(span: Span) -> str:
    return str(span).replace(" to ", "–")


def _evaluated_at(published: Published) -> str:
    return f"{show_size(published.evaluation.image_size)}/{published.evaluation.crop_pct:g}"


def _print_one(row: ModelRow, console: Console) -> None:
    from convnext_deploy.cli.tables import print_facts
    from convnext_deploy.models.zoo import training_settings as advice

    facts = {
        "model": f"{row.variant} (short: {row.short_name}), ConvNeXt version {row.version}",
        "parameters": f"{row.parameters:,} with 1000 classes",
        "multiply-accumulates": f"{row.macs / 1e9:.2f} G for one image of 224 x 224 pixels",
        "depths": ", ".join(map(str, row.depths)),
        "widths": ", ".join(map(str, row.widths)),
        "unlike the papers": "; ".join(row.differences) or "nothing",
        "ranking": "not recommended" if row.tier is None else advice.TIER_REASONS[row.tier],
        "published weights": "none",
    }
    if (published := row.published) is not None:
        transform = published.evaluation
        licence = " (CC BY-NC 4.0: not for commercial use)" if published.non_commercial else ""
        facts |= {
            "published weights": f"timm/{published.weights}{licence}",
            "top-1": f"{published.top1:.1f} % on ImageNet-1k; {published.source}",
            "evaluated": f"at {show_size(transform.image_size)} pixels: resized to {show_size(transform.resize_size)}, "
            f"{transform.interpolation}, {transform.crop_mode} crop of {transform.crop_pct:g}",
            "normalization": f"mean {_numbers(transform.mean)}, standard deviation {_numbers(transform.std)}",
        }
    if (settings := row.settings) is not None:
        mixup = f"mixup {advice.MIXUP_ALPHA}, CutMix {advice.CUTMIX_ALPHA}" if settings.mixup else "no mixup, no CutMix"
        facts |= {
            "learning rate": f"{settings.learning_rate} at batch {advice.RATE_BATCH_SIZE}, scaled linearly",
            "drop path": str(settings.drop_path_rate),
            "schedule": f"{settings.epochs} epochs, {settings.warmup_epochs} of them warm-up, then half a cosine",
            "optimizer": f"AdamW, betas {_numbers(advice.BETAS)}, weight decay {advice.WEIGHT_DECAY}",
            "regularization": f"label smoothing {settings.label_smoothing}, {mixup}",
        }
    if row.settings_note is not None:
        facts["note"] = row.settings_note
    print_facts(console, facts)


def _numbers(values: tuple[float, ...]) -> str:
    return f"({', '.join(f'{value:g}' for value in values)})"
