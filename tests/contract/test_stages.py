"""What every kind of stage promises, whatever it does: a complete folder, an untouched source, a true record."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from convnext_deploy.artifacts.artifact import MANIFEST, Artifact, describe_file, read_artifact
from convnext_deploy.artifacts.details import Details, TorchDetails
from convnext_deploy.config.distill import DistillConfig
from convnext_deploy.config.engine import TensorRTConfig
from convnext_deploy.config.prune import PruneConfig
from convnext_deploy.config.recipe import Recipe, StageEntry
from convnext_deploy.config.stage import StageConfig
from convnext_deploy.config.stages import STAGE_KINDS, stage_config
from convnext_deploy.config.train import TrainConfig
from convnext_deploy.data.datasets import Data
from convnext_deploy.errors import ArtifactError, DeployError
from convnext_deploy.evaluation import measure
from convnext_deploy.evaluation.latency import Latency
from convnext_deploy.pipeline.run import run_recipe
from convnext_deploy.pipeline.stage import Settings
from convnext_deploy.stages import run_stage
from convnext_deploy.stages.context import StageContext
from convnext_deploy.system.execution import Execution
from convnext_deploy.system.progress import Progress, SilentProgress, Task

# Torch-TensorRT compiles on a GPU alone: tests/stages/test_torch_tensorrt.py holds it to this contract over a stand-in.
KINDS = [kind for kind in STAGE_KINDS if kind != "torch-tensorrt"]
NEEDS_SOURCE = [kind for kind in KINDS if stage_config(kind).needs_source]
NEEDS_NO_DATA = ("onnx", "tensorrt")
# Not in the small recipe, whose student is to keep its form.
PRUNE = StageEntry("pruned", PruneConfig(macs_share=0.7, calibration_images=12), "student")


@dataclass
class RecordedTask:
    """A task that a stage reported."""

    description: str
    total: int
    done: int = 0
    closed: bool = False

    def advance(self, steps: int = 1, note: str = "") -> None:
        self.done += steps


@dataclass
class RecordingProgress(SilentProgress):
    """Keeps the tasks of the stage; those of the validation after it are not its own."""

    tasks: list[RecordedTask] = field(default_factory=list)

    @contextmanager
    def task(self, description: str, total: int, unit: str = "steps", done: int = 0) -> Iterator[Task]:
        """See `Progress.task`."""
        task = RecordedTask(description, total)
        if not description.endswith(": validate"):
            self.tasks.append(task)
        yield task
        task.closed = True


class InterruptingProgress(SilentProgress):
    """Stops the stage, and not the validation before it, as Ctrl-C would."""

    @contextmanager
    def task(self, description: str, total: int, unit: str = "steps", done: int = 0) -> Iterator[Task]:
        """See `Progress.task`."""
        if not description.endswith(": validate"):
            raise KeyboardInterrupt
        yield RecordedTask(description, total)


@dataclass(frozen=True)
class Outcome:
    """A stage of the small run, executed alone once more."""

    entry: StageEntry
    inputs: dict[str, Artifact]
    artifact: Artifact
    inputs_unchanged: bool
    tasks: list[RecordedTask]


def snapshot(artifact: Artifact) -> dict[str, tuple[str, int]]:
    """Return hash and time of change of every file in the artifact's folder."""
    files = [path for path in artifact.path.rglob("*") if path.is_file()]
    return {str(p): (hashlib.sha256(p.read_bytes()).hexdigest(), p.stat().st_mtime_ns) for p in files}


def run_alone(
    entry: StageEntry, given: Artifact | None, out: Path, data: Data, seed: int, progress: Progress | None = None
) -> Artifact:
    """Run one stage as a recipe of its own that calls its input `source`."""
    config: StageConfig = entry.config
    if isinstance(config, DistillConfig):
        config = dataclasses.replace(config, teacher="source")
    own = StageEntry(entry.name, config, None if entry.source is None else "source")
    recipe = Recipe("contract", (own,), source=None if given is None else "given", seed=seed)
    with pytest.MonkeyPatch.context() as patch:
        # How fast the artifacts are is no part of this contract, and takes most of the time.
        patch.setattr(measure, "measure_latency", lambda runner, shape: Latency(1, 1.0, 1.0))
        run_recipe(recipe, Settings(out, Execution(progress=progress or SilentProgress())), source=given, data=data)
    return read_artifact(out / "stages" / entry.name)


