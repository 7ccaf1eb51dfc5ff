"""`convert`: weights for other libraries, the files that timm, torchvision, the official code or transformers load as their own."""

from __future__ import annotations

import dataclasses
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from convnext_deploy.api.open_inputs import open_artifact
from convnext_deploy.api.options import DataOptions, ExecutionOptions, verb
from convnext_deploy.artifacts.artifact import Artifact
from convnext_deploy.config.choices import Dialect
from convnext_deploy.config.image_size import show_size
from convnext_deploy.documents import read_bytes
from convnext_deploy.errors import ArtifactError, OutputError
from convnext_deploy.models.checkpoints.hub_config import CONFIG, PREPROCESSOR, timm_config, transformers_config
from convnext_deploy.models.checkpoints.image_processor import preprocessor_difference, transformers_preprocessor
from convnext_deploy.models.checkpoints.key_maps import check_writable, from_native
from convnext_deploy.models.variants import complete_spec
from convnext_deploy.system.files import ClosableWriter, replace_folder, whole_file, write_text
from convnext_deploy.system.results import Result, plain

if TYPE_CHECKING:
    from torch import Tensor

SAFETENSORS, PICKLE, CLASSES, README = "model.safetensors", "model.pth", "class_names.txt", "README.md"
_SIGNATURE = "Written by convnext_deploy from"  # in the README; other folders than those with it are left alone
_WRITTEN = {SAFETENSORS, PICKLE, CLASSES, README, CONFIG, PREPROCESSOR}
_TORCHVISION = ("convnext_tiny", "convnext_small", "convnext_base", "convnext_large")


@dataclass(frozen=True, repr=False)
class Conversion(Result):
    """What was written: the folder, its files, and what the other library will do differently (usually nothing)."""

    path: Path
    dialect: Dialect
    variant: str
    files: tuple[str, ...]
    notes: tuple[str, ...]
    load: str

    def headline(self) -> str:
        """Say what was written where."""
        return f"{self.variant} for {self.dialect} in {self.path}"

    def to_rows(self) -> list[dict[str, Any]]:
        """Return one record."""
        return [plain(self)]

    def to_json(self) -> str:
        """Return the record as JSON."""
        return json.dumps({**dataclasses.asdict(self), "path": str(self.path)}, indent=1)


@verb
def convert(
    checkpoint: Path | str,
    dialect: Dialect,
    out: Path | str,
    *,
    model: str | None = None,
    entry: str | None = None,
    data: DataOptions = DataOptions(),
    execution: ExecutionOptions = ExecutionOptions(),
) -> Conversion:
    """Write an FP32 artifact or checkpoint in the form of another library, bit for bit the same weights.

    Args:
        checkpoint: artifact, weights file or name of published weights.
        dialect: the library.
        out: folder for the weights, their config files, the class names and a README with the lines that load them.
        model: variant that the checkpoint must hold.
        entry: which of several networks in the file, such as `student`; None: an average before the weights, a teacher last.
        data: what it says of the preprocessing counts, for the config files.
        execution: `progress` counts.

    Raises: DeployError: if the checkpoint cannot be read, is quantized, or the library has no such network.
    """
    out, artifact = Path(out), open_artifact(checkpoint, model, data, execution.reporter, entry)
    if artifact.format != "torch" or artifact.precision != "fp32":
        raise ArtifactError(
            f"{checkpoint} is {artifact.precision} in the format {artifact.format}; other libraries take FP32 weights: "
            "convert the artifact that it was made from."
        )
    notes = check_writable(artifact.model, dialect)
    _check_output(out, artifact)
    state = _read_exactly(artifact)
    tensors = {key: t.contiguous() for key, t in from_native(state, artifact.model, dialect).items()}
    if dialect == "huggingface" and (difference := preprocessor_difference(artifact.preprocess)):
        notes.append(difference)
    load, size = _loading_lines(artifact, dialect), sum(tensor.nbytes for tensor in tensors.values())
    with replace_folder(Path(os.path.realpath(out))) as folder:
        if dialect in ("timm", "huggingface"):
            from safetensors.torch import save_file

            with whole_file(folder / SAFETENSORS, needed=size) as partial:
                save_file(tensors, partial, metadata={"format": "pt"})
        else:
            import torch

            with whole_file(folder / PICKLE, needed=size) as partial, ClosableWriter(partial) as file:
                torch.save({"model": tensors} if dialect == "facebook" else tensors, file)
        for name, content in _config_files(artifact, dialect).items():
            write_text(folder / name, json.dumps(content, indent=2) + "\n")
        if artifact.class_names is not None:
            write_text(folder / CLASSES, "\n".join(artifact.class_names) + "\n")
        write_text(folder / README, _readme(artifact, dialect, load, notes))
        files = tuple(sorted(entry.name for entry in folder.iterdir()))
    return Conversion(out, dialect, artifact.model.variant, files, tuple(notes), load)


