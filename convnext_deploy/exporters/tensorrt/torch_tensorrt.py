"""Compile a float network to a Torch-TensorRT program: one engine inside a PyTorch program, in FP32 or FP16.

The dynamo path of Torch-TensorRT is strongly typed: the types of the exported program are those of the engine. INT8 has no way
through here, because Torch-TensorRT converts the quantizers of NVIDIA's Model Optimizer and no others.

A program is saved as an exported program, which `torch.export.load` reads wherever `torch_tensorrt` is imported. An AOT Inductor
package would need a C++ compiler on the machine that exports, and there is nothing to compile: all layers are in the engine.
"""

import contextlib
import importlib
import importlib.metadata
import io
import logging
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import torch
from packaging.version import Version
from torch import nn
from torch.export import ExportedProgram

from convnext_deploy.artifacts.details import Profile
from convnext_deploy.config.choices import Precision
from convnext_deploy.errors import ArtifactError, BackendUnavailableError, ExportError
from convnext_deploy.exporters.tensorrt.torch_program import dynamic_shapes, example_images, export_program
from convnext_deploy.models.convnext import ConvNeXt
from convnext_deploy.system.cuda_driver import cuda_driver_error
from convnext_deploy.system.disk_faults import Target, cannot_write, system_error

INSTALL = "pip install 'convnext_deploy[torch-tensorrt]'"
DEVICE = "cuda"
_LOGGER = "torch_tensorrt [TensorRT Conversion Context]"  # where TensorRT itself reports
_PACKAGES = ("torch-tensorrt", "torch-tensorrt-rtx")  # both are imported as torch_tensorrt


def compile_program(
    network: ConvNeXt,
    *,
    precision: Precision,
    profile: Profile,
    image: tuple[int, int, int],
    workspace_mib: int,
    optimization_level: int,
) -> nn.Module:
    """Build the engine of a network for the GPU of this machine, and return the module that runs it.

    Args:
        network: float32, in evaluation mode; it is left alone.
        precision: see `export_program`; TensorRT computes float32 products in TF32, as it does by default.
        profile: batch sizes that the engine accepts and is tuned for.
        image: `(C, S, S)`.
        workspace_mib: limit of the scratch memory in MiB.
        optimization_level: 0 (fast build) to 5 (fast engine).

    Raises:
        BackendUnavailableError: if Torch-TensorRT cannot be used here.
        ExportError: with the words of the exporter or of Torch-TensorRT, or if a layer would have stayed in PyTorch.
    """
    torch_tensorrt = import_torch_tensorrt()
    program = export_program(network, precision=precision, profile=profile, image=image, device=DEVICE)
    low, best, high = ((batch, *image) for batch in (profile.minimum, profile.optimal, profile.maximum))
    # As a single shape, `opt_shape` would be ignored: the engine would be tuned for the batch that was traced, which is never 1.
    shapes = {"profiles": [{"min_shape": low, "opt_shape": best, "max_shape": high}]}
    try:
        with _quiet() as problems:
            compiled: nn.Module = torch_tensorrt.dynamo.compile(
                program,
                arg_inputs=[
                    torch_tensorrt.Input(
                        **({"shape": best} if low == high else shapes), dtype=torch.float32, name="images"
                    )
                ],
                require_full_compilation=True,  # without it, what TensorRT lacks would run in PyTorch, and nobody would know
                workspace_size=workspace_mib << 20,
                optimization_level=optimization_level,
            )
    except Exception as error:
        raise ExportError(f"Torch-TensorRT could not build an engine: {_reason(error, problems)}") from error
    if problems:
        raise ExportError(f"Torch-TensorRT could not build an engine: {'; '.join(problems)}")
    parts = [name for name, _ in compiled.named_children()]
    if len(parts) != 1 or "_run_on_acc" not in parts[0]:
        raise ExportError(f"Torch-TensorRT made {parts or 'no engine'} of the network; expected one engine.")
    return compiled