def entry_of(recipe: Recipe, kind: str) -> StageEntry:
    """Return the last stage of a kind in the small recipe, or `PRUNE`; for ONNX that is the INT8 one."""
    if kind == "tensorrt":
        pytest.importorskip("tensorrt_rtx")
    return next(stage for stage in reversed((*recipe.stages, PRUNE)) if stage.config.kind == kind)


@pytest.fixture(scope="module")
def outcomes(
    small_recipe: Recipe,
    small_artifacts: dict[str, Artifact],
    small_data: Data,
    tmp_path_factory: pytest.TempPathFactory,
) -> Callable[[str], Outcome]:
    """Run the stage of a kind, once."""
    done: dict[str, Outcome] = {}

    def get(kind: str) -> Outcome:
        if kind not in done:
            entry = entry_of(small_recipe, kind)
            inputs = {role: small_artifacts[name] for role, name in entry.inputs.items()}
            before = {role: snapshot(artifact) for role, artifact in inputs.items()}
            progress = RecordingProgress()
            out = tmp_path_factory.mktemp(kind)
            given = next(iter(inputs.values()), None)
            artifact = run_alone(entry, given, out, small_data, small_recipe.seed, progress)
            unchanged = before == {role: snapshot(artifact) for role, artifact in inputs.items()}
            done[kind] = Outcome(entry, inputs, artifact, unchanged, progress.tasks)
        return done[kind]

    return get


@pytest.fixture(scope="module")
def firsts(
    small_artifacts: dict[str, Artifact],
    small_recipe: Recipe,
    small_data: Data,
    tmp_path_factory: pytest.TempPathFactory,
) -> dict[str, Artifact]:
    """What the stages gave the first time."""
    out = tmp_path_factory.mktemp("first")
    return {
        **small_artifacts,
        PRUNE.name: run_alone(PRUNE, small_artifacts["student"], out, small_data, small_recipe.seed),
    }


@pytest.fixture(params=KINDS)
def outcome(request: pytest.FixtureRequest, outcomes: Callable[[str], Outcome]) -> Outcome:
    return outcomes(request.param)


def as_stored(value: Any) -> Any:
    """Return what a value looks like after a round through JSON."""
    return json.loads(json.dumps(value))


def test_stage_leaves_a_complete_folder_and_nothing_else(outcome: Outcome) -> None:
    folder = outcome.artifact.path
    files = {file.name for file in outcome.artifact.files}
    assert files
    assert {path.name for path in folder.iterdir()} == {MANIFEST, *files}
    assert [path.name for path in folder.parent.iterdir()] == [outcome.entry.name]


def test_stage_describes_its_files_truly(outcome: Outcome) -> None:
    for file in outcome.artifact.files:
        assert describe_file(outcome.artifact.path / file.name) == file
        assert file.size_bytes > 0


def test_stage_leaves_its_inputs_unchanged(outcome: Outcome) -> None:
    assert outcome.inputs_unchanged


def test_stage_adds_one_record_to_the_lineage_of_its_source(outcome: Outcome) -> None:
    source = outcome.inputs.get("source")
    before = () if source is None else source.lineage
    assert outcome.artifact.lineage[:-1] == before
    assert len(outcome.artifact.lineage) == len(before) + 1


def test_stage_record_tells_how_the_artifact_was_made(outcome: Outcome, small_recipe: Recipe, small_data: Data) -> None:
    record, config = outcome.artifact.lineage[-1], dataclasses.asdict(outcome.entry.config)
    if config.get("teacher") is not None:
        config["teacher"] = "source"  # the name it has in the recipe of `run_stage`
    assert (record.name, record.kind) == (outcome.entry.name, outcome.entry.config.kind)
    assert record.config == as_stored(config)
    assert record.inputs == {role: artifact.sha256 for role, artifact in outcome.inputs.items()}
    assert record.seed == small_recipe.seed
    assert record.wall_s > 0
    assert record.versions["torch"]
    uses_data = outcome.entry.config.kind not in NEEDS_NO_DATA
    assert record.data_fingerprint == (small_data.fingerprint if uses_data else "none")


def test_stage_keeps_classes_and_preprocessing(outcome: Outcome, small_data: Data) -> None:
    assert outcome.artifact.class_names == small_data.class_names
    assert outcome.artifact.model.num_classes == len(small_data.class_names)
    if "source" in outcome.inputs:
        # also where mean and std went into the stem
        assert outcome.artifact.preprocess == outcome.inputs["source"].preprocess
        form = dataclasses.replace(outcome.artifact.model, hidden_widths=None)  # which pruning alone sets
        assert form == outcome.inputs["source"].model


