"""Every verb explains all of its flags, at once, and is a function of the same name."""

from __future__ import annotations

import inspect
import subprocess
import sys
import time
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

import convnext_deploy
from convnext_deploy.api.uses import USES
from convnext_deploy.cli import COMMANDS, group

SHARED = {"--data", "--out", "--device", "--workers", "--json", "--quiet"}
IMAGES = {"--image-size", "--crop-pct", "--crop-mode", "--interpolation", "--mean", "--std"}
FITTING = {"--batch-size", "--epochs", "--seed"}
NETWORK = {"--patch-size", "--head-hidden-size", "--head-dropout", "--drop-path-rate", "--gradient-checkpointing"}
TRAINING = FITTING | NETWORK
FLAGS = {
    "run": SHARED | {"--dry-run"},
    "train": SHARED | IMAGES | TRAINING | {"--model", "--checkpoint", "--weights"},
    "distill": SHARED
    | IMAGES
    | TRAINING
    | {"--teacher", "--student", "--teacher-checkpoint", "--teacher-weights", "--student-weights", "--temperature"},
    "quantize": SHARED
    | IMAGES
    | FITTING
    | {"--method", "--model", "--calibration-images", "--max-drop", "--max-class-drop"},
    "export": SHARED
    | IMAGES
    | {
        "--format",
        "--model",
        "--precision",
        "--input-type",
        "--output",
        "--gpu",
        "--strict",
        "--max-drop",
        "--max-class-drop",
    },
    "inspect": {"--json"},
    "bundle": {"--data", "--out", "--zip", "--golden-images", "--optimal-batch-size", "--max-batch-size", "--json"},
    "verify-bundle": {"--require", "--built", "--json"},
    "validate": SHARED
    | IMAGES
    | {"--baseline", "--model", "--batch-size", "--max-drop", "--max-ece-increase", "--gate-on"},
    "report": {"--json"},
    "compare": {"--out", "--json"},
    "bench": {
        "--runner",
        "--batch-size",
        "--threads",
        "--rounds",
        "--seconds",
        "--image-size",
        "--device",
        "--json",
        "--quiet",
    },
    "convert": IMAGES | {"--to", "--out", "--model", "--json"},
    "models": {"--json"},
    "predict": IMAGES
    | {"--top-k", "--runner", "--device", "--workers", "--batch-size", "--skip-unreadable", "--json", "--quiet"},
    "doctor": {"--timeout", "--json", "--quiet"},
    "completion": {"--quiet"},
    "recommend": {"--images", "--classes", "--gpu-memory", "--latency-budget", "--image-size", "--out", "--json"},
}
ARGUMENTS = {
    "run": "RECIPE",
    "quantize": "CHECKPOINT",
    "export": "ARTIFACT",
    "validate": "ARTIFACT",
    "inspect": "FILE",
    "bundle": "ARTIFACT...",
    "verify-bundle": "BUNDLE",
    "report": "RUN",
    "compare": "RUN RUN...",
    "bench": "ARTIFACT...",
    "convert": "CHECKPOINT",
    "models": "NAME",
    "predict": "ARTIFACT IMAGE|DIR...",
    "completion": "{bash|zsh|fish}",
}
# `convnext_deploy.models` is where the networks are; what `completion` prints is of use to a shell alone
FUNCTIONS = {
    "list_models" if verb == "models" else verb.replace("-", "_"): verb for verb in COMMANDS if verb != "completion"
}
# they write one folder of weights or one file, not the results of a run
OWN_OUTPUT = {"convert", "recommend", "bundle", "compare"}


def command_of(verb: str) -> click.Command:
    command = group.get_command(click.Context(group), verb)
    assert isinstance(command, click.Command)
    return command


def options_of(verb: str) -> dict[str, click.Option]:
    return {o: p for p in command_of(verb).params if isinstance(p, click.Option) for o in p.opts if o.startswith("--")}


def test_flags_lists_every_verb() -> None:
    assert set(FLAGS) == set(COMMANDS)


