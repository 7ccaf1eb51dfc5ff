"""`convnext-deploy predict`."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from convnext_deploy.api.uses import USES
from convnext_deploy.cli.completions import artifacts, runners
from convnext_deploy.cli.console import say, write
from convnext_deploy.cli.next_steps import tell_following
from convnext_deploy.cli.options import arguments_of, common_options
from convnext_deploy.cli.values import POSITIVE
from convnext_deploy.cli.verbs import Verb
from convnext_deploy.system.standard_error import tell

if TYPE_CHECKING:
    from convnext_deploy.api.predictions import Prediction

_SMALLEST = 0.0005  # a probability that is shown as 0.0 %


@click.command("predict", cls=Verb)
@click.argument("artifact", type=click.Path(path_type=Path), shell_complete=artifacts)
@click.argument("images", nargs=-1, required=True, metavar="IMAGE|DIR...", type=click.Path(path_type=Path))
@click.option(
    "--top-k",
    type=POSITIVE,
    help="How many classes to print for each image.  [default: 5; of a multi-label network all above the threshold]",
)
@click.option(
    "--threshold",
    type=click.FloatRange(0, 1),
    metavar="P",
    help="Of a multi-label network: the probability from which on an image has a label.  [default: 0.5]",
)
@click.option(
    "--runner", metavar="NAME", shell_complete=runners, help="What runs ARTIFACT.  [default: that of its format]"
)
@common_options("predict", "skip_unreadable")
def command(as_json: bool, skip_unreadable: bool | None, **values: Any) -> None:
    """Print the most probable classes of images: of files, and of all images below folders.

    A feature extractor gives its features instead, one vector of numbers for each image. Images are resized and
    normalized as ARTIFACT says. A file that cannot be read is named, and the others are classified all the same; the
    exit code is then 1, or 0 with --skip-unreadable if any could be read. A multi-label network answers each label
    by itself: those with a probability of 0.5 or more are printed.
    """
    from convnext_deploy.api.predict import predict
    from convnext_deploy.errors import DataError

    arguments = arguments_of("predict", values)
    progress = arguments["execution"].reporter
    complain = progress.say if skip_unreadable else tell
    unreadable = total = 0

    def watched(found: Iterable[Prediction]) -> Iterator[Prediction]:
        nonlocal unreadable, total
        for prediction in found:
            total += 1
            if prediction.error is not None:
                unreadable += 1
                complain(prediction.error)
            yield prediction

    found = watched(predict(**arguments, stream=True))
    if as_json:
        _print_json(found)
    else:
        for prediction in found:
            if prediction.error is None:
                say(f"{prediction.path}: {_describe(prediction)}")
    if unreadable and (unreadable == total or not skip_unreadable):
        hint = "repair or remove them" if unreadable == total else "repair or remove them, or give --skip-unreadable"
        raise DataError(f"{unreadable} of {total} files cannot be read as images; {hint}.")
    if not as_json:
        _conclude(values)
    if unreadable:
        progress.say(f"{unreadable} of {total} files cannot be read as images and were left out")


def _conclude(values: Mapping[str, Any]) -> None:
    """Say what follows, by what the artifact tells of itself."""
    from convnext_deploy.artifacts.artifact import read_artifact
    from convnext_deploy.errors import ArtifactError

    path, form, precision = Path(values["artifact"]), "torch", "fp32"
    if path.is_dir():
        with contextlib.suppress(ArtifactError):  # a folder of another library
            form, precision = (artifact := read_artifact(path)).format, artifact.precision
    elif path.suffix == ".onnx":
        form = "onnx"
    fields = [name for names in USES["predict"].values() for name in names]
    tell_following([path], form, precision, values, fields=fields)


def _describe(prediction: Prediction) -> str:
    if prediction.features is not None:
        return " ".join(f"{value:.4g}" for value in prediction.features)
    if not prediction.guesses:
        return "no label"
    return ", ".join(f"{guess.class_name} {_percent(guess.probability)}" for guess in prediction.guesses)


def _percent(probability: float) -> str:
    return "<0.1 %" if probability < _SMALLEST else f"{100 * probability:.1f} %"


def _print_json(found: Iterable[Prediction]) -> None:
    """Print a list as its entries come, one to a line."""
    import json

    separator = "[\n"
    for prediction in found:
        write(f"{separator}{json.dumps(prediction.to_record())}", end="")
        separator = ",\n"
    write("\n]")
