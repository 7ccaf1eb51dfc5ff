"""Write, read and check artifacts: folders with the files of a model and a `manifest.json` that describes them."""

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path, PurePath
from typing import Annotated, Any, TypeVar

from convnext_deploy.artifacts.details import (
    DETAILS,
    Count,
    Details,
    EngineDetails,
    ForeignDetails,
    Format,
    Fraction,
    ONNXDetails,
    PredictionsDetails,
    SchemeDetails,
    TorchDetails,
    TorchTensorRTDetails,
)
from convnext_deploy.artifacts.hashes import altered, hash_file
from convnext_deploy.artifacts.spec import GraphIO, ModelSpec, Preprocess
from convnext_deploy.config.records import between, matching, read_record
from convnext_deploy.documents import leads_out, read_json, reason
from convnext_deploy.errors import ArtifactError, DeployError
from convnext_deploy.quantization.scheme import QuantizationScheme
from convnext_deploy.system.files import write_text
from convnext_deploy.system.sealed_json import SEAL, seal, unseal

MANIFEST = "manifest.json"
SCHEMA = 2
PRECISIONS = "fp32|fp16|bf16|(int4|int8|int16|fp8)(-fp16)?"
_QUANTIZED = {"int8": "INT8", "fp8": "FP8"}
Record = TypeVar(
    "Record", TorchDetails, ONNXDetails, EngineDetails, TorchTensorRTDetails, ForeignDetails, PredictionsDetails
)


def quantized_type(precision: str) -> str | None:
    """Return `INT8` or `FP8` for the precision of a network that computes in it, whatever the rest computes in; else None."""
    return next((kind for start, kind in _QUANTIZED.items() if precision.startswith(start)), None)


