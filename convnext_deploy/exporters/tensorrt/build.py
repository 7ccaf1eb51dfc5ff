"""Build TensorRT engines from ONNX, on one path for TensorRT 10 and 11 and for TensorRT-RTX.

Networks are strongly typed everywhere: what the ONNX file says is what runs. None of the bindings raises on a wrong setting; it
logs an error and goes on. So settings and shapes are checked here, and everything logged as an error fails the build.
"""

from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import onnx_ir as ir

from convnext_deploy.artifacts.details import Profile
from convnext_deploy.config.choices import Flavor
from convnext_deploy.errors import ExportError
from convnext_deploy.exporters.tensorrt.bindings import create_logger, import_tensorrt, logged_reason, require_gpu
from convnext_deploy.exporters.tensorrt.build_options import BuildOptions, check_gpus, check_options
from convnext_deploy.exporters.tensorrt.progress_monitor import STEPS, build_serialized, create_monitor
from convnext_deploy.exporters.tensorrt.timing_cache import save_timing_cache, use_timing_cache
from convnext_deploy.graphs.compute_nodes import find_compute_nodes
from convnext_deploy.graphs.onnx_view import GraphView, inputs_of
from convnext_deploy.system.progress import Progress

INPUT_TYPES = ("FLOAT", "HALF", "UINT8")
_FP32_ON_TURING = "FP32 GEMM is not supported"
TURING_FIX = (
    "TensorRT-RTX has no FP32 MatMul for Turing (SM75), nor INT8 ones with FP32 scales: export the float artifact with "
    "--precision fp16."
)


@dataclass(frozen=True)
class Engine:
    """A serialized engine, the batch sizes it takes, and the lines that TensorRT logged as warnings, each once."""

    plan: bytes
    batch: Profile
    warnings: tuple[str, ...]


def check_turing(view: GraphView) -> None:
    """Check that TensorRT-RTX can build a graph for Turing (SM75).

    Raises: ExportError: if it has MatMul nodes in FP32, naming the first, with the fix.
    """
    for node in find_compute_nodes(view).compute_nodes:
        if node.node.op_type != "Conv" and inputs_of(node.node)[0].dtype == ir.DataType.FLOAT:
            raise ExportError(f"'{node.layer}' is a MatMul in FP32. {TURING_FIX}")


def check_scales(view: GraphView) -> None:
    """Check that no convolution computes the scale of its activations, on which TensorRT-RTX 1.7.1 ends with a segmentation fault.

    Raises: ExportError: naming the first that does.
    """
    for node in find_compute_nodes(view).compute_nodes:
        grid = node.activation_grid
        if node.node.op_type == "Conv" and grid is not None and grid.scale is None:
            raise ExportError(
                f"'{node.layer}' takes the scale of its activations from the graph, and TensorRT does not survive it; quantize "
                "with scales that are constants, by calibration."
            )


