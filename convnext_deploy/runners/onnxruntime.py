"""ONNX artifacts on ONNX Runtime's CPU provider."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from convnext_deploy.artifact import Artifact
from convnext_deploy.errors import ArtifactError, BackendUnavailableError, first_line


class ONNXRuntimeRunner:
    """See `Runner`."""

    name = "onnxruntime"
    device = "cpu"

    def __init__(self, artifact: Artifact) -> None:
        try:
            import onnxruntime
        except ImportError as error:
            raise BackendUnavailableError(f"onnxruntime cannot be loaded ({error}); pip install onnxruntime.") from None
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        # Threads that spin while idle would take the cores from whatever runs next in this process.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        try:
            self._session = onnxruntime.InferenceSession(
                str(artifact.main_file), options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:
            # ONNX Runtime raises classes of its C++ module that have no common public base
            raise ArtifactError(f"ONNX Runtime cannot open {artifact.main_file}: {first_line(error)}") from None
        self._file = artifact.main_file
        self._input = self._session.get_inputs()[0].name
        self._output = self._session.get_outputs()[0].name

    def logits(self, images: NDArray[np.float32]) -> NDArray[np.float32]:
        """See `Runner.logits`."""
        try:
            result: NDArray[np.float32] = self._session.run([self._output], {self._input: images})[0]
        except Exception as error:
            raise ArtifactError(
                f"ONNX Runtime cannot run {self._file} on images of shape {images.shape}: {' '.join(str(error).split())}"
            ) from None
        return result

    def close(self) -> None:
        """See `Runner.close`."""
        del self._session
