"""A process of `latency.py` for what no artifact holds: timm's own module, or an ONNX file on OpenVINO with any batch.

    python benchmarks/latency_child.py timm VARIANT WEIGHTS --batch-size N --image-size S --seconds T [--threads N]
    python benchmarks/latency_child.py openvino-dynamic FILE.onnx --batch-size N …
    python benchmarks/latency_child.py own-call ARTIFACT RUNNER --batch-size N …     # see latency_own_call.py

Calls, images, warming up and the budget are those of `convnext_deploy.evaluation`; prints the median in milliseconds.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from convnext_deploy.artifacts.artifact import read_artifact
from convnext_deploy.evaluation.latency import noise_images, time_calls
from convnext_deploy.evaluation.timing.worker_process import Job
from convnext_deploy.runners import Runner
from convnext_deploy.runners.graph_io import Images, Outputs


class _DynamicRunner:
    """See `Runner`: OpenVINO as it compiles a file whose batch is not fixed."""

    name, device = "openvino-dynamic", "cpu"

    def __init__(self, path: Path, threads: int | None) -> None:
        from convnext_deploy.pipeline.open_artifact import open_input
        from convnext_deploy.runners.openvino import openvino_core
        from convnext_deploy.runners.session_options import openvino_properties

        artifact = open_input(path)
        properties = openvino_properties("artifact", artifact.precision, threads)
        compiled = openvino_core().compile_model(str(artifact.main_file), "CPU", properties)
        self._request = compiled.create_infer_request()

    def prepare(self, images: Images) -> NDArray[np.generic]:
        """See `Runner.prepare`; images are normalized."""
        return np.ascontiguousarray(images)

    def run(self, prepared: NDArray[np.generic]) -> Outputs:
        """See `Runner.run`."""
        results = self._request.infer([prepared], share_inputs=True)
        return {port.get_any_name(): values for port, values in results.items()}

    def logits(self, images: Images) -> NDArray[np.float32]:
        """See `Runner.logits`."""
        return next(iter(self.run(self.prepare(images)).values())).astype(np.float32, copy=False)

    def close(self) -> None:
        """See `Runner.close`."""
        del self._request


def _open_timm(variant: str, weights: Path, threads: int | None) -> Runner:
    import timm
    from safetensors.torch import load_file

    from convnext_deploy.runners.torch import TorchRunner

    network = timm.create_model(variant).eval()
    network.load_state_dict(load_file(weights))
    return TorchRunner(network, "cpu", threads)


def main() -> None:
    """Time calls and print one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("what", choices=["timm", "openvino-dynamic", "own-call"])
    parser.add_argument("paths", nargs="+", metavar="PATH")
    parser.add_argument("--batch-size", type=int, required=True)
    parser.add_argument("--image-size", type=int, required=True)
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--threads", type=int)
    arguments = parser.parse_args()
    if arguments.what == "own-call":
        from latency_own_call import time_pair

        artifact = read_artifact(Path(arguments.paths[0]))
        pair = time_pair(artifact, arguments.paths[1], arguments.batch_size, arguments.threads, arguments.seconds)
        print(json.dumps(dataclasses.asdict(pair)))
        return
    images = noise_images(arguments.batch_size, (3, arguments.image_size, arguments.image_size))
    runner: Any
    if arguments.what == "timm":
        runner = _open_timm(arguments.paths[0], Path(arguments.paths[1]), arguments.threads)
    else:
        runner = _DynamicRunner(Path(arguments.paths[0]), arguments.threads)
    prepared = runner.prepare(images)
    runner.run(prepared)
    time_calls(runner, prepared, Job.warm_up, Job.most, arguments.seconds / 4)
    times = time_calls(runner, prepared, Job.least, Job.most, arguments.seconds)
    print(json.dumps({"p50_ms": float(np.median(times))}))


if __name__ == "__main__":
    main()
