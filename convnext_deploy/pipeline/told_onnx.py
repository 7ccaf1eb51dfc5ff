"""What is told of an ONNX file of another tool beyond its graph: in its metadata, in configs of timm and transformers beside."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from convnext_deploy.artifacts.spec import ModelSpec
from convnext_deploy.config.image_size import ImageSize
from convnext_deploy.errors import CheckpointError
from convnext_deploy.models.checkpoints.beside_weights import read_properties
from convnext_deploy.models.checkpoints.hub_config import CONFIG, MULTI_LABEL, read_config
from convnext_deploy.models.checkpoints.image_processor import interpret_processor, read_processor
from convnext_deploy.models.checkpoints.told_settings import Told, interpret_settings
from convnext_deploy.pipeline.told_classes import find_class_names, names_of_tables

_EXPORTED = "model"  # what the exporters of transformers call their files, such as model.onnx or model_quantized.onnx
_INNER = "onnx"  # the folder in which a repository of weights keeps ONNX files
_METADATA = "the metadata"


@dataclass(frozen=True)
class ToldOfFile:
    """Settings as in `told_settings`, the most trustworthy first, and the names of the classes with what is worth knowing.

    `multi_label`: a config of transformers says that each output is a label of its own.
    """

    settings: tuple[Told, ...]
    class_names: tuple[str, ...] | None
    remarks: tuple[str, ...]
    multi_label: bool = False

    @property
    def image_size(self) -> ImageSize | None:
        """The size of the images; None where nothing tells it."""
        return next((told.values["image_size"] for told in self.settings if "image_size" in told.values), None)


def read_told(path: Path, properties: Mapping[str, str], channels: int, classes: int) -> ToldOfFile:
    """Return what is told of an ONNX file of another origin.

    Ultralytics writes `names` and `imgsz` into the metadata, others JSON; exporters of transformers write the configs of the
    network and of its image processor beside `model.onnx`.

    Args:
        path: the file.
        properties: its metadata.
        channels: of its input.
        classes: that it tells apart.

    Raises: CheckpointError: if a config beside it cannot be read.
    """
    spec = ModelSpec("unknown", classes, channels)
    table = read_properties(properties)
    config, processor = _beside(path, channels)
    found = [interpret_settings(table, f"from {_METADATA} in the file", path, channels)]
    found += [] if processor is None else [processor]
    found += [interpret_settings(config, f"from {CONFIG} beside it", path, channels)]
    belongs = path.stem.startswith(_EXPORTED)
    names, remarks = find_class_names(path, spec, {_METADATA: table} if table else {}, alone=belongs)
    if names is None:
        for key, told in names_of_tables(config):
            if len(told) == classes:
                names, text = told, f"names of the classes from {CONFIG} beside it"
            else:
                text = f"{key} in {CONFIG} beside it names {len(told):,} classes, and the file has {classes:,}: they are not taken"
            remarks.append(f"{path.name}: {text}")
            break
    reasons = [f"{path.name}: {reason}" for told in found for reason in told.reasons]
    multi_label = config.get("problem_type") == MULTI_LABEL
    if multi_label:
        reasons.append(
            f"{path.name}: each output is a label of its own, as of a sigmoid: {CONFIG} beside it says '{MULTI_LABEL}'"
        )
    return ToldOfFile(tuple(found), names, (*remarks, *reasons), multi_label)


def _beside(path: Path, channels: int) -> tuple[dict[str, Any], Told | None]:
    """Return the config of the network and what the image processor does, in the folder of an exported file or the one above."""
    places = (path.parent, path.parent.parent) if path.parent.name == _INNER else (path.parent,)
    folder = next((place for place in places if (place / CONFIG).is_file()), None)
    if folder is None or not path.stem.startswith(_EXPORTED):
        return {}, None
    config = read_config(folder)
    processor, file = read_processor(folder)
    if not processor:
        return config, None
    try:
        found = interpret_processor(processor, channels, file)
    except (LookupError, TypeError, ValueError, ArithmeticError) as error:
        raise CheckpointError(f"{file} is damaged ({type(error).__name__}: {error}).") from None
    own = {
        name: value
        for name, value in config.items()
        if name in ("id2label", "label2id", "label_names", "pretrained_cfg", "problem_type")
    }
    checked = interpret_settings(dict(found.values), f"from {file.name} beside it", path, channels)
    return own, Told(checked.values, checked.origin, (*checked.reasons, *found.remarks))
