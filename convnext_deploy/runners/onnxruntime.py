"""Run ONNX artifacts on ONNX Runtime, by any of its execution providers."""

import re
import tempfile
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from convnext_deploy.artifacts.artifact import Artifact
from convnext_deploy.errors import ArtifactError, BackendUnavailableError, first_line
from convnext_deploy.runners.graph_io import Images, Outputs, prepare_images, run_in_parts, to_logits
from convnext_deploy.runners.profiling import Kernel, read_onnxruntime_profile
from convnext_deploy.runners.session_options import PROVIDERS, onnxruntime_entries, provider_options
from convnext_deploy.system.cuda_driver import cuda_driver_error

_PACKAGES = {
    "onnxruntime": "onnxruntime",
    "onnxruntime-cuda": "onnxruntime-gpu",
    "onnxruntime-tensorrt": "onnxruntime-gpu",
    "onnxruntime-openvino": "onnxruntime-openvino",
}
"""Runner → the package on PyPI that brings its provider."""
_TYPES = {"tensor(float)": np.float32, "tensor(float16)": np.float16, "tensor(uint8)": np.uint8}

_LOADING = "[ONNXRuntimeError]"
_PLACE = re.compile(r"^/\S+\.(h|cc):\d+ .*?\) (?=[A-Z])")  # of a line of C++, with all types of a function


class ONNXRuntimeRunner:
    """A session of ONNX Runtime. Types and a frozen batch are those of the file, the layout that of the artifact's details."""

    def __init__(
        self,
        artifact: Artifact,
        name: str = "onnxruntime",
        threads: int | None = None,
        *,
        alone: bool = False,
        profiled: bool = False,
    ) -> None:
        try:
            import onnxruntime
        except ImportError as error:
            raise BackendUnavailableError(
                f"onnxruntime cannot be loaded ({first_line(error)}); pip install {_PACKAGES[name]}."
            ) from None
        provider = PROVIDERS[name]
        if provider not in onnxruntime.get_available_providers():
            raise BackendUnavailableError(
                f"this onnxruntime has no {provider}; pip uninstall onnxruntime, then pip install {_PACKAGES[name]}."
            )
        self.name, self.device = name, "cuda" if name in ("onnxruntime-cuda", "onnxruntime-tensorrt") else "cpu"
        if self.device == "cuda" and (missing := cuda_driver_error()):
            raise BackendUnavailableError(f"{name} was not run: {missing}")
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4  # what is an error is raised, and need not be printed as well
        if threads is not None:
            options.intra_op_num_threads = threads
        for key, value in onnxruntime_entries(artifact.precision, alone=alone).items():
            options.add_session_config_entry(key, value)
        self._profile = tempfile.TemporaryDirectory() if profiled else None
        if self._profile is not None:
            options.enable_profiling, options.profile_file_prefix = True, str(Path(self._profile.name) / "profile")
        chosen = [(provider, provider_options(name, artifact.precision, threads))]
        # what another provider does not support is computed by the CPU's
        fallback = [] if name == "onnxruntime" else ["CPUExecutionProvider"]
        try:
            self.session = onnxruntime.InferenceSession(
                str(artifact.main_file), options, providers=[*chosen, *fallback]
            )
        except Exception as error:
            # ONNX Runtime raises classes of its C++ module that have no common public base
            raise ArtifactError(f"ONNX Runtime cannot open {artifact.main_file}: {_reason(error)}") from None
        if provider not in self.session.get_providers():  # only a log line says that its libraries were not found
            raise BackendUnavailableError(
                f"{provider} does not start here; install what the documentation of {_PACKAGES[name]} asks for."
            )
        self._file, self._io, self._preprocess = artifact.main_file, artifact.io, artifact.preprocess
        self._num_classes = artifact.model.num_classes
        taken = self.session.get_inputs()[0]
        if taken.type not in _TYPES:
            raise ArtifactError(f"{self._file} takes {taken.type}; expected one of {', '.join(_TYPES)}.")
        self._input, self._type = taken.name, _TYPES[taken.type]
        self._batch_size = taken.shape[0] if isinstance(taken.shape[0], int) else None
        self._outputs = [output.name for output in self.session.get_outputs()]

    def prepare(self, images: Images) -> NDArray[np.generic]:
        """Return pixels or normalized images as the file takes them."""
        return prepare_images(images, self._io, self._preprocess, self._type).astype(self._type, copy=False)

    def run(self, prepared: NDArray[np.generic]) -> Outputs:
        """Run the session on prepared images and return its outputs; a frozen batch is filled up."""
        frozen = self._batch_size
        return run_in_parts(prepared, self._run, frozen or max(1, len(prepared)), frozen=frozen is not None)

    def logits(self, images: Images) -> NDArray[np.float32]:
        """Return the logits `(N, num_classes)`, or the features, float32 of pixels or normalized images."""
        return to_logits(self.run(self.prepare(images)), self._num_classes, self._io)

    def _run(self, taken: NDArray[np.generic]) -> Outputs:
        try:
            return dict(zip(self._outputs, self.session.run(self._outputs, {self._input: taken}), strict=True))
        except Exception as error:
            raise ArtifactError(
                f"ONNX Runtime cannot run {self._file} on images of shape {taken.shape}: {' '.join(str(error).split())}"
            ) from None

    def kernels(self) -> tuple[Kernel, ...]:
        """Return the kernels in the order in which they run."""
        return read_onnxruntime_profile(Path(self.session.end_profiling()).read_text(encoding="utf-8"))

    def close(self) -> None:
        """End the session and remove its profile."""
        del self.session
        if self._profile is not None:
            self._profile.cleanup()


def _reason(error: Exception) -> str:
    """Return what ONNX Runtime says, without the path, which stands before it, and the place in its source."""
    text = first_line(error)
    _, found, said = text.partition(" failed:")
    said = _PLACE.sub("", said if found and text.startswith(_LOADING) else text).strip()
    return said or text
