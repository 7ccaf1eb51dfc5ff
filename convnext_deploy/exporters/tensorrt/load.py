"""Load a serialized engine on the GPU that runs it."""

from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from convnext_deploy.config.choices import Flavor
from convnext_deploy.errors import ArtifactError, BackendUnavailableError
from convnext_deploy.exporters.tensorrt.bindings import RELEASES, create_logger, logged_reason


@dataclass(frozen=True)
class LoadedEngine:
    """An engine with its execution context; `runtime` must live as long as they do."""

    engine: Any
    context: Any
    logger: Any
    runtime: Any

    def reason(self) -> str:
        """Return in one line what TensorRT logged as errors."""
        return logged_reason(self.logger)


def load_engine(trt: ModuleType, flavor: Flavor, plan: bytes, file: Path, *, host_code: bool = False) -> LoadedEngine:
    """Deserialize a plan. Call it only where there is a GPU: without a driver TensorRT ends the process.

    Args:
        trt: bindings of the flavor.
        flavor: which TensorRT.
        plan: content of the file.
        file: for messages.
        host_code: allow the code for the CPU that a version-compatible plan carries.

    Raises:
        ArtifactError: if it is not a plan, a damaged one, or one of another release.
        BackendUnavailableError: if it is a plan for another GPU, driver or release.
    """
    logger = create_logger(trt)
    runtime = trt.Runtime(logger)
    if RELEASES[flavor].header_check:
        _check_header(trt, runtime, plan, file)
    if host_code:
        runtime.engine_host_code_allowed = True
    engine = runtime.deserialize_cuda_engine(plan)
    if engine is None:
        raise ArtifactError(f"TensorRT {trt.__version__} cannot load {file}: {logged_reason(logger)}")
    context = engine.create_execution_context()
    if context is None:
        raise ArtifactError(f"TensorRT {trt.__version__} cannot run {file}: {logged_reason(logger)}")
    return LoadedEngine(engine, context, logger, runtime)


def _check_header(trt: ModuleType, runtime: Any, plan: bytes, file: Path) -> None:
    validity, diagnostics = runtime.get_engine_validity(plan[: runtime.engine_header_size])
    if validity != trt.EngineValidity.INVALID:
        return
    found = [
        name for name, member in trt.EngineInvalidityDiagnostics.__members__.items() if int(diagnostics) & int(member)
    ]
    if "MALFORMED_ENGINE" in found:
        raise ArtifactError(f"{file} is not an engine of TensorRT-RTX or is damaged; build it again.")
    words = ", ".join(name.lower().replace("_", " ") for name in found) or "no reason given"
    raise BackendUnavailableError(f"TensorRT-RTX {trt.__version__} cannot run {file} here: {words}")
