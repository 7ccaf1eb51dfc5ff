"""What flows from stage to stage: a folder with its files and a `manifest.json` that tells all about them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path, PurePath
from typing import Any, Literal

from convnext_deploy.artifacts.spec import ModelSpec, Preprocess, read_model, read_preprocess
from convnext_deploy.errors import ArtifactError
from convnext_deploy.system.files import write_text

MANIFEST = "manifest.json"
SCHEMA = 1

Format = Literal["torch", "onnx", "tensorrt", "torch-tensorrt"]


@dataclass(frozen=True)
class StageRecord:
    """How one step of an artifact's history was made. `inputs` holds the hashes of what went in, `input_paths` where it lay.

    `validation_fraction` is the share of the data that was held out, None where the validation images came with the data.
    """

    name: str
    kind: str
    config: Mapping[str, Any]
    inputs: Mapping[str, str]
    input_paths: Mapping[str, str]
    data: str
    data_fingerprint: str
    seed: int
    versions: Mapping[str, str]
    wall_s: float
    cache_key: str
    validation_fraction: float | None = None


@dataclass(frozen=True)
class ArtifactFile:
    """A file of an artifact, relative to its folder."""

    name: str
    sha256: str
    size_bytes: int


@dataclass(frozen=True)
class Artifact:
    """A model on disk that a runner can open.

    `details` holds what only the runner of this format needs: the quantization scheme, the GPUs an engine was built for.
    `license` is that of the weights it comes from, where that is known.
    `notes` say in words what was found out about a file of another origin; they are shown and not stored.
    """

    path: Path
    format: Format
    precision: str
    model: ModelSpec
    class_names: tuple[str, ...] | None
    preprocess: Preprocess
    files: tuple[ArtifactFile, ...]
    details: Mapping[str, Any] = field(default_factory=dict)
    lineage: tuple[StageRecord, ...] = ()
    license: str | None = None
    notes: tuple[str, ...] = ()

    @property
    def main_file(self) -> Path:
        """The first file, which the runner opens."""
        return self.path / self.files[0].name

    @property
    def size_bytes(self) -> int:
        """Bytes of all files."""
        return sum(file.size_bytes for file in self.files)

    @property
    def location(self) -> Path:
        """What opens this artifact again: its folder, or the bare file that it is."""
        return (self.path if (self.path / MANIFEST).is_file() else self.main_file).resolve()

    @property
    def sha256(self) -> str:
        """One hash for the contents of all files."""
        if len(self.files) == 1:
            return self.files[0].sha256
        return hashlib.sha256("\n".join(f"{f.sha256} {f.name}" for f in self.files).encode()).hexdigest()

    def history(self) -> list[dict[str, Any]]:
        """Return the lineage without what belongs to one machine: paths, settings and times."""
        return [
            {
                "name": record.name,
                "kind": record.kind,
                "data": PurePath(record.data).name,
                "seed": record.seed,
                "inputs": dict(record.inputs),
                "versions": dict(record.versions),
            }
            for record in self.lineage
        ]

    @property
    def is_baseline(self) -> bool:
        """Whether drops are measured against this artifact: an FP32 PyTorch model."""
        return self.format == "torch" and self.precision == "fp32"


def describe_file(path: Path) -> ArtifactFile:
    """Hash and measure a file."""
    with path.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    return ArtifactFile(path.name, digest, path.stat().st_size)


def write_manifest(artifact: Artifact) -> None:
    """Write `manifest.json` beside the files."""
    record = asdict(artifact)
    del record["path"], record["notes"]
    write_text(artifact.path / MANIFEST, json.dumps({"schema": SCHEMA, **record}, indent=1))


def read_artifact(folder: Path) -> Artifact:
    """Read an artifact folder, checking that its files are there with the recorded sizes.

    Raises: ArtifactError: if the manifest is missing or unreadable, or a file is missing or has another size.
    """
    try:
        record = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ArtifactError(f"{folder} is no artifact folder: it has no {MANIFEST}.") from None
    except (OSError, ValueError) as error:
        raise ArtifactError(f"{folder / MANIFEST} cannot be read: {error}. Make the artifact again.") from None
    try:
        if record.pop("schema") != SCHEMA:
            raise ArtifactError(f"{folder / MANIFEST} was written by another version; make the artifact again.")
        artifact = Artifact(
            path=folder,
            model=read_model(record.pop("model")),
            preprocess=read_preprocess(record.pop("preprocess")),
            class_names=None if (names := record.pop("class_names")) is None else tuple(names),
            files=tuple(ArtifactFile(**entry) for entry in record.pop("files")),
            lineage=tuple(StageRecord(**entry) for entry in record.pop("lineage")),
            **record,
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ArtifactError(f"{folder / MANIFEST} is not a manifest of this tool ({error}).") from None
    for file in artifact.files:
        target = folder / file.name
        found = target.stat().st_size if target.is_file() else None
        if found != file.size_bytes:
            state = "is missing" if found is None else f"has {found} bytes"
            raise ArtifactError(
                f"{target} {state}; its manifest says {file.size_bytes} bytes. Make the artifact again."
            )
    return artifact
