"""What a verb works on: opened, and with a word to the user on what was found."""

import dataclasses
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from convnext_deploy.api.options import DataOptions, refuse
from convnext_deploy.artifacts.artifact import Artifact
from convnext_deploy.artifacts.details import ForeignDetails
from convnext_deploy.config.choices import FeatureOutput
from convnext_deploy.config.preprocess import PreprocessSettings
from convnext_deploy.data.agreement import with_labels_for
from convnext_deploy.data.class_names import match_names, read_class_names
from convnext_deploy.data.contents import Contents
from convnext_deploy.data.datasets import BUILT_IN, VALIDATION_FRACTION, Data, open_data
from convnext_deploy.data.unlabelled import open_unlabelled
from convnext_deploy.data.unreadable import Skipping
from convnext_deploy.data.value_range import describe_dark
from convnext_deploy.errors import DataError, RecipeError, printable
from convnext_deploy.models.variants import resolve_variant, short_name
from convnext_deploy.pipeline.open_artifact import open_input, without_head
from convnext_deploy.pipeline.open_foreign import read_name
from convnext_deploy.system.cache_folder import user_cache
from convnext_deploy.system.execution import Execution
from convnext_deploy.system.progress import Progress
from convnext_deploy.system.shared_work import from_first


def open_training_data(options: DataOptions, execution: Execution, out: Path | str | None = None) -> Data:
    """Return the user's data, or the built-in digits; `out` as in `open_named_data`."""
    if options.data is None:
        execution.progress.say(f"no --data was given: using the built-in handwritten {BUILT_IN}")
    return open_named_data(options.data or BUILT_IN, options, execution, out)


def open_data_for(
    source: Artifact, options: DataOptions, execution: Execution, out: Path | str | None = None, *, judges: bool = False
) -> Data | None:
    """Return the user's data, or the built-in digits for what was trained on them; `out` and `judges` as in `open_named_data`.

    Raises: RecipeError: if there is none, and something was said of how to read it.
    """
    if options.data is not None:
        return with_labels_for(source, open_named_data(options.data, options, execution, out, judges=judges))
    if any(record.data == BUILT_IN for record in source.lineage):
        execution.progress.say(
            f"no --data was given: using the built-in {BUILT_IN}, on which this artifact was trained"
        )
        return open_named_data(BUILT_IN, options, execution)
    refuse(dataclasses.replace(_reading(options), classes=None), "a verb without data", "there are no images")
    return None


def open_named_data(
    name: Path | str, options: DataOptions, execution: Execution, out: Path | str | None = None, *, judges: bool = False
) -> Data:
    """Open an image folder or the digits, and say what was split off, left out and ignored.

    The split is the same for every verb, whatever its seed, and so is what is left out because it cannot be read. What was found
    in the files is remembered in the cache folder, or else in that of the user; what the run `out` remembers counts too. A verb
    that only `judges` opens no training images where others have a place of their own.
    """
    if str(name) == BUILT_IN and not Path(name).is_dir():
        refuse(_reading(options), f"the built-in data '{BUILT_IN}'", "its images and their split are fixed")
    fraction = options.validation_fraction
    contents = Contents(Path(name), execution.cache_dir or user_cache(), execution.progress)
    if out is not None and options.skip_unreadable:
        contents.learn_from(Path(out) / "cache")
    found = from_first(
        lambda: open_data(
            str(name),
            validation_fraction=VALIDATION_FRACTION if fraction is None else fraction,
            groups=options.groups,
            split_file=None if options.split is None else Path(options.split),
            labels=None if options.labels is None else Path(options.labels),
            skip_unreadable=options.skip_unreadable or False,
            cache_dir=execution.cache_dir,
            contents=contents,
            judges=judges,
        )
    )
    found = dataclasses.replace(found, division=dataclasses.replace(found.division, told=tuple(_told(options))))
    if options.unlabelled is not None:
        skipping = Skipping(found.contents) if options.skip_unreadable else None
        found = _with_unlabelled(found, str(options.unlabelled), skipping, execution)
    for note in found.notes:
        execution.progress.say(note)
    if (dark := describe_dark(found.validation if judges else found.train)) is not None:
        execution.progress.say(f"{printable(str(name))}: {dark}")
    if options.classes is None:
        return found
    return found.in_order(read_class_names(Path(options.classes)), str(options.classes))


def _with_unlabelled(data: Data, name: str, skipping: Skipping | None, execution: Execution) -> Data:
    """Return the data with the images of a folder that has no labels."""
    judging = [images for images in (data.validation, data.test) if images is not None]
    found = from_first(lambda: open_unlabelled(name, data.train, judging, data.contents, skipping, execution.cache_dir))
    return dataclasses.replace(
        data,
        unlabelled=found,
        unreadable=(*data.unreadable, *found.unreadable),
        reasons=(*data.reasons, *found.reasons),
    )


