"""Run TensorRT and TensorRT-RTX engines, with the GPU buffers held by PyTorch."""

from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from convnext_deploy.artifacts.artifact import Artifact
from convnext_deploy.artifacts.details import EngineDetails
from convnext_deploy.documents import read_bytes, reason
from convnext_deploy.errors import ArtifactError, BackendUnavailableError, first_line
from convnext_deploy.exporters.tensorrt.bindings import import_tensorrt
from convnext_deploy.exporters.tensorrt.load import load_engine
from convnext_deploy.graphs.engine_plan import LARGEST_PLAN
from convnext_deploy.graphs.engine_precisions import inspect_engine, read_sources
from convnext_deploy.runners.graph_io import Images, Outputs, prepare_images, run_in_parts, to_logits
from convnext_deploy.runners.profiling import Kernel, median_kernels
from convnext_deploy.system.cuda_driver import cuda_driver_error, gpu_name

_DTYPES = {
    "FLOAT": "float32",
    "HALF": "float16",
    "BF16": "bfloat16",
    "UINT8": "uint8",
    "INT32": "int32",
    "INT64": "int64",
}
"""TensorRT's types of inputs and outputs → PyTorch's."""


class TensorRTRunner:
    """An engine of either flavor; types, batch sizes and outputs are those of the engine itself."""

    name = "tensorrt"
    device = "cuda"

    def __init__(self, artifact: Artifact, *, profiled: bool = False) -> None:
        details = artifact.details_as(EngineDetails)
        flavor, gpus = details.flavor, details.gpus
        built = f"built for {', '.join(gpus)}" if gpus else "built"
        if missing := cuda_driver_error():
            # Without a driver trt.Runtime ends the process with a segmentation fault.
            raise BackendUnavailableError(f"{built}; not run: {missing}")
        import torch

        if not torch.cuda.is_available():
            raise BackendUnavailableError(f"{built}; not run: this PyTorch has no CUDA support")
        if details.stripped:
            raise BackendUnavailableError(
                f"{built}; not run: it has no weights until they are put back from the ONNX file"
            )
        self._file = artifact.main_file
        if gpus:
            here = gpu_name()
            if here not in gpus:
                raise BackendUnavailableError(f"{built}; not run: this GPU is {here}")
            self._file = artifact.path / f"model.{here.lower()}.plan"
        trt = import_tensorrt(flavor)
        try:
            plan = read_bytes(self._file, LARGEST_PLAN)
        except OSError as error:
            raise ArtifactError(f"{self._file} cannot be read ({reason(error)}); build it again.") from None
        try:
            self._loaded = load_engine(trt, flavor, plan, self._file, host_code=details.version_compatible)
        except ArtifactError as error:
            if details.tensorrt == trt.__version__:
                raise
            raise ArtifactError(
                f"it was built with TensorRT {details.tensorrt}, and here is {trt.__version__}; build it again: {error}"
            ) from None
        self._trt, self._profiler = trt, create_profiler(trt) if profiled else None
        if self._profiler is not None:
            self._loaded.context.profiler = self._profiler
        self._torch, self._io, self._preprocess = torch, artifact.io, artifact.preprocess
        self._num_classes = artifact.model.num_classes
        engine = self._loaded.engine
        names = [engine.get_tensor_name(i) for i in range(engine.num_io_tensors)]
        inputs = [name for name in names if engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT]
        if len(inputs) != 1:
            raise ArtifactError(f"{self._file} has {len(inputs)} inputs; expected one, of images.")
        self._input = inputs[0]
        self._dtypes = {name: self._dtype(trt, engine.get_tensor_dtype(name), name) for name in names}
        frozen, *self._item = tuple(engine.get_tensor_shape(self._input))
        least, _, most = (
            (frozen,) * 3
            if frozen > 0
            else (int(shape[0]) for shape in engine.get_tensor_profile_shape(self._input, 0))
        )
        self._batch_size, self._padded = most, least > 1

    def _dtype(self, trt: Any, found: Any, name: str) -> Any:
        for theirs, ours in _DTYPES.items():
            if found == getattr(trt.DataType, theirs):
                return getattr(self._torch, ours)
        raise ArtifactError(f"'{name}' of {self._file} is {found}; expected one of {', '.join(_DTYPES)}.")

    def prepare(self, images: Images) -> NDArray[np.generic]:
        """Return pixels or normalized images as the engine takes them. Raises: ArtifactError: if it takes others."""
        half = self._dtypes[self._input] == self._torch.float16
        taken = prepare_images(images, self._io, self._preprocess, np.float16 if half else np.float32)
        whole = self._dtypes[self._input] == self._torch.uint8
        if list(taken.shape[1:]) != self._item or whole != (taken.dtype == np.uint8):
            raise ArtifactError(
                f"{self._file} takes images of shape {tuple(self._item)} and {self._dtypes[self._input]}; "
                f"found {taken.shape[1:]} and {taken.dtype}."
            )
        return taken

    def run(self, prepared: NDArray[np.generic]) -> Outputs:
        """Run prepared images and return the outputs. Larger batches than the engine takes are run in parts."""
        return run_in_parts(prepared, self._run, self._batch_size, frozen=self._padded)

    def logits(self, images: Images) -> NDArray[np.float32]:
        """Return the logits `(N, num_classes)`, or the features, float32 of pixels or normalized images."""
        return to_logits(self.run(self.prepare(images)), self._num_classes, self._io)

    def _run(self, taken: NDArray[np.generic]) -> Outputs:
        torch = self._torch
        self._loaded.logger.errors.clear()  # what is said from here on is about this run
        try:
            stream = torch.cuda.Stream()
            with torch.cuda.stream(stream):
                images = torch.from_numpy(np.ascontiguousarray(taken)).cuda().to(self._dtypes[self._input])
                buffers = self._set_buffers(images)
                if not self._loaded.context.execute_async_v3(stream.cuda_stream):
                    raise ArtifactError(f"the engine {self._file} failed: {self._loaded.reason()}")
                stream.synchronize()
                return {name: self._to_array(buffer) for name, buffer in buffers.items() if name != self._input}
        except RuntimeError as error:  # PyTorch's, as for too little memory
            raise ArtifactError(
                f"the GPU did not run {self._file} on {len(taken)} images ({first_line(error)}); free its memory, or build the "
                "engine for smaller batches."
            ) from None

    def _set_buffers(self, images: Any) -> dict[str, Any]:
        """Return tensor name → the memory that the engine was told to use for it."""
        context, shape = self._loaded.context, tuple(images.shape)
        if not context.set_input_shape(self._input, shape):
            raise ArtifactError(f"{self._file} does not take images of shape {shape}: {self._loaded.reason()}")
        buffers = {self._input: images}
        for name, dtype in self._dtypes.items():
            if name != self._input:
                buffers[name] = self._torch.empty(tuple(context.get_tensor_shape(name)), dtype=dtype, device="cuda")
            if not context.set_tensor_address(name, buffers[name].data_ptr()):
                raise ArtifactError(f"{self._file} refuses the memory for '{name}': {self._loaded.reason()}")
        return buffers

    def _to_array(self, buffer: Any) -> NDArray[np.generic]:
        array: NDArray[np.generic] = (buffer.float() if buffer.is_floating_point() else buffer).cpu().numpy()
        return array

    def kernels(self) -> tuple[Kernel, ...]:
        """Return the kernels in the order in which they run, with the nodes that the engine inspector names for each."""
        assert self._profiler is not None  # whoever asks has opened the engine for it
        nodes = read_sources(inspect_engine(self._trt, self._loaded.engine, self._loaded.context))
        return median_kernels(((name, "", ms) for name, ms in self._profiler.times), nodes)

    def close(self) -> None:
        """Let go of the engine and its memory."""
        del self._loaded


def create_profiler(trt: ModuleType) -> Any:
    """Return a TensorRT profiler whose list `times` gets the name and the milliseconds of each kernel that runs."""

    class RecordingProfiler(trt.IProfiler):  # type: ignore[misc, name-defined]  # the class is known at run time only
        def __init__(self) -> None:
            super().__init__()
            self.times: list[tuple[str, float]] = []

        def report_layer_time(self, layer_name: str, ms: float) -> None:
            self.times.append((layer_name, ms))

    return RecordingProfiler()
