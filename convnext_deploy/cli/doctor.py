"""`convnext-deploy doctor`."""

from __future__ import annotations

import shutil
import textwrap
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import click

from convnext_deploy.cli.console import write
from convnext_deploy.cli.next_steps import tell_next
from convnext_deploy.cli.options import common_options
from convnext_deploy.cli.verbs import Verb

if TYPE_CHECKING:
    from convnext_deploy.api.doctor import Diagnosis
    from convnext_deploy.diagnosis.machine import Machine
    from convnext_deploy.diagnosis.packages import Package

_WIDEST = 120
_UNBROKEN: Any = {"break_long_words": False, "break_on_hyphens": False}
_TIE = "\N{NO-BREAK SPACE}"  # keeps a version with its name until lines are broken


@click.command("doctor", cls=Verb)
@click.option(
    "--timeout",
    "timeout_s",
    type=click.FloatRange(min=0, min_open=True),
    metavar="SECONDS",
    default=60.0,
    show_default=True,
    help="Longest time for importing the packages; raise it for a slow disk.",
)
@common_options("doctor")
def command(timeout_s: float, as_json: bool) -> None:
    """Say what this machine has, what is installed, which features work here, and what to do for the others.

    Ends with 1 if the main path is broken: training, quantizing, exporting to ONNX and running that.
    """
    from convnext_deploy.api.doctor import doctor
    from convnext_deploy.cli import EXIT_ERROR

    found = doctor(timeout_s=timeout_s)
    write(found.to_json() if as_json else "\n".join(_describe(found, _width())))
    if found.works and not as_json:
        tell_next("models")
    if not found.works:
        raise click.exceptions.Exit(EXIT_ERROR)


def _width() -> int:
    return min(_WIDEST, shutil.get_terminal_size((_WIDEST, 24)).columns)


def _describe(found: Diagnosis, width: int) -> Iterator[str]:
    title = f"convnext_deploy {found.version or 'of no version'}, Python {found.python}, {found.system}"
    yield from textwrap.wrap(title, width, **_UNBROKEN)
    yield ""
    yield from _rows(_machine(found.machine), width)
    yield from _rows(_packages(found), width)
    if found.problems:
        yield ""
        yield "Problems"
        for problem in found.problems:
            yield from textwrap.wrap(problem, width, initial_indent="  ! ", subsequent_indent="    ", **_UNBROKEN)
    yield ""
    yield "Works here"
    name_width = max(len(feature.name) for feature in found.features)
    for feature in found.features:
        head = f"  {'yes' if feature.works else 'no ':3}  {feature.name:{name_width}}  "
        indent = " " * len(head)
        yield from textwrap.wrap(feature.detail, width, initial_indent=head, subsequent_indent=indent, **_UNBROKEN)
    yield ""
    yield "The main path works." if found.works else "The main path is broken: fix what is listed under Problems first."


def _rows(facts: dict[str, list[str]], width: int) -> Iterator[str]:
    for name, lines in facts.items():
        for index, line in enumerate(lines):
            head = f"{name if index == 0 else '':14}"
            for wrapped in textwrap.wrap(line, width, initial_indent=head, subsequent_indent=" " * 14, **_UNBROKEN):
                yield wrapped.replace(_TIE, " ")


def _machine(machine: Machine) -> dict[str, list[str]]:
    features = "" if machine.cpu_features is None else f"; {', '.join(machine.cpu_features) or 'not even AVX2'}"
    cores = f"{machine.cores} core{'s' if machine.cores > 1 else ''} usable"
    gpus = [f"{gpu.name}, {gpu.capability}, {_gb(gpu.memory_bytes)}; {gpu.abilities}" for gpu in machine.gpus]
    if gpus and (machine.driver or machine.driver_cuda):
        gpus.append(f"driver {machine.driver or 'of a version not told'}, CUDA up to {machine.driver_cuda}")
    return {
        "CPU": [f"{machine.cpu}, {cores}{features}", machine.int8_on_cpu],
        "memory": [f"{_gb(machine.memory_bytes)}, {_gb(machine.memory_available_bytes)} free"],
        **_shared(machine),
        "disk": [f"{_gb(machine.disk_free_bytes)} free in this folder"],
        "GPU": gpus or [machine.gpu_error or "no GPU"],
    }


def _shared(machine: Machine) -> dict[str, list[str]]:
    if machine.shared_bytes is None:
        return {}
    sizes = [f"{size / 1e6:,.1f} MB" for size in (machine.shared_bytes, machine.shared_free_bytes or 0)]
    return {"/dev/shm": [f"{sizes[0]}, {sizes[1]} free; {machine.shared_allows}"]}


def _packages(found: Diagnosis) -> dict[str, list[str]]:
    here = [package for package in found.packages if package.installed]
    missing = [package.name for package in found.packages if not package.installed]
    return {
        "installed": [", ".join(map(_name, here)) or "nothing"],
        **({"not installed": [", ".join(missing)]} if missing else {}),
        **({"ONNX Runtime": [", ".join(found.providers)]} if found.providers else {}),
    }


def _name(package: Package) -> str:
    words = (package.name, package.version or "?", *(() if package.works else ("(broken)",)))
    return _TIE.join(words)


def _gb(size: int | None) -> str:
    return "not known" if size is None else f"{size / 1e9:.1f} GB"
