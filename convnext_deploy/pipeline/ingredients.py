"""What the result of a stage depends on, its key in the cache, and in which of it two differ, in words."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import PurePath
from typing import Any

from convnext_deploy.artifacts.artifact import Artifact, StageRecord
from convnext_deploy.artifacts.spec import GraphIO, ModelSpec
from convnext_deploy.config.recipe import StageEntry
from convnext_deploy.config.records import read_record
from convnext_deploy.config.stage import StageConfig
from convnext_deploy.config.stages import STAGE_KINDS, stage_config
from convnext_deploy.data.datasets import Data
from convnext_deploy.documents import parse_json
from convnext_deploy.errors import DeployError
from convnext_deploy.models.variants import resolve_variant
from convnext_deploy.pipeline.open_artifact import find_baseline

_SHOWN = 6  # differences in a message
_DIGITS = 8  # of a hash in a message
_DATA, _CONTENTS = "data", "contents"
UNLABELLED = "unlabelled"  # the role of the images without labels


@dataclass(frozen=True)
class Ingredients:
    """Everything that decides what a stage produces, with defaults written out: no code, no versions of packages, no places.

    `config`: the settings. `readings`: hashes of the contents of each input, and of how that is read, by role and what
    they are about; the images without labels are one. `data`: fingerprint; None where no images are read. `places`: where
    the inputs and the data lay, by role and `data`, for people to read; they do not count.
    """

    kind: str
    result_version: int
    config: Mapping[str, Any]
    readings: Mapping[str, Mapping[str, str]]
    data: str | None
    seed: int
    places: Mapping[str, str] = field(default_factory=dict)

    @property
    def key(self) -> str:
        """A hash of what counts."""
        return _hash({**dataclasses.asdict(self), "config": self.counted, "places": None})

    @property
    def counted(self) -> dict[str, Any]:
        """The settings that count: all but names of places and stages, and models under one of their names."""
        found: dict[str, Any] = json.loads(json.dumps(self.config))
        for name in stage_config(self.kind).references if self.kind in STAGE_KINDS else ():
            *above, last = name.split(".")
            table = found
            for part in above:
                table = table.get(part, {})
            table.pop(last, None)
        if isinstance(model := found.get("model"), dict) and "name" in model:
            with contextlib.suppress(DeployError):  # which the stage will say
                model["name"] = resolve_variant(str(model["name"]))
        return found

    def to_json(self) -> str:
        """Return the text from which `read_ingredients` makes this again."""
        return json.dumps(dataclasses.asdict(self), sort_keys=True)


def ingredients_of(stage: StageEntry, artifacts: Mapping[str, Artifact], data: Data | None, seed: int) -> Ingredients:
    """Return what a stage depends on.

    Args:
        stage: of a recipe.
        artifacts: by the names under which it refers to them; inputs that are not among them are left out.
        data: the images, if there are any.
        seed: of the recipe.
    """
    inputs = {role: artifacts[name] for role, name in stage.inputs.items() if name in artifacts}
    if stage.config.needs_baseline and not stage.config.teachers and "source" in inputs:
        teaches = find_baseline(inputs["source"])
        if isinstance(teaches, Artifact):
            inputs["baseline"] = teaches
    read = data if stage.config.reads_images else None
    places = {role: str(artifact.location) for role, artifact in inputs.items()}
    readings = {role: _reading(artifact) for role, artifact in inputs.items()}
    if read is not None and read.unlabelled is not None and stage.config.reads_unlabelled:
        places[UNLABELLED] = read.unlabelled.name
        readings[UNLABELLED] = {_CONTENTS: read.unlabelled_fingerprint or ""}
    return Ingredients(
        stage.config.kind,
        stage.config.result_version,
        _settle(type(stage.config), dataclasses.asdict(stage.config)),
        readings,
        None if read is None else read.fingerprint,
        seed,
        places if read is None else {**places, _DATA: read.name},
    )


def recorded_ingredients(record: StageRecord) -> Ingredients | None:
    """Return what an artifact was made of, with settings that have come since at their defaults; None of an earlier version."""
    if record.result_version is None:
        return None
    config = dict(record.config)
    if record.kind in STAGE_KINDS:
        config = _settle(stage_config(record.kind), config)
    data = None if record.data == "none" else record.data_fingerprint
    places = dict(record.input_paths) if data is None else {**record.input_paths, _DATA: record.data}
    return Ingredients(record.kind, record.result_version, config, record.readings, data, record.seed, places)


def read_ingredients(text: str) -> Ingredients | None:
    """Return what `to_json` wrote, as `recorded_ingredients`; None if it is something else."""
    try:
        found = read_record(Ingredients, parse_json(text), "ingredients")
    except ValueError:
        return None
    if found.kind not in STAGE_KINDS:
        return found
    return dataclasses.replace(found, config=_settle(stage_config(found.kind), found.config))


def is_same(old: Ingredients | None, new: Ingredients) -> bool:
    """Whether what was recorded of something is what it would be made of."""
    return old is not None and old.key == new.key


def differences(old: Ingredients, new: Ingredients, unknown: Collection[str] = ()) -> list[str]:
    """Say what differs, setting by setting, old → new.

    Args:
        old: what something was made of.
        new: what it would be made of.
        unknown: roles of inputs of which nothing is known yet.
    """
    found = [] if old.kind == new.kind else [f"kind {old.kind} → {new.kind}"]
    before, after = (dict(_flatten(each.counted)) for each in (old, new))
    for name in (*after, *(name for name in before if name not in after)):
        if (left := before.get(name, "none")) != (right := after.get(name, "none")):
            found.append(f"{name} {_show(left)} → {_show(right)}")
    if old.seed != new.seed:
        found.append(f"seed {old.seed} → {new.seed}")
    if old.data != new.data:
        found.append(_data_difference(old, new))
    for role in dict.fromkeys((*new.readings, *old.readings)):
        if role not in unknown:
            found += _input_difference(role, old, new)
    if old.kind == new.kind and old.result_version != new.result_version:
        versions = f"{old.result_version} → {new.result_version}"
        found.append(
            f"version of the results of {new.kind} {versions}: this release gives others for the same settings"
        )
    return found


def join_differences(found: Collection[str]) -> str:
    """Return differences as a part of a line, the first of them where there are many."""
    texts = list(found)
    more = "" if len(texts) <= _SHOWN else f" and {len(texts) - _SHOWN} more"
    return ", ".join(texts[:_SHOWN]) + more


def _settle(config_type: type[StageConfig], settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings as JSON has them, with defaults, and numbers of the types that they are declared with."""
    try:
        settings = dataclasses.asdict(read_record(config_type, settings, config_type.kind))
    except (ValueError, DeployError):  # of another version, or of a caller who is told by the stage itself
        settings = dict(settings)
    found: dict[str, Any] = json.loads(json.dumps(settings, default=str))
    return found


