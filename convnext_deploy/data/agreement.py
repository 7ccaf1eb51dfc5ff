"""What an artifact and the data must agree on: the images that it takes, the classes, and that it did not learn what judges it."""

import os
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from convnext_deploy.artifacts.artifact import Artifact
from convnext_deploy.data.class_names import (
    NATURAL,
    ORDER_WORDS,
    SORTED,
    are_numbers,
    are_wordnet_ids,
    in_order,
    match_names,
    missing_names,
    same_name,
    undecided,
)
from convnext_deploy.data.datasets import Data
from convnext_deploy.errors import DataError


def check_takes_images(what: str, artifact: Artifact) -> None:
    """Check that an artifact takes images as files hold them. Raises: DataError: if not."""
    if artifact.model.in_channels not in (1, 3):
        raise DataError(f"{what} takes {artifact.model.in_channels} channels; image files have 1 (grey) or 3 (RGB).")


def check_classes(what: str, artifact: Artifact, data: Data) -> None:
    """Check that an artifact takes images as files hold them, that it and the data speak of the same classes, in whatever order,
    and that no image on which it was trained is now held out to judge it. A feature extractor speaks of none.

    Raises: DataError: if not.
    """
    check_takes_images(what, artifact)
    if not artifact.model.num_classes:
        if data.multi_label:
            raise DataError(
                f"{what} gives features, which are scored by the one class that the nearest images vote for, and {data.name} has "
                "any number of labels for an image; give folders of classes, or a file with one label for each image. Without "
                "--data 'convnext-deploy export' writes it, not validated; 'predict' gives the features of any images."
            )
        _check_split(what, artifact, data)
        return
    if len(data.class_names) != artifact.model.num_classes:
        hint = ""
        if len(artifact.io.output_names) == 1:  # of a graph that others made, which the user may have named
            hint = (
                f" If '{artifact.io.output_names[0]}' holds features and no scores, export the PyTorch checkpoint instead: "
                "'convnext-deploy export FILE --output features'."
            )
        raise DataError(
            f"{what} has {artifact.model.num_classes} classes, {data.name} has {len(data.class_names)}.{hint}"
        )
    if _places(artifact, data) is None:
        only_there, only_here = missing_names(artifact.class_names or (), data.class_names)
        if not only_there:
            raise DataError(f"{what} has two classes of one name; say which is which with --classes FILE.")
        raise DataError(
            f"{what} was trained with class '{only_there[0]}' where {data.name} has '{only_here[0]}'; use the same classes."
        )
    check_labels(what, artifact, data)
    _check_split(what, artifact, data)


def check_labels(what: str, artifact: Artifact, data: Data) -> None:
    """Check that an artifact answers what the data asks: one class an image, or each label. Raises: DataError: if not.

    What no file tells of it is assumed as `name_classes` does, whether that was called before or is later.
    """
    artifact = name_classes(artifact, data)
    if data.multi_label and not artifact.model.multi_label:
        raise DataError(
            f"{what} was trained to tell one class for an image, and {data.name} has any number of labels for one; train it on "
            "them first: convnext-deploy train --checkpoint."
        )
    if artifact.model.multi_label and not data.multi_label:
        raise DataError(
            f"{what} was trained to tell any number of labels for an image, and {data.name} has one class for each; give a file "
            "with all labels of the images with --labels."
        )


def with_labels_for(artifact: Artifact, data: Data) -> Data:
    """Return data as a multi-label network takes it, where a file tells all labels of the images: also where each has just one."""
    return data.as_multi_label() if artifact.model.multi_label and data.labels_from else data


def assumed_labels(artifact: Artifact, data: Data) -> str | None:
    """Say what is assumed of the outputs of an artifact that was not trained here, on multi-label data; None: nothing is."""
    if artifact.lineage or artifact.model.multi_label or not data.multi_label:
        return None
    return (
        "each output of the network is taken for a label of its own, as of a sigmoid, because the data is multi-label"
    )


def _check_split(what: str, artifact: Artifact, data: Data) -> None:
    """Check that images are divided as they were when the artifact was made of them. Raises: DataError: if not."""
    if data.split is None:
        return
    fraction = None if data.split.file is not None else data.split.fraction
    now = (fraction, data.split.options)
    for record in artifact.lineage:
        before = (record.validation_fraction, record.split)
        if before in ((None, None), now) or not is_same_place(record.data, data):
            continue
        if record.judged_on is not None and record.judged_on == data.judged_on:
            continue  # the same images, otherwise said
        learned = "is, so that it would be judged on images it has learned"
        if before[1] == now[1] and record.validation_fraction is not None and fraction is not None:
            raise DataError(
                f"{what} was made with {record.validation_fraction:g} of {data.name} held out, and now {fraction:g} {learned}; "
                f"use --validation-fraction {record.validation_fraction:g}."
            )
        options = _as_options(*before)
        raise DataError(
            f"{what} was made of {data.name} divided by {options}, which now {_as_options(*now)} {learned}; use {options}."
        )


def _as_options(fraction: float | None, others: str | None) -> str:
    parts = (None if fraction is None else f"--validation-fraction {fraction:g}", others)
    return " ".join(part for part in parts if part is not None)


def is_same_place(path: str, data: Data) -> bool:
    """Whether a path in a lineage is that of the data."""
    return os.path.realpath(path) == os.path.realpath(data.name)