def build_engine(
    onnx_path: Path, *, flavor: Flavor, gpu: str | None, options: BuildOptions, progress: Progress
) -> Engine:
    """Build an engine.

    Args:
        onnx_path: model with one input of images `(batch, …)` in FP32, FP16 or UINT8, and explicit types.
        flavor: which TensorRT.
        gpu: compute capability such as `SM86` for TensorRT-RTX, which needs no GPU; None for `tensorrt`, which builds for
            the GPU of this machine.
        options: see `BuildOptions`.
        progress: where to report.

    Raises:
        BackendUnavailableError: if the bindings are missing, or `tensorrt` finds no GPU.
        ExportError: if the file or an option is wrong, with TensorRT's own words if parsing or building fails.
    """
    require_gpu(flavor)
    trt = import_tensorrt(flavor)
    check_options(flavor, options)
    logger = create_logger(trt)
    builder = trt.Builder(logger)
    # The flag's bit moved between releases, so it is never written as a number.
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, logger)
    if not parser.parse_from_file(str(onnx_path)):
        problems = [parser.get_error(i).desc() for i in range(parser.num_errors)]
        raise _failure(flavor, onnx_path, logger, *problems)
    config = builder.create_builder_config()
    config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, options.workspace_mib << 20)
    config.builder_optimization_level = options.optimization_level
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED  # the engine inspector tells types with this only
    images = _only_input(trt, network, flavor, onnx_path, logger, options.image)
    batch = _set_batch(builder, config, images, options.profile, onnx_path)
    if options.version_compatible:
        config.set_flag(trt.BuilderFlag.VERSION_COMPATIBLE)
    if options.stripped:
        config.set_flag(trt.BuilderFlag.STRIP_PLAN)  # this alone implies REFIT_IDENTICAL
    if gpu is not None:
        check_gpus(trt, (gpu,))
        config.num_compute_capabilities = 1
        config.set_compute_capability(getattr(trt.ComputeCapability, gpu), 0)
    if options.timing_cache is not None:
        use_timing_cache(config, options.timing_cache, logger)
    with progress.task(f"engine {flavor} {gpu or ''}".strip(), STEPS, "%") as task:
        monitor = create_monitor(trt, task)
        plan = build_serialized(builder, network, config, monitor)
        if plan is None or logger.errors:
            raise _failure(flavor, onnx_path, logger)
        if options.timing_cache is not None:
            save_timing_cache(config, options.timing_cache, logger)
        monitor.finish()
    return Engine(bytes(plan), batch, tuple(logger.warnings))


def _only_input(
    trt: ModuleType, network: Any, flavor: Flavor, onnx_path: Path, logger: Any, image: tuple[int, ...] | None
) -> Any:
    """Return the input; where its shape beyond the batch is open, that is fixed to an `image`."""
    if network.num_inputs == 0:
        raise _failure(flavor, onnx_path, logger, "the file holds no network")
    if network.num_inputs > 1:
        raise ExportError(f"{onnx_path.name} has {network.num_inputs} inputs; expected one, of images.")
    images = network.get_input(0)
    shape = tuple(images.shape)
    if image is not None and len(image) == len(shape) - 1 and any(size < 1 for size in shape[1:]):
        images.shape = shape = (shape[0], *image)
    if len(shape) < 2 or any(size < 1 for size in shape[1:]):
        raise ExportError(
            f"the input '{images.name}' of {onnx_path.name} has shape {_shown(shape)}; expected fixed sizes but for the batch, "
            "which comes first. Export it with a fixed image size."
        )
    if images.dtype not in [getattr(trt.DataType, name) for name in INPUT_TYPES]:
        raise ExportError(
            f"the input '{images.name}' of {onnx_path.name} is {images.dtype}; expected {' or '.join(INPUT_TYPES)}."
        )
    return images


def _set_batch(builder: Any, config: Any, images: Any, profile: Profile, onnx_path: Path) -> Profile:
    """Set the optimization profile, and return the batch sizes that the engine will take."""
    batch, *item = tuple(images.shape)
    if batch >= 1:
        if not profile.minimum <= batch <= profile.maximum:
            raise ExportError(
                f"the batch of {onnx_path.name} is frozen at {batch}, and asked for was {profile}. Ask for a maximum of at least "
                f"{batch}, or export the ONNX file with a dynamic batch."
            )
        return Profile(batch, batch, batch)
    shapes = builder.create_optimization_profile()
    sizes = (profile.minimum, profile.optimal, profile.maximum)
    shapes.set_shape(images.name, *((size, *item) for size in sizes))
    if config.add_optimization_profile(shapes) < 0:
        raise ExportError(f"TensorRT refused the batch profile {profile} for {onnx_path.name}.")
    return profile


def _shown(shape: tuple[int, ...]) -> str:
    return str(tuple("?" if size < 0 else size for size in shape)).replace("'", "")


def _failure(flavor: Flavor, onnx_path: Path, logger: Any, *problems: str) -> ExportError:
    reason = logged_reason(logger, *problems)
    fix = ""
    if _FP32_ON_TURING in reason:
        fix = f" {TURING_FIX}"
    elif "out of memory" in reason.lower():
        fix = " Lower workspace_mib, or free memory of the GPU."
    return ExportError(f"{flavor} could not build an engine from {onnx_path.name}: {reason}{fix}")
