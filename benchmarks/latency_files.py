"""What `latency.py` times: the same random network as every candidate's own file. See there."""

from __future__ import annotations

import argparse
import dataclasses
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from latency_candidates import Kind
from numpy.typing import NDArray
from quantization import execute
from quantization_measures import renormalize, taken_by
from quantization_peers import cpu_instructions, run_method
from safetensors.torch import save_file

from convnext_deploy.artifacts.artifact import Artifact, describe_file
from convnext_deploy.artifacts.details import ONNXDetails
from convnext_deploy.config.onnx import ONNXConfig
from convnext_deploy.config.preprocess import PreprocessSettings
from convnext_deploy.config.ptq import PTQConfig
from convnext_deploy.config.recipe import SOURCE, StageEntry
from convnext_deploy.data.datasets import ArrayImages, Data
from convnext_deploy.errors import BackendUnavailableError
from convnext_deploy.pipeline.open_artifact import open_input
from convnext_deploy.runners import open_runner
from convnext_deploy.stages.quantize import BARE
from convnext_deploy.system.environment import describe_environment
from convnext_deploy.system.files import write_text

CALIBRATION_IMAGES = 16


class Files:
    """The files of one network, made in `work` when they are first asked for and kept for later runs."""

    def __init__(self, variant: str, image_size: int, arguments: argparse.Namespace) -> None:
        self.variant, self.image_size = variant, image_size
        self.work: Path = arguments.work.resolve() / f"{variant}-{image_size}"
        self.work.mkdir(parents=True, exist_ok=True)
        self._arguments = arguments
        self.versions: dict[str, dict[str, str]] = {}
        self.weights = self.work / "weights.safetensors"
        if not self.weights.exists():
            partial = self.weights.with_suffix(".partial")
            save_file(create_timm(variant).state_dict(), partial)
            partial.replace(self.weights)
        self.source = open_input(self.weights, asked=PreprocessSettings(image_size=image_size))

    def artifact(self, kind: Kind, batch_size: int) -> Artifact | None:
        """Return what a candidate times; None for timm's module, which is made of `weights` where it is timed.

        Raises: BackendUnavailableError: if a peer cannot make it; says why.
        """
        word, _, name = kind.source.partition(" ")
        if word == "weights":
            return self.source
        if word == "stage":
            return self.stage(name)
        if word == "peer":
            return self._peer(name, batch_size)
        return self._timm_onnx() if word == "timm.onnx" else None

    def error(self, artifact: Artifact, runner: str) -> float:
        """Return how far its logits are from those of the network in FP32: the root mean square over that of the logits."""
        kept = self.work / "errors.json"
        errors: dict[str, float] = json.loads(kept.read_text()) if kept.exists() else {}
        key = f"{runner} {artifact.sha256}"
        if key not in errors:
            errors[key] = self._compare(artifact, runner)
            write_text(kept, json.dumps(errors))
        return errors[key]

    def _compare(self, artifact: Artifact, runner: str) -> float:
        images = self.calibration()[:2]
        expected = open_runner(self.source).logits(images)
        opened = open_runner(artifact, runner=runner)
        if artifact.main_file.suffix == ".xml":  # has a batch of its own and repeats images to fill it
            images, expected = images[:1], expected[:1]
        source = self.source.preprocess
        found = opened.logits(renormalize(images, source, taken_by(artifact, source)))
        opened.close()
        return float(np.sqrt(np.square(found - expected).mean() / np.square(expected).mean()))

    def calibration(self) -> NDArray[np.float32]:
        """Return the images for calibration, `(N, 3, S, S)`, normalized for the network."""
        pixels = self._images(CALIBRATION_IMAGES, 1).arrays.transpose(0, 3, 1, 2).astype(np.float32) / np.float32(255)
        unit = dataclasses.replace(self.source.preprocess, mean=(0.0,) * 3, std=(1.0,) * 3)
        return renormalize(pixels, unit, self.source.preprocess)

    def _images(self, count: int, seed: int) -> ArrayImages:
        rng, size = np.random.default_rng(seed), self.image_size
        return ArrayImages(rng.integers(0, 256, (count, size, size, 3), np.uint8), rng.integers(0, 1000, count))

    def stage(self, name: str) -> Artifact:
        """Execute our stages as the verbs do, with noise for images; one that was executed does nothing.

        `float-RUNTIME`, `int8-RUNTIME`, or `uint8-RUNTIME`: in INT8, of a file that takes pixels.
        """
        stages: list[StageEntry] = []
        runtime = name.partition("-")[2]
        if name.startswith("float"):
            stages.append(StageEntry(name, ONNXConfig(runtime=runtime), SOURCE))  # type: ignore[arg-type]  # one of its names
        else:
            steps = {**dataclasses.asdict(BARE), "target": runtime}
            config = PTQConfig(**steps, calibration_images=CALIBRATION_IMAGES)
            graph = ONNXConfig(input_type="uint8" if name.startswith("uint8") else "float32")
            stages += [StageEntry(f"ptq-{runtime}", config, SOURCE), StageEntry(name, graph, f"ptq-{runtime}")]
        names = tuple(f"class {number}" for number in range(1000))
        data = Data("noise", self._images(CALIBRATION_IMAGES, 1), self._images(2, 2), names)
        artifacts = {SOURCE: self.source}
        for stage in stages:
            artifacts[stage.name], _ = execute(stage, artifacts, data, self.work)
        return artifacts[name]

    def _peer(self, method: str, batch_size: int) -> Artifact:
        """Let a peer quantize timm's export. OpenVINO models get a batch of their own, with which they are faster."""
        work = self.work / (f"peers-{batch_size}" if method.startswith("nncf") else "peers")
        folder = work / method
        if not (folder / "made.json").exists():
            work.mkdir(exist_ok=True)
            self._timm_onnx()
            shutil.copyfile(self.work / "timm.onnx", work / "float.onnx")
            np.save(work / "calibration.npy", self.calibration())
            # NNCF makes a model of the batch that it calibrates with
            settings = {
                **vars(self._arguments),
                "work": work,
                "threads": None,
                "batch_size": batch_size,
                "timeout": 3600.0,
            }
            found = run_method(method, argparse.Namespace(**settings))
            if "failure" in found:
                raise BackendUnavailableError(found["failure"])
            (folder / "made.json").write_text(json.dumps(found))
        self.versions[method] = json.loads((folder / "made.json").read_text())["versions"]
        onnx = folder / "model.onnx"
        if onnx.exists():
            return open_input(onnx, asked=PreprocessSettings(image_size=self.image_size))
        # our runner gives any file to OpenVINO, which reads its own format as well
        file = describe_file(folder / "model.xml")
        return dataclasses.replace(
            self._timm_onnx(), path=folder, precision="int8", files=(file,), details=ONNXDetails()
        )

    def _timm_onnx(self) -> Artifact:
        path = self.work / "timm.onnx"
        if not path.exists():
            export_timm(create_timm(self.variant), self.image_size, path)
        return open_input(path, asked=PreprocessSettings(image_size=self.image_size))