def name_classes(artifact: Artifact, data: Data | None) -> Artifact:
    """Return an artifact of which no file tells the classes with those of the data, numbered as its library numbers folders.

    That is an assumption, which `assumed_classes` puts into words, as `assumed_labels` does that the outputs of a network of
    another origin are labels of their own where the data is multi-label. Others come back as they are.
    """
    untold = not artifact.lineage and not artifact.model.multi_label
    if untold and data is not None and data.multi_label:
        artifact = replace(artifact, model=replace(artifact.model, multi_label=True))
    if data is None or artifact.class_names is not None or artifact.model.num_classes != len(data.class_names):
        return artifact
    order = artifact.class_order or SORTED
    names = data.class_names if data.numbered else in_order(data.class_names, order)
    return replace(artifact, class_names=names, class_order=order)


def outputs_of_classes(artifact: Artifact, data: Data) -> NDArray[np.int64] | None:
    """Return for each class of the data the output of the artifact that stands for it, `(classes,)`; None where all are in order.

    Classes are matched by name. An artifact without names is numbered as in `name_classes`.
    """
    places = _places(artifact, data)
    return None if places is None or places == tuple(range(len(places))) else np.array(places, np.int64)


def outputs_for(artifact: Artifact, data: Data) -> NDArray[np.int64] | None:
    """Return for each class of the data the output of a network that may have more classes, `(classes,)`; None: it lacks some.

    Of a network with others too, the names of its classes must tell which are meant.
    """
    count = artifact.model.num_classes
    if count == len(data.class_names):
        places = _places(artifact, data)
        return None if places is None else np.array(places, np.int64)
    names = [same_name(name) for name in artifact.class_names or ()]
    wanted = [same_name(name) for name in data.class_names]
    if not data.named or any(names.count(name) != 1 for name in wanted):
        return None
    return np.array([names.index(name) for name in wanted], np.int64)


def unless_in_order(outputs: NDArray[np.int64] | None, count: int) -> NDArray[np.int64] | None:
    """Return the outputs `(classes,)` that are to be picked out of `count`; None where all of them are taken in their order."""
    return None if outputs is None or np.array_equal(outputs, np.arange(count)) else outputs


def order_for(artifact: Artifact | None, data: Data) -> Data:
    """Return the data with its classes numbered as the artifact's outputs; as it is for other classes, and without artifact."""
    if artifact is None or artifact.model.num_classes != len(data.class_names):
        return data
    places = _places(artifact, data)
    if places is None:
        return data
    names = tuple(data.class_names[places.index(number)] for number in range(len(places)))
    return data.in_order(names, str(artifact.main_file))


def is_in_order(artifact: Artifact, data: Data) -> bool:
    """Whether the outputs of an artifact stand for the classes of the data, in their order."""
    if artifact.model.num_classes != len(data.class_names):
        return False
    places = _places(artifact, data)
    return places is not None and places == tuple(range(len(places)))


def assumed_classes(artifact: Artifact, data: Data) -> str | None:
    """Say what is assumed of the classes of an artifact because no file tells it; None where a file does."""
    if not speaks_of(artifact, data):
        return None
    named = artifact.class_names is not None
    if named and artifact.class_order is None:
        if match_names(artifact.class_names or (), data.class_names) is not None:
            return None
        if not data.named:
            return "the classes are matched by number, because the shards do not name theirs (a classes.txt beside them would)"
        return (
            "the classes are matched by number, because the network's have names and those of the data are WordNet ids, which are "
            "taken to be numbered in their order, as ImageNet's are"
        )
    if data.numbered:
        lowest = data.class_names[0]
        shifted = f", so that output 0 is '{lowest}'" if are_numbers(data.class_names) and int(lowest) else ""
        return f"the classes are matched by number, because the file of the network does not name them{shifted}"
    order = artifact.class_order or SORTED
    text = f"no file names the network's classes: they are taken to be the folders in {ORDER_WORDS[order]}"
    other = SORTED if order == NATURAL else NATURAL
    first, second = in_order(data.class_names, order), in_order(data.class_names, other)
    if first == second:
        return f"{text}; if top-1 is low, name them with --classes FILE"
    place = next(place for place, pair in enumerate(zip(first, second, strict=True)) if pair[0] != pair[1])
    text += (
        f", so that output {place} is '{first[place]}' (in {ORDER_WORDS[other]} it would be '{second[place]}'); if that is "
        "wrong, name them with --classes FILE"
    )
    if order == NATURAL and (pair := undecided(data.class_names)) is not None:
        text += f". Which of '{pair[0]}' and '{pair[1]}' came first was left to chance"
    return text


def speaks_of(artifact: Artifact, data: Data) -> bool:
    """Whether an artifact and the data have the same classes, in whatever order."""
    return artifact.model.num_classes == len(data.class_names) and _places(artifact, data) is not None


def _places(artifact: Artifact, data: Data) -> tuple[int, ...] | None:
    """Return for each class of the data its output, or None for other classes; both have as many."""
    if not artifact.model.num_classes:
        return None
    names = name_classes(artifact, data).class_names or ()
    found = match_names(names, data.class_names)
    if found is not None or len(names) != len(data.class_names):
        return found
    if not data.named:
        return tuple(range(len(names)))
    if are_wordnet_ids(data.class_names) and not are_wordnet_ids(names):
        # of two classes called 'crane', too, the numbers tell which is which
        ordered = sorted(data.class_names)
        return tuple(ordered.index(name) for name in data.class_names)
    return None
