"""What can be asked of the build of an engine, and what of it a release of TensorRT and this machine can do."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from convnext_deploy.artifacts.details import Profile
from convnext_deploy.config.choices import Flavor
from convnext_deploy.errors import ExportError
from convnext_deploy.exporters.tensorrt.bindings import RELEASES
from convnext_deploy.exporters.tensorrt.timing_cache import check_cache_file
from convnext_deploy.system.cuda_driver import cuda_driver_error

FIRST_WITH_FP8 = 89  # compute capability


@dataclass(frozen=True)
class BuildOptions:
    """How an engine is built.

    `profile` counts for a graph with a dynamic batch; a frozen one must lie within it. `workspace_mib` limits the scratch memory
    in MiB. `optimization_level` is 0 (fast build) to 5 (fast engine). `timing_cache` is a file that is used, if it is there, and
    brought up to date. A `version_compatible` plan runs in later releases, too. A `stripped` one holds no weights; they are put
    back on the device from the ONNX file. `image`: the shape of one, for a graph that takes any size.
    """

    profile: Profile
    workspace_mib: int = 1024
    optimization_level: int = 3
    timing_cache: Path | None = None
    version_compatible: bool = False
    stripped: bool = False
    image: tuple[int, ...] | None = None


def check_gpus(trt: ModuleType, gpus: Sequence[str]) -> None:
    """Check that TensorRT-RTX builds for the compute capabilities, written as `SM86`.

    Raises: ExportError: naming the one that it lacks, and what to do instead.
    """
    known = [name for name in trt.ComputeCapability.__members__ if name.startswith("SM")]
    for gpu in gpus:
        if gpu not in known:
            place = "a Jetson Orin (SM87)" if gpu == "SM87" else gpu
            raise ExportError(
                f"TensorRT-RTX {trt.__version__} cannot build for {place}, only for {', '.join(known)}. Use standard TensorRT: "
                "export to ONNX, and on the device run --format tensorrt or the build_on_device.sh of a bundle."
            )


def check_fp8(gpus: Sequence[str]) -> None:
    """Check that GPUs, by their compute capabilities such as `SM89`, multiply FP8.

    Raises: ExportError: naming those that do not, and what to do instead.
    """
    older = [gpu for gpu in gpus if int(gpu.removeprefix("SM")) < FIRST_WITH_FP8]
    if older:
        raise ExportError(
            f"FP8 needs SM{FIRST_WITH_FP8} or newer (RTX 40 and 50, L4, H100, Thor); asked for was {', '.join(older)}. Leave that "
            "out, or quantize the FP32 ancestor with --target tensorrt, for INT8."
        )


def check_options(flavor: Flavor, options: BuildOptions) -> None:
    """Check that a flavor can build so on this machine.

    Raises: ExportError: naming the option, and what to do.
    """
    release = RELEASES[flavor]
    if options.timing_cache is not None:
        if not release.timing_cache:
            raise ExportError(
                "TensorRT-RTX has no timing cache: it builds in seconds, and chooses kernels when the engine is loaded. "
                "Leave timing_cache out, or use --format tensorrt."
            )
        check_cache_file(options.timing_cache)
    if options.version_compatible and not release.version_compatible:
        raise ExportError(
            "TensorRT-RTX comes without the lean runtime that version-compatible plans are made of. Leave version_compatible out, "
            "or use --format tensorrt on the device."
        )
    if options.stripped and (missing := cuda_driver_error()):
        raise ExportError(
            f"the weights of a plan are stripped on a GPU only, and here is {missing}. Leave stripped out, or build on a machine "
            "with a GPU."
        )
    profile = options.profile
    if not 1 <= profile.minimum <= profile.optimal <= profile.maximum:
        raise ExportError(f"batch sizes {profile}: expected 1 <= minimum <= optimal <= maximum.")
