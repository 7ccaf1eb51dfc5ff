"""Every verb explains all of its flags, at once, and is a function of the same name."""

from __future__ import annotations

import inspect
import re
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
from convnext_deploy.cli.verbs import VERBS

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
    "bundle": {
        "--data",
        "--image-size",
        "--out",
        "--zip",
        "--golden-images",
        "--optimal-batch-size",
        "--max-batch-size",
        "--json",
    },
    "compress": SHARED
    | IMAGES
    | {"--target", "--latency-budget", "--activation", "--model", "--epochs", "--max-drop", "--dry-run"},
    "verify-bundle": {"--require", "--built", "--json"},
    "collect": {"--json", "--quiet"},
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
    "view": {"--port", "--no-browser", "--json", "--quiet"},
    "recommend": {
        "--data",
        "--images",
        "--classes",
        "--gpu-memory",
        "--latency-budget",
        "--image-size",
        "--out",
        "--json",
    },
}
ARGUMENTS = {
    "run": "RECIPE",
    "quantize": "CHECKPOINT",
    "compress": "CHECKPOINT",
    "export": "ARTIFACT",
    "validate": "ARTIFACT",
    "inspect": "FILE",
    "bundle": "ARTIFACT...",
    "verify-bundle": "BUNDLE",
    "report": "RUN",
    "collect": "RUN MEASURED.json",
    "compare": "RUN RUN...",
    "view": "RUN|DIR",
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
    # what happens where it is not given may depend on the verb
    texts = {str(option.help).split("  [default: ")[0] for option in found}
    assert len({(option.name, repr(option.type), repr(option.default)) for option in found}) == len(texts) == 1


@pytest.mark.parametrize("width", [80, 120])
def test_help_of_the_group_cuts_no_summary(width: int) -> None:
    result = CliRunner().invoke(group, ["--help"], terminal_width=width)
    lines = result.output.splitlines()
    assert "..." not in result.output.partition("\n")[2]
    for title, verbs in VERBS.items():
        start = lines.index(f"{title}:") + 1
        shown = [line.split(maxsplit=1) for line in lines[start : start + len(verbs)]]
        assert [tuple(words) for words in shown] == list(verbs.items())
    assert max(map(len, lines)) <= width


@pytest.mark.parametrize("verb", COMMANDS)
def test_options_stand_in_groups_each_once(verb: str) -> None:
    output = CliRunner().invoke(group, [verb, "--help"], terminal_width=100).output
    titles = [line for line in output.splitlines() if line and not line.startswith((" ", "Usage:"))]
    assert titles[-1] == "What is printed:"
    assert len(titles) == len(set(titles))
    for flag in options_of(verb):
        assert len(re.findall(rf"^  (?:-\w, )?{flag}(?![\w-])", output, re.MULTILINE)) == 1
    assert "RANGE" not in output


def test_options_of_a_long_help_are_where_one_looks_for_them() -> None:
    output = CliRunner().invoke(group, ["export", "--help"], terminal_width=100).output
    sections = dict(re.findall(r"^([A-Z][^:\n]*):\n(.*?)(?=^\w|\Z)", output, re.MULTILINE | re.DOTALL))
    assert list(sections) == [
        "Options",
        "The file",
        "Engines",
        "What a result must reach",
        "Which images",
        "How images are made ready",
        "ONNX files of other tools",
        "How it is run",
        "What is printed",
    ]
    for title, flag in (
        ("Options", "--data"),
        ("Engines", "--gpu"),
        ("What a result must reach", "--max-drop"),
        ("What is printed", "--help"),
    ):
        assert f"{flag} " in sections[title]


@pytest.mark.parametrize(
    ("verb", "expected", "others"),
    [
        ("quantize", "[default: 0.2]", ("0.5]", "validate")),
        ("export", "[default: 0.5]", ("0.2]", "quantize 0.2")),
        ("validate", "[default: not judged]", ("0.2]", "0.5]")),
    ],
)
def test_help_tells_the_defaults_of_this_verb_alone(verb: str, expected: str, others: tuple[str, ...]) -> None:
    text = str(options_of(verb)["--max-drop"].help)
    assert text.endswith(expected)
    assert not any(other in text for other in others)


@pytest.mark.parametrize("verb", ["train", "distill", "quantize", "validate", "predict"])
def test_default_of_the_batch_size_is_that_of_the_code(verb: str) -> None:
    from convnext_deploy.config.quantize import QATConfig
    from convnext_deploy.evaluation.measure import BATCH_SIZE
    from convnext_deploy.models.zoo.presets import preset_batch, preset_qat

    expected = str(BATCH_SIZE)
    if verb not in ("validate", "predict"):
        sizes = [preset_batch(images) for images in (1, 10**7)]
        if verb == "quantize":
            sizes = [preset_qat(QATConfig().fit, images).batch_size for images in (1, 10**7)]
        expected = f"by the images, {sizes[0]} to {sizes[1]}; digits "
    assert f"[default: {expected}" in str(options_of(verb)["--batch-size"].help)


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
    options = set().union(*uses.values()) - {"progress", "command", "dry_run"}  # which the command line decides
    of_the_command_alone = {
        "as_json",
        "dry_run",
        "yes",
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
