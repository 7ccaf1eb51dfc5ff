"""What a stage is given and what it would make of that: known before any work, of artifacts that may not be there yet.

Each kind of stage has a function `foresee(config, given)` beside its `run`, which calls it first. So what ends a stage for its
settings, its inputs or this machine is checked in one place, before the hours that the stages in front of it take, and once more
when they have passed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from convnext_deploy.artifacts.artifact import Artifact
from convnext_deploy.artifacts.details import Format
from convnext_deploy.artifacts.spec import ModelSpec
from convnext_deploy.config.fit import FitConfig
from convnext_deploy.data.datasets import Data
from convnext_deploy.errors import ArtifactError
from convnext_deploy.stages.context import StageContext, missing_source, require_data
from convnext_deploy.training.schedule import autocast_dtype
from convnext_deploy.training.torch_compile import check_compiler


@dataclass(frozen=True)
class Outlook:
    """What is known of an artifact that may not be there yet.

    `name`: of the stage, or where it lies. `artifact`: the thing itself; None: it is still to be made. `target`: what it is
    quantized for.
    """

    name: str
    format: Format
    precision: str
    model: ModelSpec
    target: str | None = None
    artifact: Artifact | None = None

    def made(self, name: str, **changes: Any) -> Outlook:
        """Return what a stage of that name makes of this."""
        return replace(self, name=name, artifact=None, **changes)


@dataclass(frozen=True)
class Given:
    """What a stage has to work with: its `name`, its inputs by their roles, the images, and the device."""

    name: str
    inputs: Mapping[str, Outlook]
    data: Data | None
    device: str

    @property
    def start(self) -> Outlook | None:
        """What a training starts from; None: fresh weights."""
        return self.inputs.get("source") or self.inputs.get("weights")

    @property
    def teachers(self) -> list[Outlook]:
        """What it learns from, besides labels."""
        return [outlook for role, outlook in self.inputs.items() if role.startswith("teacher")]

    def need_data(self) -> Data:
        """Return the images. Raises: DataError: if none were given."""
        return require_data(self.data, self.name)

    def need_source(self, kind: str) -> Outlook:
        """Return the source. Raises: ArtifactError: if there is none."""
        if (source := self.inputs.get("source")) is None:
            raise missing_source(kind)
        return source

    def of_stage(self, given: Outlook) -> str:
        """Return how an error about an input begins: with the stage where the input is still to be made, or with nothing."""
        return "" if given.artifact is not None else f"stage '{self.name}': "

    def called(self, given: Outlook) -> str:
        """Return how an error calls an input: where it lies, or of which stage it will be, and for which."""
        return str(given.artifact.path) if given.artifact is not None else f"{self.of_stage(given)}{given.name}"

    def expect(self, given: Outlook, expected: Format, why: str) -> None:
        """Check the format of an input. Raises: ArtifactError: if it is another one; `why` it must be that."""
        if given.format != expected:
            raise ArtifactError(f"{self.called(given)} is in the format {given.format}; {why}.")


def outlook_of(artifact: Artifact) -> Outlook:
    """Return what is known of an artifact that is there."""
    return Outlook(
        str(artifact.main_file), artifact.format, artifact.precision, artifact.model, artifact.target, artifact
    )


def given_to(context: StageContext, source: Artifact | None) -> Given:
    """Return what a stage that is about to run is given."""
    inputs = {"source": source, "weights": context.weights}
    inputs |= {f"teacher-{number}": teacher for number, teacher in enumerate(context.teachers)}
    found = {role: outlook_of(artifact) for role, artifact in inputs.items() if artifact is not None}
    return Given(context.name, found, context.data, context.execution.device)


def check_fit(fit: FitConfig, device: str) -> None:
    """Check that this machine can train as asked. Raises: DeployError: if it lacks a GPU or a compiler."""
    autocast_dtype(fit.autocast, device)
    if fit.compile:
        check_compiler(is_cuda=device == "cuda", wanted_by="compile = true", instead="leave compile out")
