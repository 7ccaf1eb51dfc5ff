"""ONNX artifacts on ONNX Runtime's CPU provider."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from convnext_deploy.artifact import Artifact
from convnext_deploy.errors import ArtifactError, BackendUnavailableError, first_line
from convnext_deploy.runners.graph_io import Outputs, graph_io, prepare_images, run_in_parts, to_logits

_TYPES = {"tensor(float)": np.float32, "tensor(float16)": np.float16, "tensor(uint8)": np.uint8}


class ONNXRuntimeRunner:
    """See `Runner`. Types and a frozen batch are those of the file itself; the layout is that of the artifact's details."""

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
        self._file, self._io, self._preprocess = artifact.main_file, graph_io(artifact), artifact.preprocess
        self._num_classes = artifact.model.num_classes
        taken = self._session.get_inputs()[0]
        if taken.type not in _TYPES:
            raise ArtifactError(f"{self._file} takes {taken.type}; expected one of {', '.join(_TYPES)}.")
        self._input, self._type = taken.name, _TYPES[taken.type]
        self._batch_size = taken.shape[0] if isinstance(taken.shape[0], int) else None
        self._outputs = [output.name for output in self._session.get_outputs()]

    def logits(self, images: NDArray[np.float32]) -> NDArray[np.float32]:
        """See `Runner.logits`."""
        taken = prepare_images(images, self._io, self._preprocess).astype(self._type, copy=False)
        frozen = self._batch_size
        outputs = run_in_parts(taken, self._run, frozen or max(1, len(taken)), frozen=frozen is not None)
        return to_logits(outputs, self._num_classes)

    def _run(self, taken: NDArray[np.generic]) -> Outputs:
        try:
            return dict(zip(self._outputs, self._session.run(self._outputs, {self._input: taken}), strict=True))
        except Exception as error:
            raise ArtifactError(
                f"ONNX Runtime cannot run {self._file} on images of shape {taken.shape}: {' '.join(str(error).split())}"
            ) from None

    def close(self) -> None:
        """See `Runner.close`."""
        del self._session
