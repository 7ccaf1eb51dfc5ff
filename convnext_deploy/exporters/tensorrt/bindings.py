"""Import the bindings of TensorRT and TensorRT-RTX; one table has what differs between them for this package.

Everything else that the package calls exists in all of them; `tests/exporters/test_tensorrt_releases.py` checks both against the
names of five releases. Numbers of flags differ as well, so flags are always read from the release's own enumerations.
"""

import importlib
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from packaging.version import InvalidVersion, Version

from convnext_deploy.config.choices import Flavor
from convnext_deploy.errors import BackendUnavailableError
from convnext_deploy.system.cuda_driver import cuda_driver_error

INSTALL: dict[Flavor, str] = {
    "tensorrt-rtx": "pip install 'tensorrt_rtx>=1.7,<1.8'",
    "tensorrt": "pip install 'convnext_deploy[tensorrt]' (on a Jetson: use the TensorRT of JetPack)",
}


@dataclass(frozen=True)
class Release:
    """What the releases of a flavor can do, from `first` to the last one of the major version `last_major`.

    `builds_for_gpus`: engines are built for named compute capabilities and need no GPU for it; otherwise for the GPU present.
    `timing_cache`: builds are faster with one (TensorRT-RTX has the calls, and they do nothing). `version_compatible`: plans that
    later releases run can be made (TensorRT-RTX lacks the library for it). `header_check`: whether a plan can run here is asked of
    its header, with reasons.
    """

    first: str
    last_major: int
    builds_for_gpus: bool
    timing_cache: bool
    version_compatible: bool
    header_check: bool


RELEASES: dict[Flavor, Release] = {
    "tensorrt": Release(
        first="10.3",  # JetPack 6
        last_major=11,
        builds_for_gpus=False,
        timing_cache=True,
        version_compatible=True,
        header_check=False,
    ),
    "tensorrt-rtx": Release(
        first="1.7", last_major=1, builds_for_gpus=True, timing_cache=False, version_compatible=False, header_check=True
    ),
}


def import_tensorrt(flavor: Flavor) -> ModuleType:
    """Import the bindings of a flavor.

    Raises: BackendUnavailableError: if they are not installed, with the install line, or their release is not known.
    """
    try:
        trt = importlib.import_module("tensorrt_rtx" if flavor == "tensorrt-rtx" else "tensorrt")
    except (ImportError, OSError) as error:
        # where a library is missing the bindings load it themselves, and ctypes raises OSError
        reason = "is not installed" if isinstance(error, ModuleNotFoundError) else f"cannot be loaded ({error})"
        raise BackendUnavailableError(f"{flavor} {reason}; {INSTALL[flavor]}.") from None
    check_version(flavor, str(getattr(trt, "__version__", "of no version")))
    return trt


def check_version(flavor: Flavor, version: str) -> None:
    """Check a version such as `10.16.1.11`.

    Raises: BackendUnavailableError: if it is older or newer than what the table knows.
    """
    row = RELEASES[flavor]
    try:
        known = Version(row.first) <= (found := Version(version)) and found.major <= row.last_major
    except InvalidVersion:
        known = False
    if not known:
        expected = f"{row.first} to {row.last_major}.x"
        raise BackendUnavailableError(f"{flavor} {version} is installed; expected {expected}: {INSTALL[flavor]}.")


def require_gpu(flavor: Flavor) -> None:
    """Check that there is a GPU for a flavor that builds on the one that runs the engine.

    Raises: BackendUnavailableError: if there is none. TensorRT itself would end the process with a segmentation fault.
    """
    if not RELEASES[flavor].builds_for_gpus and (missing := cuda_driver_error()):
        raise BackendUnavailableError(
            f"standard TensorRT builds engines on the GPU that runs them, and here is {missing}; "
            "run this command on the device, or use the format tensorrt-rtx."
        )


def create_logger(trt: ModuleType) -> Any:
    """Return a TensorRT logger with the lists `errors` (severity ERROR and INTERNAL_ERROR) and `warnings` of single lines."""

    class RecordingLogger(trt.ILogger):  # type: ignore[misc, name-defined]  # the class is known at run time only
        def __init__(self) -> None:
            super().__init__()
            self.errors: list[str] = []
            self.warnings: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            line = " ".join(message.split())
            if severity in (trt.ILogger.Severity.INTERNAL_ERROR, trt.ILogger.Severity.ERROR):
                _add(self.errors, line)
            elif severity == trt.ILogger.Severity.WARNING:
                _add(self.warnings, line)

    return RecordingLogger()


def logged_reason(logger: Any, *more: str) -> str:
    """Return `more` and what was logged as errors, in one line."""
    return "; ".join(dict.fromkeys(" ".join(line.split()) for line in (*more, *logger.errors))) or "no reason given"


def _add(lines: list[str], line: str) -> None:
    if line not in lines:
        lines.append(line)
