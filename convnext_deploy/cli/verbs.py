"""The verbs with a line each, how `--help` shows them and their options in groups, and a guess where a word is wrong."""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Iterator
from typing import Any

import click

# Group → verb → what it does, in as many characters as fit beside it in 80 columns.
VERBS: dict[str, dict[str, str]] = {
    "Make": {
        "run": "Run a recipe: every stage in order, each one validated.",
        "train": "Train a network from scratch, or fine-tune one.",
        "distill": "Train a small network to answer as a larger one does.",
        "quantize": "Make INT8 by the cheapest way that keeps the accuracy.",
        "compress": "Make a network that keeps a latency: prune, distill, quantize.",
        "export": "Write an ONNX file or TensorRT engines.",
        "convert": "Write the weights as timm, torchvision or others keep them.",
    },
    "Check": {
        "validate": "Measure the accuracy, and compare it with a baseline.",
        "predict": "Print the most probable classes of images.",
        "bench": "Time artifacts, and compare them with the first.",
        "inspect": "Show what is in an ONNX file or an engine, and what is wrong.",
        "report": "Show the report of a run again, and write its pages anew.",
        "compare": "Compare the artifacts of several runs.",
        "view": "Show runs in a browser, also while they train.",
    },
    "Ship": {
        "bundle": "Pack all that a device needs to build, serve and prove it.",
        "collect": "Bring what a device measured into the report of a run.",
        "verify-bundle": "Check a bundle, and run what this machine can run of it.",
    },
    "Find the way": {
        "doctor": "Say what works on this machine, and what is missing.",
        "models": "List all networks: sizes, accuracy, how to train them.",
        "recommend": "Say which network suits your data, and write a recipe.",
        "completion": "Let a shell complete verbs, options and values.",
    },
}
COMMANDS = tuple(verb for verbs in VERBS.values() for verb in verbs)
_LINES = {verb: line for verbs in VERBS.values() for verb, line in verbs.items()}

# Title → names of parameters. What is in none of them is the verb's own, and comes first.
_FIRST = "Options"
_GROUPS: dict[str, tuple[str, ...]] = {
    "The file": (
        "precision", "runtime", "fixed_batch_size", "input_type", "input_layout", "output", "top_k", "range_images", "license",
    ),
    "Engines": (
        "gpus", "optimal_batch_size", "max_batch_size", "workspace_mib", "optimization_level", "timing_cache",
        "version_compatible", "stripped", "strict",
    ),
    "What a result must reach": (
        "max_top1_drop_pp", "max_class_drop_pp", "max_ece_increase_pp", "gate_on", "min_speedup", "speed_check",
    ),
    "Which images": ("labels", "validation_fraction", "split", "groups", "classes", "skip_unreadable"),
    "How images are made ready": ("image_size", "crop_pct", "crop_mode", "interpolation", "mean", "std"),
    "ONNX files of other tools": ("output_name", "input_range"),
    "Network": ("patch_size", "head_hidden_size", "head_dropout", "drop_path_rate"),
    "Training": (
        "epochs", "base_learning_rate", "flip_probability", "augmentation_epochs", "augmentation_seed",
        "gradient_checkpointing", "compile",
    ),
    "How it is run": (
        "batch_size", "seed", "device", "workers", "cache_dir", "tensorboard", "mlflow", "measure_again",
        "restart", "timeout_s",
    ),
    "What is printed": ("as_json", "quiet", "help"),
}  # fmt: skip
_TITLES = {name: title for title, names in _GROUPS.items() for name in names}
# of several verbs, and yet what one thinks of first
_LAST_OF_FIRST = ("data", "out")
_WIDEST_NAME = 30  # an option that is longer has a line of its own
_METAVARS = {"integer range": "N", "float range": "X", "text": "NAME"}
# what is in no group there, because it is what the verb is about
_OWN = {"predict": ("top_k", "threshold"), "recommend": ("classes", "image_size"), "doctor": ("timeout_s",)}


