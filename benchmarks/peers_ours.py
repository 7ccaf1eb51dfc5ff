"""The rows of `quantization_peers.py` that are made by this package."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import torch
from peers_inputs import SEED
from peers_meter import Meter

import convnext_deploy as api
from convnext_deploy.api.export import export
from convnext_deploy.api.options import DataOptions, ExecutionOptions
from convnext_deploy.api.run import run
from convnext_deploy.artifacts.artifact import read_artifact
from convnext_deploy.config.ptq import PTQConfig, PTQSteps
from convnext_deploy.config.recipe import SOURCE, Recipe, StageEntry
from convnext_deploy.models.checkpoints.load_network import load_network
from convnext_deploy.models.fold import fold
from convnext_deploy.pipeline.open_artifact import open_input
from convnext_deploy.quantization.calibration import calibrate
from convnext_deploy.quantization.prepare import prepare
from convnext_deploy.quantization.scheme import SCHEMES, resolve_scheme
from convnext_deploy.stages.chosen_images import PIXELS_AT_ONCE
from convnext_deploy.stages.quantize import BARE

OURS = "ours-"
_ONCE = {"-one-pass": PTQSteps(), "-min-max": BARE}  # suffix → what to do in place of the fallback sequence


def ours() -> dict[str, str]:
    """Return our methods → the targets that they aim at."""
    return {f"{OURS}{target}{suffix}": target for target in SCHEMES for suffix in ("", *_ONCE)}


def quantize_ours(checkpoint: Path, data: str, name: str, calibration_images: int, folder: Path) -> dict[str, Any]:
    """Quantize as the method's name says and export to `folder/model.onnx`; return what a peer writes into its `result.json`."""
    suffix = next((suffix for suffix in _ONCE if name.endswith(suffix)), "")
    target = name.removeprefix(OURS).removesuffix(suffix)
    out = folder / "quantize"
    meter = Meter()
    with meter:
        if suffix:
            steps = {**dataclasses.asdict(_ONCE[suffix]), "target": target}
            config = PTQConfig(**steps, calibration_images=calibration_images)
            stage = StageEntry("ptq", config, SOURCE)
            result = run(Recipe("ptq", (stage,), data, str(checkpoint), SEED), out=out)
        else:
            result = api.quantize(
                checkpoint,
                target=target,  # type: ignore[arg-type]  # one of its names
                calibration_images=calibration_images,
                out=out,
                data=DataOptions(data),
                execution=ExecutionOptions(seed=SEED),
            )
    row = result.report.rows[-1]
    export(Path(row.identity.artifact), out=folder / "export")
    exported = read_artifact(folder / "export" / "stages" / "onnx")
    (folder / "model.onnx").write_bytes(exported.main_file.read_bytes())
    # The stage without the scores and latencies that the verb measures around it; the memory is that of the whole verb.
    method = _ONCE[suffix].calibration_method if suffix else BARE.calibration_method
    return {
        "seconds": row.history.wall_s,
        "calibrate_s": time_calibration(checkpoint, target, method, folder.parent / "calibration.npy"),
        "verb_s": meter.seconds,
        "prepared_s": 0.0,
        "peak_bytes": meter.peak_bytes,
    }


def time_calibration(checkpoint: Path, target: str, method: str, images: Path) -> float:
    """Return the seconds that `calibrate` alone takes, with the images in memory as the peers have them."""
    source = open_input(checkpoint)
    network = prepare(fold(load_network(source), source.preprocess).network, resolve_scheme(target))
    arrays = torch.from_numpy(np.load(images))
    batches = arrays.split(max(1, min(PTQConfig.batch_size, PIXELS_AT_ONCE // arrays.shape[-1] ** 2)))
    started = perf_counter()
    calibrate(network, batches, method)
    return perf_counter() - started
