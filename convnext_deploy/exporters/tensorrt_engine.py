"""TensorRT engines from ONNX: one path for TensorRT 10 and 11 and for TensorRT-RTX.

Networks are strongly typed everywhere: what the ONNX file says is what runs. Only names that exist in all of these releases are
used, except for the compute capabilities, which TensorRT-RTX alone has. None of the bindings raises on a wrong setting; it
logs an error and goes on. So everything logged as an error fails the build.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

from convnext_deploy.cuda_driver import cuda_driver_error
from convnext_deploy.errors import BackendUnavailableError, ExportError, suggest
from convnext_deploy.progress import Progress

Flavor = Literal["tensorrt-rtx", "tensorrt"]
INSTALL = {
    "tensorrt-rtx": "pip install 'tensorrt_rtx>=1.7,<1.8'",
    "tensorrt": "pip install 'convnext_deploy[tensorrt]' (on a Jetson: use the TensorRT of JetPack)",
}


@dataclass(frozen=True)
class Profile:
    """Batch sizes of the optimization profile."""

    minimum: int
    optimal: int
    maximum: int


def import_tensorrt(flavor: Flavor) -> ModuleType:
    """Import the bindings of a flavor.

    Raises: BackendUnavailableError: if they are not installed, with the install line.
    """
    try:
        return importlib.import_module("tensorrt_rtx" if flavor == "tensorrt-rtx" else "tensorrt")
    except ImportError as error:
        reason = "is not installed" if isinstance(error, ModuleNotFoundError) else f"cannot be loaded ({error})"
        raise BackendUnavailableError(f"{flavor} {reason}; {INSTALL[flavor]}.") from None


def create_logger(trt: ModuleType) -> Any:
    """Return a TensorRT logger that keeps the lines of severity ERROR and INTERNAL_ERROR in its list `errors`."""

    class RecordingLogger(trt.ILogger):  # type: ignore[misc, name-defined]  # the class is known at run time only
        def __init__(self) -> None:
            super().__init__()
            self.errors: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            if severity in (trt.ILogger.Severity.INTERNAL_ERROR, trt.ILogger.Severity.ERROR):
                self.errors.append(message)

    return RecordingLogger()


def check_gpus(trt: ModuleType, gpus: tuple[str, ...]) -> None:
    """Check that TensorRT-RTX knows the compute capabilities, written as `sm86`.

    Raises: ExportError: naming the one that it does not know.
    """
    known = [n.lower() for n in trt.ComputeCapability.__members__ if n.startswith("SM")]
    for gpu in gpus:
        if gpu.lower() not in known:
            note = (
                " Orin (SM87) needs standard TensorRT: use --format tensorrt on the device."
                if gpu.lower() == "sm87"
                else ""
            )
            raise ExportError(
                f"TensorRT-RTX {trt.__version__} cannot build for '{gpu}'.{note or suggest(gpu, known)} Known: {', '.join(known)}."
            )


def build_engine(
    onnx_path: Path,
    *,
    flavor: Flavor,
    gpu: str | None,
    profile: Profile,
    workspace_mib: int,
    optimization_level: int,
    progress: Progress,
) -> bytes:
    """Build a serialized engine.

    Args:
        onnx_path: model with the inputs `images (batch, C, S, S)` and explicit types.
        flavor: which TensorRT.
        gpu: compute capability such as `sm86` for TensorRT-RTX, which needs no GPU; None for `tensorrt`, which builds for
            the GPU of this machine.
        profile: batch sizes the engine accepts and is tuned for.
        workspace_mib: limit of the scratch memory in MiB.
        optimization_level: 0 (fast build) to 5 (fast engine).
        progress: where to report.

    Raises:
        BackendUnavailableError: if the bindings are missing, or `tensorrt` finds no GPU.
        ExportError: with TensorRT's own words if parsing or building fails.
    """
    trt = import_tensorrt(flavor)
    if flavor == "tensorrt" and (missing := cuda_driver_error()):
        # Without a driver trt.Builder ends the process with a segmentation fault.
        raise BackendUnavailableError(
            f"standard TensorRT builds engines on the GPU that runs them, and here is {missing}; "
            "run this command on the device, or use the format tensorrt-rtx."
        )
    logger = create_logger(trt)
    builder = trt.Builder(logger)
    # The flag's bit moved between releases, so it is never written as a number.
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, logger)
    if not parser.parse_from_file(str(onnx_path)):
        problems = [parser.get_error(i).desc() for i in range(parser.num_errors)]
        _fail(flavor, onnx_path, [*problems, *logger.errors])
    if network.num_inputs == 0:
        _fail(flavor, onnx_path, ["the file holds no network", *logger.errors])
    config = builder.create_builder_config()
    config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, workspace_mib << 20)
    config.builder_optimization_level = optimization_level
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    images = network.get_input(0)
    item = tuple(images.shape)[1:]
    shapes = builder.create_optimization_profile()
    shapes.set_shape(images.name, *((batch, *item) for batch in (profile.minimum, profile.optimal, profile.maximum)))
    if config.add_optimization_profile(shapes) < 0:
        _fail(flavor, onnx_path, [f"the batch profile {profile} was refused", *logger.errors])
    if gpu is not None:
        check_gpus(trt, (gpu,))
        config.num_compute_capabilities = 1
        config.set_compute_capability(getattr(trt.ComputeCapability, gpu.upper()), 0)
    name = f"{flavor} {gpu or ''}".strip()
    with progress.task(f"engine {name}", network.num_layers) as task:
        plan = builder.build_serialized_network(network, config)
        task.advance(network.num_layers)
    if plan is None or logger.errors:
        _fail(flavor, onnx_path, logger.errors)
    return bytes(plan)


def _fail(flavor: Flavor, onnx_path: Path, problems: list[str]) -> None:
    reason = "; ".join(dict.fromkeys(" ".join(problem.split()) for problem in problems)) or "no reason given"
    raise ExportError(f"{flavor} could not build an engine from {onnx_path.name}: {reason}")