def create_timm(variant: str) -> torch.nn.Module:
    """Return timm's network, every weight random: LayerScale and GRN start at almost nothing, and are to be really computed."""
    network: torch.nn.Module = timm.create_model(variant).eval()
    generator = torch.Generator().manual_seed(0)
    for name, parameter in network.named_parameters():
        offset = 1.0 if name.endswith("norm.weight") else 0.0
        parameter.data = offset + 0.05 * torch.randn(parameter.shape, generator=generator)
    return network


def export_timm(network: torch.nn.Module, image_size: int, path: Path) -> None:
    """Write ONNX for any batch, as PyTorch's documentation shows it."""
    images = torch.randn(2, 3, image_size, image_size)
    program = torch.onnx.export(
        network,
        (images,),
        input_names=["images"],
        output_names=["logits"],
        dynamo=True,
        dynamic_shapes=({0: torch.export.Dim("batch")},),
    )
    assert program is not None
    partial = path.with_suffix(".partial")
    program.save(str(partial), external_data=False)
    partial.replace(path)


def save(rows: Sequence[Any], arguments: argparse.Namespace, **more: Any) -> None:
    """Write rows to `--out` if there is one, with the settings and the machine."""
    if arguments.out is None:
        return
    names = ("models", "batch_sizes", "image_size", "threads", "rounds", "seconds", "candidates")
    record = {
        "settings": {name: getattr(arguments, name) for name in names},
        "environment": {**describe_environment(), "instructions": cpu_instructions()},
        **more,
        "rows": rows,
    }
    write_text(arguments.out, json.dumps(record, indent=1) + "\n")
