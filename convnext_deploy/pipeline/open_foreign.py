"""Open what teaches: besides what every verb opens, networks of other libraries, programs, and files of predictions."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from operator import index
from pathlib import Path
from typing import Any

from convnext_deploy.artifacts.artifact import Artifact, describe_file
from convnext_deploy.artifacts.details import Details, ForeignDetails, Library, PredictionsDetails
from convnext_deploy.artifacts.places import check_place
from convnext_deploy.artifacts.preprocessing import assume, tell
from convnext_deploy.artifacts.spec import ModelSpec, Preprocess, default_preprocess
from convnext_deploy.config.preprocess import PreprocessSettings
from convnext_deploy.config.recipe import SOURCE, TEACHER_PREFIX, WEIGHTS_PREFIX, Recipe
from convnext_deploy.config.records import read_record, shown
from convnext_deploy.data.class_names import parse_names
from convnext_deploy.errors import CheckpointError, OtherNetworkError, RecipeError, first_line
from convnext_deploy.models.checkpoints import INDEX
from convnext_deploy.models.checkpoints.hub import is_weights_name
from convnext_deploy.pipeline.open_artifact import CHECKPOINT_SUFFIXES, ask_for, open_input
from convnext_deploy.pipeline.open_checkpoint import WEIGHT_FILES, evaluation_note
from convnext_deploy.pipeline.told_classes import find_class_names

LIBRARIES: tuple[Library, ...] = ("timm", "torchvision", "transformers")
EXPECTED_OF_TEACHERS = (
    "an artifact, checkpoint, ONNX file, .pt2 program, folder of timm or transformers, or file of predictions"
)
_CONFIG = "config.json"
_MOST = 10**6  # classes or channels
_OWN = ("convnext", "dinov3_convnext")  # what networks that are read here are called in a config, to begin with
_TIMM_FIELDS = ("interpolation", "crop_pct", "crop_mode", "mean", "std")


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
    return weights | {name: open_teacher_input(name.removeprefix(TEACHER_PREFIX)) for name in teachers}


def _open_foreign(path: Path) -> Artifact | None:
    """Return what is no ConvNeXt of the kinds that are read here, and no ONNX file; None: it is one."""
    from convnext_deploy.training.predictions import holds_predictions

    check_place(path, EXPECTED_OF_TEACHERS)
    if path.is_dir():
        return _open_folder(path)
    if path.suffix == ".pt2":
        return _open_program(path)
    return _open_predictions(path) if holds_predictions(path) else None


def _open_folder(folder: Path) -> Artifact | None:
    from convnext_deploy.models.checkpoints.image_processor import read_config_file

    weights = next((folder / name for name in WEIGHT_FILES if (folder / name).is_file()), None)
    if weights is None or not (folder / _CONFIG).is_file():
        return None
    config = read_config_file(folder / _CONFIG)
    kind = str(config.get("architecture") or config.get("model_type") or "")
    if not kind or kind.startswith(_OWN):
        return None
    library: Library = "timm" if "architecture" in config else "transformers"
    try:
        return (_of_timm if library == "timm" else _of_transformers)(weights, config)
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError, RecipeError) as error:
        raise CheckpointError(
            f"{folder / _CONFIG} is damaged ({type(error).__name__}: {first_line(error):.200})."
        ) from None


def _of_timm(weights: Path, config: Mapping[str, Any]) -> Artifact:
    """Describe a folder of timm's, as its `save_for_hf` writes it and the hub has it."""
    from convnext_deploy.training.foreign_libraries import check_timm

    architecture = str(config["architecture"])
    check_timm(architecture)
    settings = config.get("pretrained_cfg", config)
    arguments = dict(config.get("model_args") or {})
    classes = arguments.pop("num_classes", config.get("num_classes", settings.get("num_classes", 1000)))
    classes = _count(classes, 0, "num_classes")
    if pool := config.get("global_pool"):
        arguments.setdefault("global_pool", pool)
    channels, *sides = map(index, settings.get("input_size", (3, 224, 224)))
    channels = _count(channels, 1, "input channels")
    asked = arguments.get("img_size", sides)
    side, *others = [asked] if isinstance(asked, int) else asked
    if any(other != side for other in others) or not isinstance(side, int):
        raise CheckpointError(
            f"{weights.parent / _CONFIG} asks for images of {shown(asked)} pixels; expected square ones."
        )
    preprocess = _told({"image_size": side, **_timm_transform(settings)}, channels, f"from {_CONFIG} beside it")
    names = settings.get("label_names") or config.get("label_names") or settings.get("labels")
    return _describe(
        weights, ForeignDetails("timm", architecture, arguments), classes, channels, preprocess, _names(names, classes)
    )


def _count(value: Any, least: int, what: str) -> int:
    """Return a number of classes or channels. Raises: TypeError, ValueError: if none has so many."""
    if not least <= index(value) <= _MOST:
        raise ValueError(f"{what} {value}; expected {least} to {_MOST}")
    return int(value)


