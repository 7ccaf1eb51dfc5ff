"""Options that mean the same in every command, from the table of what each verb uses."""

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from convnext_deploy.api.uses import USES
from convnext_deploy.cli import completions as candidates
from convnext_deploy.cli.defaults import default_of
from convnext_deploy.cli.shared_options import OPTIONS
from convnext_deploy.cli.starting import started
from convnext_deploy.system.distributed import launched

Function = TypeVar("Function", bound=Callable[..., Any])
_YES = "convnext_deploy.yes"  # likewise, of --yes
_QUIET = "convnext_deploy.quiet"  # where click keeps, for a whole command line, whether --quiet was given
_TRAINS = ("run", "train", "distill", "quantize", "compress")

artifacts_argument = click.argument(
    "artifacts",
    nargs=-1,
    required=True,
    metavar="ARTIFACT...",
    type=click.Path(path_type=Path),
    shell_complete=candidates.artifacts,
)


def gpu_option(text: str) -> Callable[[Function], Function]:
    """Add `--gpu`, any number of them, as `gpus`; `text` says what for."""
    return click.option("--gpu", "gpus", multiple=True, metavar="NAME", shell_complete=candidates.gpus, help=text)


def model_option(argument: str) -> Callable[[Function], Function]:
    """Add `--model`, which an argument is checked against."""
    text = f"Model that {argument} must hold; found from its shapes if not given."
    return click.option("--model", shell_complete=candidates.variants, help=text)


def common_options(verb: str, *others: str) -> Callable[[Function], Function]:
    """Add the options that a verb uses of the records, those named besides, and `--json` and `--quiet`, which all share."""
    used = {*others}.union(*USES.get(verb, {}).values())

    def decorate(function: Function) -> Function:
        function = quiet_option(function)
        if verb in _TRAINS:
            function = _yes_option(function)
        function = click.option("--json", "as_json", is_flag=True, help="Print the result as JSON on standard output.")(
            function
        )
        for name in reversed(OPTIONS):
            if name in used:
                kind, text, more = OPTIONS[name]
                text += default_of(verb, name)
                flag = flag_of(name)
                rest = {key: value for key, value in more.items() if key != "flag"}
                function = click.option(flag, name, type=kind, help=text, **rest)(function)
        return function

    return decorate


def flag_of(name: str) -> str:
    """Return what is typed for an option that several verbs share, such as `--max-drop` for `max_top1_drop_pp`."""
    flag: str = OPTIONS[name][2].get("flag", f"--{name.replace('_', '-')}")
    return flag


def arguments_of(verb: str, values: dict[str, Any]) -> dict[str, Any]:
    """Return the arguments of a verb's function from the values of its command: its own as they are, the others in records."""
    from convnext_deploy.api.options import RECORDS
    from convnext_deploy.system.progress_bars import create_progress

    started()
    found = {**values, "progress": create_progress(is_quiet(), asks=not _is_given(_YES)), "command": typed_command()}
    uses = USES.get(verb, {})
    records = {record: RECORDS[record](**{name: found[name] for name in names}) for record, names in uses.items()}
    shared = {"progress", "command"}.union(*uses.values())
    return {name: value for name, value in found.items() if name not in shared} | records


def typed_command(*without: str) -> str:
    """Return the command line as a shell reads it, but for some words."""
    import shlex

    arguments = shlex.join(word for word in sys.argv[1:] if word not in without)
    if launched().size > 1:
        here = os.environ.get("LOCAL_WORLD_SIZE", "1")
        return f"torchrun --nproc-per-node {here} -m convnext_deploy {arguments}"
    return f"convnext-deploy {arguments}"


def quiet_option(function: Function) -> Function:
    """Add `--quiet`, which `is_quiet` tells of."""

    def remember(context: click.Context, parameter: click.Parameter, value: bool) -> None:
        context.meta[_QUIET] = value or context.meta.get(_QUIET, False)

    return click.option(
        "--quiet",
        "-q",
        is_flag=True,
        expose_value=False,
        callback=remember,
        help="Print errors and the result only: no progress, no notes.",
    )(function)


def _yes_option(function: Function) -> Function:
    def remember(context: click.Context, parameter: click.Parameter, value: bool) -> None:
        context.meta[_YES] = value

    return click.option(
        "--yes",
        "-y",
        is_flag=True,
        expose_value=False,
        callback=remember,
        help="Do not ask before more than an hour of training.  [default: a terminal is asked]",
    )(function)


def is_quiet() -> bool:
    """Whether `--quiet` stands anywhere in the command line that is being executed."""
    return _is_given(_QUIET)


def _is_given(name: str) -> bool:
    context = click.get_current_context(silent=True)
    return context is not None and bool(context.meta.get(name))