def _read_exactly(artifact: Artifact) -> dict[str, Tensor]:
    """Return the weights after the checks that loading them into the network makes."""
    from convnext_deploy.models.checkpoints.load_network import load_network

    return dict(load_network(artifact).state_dict())


def _check_output(out: Path, artifact: Artifact) -> None:
    if out.exists() and not out.is_dir():
        raise OutputError(f"{out} is a file; give a folder with --out.")
    if os.path.realpath(out) == os.path.realpath(artifact.path):
        raise OutputError(f"{out} holds the checkpoint itself; choose another folder with --out.")
    names = {entry.name for entry in out.iterdir()} if out.is_dir() else set[str]()
    readme = out / README
    is_own = readme.is_file() and _SIGNATURE in read_bytes(readme).decode(errors="replace")
    others = sorted(names - _WRITTEN) or ([] if is_own else sorted(names))
    if others:
        raise OutputError(
            f"{out} holds '{others[0]}', which this command would delete; choose an empty folder with --out."
        )


def _config_files(artifact: Artifact, dialect: Dialect) -> dict[str, object]:
    spec, preprocess, names = artifact.model, artifact.preprocess, artifact.class_names
    if dialect == "timm":
        return {CONFIG: timm_config(spec, preprocess, names)}
    if dialect == "huggingface":
        return {
            CONFIG: transformers_config(spec, preprocess, names),
            PREPROCESSOR: transformers_preprocessor(preprocess),
        }
    return {}


def _loading_lines(artifact: Artifact, dialect: Dialect) -> str:
    """Return the Python lines that load the files from within their folder."""
    spec, row = artifact.model, complete_spec(artifact.model)
    if dialect == "timm":
        return "import timm\n\nmodel = timm.create_model('local-dir:.', pretrained=True)"
    if dialect == "huggingface":
        model = "AutoModelForImageClassification" if spec.num_classes else "AutoModel"
        return (
            f"from transformers import AutoImageProcessor, {model}\n\n"
            f"model = {model}.from_pretrained('.')\n"
            "processor = AutoImageProcessor.from_pretrained('.')"
        )
    read = "torch.load('model.pth', weights_only=True)"
    if dialect == "facebook":
        module, name = ("convnext", "ConvNeXt") if row.version == 1 else ("convnextv2", "ConvNeXtV2")
        return (
            f"import torch\nfrom models.{module} import {name}  # models/{module}.py of the official repository\n\n"
            f"model = {name}(in_chans={spec.in_channels}, num_classes={spec.num_classes}, depths={list(row.depths)}, "
            f"dims={list(row.dims)})\nmodel.load_state_dict({read}['model'])"
        )
    if spec.variant in _TORCHVISION:
        build = f"import torch\nimport torchvision\n\nmodel = torchvision.models.{spec.variant}(num_classes={spec.num_classes})"
    else:
        blocks = [(a, b, n) for a, b, n in zip(row.dims, [*row.dims[1:], None], row.depths, strict=True)]
        build = (
            "import torch\nfrom torchvision.models.convnext import CNBlockConfig, ConvNeXt\n\n"
            f"blocks = [CNBlockConfig(*stage) for stage in {blocks}]\n"
            f"model = ConvNeXt(blocks, num_classes={spec.num_classes})"
        )
    return f"{build}\nmodel.load_state_dict({read})"


def _readme(artifact: Artifact, dialect: Dialect, load: str, notes: list[str]) -> str:
    p, spec = artifact.preprocess, artifact.model
    lines = [
        f"# {spec.variant} for {dialect}",
        "",
        f"{spec.num_classes or 'No'} classes, {spec.in_channels} input channels. Run in this folder:",
        "",
        "```python",
        load,
        "model.eval()",
        "```",
        "",
        f"Evaluation: resize {'both sides' if p.crop_mode == 'squash' else 'the shorter side'} to {show_size(p.resize_size)} "
        f"pixels ({p.interpolation}), crop the centre {p.sides[0]}×{p.sides[1]}, scale to [0, 1], subtract {list(p.mean)}, "
        f"divide by {list(p.std)}.",
        *([""] if notes else []),
        *(f"Note: {note}." for note in notes),
        "",
        f"{_SIGNATURE} {artifact.main_file.name} (sha256 {artifact.sha256}).",
    ]
    return "\n".join(lines) + "\n"
