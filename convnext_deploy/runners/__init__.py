"""Open artifacts with runners, which compute logits. They know the manifest, not how the artifact was made."""

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from convnext_deploy.artifacts.artifact import Artifact
from convnext_deploy.artifacts.details import Format
from convnext_deploy.errors import RunnerError, suggest
from convnext_deploy.runners.graph_io import Images, Outputs
from convnext_deploy.runners.profiling import Kernel
from convnext_deploy.runners.session_options import OPENVINO_PRECISIONS, PROVIDERS

RUNNERS: dict[str, Format] = {
    "torch": "torch",
    "torch-compile": "torch",
    **dict.fromkeys(PROVIDERS, "onnx"),
    **dict.fromkeys(OPENVINO_PRECISIONS, "onnx"),
    "tensorrt": "tensorrt",
    "torch-tensorrt": "torch-tensorrt",
}
"""Runner → the format that it opens. The first of a format opens it when none is named."""


class Runner(Protocol):
    """An opened artifact. `name` tells the backend, `device` where it runs.

    `logits` is `prepare`, `run` and a look at what came out. Who measures times prepares before the clock starts: `run` alone is
    the call that a user of the artifact makes.
    """

    name: str
    device: str

    def prepare(self, images: Images) -> NDArray[np.generic]:
        """Return images as the artifact takes them.

        They are pixels `(N, S, S, C)` uint8, as they come from the data, or normalized `(N, C, S, S)` float32.
        """

    def run(self, prepared: NDArray[np.generic]) -> Outputs:
        """Call the backend on prepared images, any number of at least one; return the outputs by name, in the CPU's memory."""

    def logits(self, images: Images) -> NDArray[np.float32]:
        """Map images, as `prepare` takes them, to logits `(N, num_classes)`, or what `ModelSpec.output` says, float32."""

    def close(self) -> None:
        """Give back threads and memory; the runner cannot be used afterwards."""


class ProfiledRunner(Runner, Protocol):
    """A runner that was opened to be profiled, and is slower for it."""

    def kernels(self) -> tuple[Kernel, ...]:
        """Return the kernels in the order in which they run. Call it once, after the calls, of one batch size."""


def runners_of(artifact: Artifact) -> tuple[str, ...]:
    """Return the names of the runners that open the artifact's format, its default first."""
    names = [name for name, opened in RUNNERS.items() if opened == artifact.format]
    return tuple(sorted(names, key=lambda name: name != default_runner(artifact)))


def default_runner(artifact: Artifact) -> str:
    """Return the runner that opens an artifact when none is named: the runtime it was made for, where that is here."""
    if artifact.format == "onnx" and _runtime(artifact) == "openvino":
        from convnext_deploy.runners.openvino import is_installed

        if is_installed():
            return "openvino"
    return next((name for name, opened in RUNNERS.items() if opened == artifact.format), "torch")


def _runtime(artifact: Artifact) -> str | None:
    """Return what a graph was quantized for, or of one in float what it was exported for, as its history tells."""
    made = artifact.lineage[-1].config if artifact.lineage else {}
    return artifact.target or str(made.get("runtime"))


def check_runner(name: str) -> None:
    """Check that there is a runner of this name. Raises: RunnerError: if there is none."""
    if name not in RUNNERS:
        raise RunnerError(f"there is no runner '{name}'; expected one of {', '.join(RUNNERS)}.{suggest(name, RUNNERS)}")


def open_runner(
    artifact: Artifact,
    device: str = "cpu",
    *,
    runner: str | None = None,
    threads: int | None = None,
    alone: bool = False,
) -> Runner:
    """Open an artifact with a backend.

    Args:
        artifact: any.
        device: `cpu` or `cuda`, for the PyTorch runners. An engine always runs on the GPU; of ONNX Runtime the provider decides.
        runner: one of `RUNNERS`; None: see `default_runner`.
        threads: threads for one call on the CPU, >= 1; None: as the backend does, usually one for each core.
        alone: this process does nothing else; see `session_options`.

    Raises:
        RunnerError: if there is no such runner, or it opens other formats only.
        BackendUnavailableError: if this machine lacks the package, compiler, driver or GPU that the runner needs.
        ArtifactError: if the file does not fit its manifest.
    """
    if artifact.format == "foreign" and runner is None:
        from convnext_deploy.runners.torch import TorchRunner
        from convnext_deploy.training.load_foreign import load_foreign

        return TorchRunner(load_foreign(artifact), device, threads, artifact.preprocess)
    name = default_runner(artifact) if runner is None else runner
    check_runner(name)
    if RUNNERS[name] != artifact.format:
        raise RunnerError(
            f"the runner {name} opens no {artifact.format} artifacts, as {artifact.main_file} is one; "
            f"those that do: {', '.join(runners_of(artifact))}."
        )
    if artifact.format == "torch":
        from convnext_deploy.models.checkpoints.load_network import load_network
        from convnext_deploy.runners.torch import CompiledTorchRunner, TorchRunner

        kind = CompiledTorchRunner if name == "torch-compile" else TorchRunner
        return kind(load_network(artifact), device, threads, artifact.preprocess)
    if artifact.format == "torch-tensorrt":
        from convnext_deploy.runners.torch_tensorrt import TorchTensorRTRunner

        return TorchTensorRTRunner(artifact)
    return _open_graph(artifact, name, threads, alone=alone, profiled=False)


def open_profiled(artifact: Artifact, runner: str | None = None, threads: int | None = None) -> ProfiledRunner:
    """Open an ONNX artifact or an engine to be profiled; see `open_runner`.

    Raises: RunnerError: for a runner without a profile. Otherwise as `open_runner`.
    """
    name = default_runner(artifact) if runner is None else runner
    if RUNNERS.get(name) not in ("onnx", "tensorrt"):
        raise RunnerError(f"the runner {name} has no profile; expected one for ONNX or engines.")
    return _open_graph(artifact, name, threads, alone=True, profiled=True)


def _open_graph(artifact: Artifact, name: str, threads: int | None, *, alone: bool, profiled: bool) -> ProfiledRunner:
    if name in OPENVINO_PRECISIONS:
        from convnext_deploy.runners.openvino import OpenVINORunner

        return OpenVINORunner(artifact, name, threads, profiled=profiled)
    if name in PROVIDERS:
        from convnext_deploy.runners.onnxruntime import ONNXRuntimeRunner

        return ONNXRuntimeRunner(artifact, name, threads, alone=alone, profiled=profiled)
    from convnext_deploy.runners.tensorrt import TensorRTRunner

    return TensorRTRunner(artifact, profiled=profiled)