def test_stage_reports_progress_to_the_end(outcome: Outcome) -> None:
    assert outcome.tasks
    for task in outcome.tasks:
        assert task.description
        assert task.done == task.total > 0
        assert task.closed


def without_times(details: Details) -> Details:
    """Return what a manifest tells of a stage, without the seconds that the steps of `quantize` took."""
    if not isinstance(details, TorchDetails) or details.selection is None:
        return details
    steps = tuple(dataclasses.replace(step, seconds=0.0) for step in details.selection.steps)
    return dataclasses.replace(details, selection=dataclasses.replace(details.selection, steps=steps))


def test_stage_repeats_its_description_of_the_artifact(outcome: Outcome, firsts: dict[str, Artifact]) -> None:
    first = firsts[outcome.entry.name]
    assert without_times(outcome.artifact.details) == without_times(first.details)
    assert (outcome.artifact.format, outcome.artifact.precision) == (first.format, first.precision)
    assert [file.name for file in outcome.artifact.files] == [file.name for file in first.files]


def test_stage_repeats_its_bytes(outcome: Outcome, firsts: dict[str, Artifact]) -> None:
    if isinstance(outcome.entry.config, TensorRTConfig):
        pytest.skip("TensorRT-RTX numbers the temporaries in a plan anew in every build, so no two plans are equal")
    assert outcome.artifact.files == firsts[outcome.entry.name].files


WRONG_INPUT = {
    "prune": "onnx-fp32",
    "train": "onnx-fp32",
    "ptq": "onnx-fp32",
    "qat": "onnx-int8",
    "quantize": "onnx-fp32",
    "onnx": "onnx-fp32",
    "tensorrt": "student",
}
"""Kind of stage → an artifact of the small run in a format that it cannot read; `distill` learns from all but engines."""


@pytest.mark.parametrize("kind", WRONG_INPUT)
def test_stage_raises_and_leaves_no_folder_when_its_input_has_the_wrong_format(
    kind: str, small_recipe: Recipe, small_artifacts: dict[str, Artifact], small_data: Data, tmp_path: Path
) -> None:
    entry = entry_of(small_recipe, kind)
    if isinstance(entry.config, TrainConfig):
        # Fine-tuning what would be the right network in the right format.
        student = next(s.config for s in small_recipe.stages if isinstance(s.config, DistillConfig))
        entry = dataclasses.replace(entry, config=TrainConfig(student.model, entry.config.fit), source="source")
    wrong = small_artifacts[WRONG_INPUT[kind]]
    with pytest.raises(DeployError, match=r"^[^\n]+$"):
        run_alone(entry, wrong, tmp_path, small_data, seed=0)
    assert not (tmp_path / "stages").exists() or list((tmp_path / "stages").iterdir()) == []


@pytest.mark.parametrize("kind", KINDS)
def test_stage_leaves_no_folder_when_it_is_interrupted(
    kind: str, small_recipe: Recipe, small_artifacts: dict[str, Artifact], small_data: Data, tmp_path: Path
) -> None:
    entry = entry_of(small_recipe, kind)
    given = next((small_artifacts[name] for name in entry.inputs.values()), None)
    with pytest.raises(KeyboardInterrupt):
        run_alone(entry, given, tmp_path, small_data, small_recipe.seed, InterruptingProgress())
    assert [*(tmp_path / "stages").glob("*")] == []  # of those with teachers, it is not there yet


@pytest.mark.parametrize("kind", NEEDS_SOURCE)
def test_stage_raises_when_it_has_no_source(kind: str, small_recipe: Recipe, small_data: Data, tmp_path: Path) -> None:
    entry = entry_of(small_recipe, kind)
    context = StageContext(entry.name, tmp_path, small_data, Execution(), tmp_path / "cache")
    with pytest.raises(ArtifactError, match=rf"^[^\n]*{kind}[^\n]*source[^\n]*$"):
        run_stage(entry.config, None, context)
    assert list(tmp_path.iterdir()) == []


def test_distill_raises_when_it_has_no_teacher(small_recipe: Recipe, small_data: Data, tmp_path: Path) -> None:
    entry = entry_of(small_recipe, "distill")
    context = StageContext(entry.name, tmp_path, small_data, Execution(), tmp_path / "cache")
    with pytest.raises(ArtifactError, match="teacher"):
        run_stage(entry.config, None, context)


def test_small_recipe_has_every_kind_of_stage(small_recipe: Recipe) -> None:
    assert {stage.config.kind for stage in (*small_recipe.stages, PRUNE)} == set(KINDS)
