"""What a stage gets besides its config and its source, and what all stages do alike."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from convnext_deploy.artifacts.artifact import Artifact
from convnext_deploy.data.datasets import Data
from convnext_deploy.errors import ArtifactError
from convnext_deploy.system.execution import Execution
from convnext_deploy.training.checkpoint_store import TrainingStore


@dataclass(frozen=True)
class StageContext:
    """`output` is the new, empty folder to write into. Where there is none, `has_data` is false and `open_data` raises.

    `cache_dir` is for what can be computed again; what is in it has names that tell it apart, so runs may share it. With
    `execution.cache_dir` small images are kept there too, and not in memory. `baseline` is the FP32 ancestor of a quantized source.
    """

    name: str
    output: Path
    open_data: Callable[[], Data]
    execution: Execution
    cache_dir: Path
    has_data: bool = True
    teachers: tuple[Artifact, ...] = ()
    weights: Artifact | None = None
    baseline: Artifact | None = None
    store: TrainingStore | None = None


def require_source(source: Artifact | None, kind: str) -> Artifact:
    """Return the source. Raises: ArtifactError: if there is none."""
    if source is None:
        raise ArtifactError(f"a {kind} stage needs a source artifact.")
    return source