@dataclass(frozen=True)
class StageRecord:
    """How one step of an artifact's history was made. `inputs` holds the hashes of what went in, `input_paths` where it lay.

    `validation_fraction` is the share of the data that was held out, None where the validation images came with the data;
    `split` what else was said of that, as options. `judged_on` is the hash of which images those were, see `Data`.
    `preprocess` is how each input was evaluated, by role: files of other origin do not tell, or were given something else.
    `result_version` of the kind and `readings`, hashes of how each input was read, tell with the rest what the artifact depends on,
    see `pipeline.ingredients`; None of an earlier version.
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
    wall_s: Annotated[float, between(0.0, 1e12)]
    cache_key: str
    validation_fraction: Fraction | None = None
    split: str | None = None
    judged_on: str | None = None
    preprocess: Mapping[str, Preprocess] = field(default_factory=dict)
    result_version: int | None = None
    readings: Mapping[str, Mapping[str, str]] = field(default_factory=dict)


@dataclass(frozen=True)
class ArtifactFile:
    """A file of an artifact, relative to its folder."""

    name: Annotated[str, matching(r"(?!\.\.?$)[^/\\\0]+", "the name of a file in the folder")]
    sha256: Annotated[str, matching("[0-9a-f]{64}", "64 hexadecimal digits")]
    size_bytes: Count


@dataclass(frozen=True)
class Artifact:
    """A model on disk that a runner can open.

    `details` holds what is recorded of this format alone: the quantization scheme, the GPUs an engine was built for.
    `license` is that of the weights it comes from, where that is known.
    `class_order` says in which order the classes were numbered where no file told their names: `natural` as timm does, `sorted` as
    torchvision. `class_names` beside it are those of the data's folders in that order.
    `notes` say in words what was found out about a file of another origin; they are shown and not stored.
    """

    path: Path
    details: Details
    precision: Annotated[
        str, matching(PRECISIONS, "fp32, fp16, int8 or int8-fp16; files of others also int4, int16, fp8 or bf16")
    ]
    model: ModelSpec
    class_names: tuple[str, ...] | None
    preprocess: Preprocess
    files: tuple[ArtifactFile, ...]
    lineage: tuple[StageRecord, ...] = ()
    license: str | None = None
    notes: tuple[str, ...] = ()
    class_order: Annotated[str, matching("natural|sorted", "natural or sorted")] | None = None

    @property
    def format(self) -> Format:
        """The format of the files, which is that of the details."""
        return next(name for name, record in DETAILS.items() if isinstance(self.details, record))

    @property
    def scheme(self) -> QuantizationScheme | None:
        """How a network or graph is quantized; None for one in float, and for engines."""
        return self.details.scheme if isinstance(self.details, SchemeDetails) else None

    @property
    def target(self) -> str | None:
        """The target that a network or graph was quantized for; None as `scheme`."""
        return self.details.target if isinstance(self.details, SchemeDetails) else None

    @property
    def io(self) -> GraphIO:
        """What it takes and gives: for PyTorch normalized images, and logits or features."""
        if isinstance(self.details, ONNXDetails | EngineDetails):
            return self.details.io
        return GraphIO(output=self.model.output)

    def details_as(self, record: type[Record]) -> Record:
        """Return the details of an artifact that is in their format. Raises: ArtifactError: if it is in another."""
        if not isinstance(self.details, record):
            expected = next(name for name, known in DETAILS.items() if known is record)
            raise ArtifactError(f"{self.path} is in the format {self.format}; expected {expected}.")
        return self.details

    @property
    def main_file(self) -> Path:
        """The first file, which the runner opens."""
        return self.path / self.files[0].name

    @property
    def size_bytes(self) -> int:
        """Bytes of all files."""
        return sum(file.size_bytes for file in self.files)

    @property
    def place(self) -> Path:
        """What opens this artifact again, as it was given: its folder, or the bare file that it is."""
        return self.path if (self.path / MANIFEST).is_file() else self.main_file

    @property
    def location(self) -> Path:
        """What opens this artifact again, from any folder."""
        return Path(os.path.realpath(self.place))

    @property
    def sha256(self) -> str:
        """One hash for the contents of all files."""
        if len(self.files) == 1:
            return self.files[0].sha256
        return hashlib.sha256("\n".join(f"{f.sha256} {f.name}" for f in self.files).encode()).hexdigest()

    def history(self) -> list[dict[str, Any]]:
        """Return the lineage for people to read, without what belongs to one machine: paths, most settings and times."""
        return [
            {
                "name": record.name,
                "kind": record.kind,
                "model": model.get("name") if isinstance(model := record.config.get("model"), Mapping) else None,
                "target": record.config.get("target"),
                "data": None if record.data == "none" else PurePath(record.data).name,
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
    return ArtifactFile(path.name, hash_file(path), path.stat().st_size)


def write_manifest(artifact: Artifact) -> None:
    """Write `manifest.json` beside the files, with a checksum of itself."""
    record = asdict(artifact)
    del record["path"], record["notes"]
    record["model"] = artifact.model.settings()
    content = seal({"schema": SCHEMA, "format": artifact.format, **record})
    write_text(artifact.path / MANIFEST, json.dumps(content, indent=1))


def read_artifact(folder: Path) -> Artifact:
    """Read an artifact folder, checking that manifest and files are what was written.

    Raises: ArtifactError: if the manifest is missing, unreadable, wrong in any field or altered, or a file is missing, has another
        size or other contents.
    """
    path = folder / MANIFEST
    try:
        record = read_json(path)
    except FileNotFoundError:
        raise ArtifactError(f"{folder} is not an artifact folder: it has no {MANIFEST}.") from None
    except (OSError, ValueError) as error:
        raise ArtifactError(f"{path} cannot be read: {reason(error)}. Make the artifact again.") from None
    if not isinstance(record, dict) or "schema" not in record:
        raise ArtifactError(f"{path} is not a manifest of this tool.")
    if record["schema"] != SCHEMA:
        raise ArtifactError(f"{path} was written by another version; make the artifact again.")
    fields = {key: value for key, value in record.items() if key not in ("schema", "format", SEAL)}
    try:
        artifact = parse_artifact({"path": folder, **fields}, record.get("format"), str(path))
    except ValueError as error:
        raise ArtifactError(f"{error} Make the artifact again.") from None
    try:
        unseal(record)  # last, because a field that is wrong tells more
    except ValueError as error:
        raise ArtifactError(f"{path} cannot be relied on: {error}. Make the artifact again.") from None
    for file in artifact.files:
        target = folder / file.name
        if leads_out(folder, file.name):
            raise ArtifactError(f"{target} leads out of its folder; expected the file itself. Copy it there.")
        found = target.stat().st_size if target.is_file() else None
        if found != file.size_bytes:
            state = "is missing" if found is None else f"has {found} bytes"
            raise ArtifactError(
                f"{target} {state}; its manifest says {file.size_bytes} bytes. Make the artifact again."
            )
        try:
            contents = hash_file(target)
        except OSError as error:
            raise ArtifactError(f"{target} cannot be read ({reason(error)}).") from None
        if contents != file.sha256:
            raise altered(target, "its manifest", contents, file.sha256)
    return artifact


def parse_artifact(record: Mapping[str, Any], format: object, where: str) -> Artifact:  # noqa: A002  (the manifest's key)
    """Return an artifact from the entries of a manifest or a file's header, every field checked.

    Args:
        record: field of `Artifact` → JSON, or what is known already.
        format: one of `Format`.
        where: the file that it was read from, for messages.

    Raises: ValueError: naming file and field, what was found and what was expected.
    """
    kind = next((kind for name, kind in DETAILS.items() if name == format), None)
    if kind is None:
        raise ValueError(f"{where}: format = {str(format)[:80]!r} is unknown; expected one of {', '.join(DETAILS)}.")
    details = {"details": read_record(kind, record["details"], f"{where}: details")} if "details" in record else {}
    artifact = read_record(Artifact, {**record, **details}, where)
    channels, classes = artifact.model.in_channels, artifact.model.num_classes
    for name in ("mean", "std"):
        if (found := len(getattr(artifact.preprocess, name))) != channels:
            raise ValueError(f"{where}: preprocess: {name} has {found} values; the network has {channels} channels.")
    if artifact.class_names is not None and len(artifact.class_names) != classes:
        raise ValueError(f"{where}: class_names has {len(artifact.class_names)} entries; expected {classes}.")
    if not artifact.files:
        raise ValueError(f"{where}: files is empty; expected at least one.")
    try:
        _ = artifact.scheme
    except DeployError as error:
        raise ValueError(f"{where}: details: {' '.join(str(error).split())}") from None
    return artifact
