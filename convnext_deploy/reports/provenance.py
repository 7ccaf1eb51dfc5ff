"""Read from an artifact's manifest how it was made and how it is used, for the report."""

import dataclasses
import json
import math
import re
from collections.abc import Iterator, Mapping
from pathlib import PurePath
from typing import Any

from convnext_deploy.artifacts.artifact import Artifact
from convnext_deploy.artifacts.details import LayerEffect, TorchDetails
from convnext_deploy.config.recipe import BASELINE, SOURCE
from convnext_deploy.models.checkpoints.hub import is_weights_name
from convnext_deploy.quantization.scheme import QuantizationScheme
from convnext_deploy.reports.record import History, Layer, Provenance

_HUB_CACHE = re.compile(r"models--([^/]+)--([^/]+)/snapshots/")  # where the hub's client keeps a repository
_BROUGHT = (SOURCE, BASELINE)


def read_history(artifact: Artifact, kind: str) -> History:
    """Return what happened while an artifact was made; `kind`: of the stage, `source` or `baseline`, which took no time here."""
    details = artifact.details if isinstance(artifact.details, TorchDetails) else TorchDetails()
    tried = None if kind in _BROUGHT else details.selection
    return History(
        wall_s=artifact.lineage[-1].wall_s if artifact.lineage and kind not in _BROUGHT else 0.0,
        epochs=details.history,
        selection=tried and dataclasses.replace(tried, effects=()),  # which stand at the layers
        layers=_layers(artifact),
    )


def read_provenance(artifact: Artifact, kind: str) -> Provenance:
    """Return how an artifact was made and how it is used; `kind`: of the stage, `source` or `baseline`, which no stage made."""
    return Provenance(
        config=_plain(artifact.lineage[-1].config) if artifact.lineage and kind not in _BROUGHT else {},
        lineage=tuple(artifact.history()),
        base_model=find_base_model(artifact),
        license=artifact.license,
        graph=artifact.io if artifact.format in ("onnx", "tensorrt") else None,
        preprocess=artifact.preprocess,
    )


def _plain(value: Any) -> Any:
    """Return a value as it is when it comes back from JSON."""
    return json.loads(json.dumps(value if not isinstance(value, Mapping) else dict(value)))


def find_base_model(artifact: Artifact) -> str | None:
    """Return the repository of the published weights that the first step, or the second of an imported checkpoint, began with."""
    for record in artifact.lineage:
        model = record.config.get("model")
        weights = model.get("weights") if isinstance(model, Mapping) else None
        if isinstance(weights, str) and is_weights_name(weights) and "/" in weights:
            return weights.removeprefix("hf-hub:")
        for role in ("source", "weights"):
            if found := _HUB_CACHE.search(PurePath(record.input_paths.get(role, "")).as_posix()):
                return f"{found[1]}/{found[2]}"
    return None


def _layers(artifact: Artifact) -> tuple[Layer, ...]:
    """Return the layers of a quantized PyTorch network in its own order."""
    scheme, details = artifact.scheme, artifact.details
    if scheme is None or not isinstance(details, TorchDetails) or artifact.main_file.suffix != ".safetensors":
        return ()
    effects = {effect.layer: effect for effect in details.selection.effects} if details.selection else {}
    return tuple(sorted(_found(artifact, scheme, effects), key=_place))


def _found(artifact: Artifact, scheme: QuantizationScheme, effects: Mapping[str, LayerEffect]) -> Iterator[Layer]:
    from safetensors import safe_open

    with safe_open(artifact.main_file, framework="numpy") as file:
        for key in file.keys():  # noqa: SIM118  (no mapping)
            name, _, what = key.rpartition(".")
            shape = file.get_slice(key).get_shape() if what == "weight" else ()
            if len(shape) >= 2:  # norms have vectors
                effect = effects.get(name)
                measured = (effect.kl, effect.changed, effect.macs) if effect else ()
                yield Layer(name, scheme.choice(name), math.prod(shape), *measured)


def _place(layer: Layer) -> tuple[int, ...]:
    """Return what sorts layers as images pass them: the downsampling of a stage comes before its blocks, the head last."""
    numbers = tuple(int(number) for number in re.findall(r"\.(\d+)(?=\.|$)", layer.name))
    first = numbers[0] if numbers else 0
    if layer.name.startswith("downsample_layers."):
        return (first, 0, *numbers[1:])
    if layer.name.startswith("stages."):
        part = next(
            (rank for rank, what in enumerate(("dwconv", "pwconv1", "pwconv2")) if layer.name.endswith(what)), 3
        )
        return (first, 1, *numbers[1:], part)
    return (1_000, 0)
