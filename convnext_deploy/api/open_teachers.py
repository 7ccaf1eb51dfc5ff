"""What teaches, opened: where it lies, what was said of it, and with a word to the user on what was found."""

import os
from collections.abc import Sequence
from pathlib import Path

from convnext_deploy.api.open_inputs import check_graph_options, with_classes
from convnext_deploy.api.options import DataOptions
from convnext_deploy.artifacts.artifact import Artifact
from convnext_deploy.config.preprocess import PreprocessSettings
from convnext_deploy.config.recipe import is_place
from convnext_deploy.errors import RecipeError
from convnext_deploy.pipeline.open_foreign import open_told, read_name
from convnext_deploy.system.progress import Progress


def teacher_places(given: Path | str | Sequence[Path | str] | None) -> list[str]:
    """Return the places of teachers, of one or of several, as a recipe says them beside the names of its stages."""
    texts = [str(place) for place in ([given] if isinstance(given, Path | str) else given or ())]
    # a folder must not be taken for an earlier stage of its name
    return [text if is_place(text) else f".{os.sep}{text}" for text in texts]


def open_teachers(
    places: Sequence[str], named: str | None, data: DataOptions, progress: Progress
) -> tuple[dict[str, Artifact], PreprocessSettings]:
    """Open the teachers that are there, and return them by their places, and which of the options about images count for them.

    A recipe says that of its source, the first of them, and it counts for the others where they do not tell it; so the one that
    tells least comes first.

    Raises: DeployError: as `open_teacher`, and if no order of them says what was asked for.
    """
    own = None if named is None or read_name(named) is not None else named
    found = {place: open_teacher(place, own, data, progress) for place in places}
    if len(found) < len(places):
        twice = next(place for place in places if list(places).count(place) > 1)
        raise RecipeError(f"the teacher {twice} was given twice; name each once.")
    order = sorted(found, key=lambda place: -len(found[place][1].asked()))
    asked = found[order[0]][1] if order else PreprocessSettings()
    for place in order[1:]:
        if extra := found[place][1].asked().keys() - asked.asked().keys():
            raise RecipeError(
                f"{order[0]} and {place} do not tell the same of the images they take, and {', '.join(sorted(extra))} would "
                "count for the latter alone; distill from one of them, or convert one to a file that tells."
            )
    check_graph_options(
        data.preprocess,
        [artifact for artifact, _ in found.values()],
        " and ".join(places) or "the teacher that is trained first",
    )
    return {place: found[place][0] for place in order}, asked


def open_teacher(
    path: Path | str, model: str | None, options: DataOptions, progress: Progress
) -> tuple[Artifact, PreprocessSettings]:
    """Open what teaches a student, and say what was found out about it.

    The options are about the student; for the teacher they count where its file does not tell, see `open_told`.

    Returns: the teacher, and which of the options count for it.
    Raises: DeployError: as `open_artifact`.
    """
    found, asked = open_told(path, model, options.preprocess)
    if model is not None and found.model.variant == "unknown":
        raise RecipeError(
            f"{path} does not tell which network it holds, so nothing can tell that it is a {model}; leave --teacher out."
        )
    for note in found.notes:
        progress.say(note)
    return name_teacher(found, options, progress), asked


def name_teacher(teacher: Artifact, options: DataOptions, progress: Progress) -> Artifact:
    """Return a teacher whose outputs have the names in `options.classes`, where no file of its own tells them."""
    if options.classes is None or teacher.class_names is not None or not teacher.model.num_classes:
        return teacher
    return with_classes(teacher, options, progress)