def _reading(artifact: Artifact) -> dict[str, str]:
    """Return hashes of the contents of an artifact's files, and of what decides how they are read and is not always told there."""
    scheme = artifact.scheme
    return {
        _CONTENTS: artifact.sha256,
        "classes": _hash([artifact.class_names, artifact.class_order]),
        "network": _hash(_told(artifact.model)),
        "preprocessing": _hash(artifact.preprocess.settings()),
        "graph": _hash([artifact.format, _told(artifact.io), None if scheme is None else scheme.details()]),
        "license": _hash(artifact.license),
        **({"entry": _hash(entry)} if (entry := getattr(artifact.details, "entry", None)) is not None else {}),
        **({"meaning": _hash("probabilities")} if getattr(artifact.details, "by_numbers", False) else {}),
    }


def _told(record: ModelSpec | GraphIO) -> dict[str, Any]:
    """Return the fields that are not at their defaults, so that one which comes with a release changes nothing."""
    told = {each.name: getattr(record, each.name) for each in dataclasses.fields(record)}
    return {each.name: told[each.name] for each in dataclasses.fields(record) if told[each.name] != each.default}


def _data_difference(old: Ingredients, new: Ingredients) -> str:
    if old.data is None or new.data is None:
        return "it reads images now" if old.data is None else "it reads no images any more"
    before, after = (each.places.get(_DATA, "unknown") for each in (old, new))
    if before == after:
        return f"the images in {after} or their split have changed"
    return f"data {before} → {after}, which hold other images, or others under these names"


def _input_difference(role: str, old: Ingredients, new: Ingredients) -> Iterator[str]:
    before, after = old.readings.get(role, {}), new.readings.get(role, {})
    if before.get(_CONTENTS) != after.get(_CONTENTS):
        yield f"input {role} {_name_input(role, old)} → {_name_input(role, new)}"
    elif changed := [about for about in {**before, **after} if before.get(about) != after.get(about)]:
        yield f"{' and '.join(changed)} of input {role}"


def _name_input(role: str, found: Ingredients) -> str:
    digest = found.readings.get(role, {}).get(_CONTENTS)
    place = PurePath(found.places.get(role, role)).name
    return "none" if digest is None else f"{place} ({digest[:_DIGITS]}…)"


def _flatten(table: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in table.items():
        if isinstance(value, Mapping) and value:
            yield from _flatten(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _show(value: object) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= 40 else f"{text[:40]}…"


def _hash(content: object) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
