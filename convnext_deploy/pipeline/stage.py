"""One stage of a recipe: what its result depends on, whether it is there already, and how it is made."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from convnext_deploy.artifacts.artifact import Artifact, StageRecord, read_artifact, write_manifest
from convnext_deploy.artifacts.details import EngineDetails, TorchTensorRTDetails
from convnext_deploy.config.recipe import Recipe, StageEntry
from convnext_deploy.data.agreement import order_for
from convnext_deploy.data.datasets import Data
from convnext_deploy.errors import ArtifactError
from convnext_deploy.pipeline.ingredients import (
    UNLABELLED,
    Ingredients,
    ingredients_of,
    is_same,
    read_ingredients,
    recorded_ingredients,
)
from convnext_deploy.pipeline.open_artifact import find_baseline
from convnext_deploy.pipeline.tracking import Tracking, open_trackers
from convnext_deploy.runners import open_runner
from convnext_deploy.system.cuda_driver import describe_gpu
from convnext_deploy.system.distributed import world
from convnext_deploy.system.environment import installed_version, package_versions
from convnext_deploy.system.execution import Execution
from convnext_deploy.system.files import replace_folder
from convnext_deploy.system.memory_faults import needing_memory
from convnext_deploy.system.progress import Progress, SilentProgress

if TYPE_CHECKING:
    from convnext_deploy.evaluation.timing.front import ExploredPoint
    from convnext_deploy.training.checkpoint_store import TrainingStore


@dataclass(frozen=True)
class Settings:
    """Where and how a recipe runs; none of it changes what the stages mean.

    `execution`: its seed is replaced by the recipe's. `tensorboard`: write events to `out/tensorboard`; `mlflow`: a run of MLflow.
    `command`: what was typed or called, for the report. `speed_check`: compare what is INT8 with its float baseline.
    `measure_again`: score and time also what an earlier run has measured. `restart`: replace what differs from what is asked for.
    `dry_run`: show what would be done. `choices`: stage → how it trains, and why, in words, of what a verb chose. `explored`: the
    choices of widths that it looked at, for the report.
    """

    out: Path
    execution: Execution
    tensorboard: bool = False
    command: str | None = None
    speed_check: bool = True
    measure_again: bool = False
    restart: bool = False
    mlflow: bool = False
    choices: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    dry_run: bool = False
    explored: tuple[ExploredPoint, ...] = ()

    def open_trackers(self, recipe: Recipe, data: Data | None) -> AbstractContextManager[Tracking]:
        """Return what tells TensorBoard and MLflow of a run, as far as they are asked for; see `tracking.open_trackers`."""
        told = {
            "data": "none" if data is None else data.name,
            "device": str(self.execution.device),
            "out": str(self.out),
            "command": self.command or "",
        }
        wanted = {"tensorboard": self.tensorboard, "mlflow": self.mlflow}
        return open_trackers(recipe, self.out, told, self.execution.progress, **wanted)


def execute_stage(
    stage: StageEntry,
    artifacts: Mapping[str, Artifact],
    recipe: Recipe,
    settings: Settings,
    data: Data | None,
    made_of: Ingredients,
    tracking: Tracking | None = None,
) -> Artifact:
    """Run a stage and write its artifact into `settings.out`, completely or not at all.

    Where there are several processes, all of them call this for a stage that trains, and the first one writes. `tracking` is told
    the figures of each epoch.

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
            None if data is None else order_for(inputs.get("source") or inputs.get("weights"), data),
            dataclasses.replace(settings.execution, seed=recipe.seed),
            cache_dir=settings.execution.cache_dir or settings.out / "cache",
            teachers=tuple(artifact for role, artifact in inputs.items() if role.startswith("teacher")),
            weights=inputs.get("weights"),
            baseline=_find_teacher(stage, inputs, settings),
            store=_open_store(stage, settings, made_of, tracking) if stage.config.trains else None,
            open_graph=lambda artifact: open_runner(artifact).logits,
        )
        with needing_memory(f"{stage.name} ({stage.config.kind})", stage.config.takes_less_memory):
            artifact = run_stage(stage.config, inputs.get("source"), context)
        if not world().is_first:
            return artifact
        read = data if stage.config.reads_images else None
        chosen = None if read is None else read.split
        record = StageRecord(
            name=stage.name,
            kind=stage.config.kind,
            config=dataclasses.asdict(stage.config),
            inputs={role: source.sha256 for role, source in inputs.items()},
            input_paths={role: made_of.places[role] for role in (*inputs, UNLABELLED) if role in made_of.places},
            data="none" if read is None else read.name,
            data_fingerprint="none" if read is None else read.fingerprint,
            seed=recipe.seed,
            versions=package_versions(),
            wall_s=time.perf_counter() - start,
            cache_key=made_of.key,
            validation_fraction=None if chosen is None or chosen.file is not None else chosen.fraction,
            split=None if chosen is None else chosen.options,
            judged_on=None if read is None else read.judged_on,
            preprocess={role: source.preprocess for role, source in inputs.items()},
            result_version=made_of.result_version,
            readings=made_of.readings,
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


def _open_store(
    stage: StageEntry, settings: Settings, made_of: Ingredients, tracking: Tracking | None
) -> TrainingStore:
    from convnext_deploy.training.checkpoint_store import TrainingStore, read_owner

    events = None if tracking is None else tracking.of(stage.name)
    folder, progress = training_folder(settings.out, stage), settings.execution.progress
    owner = read_owner(folder)
    # settings that have come since with their defaults give another key for the same training
    key = owner.key if owner is not None and is_same(read_ingredients(owner.made_of), made_of) else made_of.key
    return TrainingStore(folder, key, events=events, progress=progress, made_of=made_of.to_json())


def cache_key(stage: StageEntry, artifacts: Mapping[str, Artifact], data: Data | None, seed: int) -> str:
    """Hash everything that decides what a stage produces; see `Ingredients`."""
    return ingredients_of(stage, artifacts, data, seed).key


def training_folder(out: Path, stage: StageEntry) -> Path:
    """Return where the state of a stage's training lies."""
    return out / "checkpoints" / stage.name


def stage_folder(settings: Settings, stage: StageEntry) -> Path:
    """Return where the artifact of a stage lies."""
    return settings.out / "stages" / stage.name


def reusable(folder: Path, key: str, progress: Progress | None = None) -> Artifact | None:
    """Return the artifact in `folder` if it was made with this key, is unaltered, and is what would be made here and now.

    `progress`: where to say of one that was made with this key why it is made again; None: nowhere.
    """
    say = (progress or SilentProgress()).say
    try:
        artifact = read_artifact(folder)
    except ArtifactError as error:
        if folder.is_dir():
            say(str(error))
        return None
    if not artifact.lineage or not _has_key(artifact.lineage[-1], key):
        return None
    reason = _outdated(artifact)
    if reason is not None:
        say(f"{folder.name}: {reason}; it is built again")
    return artifact if reason is None else None


def _has_key(record: StageRecord, key: str) -> bool:
    found = recorded_ingredients(record)
    return record.cache_key == key or (found is not None and found.key == key)


def _outdated(artifact: Artifact) -> str | None:
    """Return why an engine would be another one if it were built now; what cannot be built here is left as it is."""
    details = artifact.details
    if isinstance(details, EngineDetails):
        package = details.flavor.replace("-", "_")
        # the libraries may be installed without the package that only names them
        packages, built_on = [package, f"{package}_cu12", f"{package}_cu13"], details.built_on
    elif isinstance(details, TorchTensorRTDetails):
        packages, built_on = ["torch_tensorrt", "tensorrt", "torch"], details.gpu
    else:
        return None
    versions = artifact.lineage[-1].versions
    for name in packages:
        here = installed_version(name)
        if None not in (here, versions.get(name)) and here != versions[name]:
            return f"it was built with {name} {versions[name]}, and here is {here}"
    gpu = describe_gpu()
    if None not in (gpu, built_on) and str(built_on) not in str(
        gpu
    ):  # of programs the compute capability alone is known
        return f"it was built on {built_on}, and here is {gpu}"
    return None
