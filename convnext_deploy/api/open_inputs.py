"""What a verb works on: opened, and with a word to the user on what was found."""

from __future__ import annotations

from pathlib import Path

from convnext_deploy.api.options import Options
from convnext_deploy.artifacts.artifact import Artifact
from convnext_deploy.data.datasets import BUILT_IN, Data, open_data
from convnext_deploy.errors import RecipeError
from convnext_deploy.models.variants import resolve_variant, short_name
from convnext_deploy.pipeline.open_artifact import open_input
from convnext_deploy.system.distributed import from_first
from convnext_deploy.system.progress import Progress


def open_training_data(options: Options) -> Data:
    """Return the user's data, or the built-in digits."""
    if options.data is None:
        options.progress.say(f"no --data was given: using the built-in handwritten {BUILT_IN}")
    return open_named_data(options.data or BUILT_IN, options)


def open_named_data(name: str, options: Options) -> Data:
    """Open an image folder or the digits as the options say. The split is the same for every verb, whatever its seed."""
    return from_first(
        lambda: open_data(
            name,
            validation_fraction=options.validation_fraction,
            skip_unreadable=options.skip_unreadable,
            cache_dir=options.cache_dir,
        )
    )


def open_data_for(source: Artifact, options: Options) -> Data | None:
    """Return the user's data, or the built-in digits for what was trained on them."""
    if options.data is not None:
        return open_named_data(options.data, options)
    if any(record.data == BUILT_IN for record in source.lineage):
        options.progress.say(f"no --data was given: using the built-in {BUILT_IN}, on which this artifact was trained")
        return open_named_data(BUILT_IN, options)
    return None


def open_optional(checkpoint: Path | None, model: str | None, options: Options) -> Artifact | None:
    """Open a checkpoint if there is one; see `open_artifact`."""
    return None if checkpoint is None else open_artifact(checkpoint, model, options)


def one_start(checkpoint: Path | None, weights: str | None) -> Path | None:
    """Return the file or the published weights to start from.

    Raises: RecipeError: if both are given.
    """
    if checkpoint is not None and weights is not None:
        raise RecipeError(
            f"both the checkpoint {checkpoint} and the weights {weights} were given; start from one of them."
        )
    return checkpoint if weights is None else Path(weights)


def open_artifact(path: Path | str, model: str | None, options: Options) -> Artifact:
    """Open what the user brought and say what was found out about it.

    Raises: DeployError: if it cannot be opened, or does not hold the model named.
    """
    found = open_input(Path(path), model=model, image_size=options.image_size, crop_pct=options.crop_pct)
    for note in found.notes:
        options.progress.say(note)
    return found


def name_variant(model: str | None, start: Artifact | None) -> str:
    """Return the model asked for, or that of the weights to start from.

    Raises: RecipeError: if neither tells it.
    """
    if model is not None:
        resolve_variant(model)
        return model
    if start is None:
        raise RecipeError(
            "no model was named, and there are no weights to tell it; name one of 'convnext-deploy models'."
        )
    return short_name(start.model.variant)


def say_notes(data: Data, progress: Progress) -> None:
    """Tell what was split off, left out and ignored."""
    for note in data.notes:
        progress.say(note)
