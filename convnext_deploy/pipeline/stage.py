"""One stage of a recipe: what its result depends on, whether it is there already, and how it is made."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import time
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from convnext_deploy.artifacts.artifact import Artifact, StageRecord, describe_file, read_artifact, write_manifest
from convnext_deploy.config.recipe import Recipe, StageEntry
from convnext_deploy.data.datasets import Data
from convnext_deploy.errors import ArtifactError
from convnext_deploy.pipeline.open_artifact import find_baseline
from convnext_deploy.system.distributed import world
from convnext_deploy.system.environment import package_versions
from convnext_deploy.system.execution import Execution
from convnext_deploy.system.files import replace_folder

if TYPE_CHECKING:
    from convnext_deploy.training.checkpoint_store import TrainingStore


@dataclass(frozen=True)
class Settings:
    """Where and how a recipe runs; none of it changes what the stages mean.

    `execution`: its seed is replaced by the recipe's. `tensorboard`: write events to `out/tensorboard`.
    `command`: what was typed or called, for the report. `speed_check`: compare what is INT8 with its float baseline.
    """

    out: Path
    execution: Execution
    tensorboard: bool = False
    command: str | None = None
    speed_check: bool = True


def execute_stage(
    stage: StageEntry,
    artifacts: Mapping[str, Artifact],
    recipe: Recipe,
    settings: Settings,
    data: Data | None,
    key: str,
) -> Artifact:
    """Run a stage and write its artifact into `settings.out`, completely or not at all.

    Where there are several processes, all of them call this for a stage that trains, and the first one writes.

    Raises: DeployError: if the stage cannot do its work.
    """
    from convnext_deploy.stages import run_stage
    from convnext_deploy.stages.context import StageContext

    inputs = {role: artifacts[name] for role, name in stage.inputs.items()}
    folder = stage_folder(settings, stage)
    start = time.perf_counter()
    with replace_folder(folder) if world().is_first else nullcontext(folder) as output:
        context = StageContext(
            stage.name,
            output,
            data,
            dataclasses.replace(settings.execution, seed=recipe.seed),
            cache_dir=settings.execution.cache_dir or settings.out / "cache",
            teachers=tuple(artifact for role, artifact in inputs.items() if role.startswith("teacher")),
            weights=inputs.get("weights"),
            baseline=_find_teacher(stage, inputs, settings),
            store=_open_store(stage, settings, key) if stage.config.trains else None,
        )
        artifact = run_stage(stage.config, inputs.get("source"), context)
        if not world().is_first:
            return artifact
        read = data if stage.config.reads_images else None
        record = StageRecord(
            name=stage.name,
            kind=stage.config.kind,
            config=dataclasses.asdict(stage.config),
            inputs={role: source.sha256 for role, source in inputs.items()},
            input_paths={role: str(source.location) for role, source in inputs.items()},
            data="none" if read is None else read.name,
            data_fingerprint="none" if read is None else read.fingerprint,
            seed=recipe.seed,
            versions=package_versions(),
            wall_s=time.perf_counter() - start,
            cache_key=key,
            validation_fraction=None if read is None or read.split is None else read.split.fraction,
            preprocess={role: source.preprocess for role, source in inputs.items()},
        )
        write_manifest(dataclasses.replace(artifact, lineage=(*artifact.lineage, record)))
    return read_artifact(folder)


def _find_teacher(stage: StageEntry, inputs: Mapping[str, Artifact], settings: Settings) -> Artifact | None:
    """Return the FP32 ancestor of a stage's source, which it needs, evaluated as the source is; tell if it is not at hand."""
    if not stage.config.needs_baseline:
        return None
    found = find_baseline(inputs["source"])
    if isinstance(found, Artifact):
        return found
    settings.execution.progress.say(f"{stage.name}: no FP32 ancestor of its source is at hand ({found})")
    return None


def _open_store(stage: StageEntry, settings: Settings, key: str) -> TrainingStore:
    from convnext_deploy.training.checkpoint_store import TrainingStore
    from convnext_deploy.training.tensorboard import TensorBoardEvents

    events = TensorBoardEvents(settings.out / "tensorboard" / stage.name) if settings.tensorboard else None
    return TrainingStore(settings.out / "checkpoints" / stage.name, key, events=events)


def cache_key(stage: StageEntry, artifacts: Mapping[str, Artifact], data: Data | None, seed: int) -> str:
    """Hash everything that decides what a stage produces, with defaults written out, and nothing else: no code, no versions."""
    inputs = {
        role: [
            artifacts[name].sha256,
            artifacts[name].class_names,
            dataclasses.asdict(artifacts[name].model),
            artifacts[name].preprocess.settings(),
        ]
        for role, name in stage.inputs.items()
    }
    content = {
        "kind": stage.config.kind,
        "config": dataclasses.asdict(stage.config),
        "inputs": inputs,
        "data": data.fingerprint if data is not None and stage.config.reads_images else None,
        "seed": seed,
        "result_version": stage.config.result_version,
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def stage_folder(settings: Settings, stage: StageEntry) -> Path:
    """Return where the artifact of a stage lies."""
    return settings.out / "stages" / stage.name


def reusable(folder: Path, key: str) -> Artifact | None:
    """Return the artifact in `folder` if it was made with this key and its files are unaltered."""
    try:
        artifact = read_artifact(folder)
    except ArtifactError:
        return None
    if not artifact.lineage or artifact.lineage[-1].cache_key != key:
        return None
    unaltered = all(describe_file(folder / file.name) == file for file in artifact.files)
    return artifact if unaltered else None
