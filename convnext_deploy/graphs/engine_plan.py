"""Read a TensorRT engine plan: which TensorRT wrote it, and in which type each of its MatMul/Conv nodes runs."""

import dataclasses
import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from convnext_deploy.artifacts.artifact import MANIFEST, read_artifact
from convnext_deploy.artifacts.details import EngineDetails
from convnext_deploy.documents import read_bytes, reason
from convnext_deploy.errors import ArtifactError
from convnext_deploy.graphs.engine_precisions import EIGHT_BITS, read_plan_nodes
from convnext_deploy.system.results import Result

LARGEST_PLAN = 1 << 34  # bytes
PLAN_SUFFIXES = (".plan", ".engine", ".trt")
_HEADERS = {b"vtrt": "tensorrt-rtx", b"ftrt": "tensorrt"}
"""First bytes of a plan → which TensorRT wrote it."""
_VERSION = slice(24, 28)  # major, minor, patch and build, a byte each, in both


@dataclass(frozen=True, repr=False)
class EngineRecord(Result):
    """All that is in an engine plan.

    `flavor` and `version` are None where the header does not tell. `nodes`: precision → count of MatMul/Conv nodes, empty where the
    plan does not keep them readable; `float_nodes` are the names of those not on 8 bits. `manifest`: from the manifest beside it.
    """

    file: str
    size_bytes: int
    flavor: str | None
    version: str | None
    nodes: Mapping[str, int]
    float_nodes: tuple[str, ...]
    manifest: Mapping[str, Any]
    notes: tuple[str, ...]

    def headline(self) -> str:
        """Say which plan it is, and what its nodes compute in."""
        nodes = ", ".join(f"{count} in {precision}" for precision, count in self.nodes.items())
        made_for = f"{self.flavor or 'TensorRT'} {self.version or ''}".strip()
        return f"{self.file}, {self.size_bytes / 1e6:.1f} MB, {made_for}: {nodes or 'nodes not readable'}"

    def to_rows(self) -> list[dict[str, Any]]:
        """Return a record for each precision."""
        return [{"precision": precision, "nodes": count} for precision, count in self.nodes.items()]

    def to_json(self) -> str:
        """Return the record as JSON text."""
        return json.dumps({"format": "tensorrt", **dataclasses.asdict(self)}, indent=1)


def inspect_plan(path: Path) -> EngineRecord:
    """Read an engine plan, and the manifest beside it if there is one.

    Raises: ArtifactError: if it cannot be read, or neither its header nor its contents are those of a plan.
    """
    try:
        plan = read_bytes(path, LARGEST_PLAN)
    except OSError as error:
        raise ArtifactError(f"{path} cannot be read ({reason(error)}).") from None
    flavor, version = read_header(plan)
    nodes = read_plan_nodes(plan)
    if flavor is None and not nodes:
        raise ArtifactError(
            f"{path} is not a TensorRT plan: it begins with {plan[:4]!r}, expected "
            f"{' or '.join(repr(header) for header in _HEADERS)}."
        )
    manifest, notes = _read_manifest(path)
    if not nodes:
        notes = (
            *notes,
            "the plan does not tell in which types its MatMul/Conv nodes run"
            + ("; a plan of standard TensorRT tells it on its GPU alone" if flavor == "tensorrt" else ""),
        )
    return EngineRecord(
        str(path),
        len(plan),
        flavor,
        version,
        dict(Counter(node.precision for node in nodes).most_common()),
        tuple(f"{node.name} ({node.precision})" for node in nodes if node.precision not in EIGHT_BITS),
        manifest,
        notes,
    )


def read_header(plan: bytes) -> tuple[str | None, str | None]:
    """Return which TensorRT wrote a plan, and its version; None where the first bytes are of neither."""
    flavor = _HEADERS.get(plan[:4])
    version = ".".join(map(str, plan[_VERSION]))
    return flavor, version if flavor is not None and len(plan) >= _VERSION.stop else None


def _read_manifest(path: Path) -> tuple[dict[str, Any], tuple[str, ...]]:
    if not (path.parent / MANIFEST).is_file():
        return {}, ()
    try:
        artifact = read_artifact(path.parent)
    except ArtifactError as error:
        return {}, (str(error),)
    details = artifact.details
    if not isinstance(details, EngineDetails) or path.name not in {file.name for file in artifact.files}:
        return {}, ()
    # a file for one GPU is called model.GPU.plan
    reports = (
        report
        for gpu, report in details.precisions.items()
        if f".{gpu.lower()}." in path.name or len(details.precisions) == 1
    )
    report = next(reports, None)
    return {
        "variant": artifact.model.variant,
        "precision": artifact.precision,
        "gpus": details.gpus,
        "batch": dataclasses.asdict(details.batch),
        "version_compatible": details.version_compatible,
        "stripped": details.stripped,
        **({} if report is None else {"precision_report": dataclasses.asdict(report)}),
    }, details.warnings
