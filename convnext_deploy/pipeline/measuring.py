"""Measure an artifact of a run once: what an earlier run found on the same bytes, images, machine and versions is taken."""

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from typing import Any

from convnext_deploy.artifacts.artifact import Artifact
from convnext_deploy.data.agreement import check_classes
from convnext_deploy.data.datasets import Data
from convnext_deploy.data.sampling import gallery_key
from convnext_deploy.errors import DataError
from convnext_deploy.evaluation.measure import (
    RESULT_VERSION,
    Measurement,
    measure_artifact,
    read_measurement,
    write_measurement,
)
from convnext_deploy.pipeline.stage import Settings
from convnext_deploy.system.environment import conditions_of


def measure_once(
    settings: Settings,
    data: Data | None,
    environment: Mapping[str, Any],
    name: str,
    artifact: Artifact,
    *,
    may_differ: bool = False,
) -> Measurement:
    """Score and time an artifact, or return what is kept in `scores/` of the run's folder.

    Args:
        settings: of the run.
        data: whose validation images are scored; None: nothing is.
        environment: of the report; what of it counts for a measurement is part of its key.
        name: of the artifact in the report.
        artifact: what is measured.
        may_differ: it only starts trainings, so that it may have other classes than the data, or none.

    Raises: DeployError: as `measure_artifact`, and if artifact and data do not agree.
    """
    execution = settings.execution
    if data is None:
        return Measurement(not_run="not validated: no --data")
    if artifact.format == "predictions":
        return Measurement(not_run="not validated: a file of predictions is no network")
    if may_differ and not artifact.model.num_classes:
        return Measurement(not_run="not validated: it has no head, and only teaches or starts a training")
    try:
        check_classes(name, artifact, data)
    except DataError as error:
        if not may_differ:
            raise
        return Measurement(not_run=f"not validated: {error}")
    images = [data.validation_fingerprint, artifact.preprocess.settings(), artifact.class_names]
    if not artifact.model.num_classes:
        images.append(gallery_key(data))
    # the same bytes may be those of networks that differ in what no weight shows, such as the activation
    network = [artifact.model.settings(), dataclasses.asdict(artifact.io)]
    scheme = None if artifact.scheme is None else artifact.scheme.details()
    where = [execution.device, conditions_of(environment), _threads_of(artifact)]
    content = [artifact.sha256, artifact.format, network, scheme, images, where, RESULT_VERSION]
    key = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    path = settings.out / "scores" / f"{name}.json"
    measured = None if settings.measure_again else read_measurement(path, key)
    if measured is None:
        measured = measure_artifact(artifact, data, execution, name)
        if measured.not_run is None:
            write_measurement(path, key, measured)
    return measured


def _threads_of(artifact: Artifact) -> int | None:
    """Return with how many threads PyTorch computes, where it does: who calls a verb from Python may have set it."""
    if artifact.format != "torch":
        return None
    import torch

    return torch.get_num_threads()
