"""`convnext-deploy bench`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import click

from convnext_deploy.api.uses import USES
from convnext_deploy.cli import completions as candidates
from convnext_deploy.cli.console import write
from convnext_deploy.cli.next_steps import tell_following
from convnext_deploy.cli.options import arguments_of, artifacts_argument, common_options
from convnext_deploy.cli.values import POSITIVE
from convnext_deploy.cli.verbs import Verb

if TYPE_CHECKING:
    from convnext_deploy.api.bench import Benchmark
    from convnext_deploy.evaluation.timing.interleaved import Timing

_NONE = "–"
_ROUNDS = 6  # that an interval of 95 % takes


def _numbers(context: click.Context, parameter: click.Parameter, value: str) -> tuple[int, ...]:
    """Read whole numbers >= 1 with commas between them."""
    parts = [part.strip() for part in value.split(",")]
    if not all(part.isascii() and part.isdigit() and int(part) >= 1 for part in parts):
        raise click.BadParameter(f"{value!r}; expected whole numbers >= 1, such as 1,8.", context, parameter)
    return tuple(int(part) for part in parts)


def _names(context: click.Context, parameter: click.Parameter, value: tuple[str, ...]) -> tuple[str, ...]:
    """Read names, each value of which may be several with commas between them."""
    return tuple(name.strip() for listed in value for name in listed.split(","))


@click.command("bench", cls=Verb)
@artifacts_argument
@click.option(
    "--runner",
    "runners",
    multiple=True,
    callback=_names,
    metavar="NAME",
    shell_complete=candidates.runners,
    help="Runner for the artifacts of its format; repeatable, or separated by commas.  [default: one for each format]",
)
@click.option(
    "--batch-size",
    "batch_sizes",
    callback=_numbers,
    metavar="N,…",
    default="1",
    show_default=True,
    help="Images per call; several are separated by commas.",
)
@click.option("--threads", type=POSITIVE, help="Threads of one call on the CPU.  [default: the runner's own]")
@click.option(
    "--rounds",
    type=POSITIVE,
    default=7,
    show_default=True,
    help="Processes for each artifact, runner and batch size; intervals of 95 % need six.",
)
@click.option(
    "--seconds",
    type=click.FloatRange(min=0, min_open=True, max=3600),
    default=2.0,
    show_default=True,
    help="How long each process measures, after warming up.",
)
@common_options("bench")
def command(as_json: bool, **values: Any) -> None:
    """Time ARTIFACTs in interleaved, isolated processes, and compare each with the first one.

    The machine should have nothing else to do. Ends with 1 if one of them fails; not if a runner is not installed.
    """
    from convnext_deploy.api.bench import bench
    from convnext_deploy.cli import EXIT_ERROR

    found = bench(**arguments_of("bench", values))
    if as_json:
        write(found.to_json())
    else:
        _print(found)
        _conclude(found, values)
    if any(timing.failed for timing in found.timings):
        raise click.exceptions.Exit(EXIT_ERROR)


def _conclude(found: Benchmark, values: Mapping[str, Any]) -> None:
    """Say what follows for the fastest, with the input that it was timed with."""
    measured = [(time, timing) for timing in found.timings if (time := timing.median("p50_ms")) is not None]
    if measured:
        _, fastest = min(measured, key=lambda pair: pair[0] / pair[1].candidate.batch_size)
        artifact = fastest.candidate.artifact
        tell_following([artifact.place], artifact.format, artifact.precision, values, fields=USES["bench"]["data"])


def _print(found: Benchmark) -> None:
    from convnext_deploy.cli.tables import create_console, print_table

    console = create_console()
    console.print(f"{found.environment['cpu']}, {found.environment['cores']} cores", style="bold")
    console.print()
    columns = _columns(found)
    styles = ["bold red" if timing.failed else "dim" if timing.not_run else None for timing in found.timings]
    rows = [[cell(timing) for cell in columns.values()] for timing in found.timings]
    first = ("runner", "batch", "p50 ms", list(columns)[-1])
    words = ("artifact", "runner", "precision")
    print_table(console, list(columns), rows, words, styles=styles, first=first, names=("batch", "runner", "precision"))
    console.print()
    reasons: dict[tuple[str, str], list[str]] = {}
    for timing in found.timings:
        if timing.not_run is not None:
            reasons.setdefault(("failed" if timing.failed else "not run", timing.not_run), []).append(timing.label)
    for (word, reason), labels in reasons.items():
        console.print(f"- {word}: {', '.join(dict.fromkeys(labels))}: {reason}", soft_wrap=True)
    for note in found.notes:
        console.print(f"- {note}", soft_wrap=True)
    processes = f"{found.rounds} isolated process{'es' if found.rounds > 1 else ''} each, interleaved"
    sure = "" if found.rounds >= _ROUNDS else "; six rounds or more would give intervals of 95 %"
    console.print(f"medians of {processes}; {found.wall_s:.0f} s in all{sure}")


def _columns(found: Benchmark) -> dict[str, Callable[[Timing], str]]:
    """Titles and contents of the columns; power and temperature where anything has them."""

    def figure(name: str, form: str, scale: float = 1.0) -> Callable[[Timing], str]:
        def cell(timing: Timing) -> str:
            value = timing.median(name)
            return _NONE if value is None else format(value * scale, form)

        return cell

    columns: dict[str, Callable[[Timing], str]] = {
        "artifact": lambda timing: timing.candidate.name,
        "runner": lambda timing: timing.runner if timing.device == "cpu" else f"{timing.runner}, {timing.device}",
        "precision": lambda timing: timing.candidate.artifact.precision,
        "batch": lambda timing: str(timing.candidate.batch_size),
        "p50 ms": figure("p50_ms", ".2f"),
        "p90 ms": figure("p90_ms", ".2f"),
        "p99 ms": figure("p99_ms", ".2f"),
        "images/s": figure("images_per_s", ",.0f"),
        "memory MB": figure("peak_memory_bytes", ",.0f", 1e-6),
        "load s": figure("load_s", ".2f"),
        "W": figure("power_w", ".0f"),
        "°C": figure("temperature_c", ".0f"),
        # fewer rounds do not reach 95 %: what is in brackets is then the least and the largest ratio
        f"time, of the first's [{'95 %' if found.rounds >= _ROUNDS else 'least, most'}]": _ratio,
    }
    absent = {"W": "power_w", "°C": "temperature_c"}
    measured = {title for title, name in absent.items() if any(t.median(name) is not None for t in found.timings)}
    return {title: cell for title, cell in columns.items() if title not in absent or title in measured}


def _ratio(timing: Timing) -> str:
    if timing.ratio is None:
        return _NONE
    if timing.ratio.to == timing.label:
        return "1"
    return f"{timing.ratio.median:.2f} [{timing.ratio.low:.2f}, {timing.ratio.high:.2f}]"
