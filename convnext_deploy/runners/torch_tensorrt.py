"""Run Torch-TensorRT programs on the GPU that they were compiled for."""

import numpy as np
import torch
from numpy.typing import NDArray

from convnext_deploy.artifacts.artifact import Artifact
from convnext_deploy.artifacts.details import TorchTensorRTDetails
from convnext_deploy.artifacts.spec import GraphIO
from convnext_deploy.errors import ArtifactError, BackendUnavailableError, first_line
from convnext_deploy.exporters.tensorrt.torch_tensorrt import DEVICE, gpu_error, load_program
from convnext_deploy.runners.graph_io import Images, Outputs, prepare_images, run_in_parts, to_logits
from convnext_deploy.system.cuda_driver import gpu_name


class TorchTensorRTRunner:
    """A Torch-TensorRT program on the GPU that it was compiled for."""

    name = "torch-tensorrt"
    device = "cuda"

    def __init__(self, artifact: Artifact) -> None:
        details = artifact.details_as(TorchTensorRTDetails)
        built_for, self._most = details.gpu, details.max_batch_size
        missing = gpu_error()
        if missing is None and (here := gpu_name()) != built_for:
            missing = f"this GPU is {here}"
        if missing is not None:
            raise BackendUnavailableError(f"built for {built_for}; not run: {missing}")
        self._program = load_program(artifact.main_file)
        self._preprocess, self._num_classes, self._io = artifact.preprocess, artifact.model.num_classes, artifact.io

    def prepare(self, images: Images) -> NDArray[np.generic]:
        """Return normalized images `(N, C, S, S)` float32."""
        return prepare_images(images, GraphIO(), self._preprocess)

    def run(self, prepared: NDArray[np.generic]) -> Outputs:
        """Run prepared images and return the logits. Larger batches than it is for are run in parts."""
        return run_in_parts(prepared, self._run, self._most, frozen=False)

    def logits(self, images: Images) -> NDArray[np.float32]:
        """Return the logits `(N, num_classes)`, or the features, float32 of pixels or normalized images."""
        return to_logits(self.run(self.prepare(images)), self._num_classes, self._io)

    def _run(self, images: NDArray[np.generic]) -> Outputs:
        batch = torch.from_numpy(np.ascontiguousarray(images)).to(DEVICE)
        try:
            with torch.no_grad():
                logits = self._program(batch)
        except Exception as error:
            # a guard of the program, or whatever TensorRT's runtime raises
            raise ArtifactError(
                f"the program does not take images of shape {images.shape}: {first_line(error)}"
            ) from error
        return {"logits": logits.cpu().numpy()}

    def close(self) -> None:
        """Let go of the program."""
        del self._program