def save_program(compiled: nn.Module, path: Path, *, profile: Profile, image: tuple[int, int, int]) -> None:
    """Write what `compile_program` gave as an exported program; `profile` and `image` are those it was compiled for.

    Raises: ExportError, OutputError: with the words of Torch-TensorRT, or if it cannot be written.
    """
    torch_tensorrt = import_torch_tensorrt()
    try:
        with _quiet() as problems:
            torch_tensorrt.save(
                compiled,
                str(path),
                output_format="exported_program",
                arg_inputs=[example_images(profile, image, DEVICE)],
                dynamic_shapes=dynamic_shapes(profile),
            )
    except Exception as error:
        if (found := system_error(error)) is not None:
            raise cannot_write(Target(path), found) from None
        raise ExportError(f"Torch-TensorRT could not save {path.name}: {_reason(error, problems)}") from error


def load_program(path: Path) -> nn.Module:
    """Return the module that runs a saved program. Like every engine, the file runs code: open no file of unknown origin.

    Raises:
        BackendUnavailableError: if Torch-TensorRT cannot be used here.
        ArtifactError: with the words of Torch-TensorRT if it cannot read the file.
    """
    torch_tensorrt = import_torch_tensorrt()
    try:
        with _quiet() as problems:
            found = torch_tensorrt.load(str(path))
    except Exception as error:
        raise ArtifactError(
            f"{path} is not a program that Torch-TensorRT {torch_tensorrt.__version__} can load: {_reason(error, problems)}"
        ) from None
    if not isinstance(found, ExportedProgram):
        raise ArtifactError(f"{path} is not an exported program but a {type(found).__name__}; export it again.")
    return found.module()


def gpu_error() -> str | None:
    """Return why a program can neither be built nor run on this machine, or None when it can."""
    return cuda_driver_error() or (None if torch.cuda.is_available() else "this PyTorch has no CUDA support")


def import_torch_tensorrt() -> ModuleType:
    """Import Torch-TensorRT.

    Raises: BackendUnavailableError: if there is no GPU, or the package is missing, for another PyTorch, or cannot be loaded.
    """
    if missing := gpu_error():
        # Even the import fails without a driver, so there is nothing to install yet.
        raise BackendUnavailableError(
            f"Torch-TensorRT builds on the GPU that runs the program, and here is {missing}; "
            "run this command there, or use the format tensorrt-rtx."
        )
    for package in _PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            _check_release(package, importlib.metadata.version(package))
    try:
        with _quiet() as problems:
            return importlib.import_module("torch_tensorrt")
    except Exception as error:
        # Without its libraries it raises Exception itself, or what its parts raise.
        absent = isinstance(error, ModuleNotFoundError) and error.name == "torch_tensorrt"
        reason = "is not installed" if absent else f"cannot be loaded ({_reason(error, problems)})"
        raise BackendUnavailableError(f"torch_tensorrt {reason}; {INSTALL}.") from None


def _check_release(package: str, release: str) -> None:
    # Each release is compiled for one minor release of PyTorch, and with another one it fails with an undefined symbol at best.
    wanted, found = Version(torch.__version__), Version(release)
    if wanted.release[:2] != found.release[:2]:
        made_for = f"PyTorch {found.major}.{found.minor}"
        raise BackendUnavailableError(
            f"{package} {release} is for {made_for} and here is PyTorch {torch.__version__}; {INSTALL}."
        )


class _Kept(logging.Handler):
    """Keeps messages, each in one line."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(" ".join(record.getMessage().split()))


@contextlib.contextmanager
def _quiet() -> Iterator[list[str]]:
    """Keep what Torch-TensorRT prints and logs from the terminal; yield the errors that TensorRT logs, which raises none of them.

    It prints tracebacks, and warns that an engine does not take batch 1 which does.
    """
    kept = _Kept()
    loggers = [(logging.getLogger("torch_tensorrt"), logging.CRITICAL), (logging.getLogger(_LOGGER), logging.ERROR)]
    before = [(logger.level, logger.propagate) for logger, _ in loggers]
    for logger, level in loggers:
        logger.propagate = False
        logger.setLevel(level)
        logger.addHandler(kept)
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            yield kept.lines
    finally:
        for (logger, _), (level, propagate) in zip(loggers, before, strict=True):
            logger.removeHandler(kept)
            logger.setLevel(level)
            logger.propagate = propagate


def _reason(error: Exception, problems: list[str]) -> str:
    return "; ".join(dict.fromkeys(filter(None, [*problems, " ".join(str(error).split())]))) or type(error).__name__
