"""Open what teaches: besides what every verb opens, networks of other libraries, programs, and files of predictions."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from convnext_deploy.artifacts.artifact import Artifact, describe_file
from convnext_deploy.artifacts.details import ForeignDetails, Library, PredictionsDetails
from convnext_deploy.artifacts.places import check_place
from convnext_deploy.artifacts.preprocessing import assume, assumed_fields, tell
from convnext_deploy.artifacts.spec import ModelSpec, default_preprocess
from convnext_deploy.config.preprocess import PreprocessSettings
from convnext_deploy.config.recipe import SOURCE, TEACHER_PREFIX, WEIGHTS_PREFIX, Recipe
from convnext_deploy.errors import ArtifactError, CheckpointError, OtherNetworkError, SizeUntoldError
from convnext_deploy.models.checkpoints import INDEX
from convnext_deploy.models.checkpoints.hub import is_weights_name
from convnext_deploy.pipeline.open_artifact import CHECKPOINT_SUFFIXES, ask_for, open_input
from convnext_deploy.pipeline.open_foreign_folder import (
    describe_foreign,
    open_foreign_folder,
    timm_transform,
    told_preprocess,
)

LIBRARIES: tuple[Library, ...] = ("timm", "torchvision", "transformers")
EXPECTED_OF_TEACHERS = (
    f"an artifact, a checkpoint ({', '.join(CHECKPOINT_SUFFIXES)}), an ONNX file (.onnx), a program of torch.export (.pt2), a "
    "folder of timm or transformers, or file of predictions (.parquet or .safetensors)"
)


@dataclass(frozen=True)
class Named:
    """A network of another library, and where its weights lie; None: those that the library publishes."""

    library: Library
    architecture: str
    weights: Path | None = None


def read_name(text: str) -> Named | None:
    """Return what `timm:resnet50.a1_in1k` or `timm:resnet50@best.pth` names; None: it is the place of something."""
    before, _, rest = text.partition(":")
    library = next((library for library in LIBRARIES if library == before), None)
    architecture, _, weights = rest.partition("@")
    if library is None or not architecture or os.path.lexists(text):
        return None
    return Named(library, architecture, Path(weights) if weights else None)


def open_teacher_input(
    place: Path | str, model: str | None = None, asked: PreprocessSettings = PreprocessSettings()
) -> Artifact:
    """Describe what teaches, as `open_input` describes what every verb opens; nothing is written, and no code of a file is run.

    Args:
        place: file or folder; or a name of `read_name`, with `transformers:OWNER/NAME` for the hub of Hugging Face.
        model: variant that a ConvNeXt must be.
        asked: what the user says of its preprocessing.

    Raises: DeployError: if it cannot be opened, or does not hold the network that is named.
    """
    named = read_name(str(place))
    if named is None:
        path = Path(place)
        if not os.path.lexists(path) and not is_weights_name(str(place)):
            check_place(path, EXPECTED_OF_TEACHERS)  # which raises
        found = _open_foreign(path) if os.path.lexists(path) else None
        return _open_own(path, model, asked) if found is None else ask_for(found, asked, path)
    if named.weights is None:
        return ask_for(_open_published(named.library, named.architecture), asked, Path(named.architecture))
    check_place(named.weights, EXPECTED_OF_TEACHERS)
    return ask_for(_open_weights(named.weights, named.library, named.architecture), asked, named.weights)


def open_told(place: Path | str, model: str | None, options: PreprocessSettings) -> tuple[Artifact, PreprocessSettings]:
    """Open what teaches; what is said of images counts where its file does not tell it.

    A teacher sees images as it was itself trained to, and `options` are those of a student. What only an ONNX file of another
    origin has, its output and the range of its input, is about the teacher.

    Returns: the teacher, and which of the options count for it.
    Raises: DeployError: as `open_teacher_input`.
    """
    is_graph = str(place).lower().endswith(".onnx")
    asked = PreprocessSettings(input_range=options.input_range, output_name=options.output_name)
    asked = asked if is_graph else PreprocessSettings()
    try:
        found = open_teacher_input(place, model, asked)
    except SizeUntoldError:
        if options.image_size is None:
            raise
        asked = dataclasses.replace(asked, image_size=options.image_size)
        found = open_teacher_input(place, model, asked)
    if found.format == "predictions":  # what it was made of looked at the images
        return found, asked
    untold = {name: value for name, value in options.asked().items() if name in assumed_fields(found.preprocess)}
    found = ask_for(found, PreprocessSettings(**untold), Path(place))
    return found, PreprocessSettings(**asked.asked() | untold)


def _open_own(path: Path, model: str | None, asked: PreprocessSettings) -> Artifact:
    try:
        return open_input(path, model=model, asked=asked)
    except OtherNetworkError as error:
        raise OtherNetworkError(
            f"{error} To have it teach, say whose network it is: timm:NAME@{path} or torchvision:NAME@{path}."
        ) from None


def teaches_only(recipe: Recipe) -> bool:
    """Whether the recipe's source does nothing but teach."""
    roles = [role for stage in recipe.stages for role, name in stage.inputs.items() if name == SOURCE]
    return bool(roles) and all(role.startswith("teacher") for role in roles)


