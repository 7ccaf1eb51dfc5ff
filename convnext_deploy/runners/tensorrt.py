"""TensorRT and TensorRT-RTX engines, with the GPU buffers held by PyTorch."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from convnext_deploy.artifact import Artifact
from convnext_deploy.cuda_driver import cuda_driver_error
from convnext_deploy.errors import ArtifactError, BackendUnavailableError
from convnext_deploy.exporters.tensorrt_engine import create_logger, import_tensorrt


class TensorRTRunner:
    """See `Runner`. Uses only names that exist in TensorRT 10.3 to 11 and in TensorRT-RTX."""

    name = "tensorrt"
    device = "cuda"

    def __init__(self, artifact: Artifact) -> None:
        gpus = ", ".join(artifact.details["gpus"])
        built = f"built for {gpus}" if gpus else "built"
        if missing := cuda_driver_error():
            # Without a driver trt.Runtime ends the process with a segmentation fault.
            raise BackendUnavailableError(f"{built}; not run: {missing}")
        import torch

        if not torch.cuda.is_available():
            raise BackendUnavailableError(f"{built}; not run: this PyTorch has no CUDA support")
        major, minor = torch.cuda.get_device_capability()
        file = artifact.main_file
        if gpus:
            here = f"SM{major}{minor}"
            if here not in artifact.details["gpus"]:
                raise BackendUnavailableError(f"{built}; not run: this GPU is {here}")
            file = artifact.path / f"model.{here.lower()}.plan"
        trt = import_tensorrt(artifact.details["flavor"])
        self._torch = torch
        self._logger = create_logger(trt)
        self._runtime = trt.Runtime(self._logger)
        engine = self._runtime.deserialize_cuda_engine(file.read_bytes())
        if engine is None:
            raise ArtifactError(f"TensorRT {trt.__version__} cannot load {file}: {self._reason()}")
        self._engine = engine
        names = [engine.get_tensor_name(i) for i in range(engine.num_io_tensors)]
        self._input = next(n for n in names if engine.get_tensor_mode(n) == trt.TensorIOMode.INPUT)
        self._output = next(n for n in names if n != self._input)
        self._context = engine.create_execution_context()
        if self._context is None:
            raise ArtifactError(f"TensorRT {trt.__version__} cannot run {file}: {self._reason()}")
        self._max_batch_size = int(artifact.details["max_batch_size"])
        self._num_classes = artifact.model.num_classes

    def logits(self, images: NDArray[np.float32]) -> NDArray[np.float32]:
        """See `Runner.logits`. Batches larger than the engine's profile are run in parts."""
        size = self._max_batch_size
        parts = [self._run(images[start : start + size]) for start in range(0, len(images), size)]
        return np.concatenate(parts)

    def _run(self, images: NDArray[np.float32]) -> Any:
        torch = self._torch
        stream = torch.cuda.Stream()
        with torch.cuda.stream(stream):
            buffer = torch.from_numpy(np.ascontiguousarray(images)).cuda()
            output = torch.empty((len(images), self._num_classes), device="cuda")
            if not self._context.set_input_shape(self._input, tuple(buffer.shape)):
                raise ArtifactError(f"the engine does not take images of shape {tuple(buffer.shape)}: {self._reason()}")
            self._context.set_tensor_address(self._input, buffer.data_ptr())
            self._context.set_tensor_address(self._output, output.data_ptr())
            if not self._context.execute_async_v3(stream.cuda_stream):
                raise ArtifactError(f"the engine failed: {self._reason()}")
            stream.synchronize()
            return output.cpu().numpy()

    def _reason(self) -> str:
        return "; ".join(" ".join(line.split()) for line in self._logger.errors) or "no reason given"

    def close(self) -> None:
        """See `Runner.close`."""
        del self._context, self._engine, self._runtime