def _told(options: DataOptions) -> Iterator[str]:
    """Yield what was said of how images are read, as words of the command line."""
    for name in ("labels", "validation_fraction", "split", "groups", "classes"):
        if (value := getattr(options, name)) is not None:
            yield from (f"--{name.replace('_', '-')}", str(value))
    if options.skip_unreadable:
        yield "--skip-unreadable"


def open_artifact(
    path: Path | str, model: str | None, options: DataOptions, progress: Progress, entry: str | None = None
) -> Artifact:
    """Open what the user brought, as `open_artifacts`."""
    return open_artifacts([path], model, options, progress, entry)[0]


def open_artifacts(
    paths: Sequence[Path | str], model: str | None, options: DataOptions, progress: Progress, entry: str | None = None
) -> list[Artifact]:
    """Open what the user brought and say what was found out about it.

    Args:
        paths: artifact folders or files, or names of published weights.
        model: variant that they must hold; None: any.
        options: what was said of their input, and `classes`, counts; `output_name` and `input_range` for foreign ONNX files.
        progress: where to say it.
        entry: which network of a file that holds several, see `open_input`.

    Raises: DeployError: if one cannot be opened, or does not hold the model named, or an option counts for none of them.
    """
    found = []
    for path in paths:
        opened = open_input(Path(path), model=model, asked=options.preprocess, entry=entry)
        for note in opened.notes:
            progress.say(note)
        found.append(opened if options.classes is None else with_classes(opened, options, progress))
    check_graph_options(options.preprocess, found, " and ".join(map(str, paths)))
    return found


def with_features(artifact: Artifact, output: FeatureOutput, path: Path | str, progress: Progress) -> Artifact:
    """Return a network without its head, see `without_head`, and say so."""
    found = without_head(artifact, output, path)
    for note in found.notes:
        if note not in artifact.notes:
            progress.say(note)
    return found


def with_classes(artifact: Artifact, options: DataOptions, progress: Progress) -> Artifact:
    """Return an artifact whose outputs have the names in a file.

    Raises: DataError: if it has another number of outputs. With data it stays as it is, and may get another head.
    """
    path = Path(options.classes or "")
    names = read_class_names(path)
    if len(names) != artifact.model.num_classes:
        if options.data is not None:
            return artifact
        raise DataError(f"{path} names {len(names)} classes, {artifact.main_file} has {artifact.model.num_classes}.")
    known = artifact.class_names if artifact.class_order is None else None
    if known is not None and match_names(known, names) != tuple(range(len(names))):
        place = next(place for place, pair in enumerate(zip(known, names, strict=True)) if pair[0] != pair[1])
        progress.say(
            f"{artifact.main_file.name}: output {place} is '{names[place]}', as {path.name} says; its own file says "
            f"'{known[place]}'"
        )
    return dataclasses.replace(artifact, class_names=names, class_order=None)


def check_graph_options(asked: PreprocessSettings, artifacts: Sequence[Artifact], names: str) -> None:
    """Check that what was said of an ONNX file counts for one. Raises: RecipeError: if none of the artifacts is such a file."""
    if asked.of_graph() and not any(artifact.io.output_names for artifact in artifacts):
        raise RecipeError(
            f"--output-name and --input-range are for ONNX files of another origin, and {names} is none; leave them out."
        )


def one_start(checkpoint: Path | str | None, weights: str | None) -> Path | str | None:
    """Return the file or the published weights to start from.

    Raises: RecipeError: if both are given.
    """
    if checkpoint is not None and weights is not None:
        raise RecipeError(
            f"both the checkpoint {checkpoint} and the weights {weights} were given; start from one of them."
        )
    return weights if checkpoint is None else checkpoint


def name_variant(model: str | None, start: Artifact | None) -> str:
    """Return the model asked for, or that of the weights to start from.

    Raises: RecipeError: if neither tells it.
    """
    if model is not None and read_name(model) is None:
        resolve_variant(model)
        return model
    if start is not None and start.model.variant == "unknown":
        return _file_name(start)
    if start is None:
        raise RecipeError(
            "no model was named, and there are no weights to tell it; name one of 'convnext-deploy models'."
        )
    return short_name(start.model.variant)


def _file_name(artifact: Artifact) -> str:
    """Return a name for a network of another kind that a folder can have."""
    details = artifact.details
    name = details.architecture if isinstance(details, ForeignDetails) else artifact.main_file.stem
    return re.sub(r"[^A-Za-z0-9_.-]+", "-", name).strip("-.") or "teacher"


def _reading(options: DataOptions) -> DataOptions:
    """Return what was said of how a folder is read."""
    names = ("labels", "validation_fraction", "split", "groups", "classes", "skip_unreadable")
    return DataOptions(**{name: getattr(options, name) for name in names})
