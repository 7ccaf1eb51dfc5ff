"""What is in a TensorRT engine plan: which TensorRT wrote it, and which of its products run in which type."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from convnext_deploy.artifacts.artifact import MANIFEST, Artifact, read_artifact
from convnext_deploy.errors import ArtifactError
from convnext_deploy.graphs.engine_precisions import PlanProduct, read_products

PLAN_SUFFIXES = (".plan", ".engine", ".trt")
_HEADERS = {b"vtrt": "tensorrt-rtx", b"ftrt": "tensorrt"}
"""First bytes of a plan → which TensorRT wrote it."""
_VERSION = slice(24, 28)  # major, minor, patch and build, a byte each, in both
_KEPT_DETAILS = ("gpus", "batch", "max_batch_size", "version_compatible", "stripped", "quantized_layers")


@dataclass(frozen=True)
class EngineRecord:
    """All that is in an engine plan.

    `flavor` and `version` are None where the header does not tell. `products`: precision → count, empty where the plan does not
    keep them readable; `float_products` are the names of those not in INT8. `manifest` is what the manifest beside it adds.
    """

    file: str
    size_bytes: int
    flavor: str | None
    version: str | None
    products: Mapping[str, int]
    float_products: tuple[str, ...]
    manifest: Mapping[str, Any]
    notes: tuple[str, ...]

    def to_json(self) -> str:
        """Return the record as JSON text."""
        return json.dumps({"format": "tensorrt", **dataclasses.asdict(self)}, indent=1)


def inspect_plan(path: Path) -> EngineRecord:
    """Read an engine plan, and the manifest beside it if there is one.

    Raises: ArtifactError: if it cannot be read, or neither its header nor its contents are those of a plan.
    """
    try:
        plan = path.read_bytes()
    except OSError as error:
        raise ArtifactError(f"{path} cannot be read ({error.strerror}).") from None
    flavor, version = read_header(plan)
    products = read_products(plan)
    if flavor is None and not products:
        raise ArtifactError(
            f"{path} is no TensorRT plan: it begins with {plan[:4]!r}, expected "
            f"{' or '.join(repr(header) for header in _HEADERS)}."
        )
    manifest, notes = _read_manifest(path)
    if not products:
        notes = (
            *notes,
            "the plan does not tell in which types its products run"
            + ("; a plan of standard TensorRT tells it on its GPU alone" if flavor == "tensorrt" else ""),
        )
    return EngineRecord(
        str(path),
        len(plan),
        flavor,
        version,
        dict(Counter(product.precision for product in products).most_common()),
        tuple(_describe(product) for product in products if product.precision != "INT8"),
        manifest,
        notes,
    )


def read_header(plan: bytes) -> tuple[str | None, str | None]:
    """Return which TensorRT wrote a plan, and its version; None where the first bytes are of neither."""
    flavor = _HEADERS.get(plan[:4])
    version = ".".join(map(str, plan[_VERSION]))
    return flavor, version if flavor is not None and len(plan) >= _VERSION.stop else None


def _describe(product: PlanProduct) -> str:
    return f"{product.name} ({product.precision})"


def _read_manifest(path: Path) -> tuple[dict[str, Any], tuple[str, ...]]:
    if not (path.parent / MANIFEST).is_file():
        return {}, ()
    try:
        artifact = read_artifact(path.parent)
    except ArtifactError as error:
        return {}, (str(error),)
    if path.name not in {file.name for file in artifact.files}:
        return {}, ()
    kept = {key: artifact.details[key] for key in _KEPT_DETAILS if key in artifact.details}
    return {
        "variant": artifact.model.variant,
        "precision": artifact.precision,
        **kept,
        **_census(artifact, path.name),
    }, tuple(artifact.details.get("warnings", ()))


def _census(artifact: Artifact, name: str) -> dict[str, Any]:
    # a file for one GPU is called model.GPU.plan
    census = artifact.details.get("census") or {}
    found = next((entry for gpu, entry in census.items() if f".{gpu.lower()}." in name or len(census) == 1), None)
    return {"census": found} if found else {}