class Verb(click.Command):
    """A command whose `--help` has groups, and which tells what a wrong option may have been meant to be."""

    def get_short_help_str(self, limit: int = 45) -> str:
        """Return the line of the verb, whole; a shell shows it, too."""
        return _LINES.get(self.name or "", "")

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the options, group by group."""
        found: dict[str, list[click.Parameter]] = {title: [] for title in (_FIRST, *_GROUPS)}
        for parameter in self.get_params(ctx):
            name = "help" if "--help" in parameter.opts else parameter.name or ""
            own = name in _OWN.get(self.name or "", ())
            found[_FIRST if own else _TITLES.get(name, _FIRST)].append(parameter)
        found[_FIRST].sort(key=lambda parameter: parameter.name in _LAST_OF_FIRST)
        records = {title: list(_help_records(parameters, ctx)) for title, parameters in found.items()}
        widest = max(len(name) for group in records.values() for name, _ in group if len(name) <= _WIDEST_NAME)
        for title, group in records.items():
            if group:
                with formatter.section(title):
                    formatter.write_dl([(name.ljust(widest), text) for name, text in group], col_max=widest)

    def invoke(self, ctx: click.Context) -> Any:
        """Execute the verb, and let a line say so where its libraries take their time."""
        from convnext_deploy.cli.options import is_quiet
        from convnext_deploy.cli.starting import starting

        with starting(ctx, quiet=is_quiet()):
            return super().invoke(ctx)

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Read the words of the command line. Raises: UsageError: with a guess, where there is no such option."""
        try:
            return super().parse_args(ctx, args)
        except click.NoSuchOption as error:
            raise click.UsageError(_no_such_option(error.option_name, self, ctx), ctx) from None


class Group(click.Group):
    """The verbs, which are imported when they are asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return their names."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import a verb."""
        if cmd_name not in COMMANDS:
            return None
        command: click.Command = importlib.import_module(f"convnext_deploy.cli.{cmd_name.replace('-', '_')}").command
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the verb. Raises: UsageError: with a guess, where there is no such verb."""
        word = args[0]
        if word not in COMMANDS and not word.startswith("-") and not ctx.resilient_parsing:
            raise click.UsageError(f"No such command {word!r}{_guess(word, COMMANDS) or _ALL}", ctx)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the verbs, group by group, without importing any."""
        widest = max(map(len, COMMANDS))
        for title, verbs in VERBS.items():
            with formatter.section(title):
                formatter.write_dl([(verb.ljust(widest), line) for verb, line in verbs.items()])


_ALL = "; convnext-deploy --help lists them."


def _guess(word: str, known: Iterable[str]) -> str:
    """Return `; did you mean 'WORD'?`, or nothing where no known word is alike. The dashes of options make nothing alike."""
    bare = {each.lstrip("-"): each for each in known}
    import difflib

    alike = difflib.get_close_matches(word.lstrip("-"), list(bare), n=1)
    return f"; did you mean {bare[alike[0]]!r}?" if alike else ""


def _options_of(command: click.Command) -> Iterator[str]:
    for parameter in command.params:
        if isinstance(parameter, click.Option):
            yield from (*parameter.opts, *parameter.secondary_opts)


def _no_such_option(word: str, command: click.Command, ctx: click.Context) -> str:
    """Return what to say of an option that a verb does not have: which verbs have it, or what it is like."""
    text = f"No such option {word!r}"
    if ctx.parent is not None and isinstance(ctx.parent.command, Group):
        others = (ctx.parent.command.get_command(ctx.parent, verb) for verb in COMMANDS)
        having = [str(other.name) for other in others if other is not None and word in _options_of(other)]
        if having:
            return f"{text} here; {', '.join(having)} {'have' if having[1:] else 'has'} it."
    return text + (_guess(word, _options_of(command)) or f"; convnext-deploy {command.name} --help lists them.")


def _help_records(parameters: Iterable[click.Parameter], ctx: click.Context) -> Iterator[tuple[str, str]]:
    """Yield the options with their help, numbers by one letter."""
    for parameter in parameters:
        if isinstance(parameter, click.Option):
            if parameter.metavar is None and not parameter.is_flag:
                parameter.metavar = _METAVARS.get(parameter.type.name)
            if (record := parameter.get_help_record(ctx)) is not None:
                yield record
