"""The rows of `quantization_peers.py` that are made by this package."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from time import perf_counter
from typing import Any

from peers_inputs import SEED
from peers_meter import Meter

from convnext_deploy import api
from convnext_deploy.artifact import read_artifact
from convnext_deploy.inputs import open_input
from convnext_deploy.opening import open_named_data
from convnext_deploy.options import Options
from convnext_deploy.pipeline import RunResult
from convnext_deploy.progress import SilentProgress, Task
from convnext_deploy.quantization.scheme import SCHEMES
from convnext_deploy.recipe import SOURCE, StageEntry
from convnext_deploy.stage_config import PTQConfig, PTQSteps
from convnext_deploy.stage_runs import run_stages
from convnext_deploy.stages.quantize import BARE

OURS = "ours-"
_ONCE = {"-one-pass": PTQSteps(), "-min-max": BARE}  # suffix → steps in place of the ladder


def ours() -> dict[str, str]:
    """Return our methods → the targets that they aim at."""
    return {f"{OURS}{target}{suffix}": target for target in SCHEMES for suffix in ("", *_ONCE)}


class TaskTimes(SilentProgress):
    """Adds up how long the tasks of each name took."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def task(self, description: str, total: int) -> Iterator[Task]:
        """See `Progress.task`."""
        started = perf_counter()
        with super().task(description, total) as task:
            yield task
        name = description.rpartition(": ")[2]
        self.seconds[name] = self.seconds.get(name, 0.0) + perf_counter() - started


def quantize_ours(checkpoint: Path, data: str, name: str, calibration_images: int, folder: Path) -> dict[str, Any]:
    """Quantize as the method's name says and export to `folder/model.onnx`; return what a peer writes into its `result.json`."""
    suffix = next((suffix for suffix in _ONCE if name.endswith(suffix)), "")
    target = name.removeprefix(OURS).removesuffix(suffix)
    times, out = TaskTimes(), folder / "quantize"
    options = Options(data=data, out=out, calibration_images=calibration_images, seed=SEED, progress=times)
    meter = Meter()
    with meter:
        if suffix:
            config = PTQConfig(
                **dataclasses.asdict(_ONCE[suffix]), target=target, calibration_images=calibration_images
            )
            result = run_once(config, checkpoint, data, options)
        else:
            result = api.quantize(checkpoint, target=target, options=options)
    row = result.report.rows[-1]
    api.export(Path(row.artifact), options=Options(out=folder / "export"))
    exported = read_artifact(folder / "export" / "stages" / "onnx")
    (folder / "model.onnx").write_bytes(exported.main_file.read_bytes())
    # The stage without the scores and latencies that the verb measures around it; the memory is that of the whole verb.
    return {
        "seconds": row.wall_s,
        "calibrate_s": times.seconds["calibrate"],
        "verb_s": meter.seconds,
        "prepared_s": 0.0,
        "peak_bytes": meter.peak_bytes,
    }


def run_once(config: PTQConfig, checkpoint: Path, data: str, options: Options) -> RunResult:
    """Run one stage on a checkpoint as the verbs do."""
    stages = (StageEntry("ptq", config, SOURCE),)
    return run_stages("ptq", stages, options, open_input(checkpoint), open_named_data(data, options), checkpoint)
