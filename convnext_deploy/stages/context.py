"""What a stage gets besides its config and its source, and what all stages do alike."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from convnext_deploy.artifacts.artifact import Artifact
from convnext_deploy.data.datasets import Data, ImageSet
from convnext_deploy.errors import ArtifactError, DataError
from convnext_deploy.system.execution import Execution
from convnext_deploy.training.checkpoint_store import TrainingStore

OpenGraph = Callable[[Artifact], Callable[[NDArray[np.float32]], NDArray[np.float32]]]
"""Opens a graph with its runtime: a function of normalized images `(N, C, S, S)` float32 to logits `(N, classes)` float32."""


@dataclass(frozen=True)
class StageContext:
    """`output` is the new, empty folder to write into; `data` None: no images were given.

    `cache_dir` is for what can be computed again; what is in it has names that tell it apart, so runs may share it. With
    `execution.cache_dir` small images are kept there too, and not in memory. `baseline` is the FP32 ancestor of a quantized source,
    `store` keeps the state of a training. `open_graph` opens an ONNX file that teaches. `selection`: training images that are not
    in `data` any more, by which the best epoch is chosen.
    """

    name: str
    output: Path
    data: Data | None
    execution: Execution
    cache_dir: Path
    teachers: tuple[Artifact, ...] = ()
    weights: Artifact | None = None
    baseline: Artifact | None = None
    store: TrainingStore | None = None
    open_graph: OpenGraph | None = None
    selection: ImageSet | None = None

    def need_data(self) -> Data:
        """Return the images. Raises: DataError: if none were given."""
        return require_data(self.data, self.name)


def require_data(data: Data | None, stage: str) -> Data:
    """Return the images that a stage needs. Raises: DataError: if there are none."""
    if data is None:
        raise DataError(f"stage '{stage}' needs images; give them with --data DIR.")
    return data


def require_source(source: Artifact | None, kind: str) -> Artifact:
    """Return the source. Raises: ArtifactError: if there is none."""
    if source is None:
        raise missing_source(kind)
    return source


def missing_source(kind: str) -> ArtifactError:
    """Return the error of a stage that lacks what it starts from."""
    return ArtifactError(f"a {kind} stage needs a source artifact.")