def _timm_transform(settings: Mapping[str, Any]) -> dict[str, Any]:
    found = {name: settings[name] for name in _TIMM_FIELDS if settings.get(name) is not None}
    if found.get("interpolation") == "random":  # of training: each image gets one of two
        found["interpolation"] = "bicubic"
    return {name: tuple(value) if isinstance(value, list) else value for name, value in found.items()}


def _of_transformers(weights: Path, config: Mapping[str, Any]) -> Artifact:
    from convnext_deploy.models.checkpoints.hub_config import MULTI_LABEL
    from convnext_deploy.models.checkpoints.image_processor import interpret_processor, read_processor

    architecture = str((config.get("architectures") or [config["model_type"]])[0])
    labels = config.get("id2label") or {}
    is_classifier = architecture.endswith("ForImageClassification")
    classes = (len(labels) or _count(config.get("num_labels", 2), 1, "num_labels")) if is_classifier else 0
    channels = _count(config.get("num_channels", 3), 1, "num_channels")
    processor, processor_path = read_processor(weights.parent)
    side = config.get("image_size")
    values: dict[str, Any] = {"image_size": side} if type(side) is int else {}
    if processor:
        values = dict(interpret_processor(processor, channels, processor_path).values)
    preprocess = _told(values, channels, f"from {processor_path.name if processor else _CONFIG} beside it")
    names = _names(labels or None, classes)
    if names == tuple(f"LABEL_{number}" for number in range(classes)):
        names = None
    details = ForeignDetails("transformers", architecture)
    found = _describe(weights, details, classes, channels, preprocess, names)
    multi_label = is_classifier and config.get("problem_type") == MULTI_LABEL
    return dataclasses.replace(found, model=dataclasses.replace(found.model, multi_label=multi_label))


def _open_weights(path: Path, library: Library, architecture: str) -> Artifact:
    """Describe a file of weights of a network that the user names."""
    from convnext_deploy.training.foreign_libraries import check_timm, check_torchvision, count_classes, import_timm

    if library == "transformers" or (path.suffix not in CHECKPOINT_SUFFIXES and not path.name.endswith(INDEX)):
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
        values = {"image_size": settings.input_size[1], **_timm_transform(dataclasses.asdict(settings))}
        preprocess = assume(_told(values, 3, ""), why)
    return _describe(path, ForeignDetails(library, bare), classes, 3, preprocess, None)


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
        return _describe(found.path, details, len(found.class_names), 3, preprocess, found.class_names)
    if library == "timm":
        check_timm(name.partition(".")[0])
    folder = fetch_weights(f"timm/{name}" if library == "timm" else f"hf-hub:{name}").path
    return _open_folder(folder) or open_input(folder)


def _open_program(path: Path) -> Artifact:
    from convnext_deploy.training.exported_program import open_program

    _, shape = open_program(path)
    if shape.height != shape.width:
        raise CheckpointError(f"{path} takes images of {shape.height}x{shape.width} pixels; expected square ones.")
    usual = default_preprocess(shape.height, None, shape.channels)
    preprocess = assume(usual, "usual, because a program does not tell")
    preprocess = tell(preprocess, {"image_size": shape.height}, "from its graph")
    return _describe(path, ForeignDetails("torch.export", path.stem), shape.outputs, shape.channels, preprocess, None)


def _open_predictions(path: Path) -> Artifact:
    from convnext_deploy.training.predictions import read_predictions

    found = read_predictions(path)
    width = found.vectors.shape[1]
    content = found.content or "logits"
    details = PredictionsDetails(content, width)
    note = f"{path.name}: {content} of {width:,} numbers for {len(found.names):,} images" + (
        "" if found.content else ", which is assumed: the file does not say what they are"
    )
    spec = ModelSpec("unknown", 0 if content == "features" else width)
    usual = assume(default_preprocess(224), "of no meaning: what was predicted is in the file")
    return Artifact(path.parent, details, "fp32", spec, found.class_names, usual, (describe_file(path),), notes=(note,))


def _describe(
    weights: Path, details: Details, classes: int, channels: int, preprocess: Preprocess, names: tuple[str, ...] | None
) -> Artifact:
    spec = ModelSpec("unknown", classes, channels)
    remarks: list[str] = []
    if names is None and classes:
        names, remarks = find_class_names(weights, spec, {}, alone=weights.name in WEIGHT_FILES)
    notes = (
        f"{weights.name}: {details} with {classes or 'no'} classes",
        *remarks,
        evaluation_note(weights, preprocess),
    )
    return Artifact(weights.parent, details, "fp32", spec, names, preprocess, (describe_file(weights),), notes=notes)


def _told(values: Mapping[str, Any], channels: int, origin: str) -> Preprocess:
    """Return a preprocessing with what a file tells; the rest is usual, and assumed."""
    usual = default_preprocess(int(values.get("image_size", 224)), None, channels)
    checked = read_record(Preprocess, {**usual.settings(), **values}, "preprocessing")
    found = tell(assume(usual, "usual, because no file tells it"), values, origin)
    return dataclasses.replace(checked, origins=found.origins)


def _names(told: Any, classes: int) -> tuple[str, ...] | None:
    try:
        names = tuple(parse_names(told))
    except (ValueError, TypeError):
        return None
    return names if len(names) == classes else None