def test_help_of_the_group_lists_every_verb_with_its_summary_and_the_exit_codes() -> None:
    result = CliRunner().invoke(group, ["--help"])
    assert result.exit_code == 0
    for verb in COMMANDS:
        (line,) = [line.split() for line in result.output.splitlines() if line.startswith(f"  {verb} ")]
        assert len(line) > 3
    assert "Exit codes: 0 all gates passed, 1 an error, 2 wrong usage, 3 a gate failed" in " ".join(
        result.output.split()
    )


@pytest.mark.parametrize("verb", COMMANDS)
def test_help_explains_every_flag(verb: str) -> None:
    result = CliRunner().invoke(group, [verb, "--help"])
    assert result.exit_code == 0
    assert options_of(verb).keys() >= FLAGS[verb]
    for flag, option in options_of(verb).items():
        assert flag in result.output
        assert option.help
        assert option.help.rstrip()[-1] in ".]", f"{flag}: {option.help}"
    assert ARGUMENTS.get(verb, "") in result.output.splitlines()[0]


@pytest.mark.parametrize("verb", COMMANDS)
def test_every_verb_takes_json_and_quiet(verb: str) -> None:
    wanted = {"--quiet"} if verb == "completion" else {"--json", "--quiet"}
    assert options_of(verb).keys() >= wanted


@pytest.mark.parametrize("verb", COMMANDS)
def test_help_is_also_given_by_the_short_flag(verb: str) -> None:
    runner = CliRunner()
    assert runner.invoke(group, [verb, "-h"]).output == runner.invoke(group, [verb, "--help"]).output


@pytest.mark.parametrize("flag", sorted(SHARED | IMAGES | TRAINING | {"--max-drop"}))
def test_flag_means_the_same_in_every_verb(flag: str) -> None:
    own = {"--out": OWN_OUTPUT, "--batch-size": {"bench"}}  # which takes a list of them
    verbs = [verb for verb in COMMANDS if flag in options_of(verb) and verb not in own.get(flag, ())]
    found = [options_of(verb)[flag] for verb in verbs]
    assert len(found) >= 2
    assert len({(option.name, repr(option.type), option.help, repr(option.default)) for option in found}) == 1


@pytest.mark.parametrize("verb", FUNCTIONS)
def test_verb_is_a_function_of_the_package(verb: str) -> None:
    function = getattr(convnext_deploy, verb)
    assert inspect.isfunction(function)
    assert function.__name__ == verb
    assert verb in convnext_deploy.__all__


@pytest.mark.parametrize("verb", FUNCTIONS)
def test_verb_has_no_module_of_its_name_that_would_hide_the_function(verb: str) -> None:
    root = Path(convnext_deploy.__file__).parent
    assert not (root / verb).exists()
    assert not (root / f"{verb}.py").exists()


@pytest.mark.parametrize("function", FUNCTIONS)
def test_flags_and_arguments_are_the_parameters_of_the_function_and_the_options_that_it_uses(function: str) -> None:
    parameters = set(inspect.signature(getattr(convnext_deploy, function)).parameters)
    uses = USES.get(function, {})
    options = set().union(*uses.values()) - {"progress", "command"}  # which the command line decides
    of_the_command_alone = {
        "as_json",
        "dry_run",
        "quiet",
        "help",
        *({"skip_unreadable"} if function == "predict" else ()),
    }
    names = {parameter.name for parameter in command_of(FUNCTIONS[function]).params}
    assert uses.keys() <= parameters
    of_the_function_alone = {"stream"} if function == "predict" else set[str]()  # the command always prints as it goes
    assert names - of_the_command_alone == ((parameters - of_the_function_alone) - uses.keys()) | options


def test_package_has_no_other_attributes() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'destill'"):
        convnext_deploy.destill  # noqa: B018
    assert issubclass(convnext_deploy.DeployError, Exception)


@pytest.mark.heavy
@pytest.mark.parametrize("arguments", [("--help",), ("distill", "--help"), ("convert", "--help"), ("--version",)])
def test_help_of_the_installed_command_is_fast(arguments: tuple[str, ...]) -> None:
    times = []
    for _ in range(3):
        start = time.perf_counter()
        command = [sys.executable, "-m", "convnext_deploy", *arguments]
        done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
        times.append(time.perf_counter() - start)
        assert (done.returncode, done.stderr) == (0, "")
        assert "convnext" in done.stdout or "Usage:" in done.stdout
    assert min(times) < 0.5
