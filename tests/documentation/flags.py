"""Checks of a command without running it: that its program is known and takes these words."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import click

from convnext_deploy.cli import COMMANDS, group
from tests.documentation.blocks import ROOT

_DEVICE = ROOT / "convnext_deploy" / "bundles" / "device"
_OPTION = re.compile(r"--[a-z][a-z0-9-]*")
_PYTHON = re.compile(r"(\.venv/bin/)?python3?")
# what other people's programs do is theirs to say
_FOREIGN = {"cd", "git", "scp", "unzip", "sudo", "tritonserver"}


def _open(verb: str) -> tuple[click.Command, click.Context]:
    # click keeps the help option of the first context that a command gets, so it must be as in the command line
    above = click.Context(group, **group.context_settings)
    command = group.get_command(above, verb)
    assert command is not None, f"there is no verb {verb}; there are {', '.join(COMMANDS)}"
    return command, click.Context(command, above, verb)


def verb_parameters(verb: str) -> list[click.Parameter]:
    """Return the options and arguments of a verb."""
    command, context = _open(verb)
    return command.get_params(context)


def options_of(path: Path) -> set[str]:
    """Return the options that a script's text has."""
    return set(_OPTION.findall(path.read_text(encoding="utf-8")))


def check_verb(words: list[str]) -> None:
    """Check the words after `convnext-deploy`. Raises: AssertionError, click.UsageError: if it would not take them."""
    verb, *arguments = words
    if verb in ("--help", "--version"):
        return
    command, context = _open(verb)
    found, rest, _ = command.make_parser(context).parse_args(list(arguments))
    assert not rest, f"{verb} does not take {rest}"
    for parameter in verb_parameters(verb):
        value = found.get(parameter.name)
        given = value is not None and type(value).__name__ != "Sentinel" and value != ()
        assert given or not parameter.required, f"{verb} needs {parameter.opts[0]}"
        if given and not isinstance(parameter.type, click.Path):
            parameter.type_cast_value(context, value)


def check_command(words: list[str]) -> None:
    """Check a command of any program. Raises: AssertionError, click.UsageError, SystemExit: if it would not take its words."""
    program, *arguments = words
    if program in _FOREIGN:
        return
    if program == "srun":
        check_command(arguments)
    elif program.removeprefix(".venv/bin/") == "convnext-deploy":
        check_verb(arguments)
    elif program.removeprefix(".venv/bin/") == "pip":
        _check_pip(arguments)
    elif program == "torchrun":
        from torch.distributed.run import get_args_parser

        known = [re.sub(r"^\$\w+$|^\$\(.*\)", "1", word) for word in arguments]
        parsed = get_args_parser().parse_args(known)
        assert parsed.module, "torchrun needs -m"
        assert parsed.training_script == "convnext_deploy"
        check_verb(parsed.training_script_args)
    elif program == "bash":
        _check_script(_DEVICE / Path(arguments[0]).name, arguments[1:])
    elif _PYTHON.fullmatch(program) and arguments[0].startswith("benchmarks/"):
        _check_script(ROOT / arguments[0], arguments[1:])
    elif _PYTHON.fullmatch(program) and arguments[0].endswith(".py"):
        _check_script(_DEVICE / Path(arguments[0]).name, arguments[1:])
    else:
        assert _PYTHON.fullmatch(program), f"nothing here knows {program}"
        assert arguments[:2] in (["-m", "venv"], ["-m", "pytest"]), f"nothing here knows {words}"


def _check_pip(arguments: list[str]) -> None:
    assert arguments[0] == "install"
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    for word in arguments[1:]:
        extra = re.fullmatch(r"\.\[([\w,-]+)\]", word)
        names = extra[1].split(",") if extra else []
        assert set(names) <= set(project["optional-dependencies"]), f"no extra {names}"


def _check_script(path: Path, arguments: list[str]) -> None:
    assert path.is_file(), f"there is no {path.name}"
    unknown = {word for word in arguments if _OPTION.fullmatch(word)} - options_of(path)
    assert not unknown, f"{path.name} does not know {', '.join(sorted(unknown))}"


def known_options() -> set[str]:
    """Return every option of the verbs, of the scripts in `benchmarks/` and of those in bundles."""
    found = {option for verb in COMMANDS for p in verb_parameters(verb) for option in (*p.opts, *p.secondary_opts)}
    for path in (*(ROOT / "benchmarks").glob("*.py"), *_DEVICE.glob("*.py"), *_DEVICE.glob("*.sh")):
        found |= options_of(path)
    return found | {"--help", "--version"}