def open_references(recipe: Recipe, *, but: Collection[str] = ()) -> dict[str, Artifact]:
    """Open the initial weights of all stages and the teachers that no stage makes, by the names of `StageEntry.inputs`.

    Those in `but` are left out. Raises: DeployError: if any of them cannot be opened.
    """
    named = sorted({name for stage in recipe.stages for name in stage.inputs.values()} - {*but})
    weights = {
        name: open_input(Path(name.removeprefix(WEIGHTS_PREFIX))) for name in named if name.startswith(WEIGHTS_PREFIX)
    }
    teachers = (name for name in named if name.startswith(TEACHER_PREFIX))
    # what is said of a source that only teaches counts for those beside it too; of any other, its size for those of any size
    said = recipe.source_preprocess
    asked = said if teaches_only(recipe) else PreprocessSettings(image_size=said.image_size)
    return weights | {name: open_told(name.removeprefix(TEACHER_PREFIX), None, asked)[0] for name in teachers}


def _open_foreign(path: Path) -> Artifact | None:
    """Return what is no ConvNeXt of the kinds that are read here, and no ONNX file; None: it is one."""
    from convnext_deploy.training.prediction_files import holds_predictions

    check_place(path, EXPECTED_OF_TEACHERS)
    if path.is_dir():
        return open_foreign_folder(path)
    suffix = path.suffix.lower()
    if suffix == ".pt2":
        return _open_program(path)
    if holds_predictions(path):
        return _open_predictions(path)
    if suffix != ".onnx" and suffix not in CHECKPOINT_SUFFIXES and not path.name.endswith(INDEX):
        raise ArtifactError(f"{path} cannot teach: it ends in '{path.suffix}'; expected {EXPECTED_OF_TEACHERS}.")
    return None


def _open_weights(path: Path, library: Library, architecture: str) -> Artifact:
    """Describe a file of weights of a network that the user names."""
    from convnext_deploy.training.foreign_libraries import check_timm, check_torchvision, count_classes, import_timm

    if library == "transformers" or (path.suffix.lower() not in CHECKPOINT_SUFFIXES and not path.name.endswith(INDEX)):
        raise CheckpointError(
            f"{path} is no file of weights of {library}:{architecture}; expected {EXPECTED_OF_TEACHERS}."
        )
    bare = architecture.partition(".")[0]
    (check_timm if library == "timm" else check_torchvision)(bare)
    classes = count_classes(library, bare, path)
    why = f"usual for {bare}, because the file does not tell"
    preprocess = assume(default_preprocess(224), why)
    if library == "timm":
        settings = import_timm().get_pretrained_cfg(architecture)
        values = {"image_size": settings.input_size[1], **timm_transform(dataclasses.asdict(settings))}
        preprocess = assume(told_preprocess(values, 3, ""), why)
    return describe_foreign(path, ForeignDetails(library, bare), classes, 3, preprocess, None)


def _open_published(library: Library, name: str) -> Artifact:
    """Describe weights of a network that its library publishes, fetched if they are not at hand."""
    from convnext_deploy.models.checkpoints.hub import fetch_torchvision, fetch_weights
    from convnext_deploy.training.foreign_libraries import check_timm, check_torchvision

    if library == "torchvision":
        check_torchvision(name)
        found = fetch_torchvision(name)
        assert found.preprocess is not None  # torchvision tells both
        assert found.class_names is not None
        preprocess = tell(found.preprocess, found.preprocess.settings(), "published with the weights")
        details = ForeignDetails("torchvision", name)
        return describe_foreign(found.path, details, len(found.class_names), 3, preprocess, found.class_names)
    if library == "timm":
        check_timm(name.partition(".")[0])
    folder = fetch_weights(f"timm/{name}" if library == "timm" else f"hf-hub:{name}").path
    return open_foreign_folder(folder) or open_input(folder)


def _open_program(path: Path) -> Artifact:
    from convnext_deploy.training.exported_program import open_program

    _, shape = open_program(path)
    if shape.height != shape.width:
        raise CheckpointError(f"{path} takes images of {shape.height}x{shape.width} pixels; expected square ones.")
    usual = default_preprocess(shape.height, None, shape.channels)
    preprocess = assume(usual, "usual, because a program does not tell")
    preprocess = tell(preprocess, {"image_size": shape.height}, "from its graph")
    found = describe_foreign(
        path, ForeignDetails("torch.export", path.stem), shape.outputs, shape.channels, preprocess, None
    )
    told = () if shape.note is None else (f"{path.name}: {shape.note}",)
    return dataclasses.replace(found, notes=(*told, *found.notes))


def _open_predictions(path: Path) -> Artifact:
    from convnext_deploy.training.prediction_files import read_predictions

    found = read_predictions(path)
    width = found.vectors.shape[1]
    details = PredictionsDetails(found.content, width, by_numbers=found.told is None and found.content != "logits")
    spec = ModelSpec("unknown", 0 if found.content == "features" else width)
    usual = assume(default_preprocess(224), "of no meaning: what was predicted is in the file")
    files, notes = (describe_file(path),), found.describe(path.name)
    return Artifact(path.parent, details, "fp32", spec, found.class_names, usual, files, notes=notes)
