"""Run ONNX artifacts on OpenVINO's CPU plugin."""

import functools
import importlib.util
import sys
from typing import Any

import numpy as np
from numpy.typing import NDArray

from convnext_deploy.artifacts.artifact import Artifact
from convnext_deploy.errors import ArtifactError, BackendUnavailableError, first_line
from convnext_deploy.runners.graph_io import Images, Outputs, prepare_images, run_in_two_sizes, to_logits
from convnext_deploy.runners.profiling import Kernel, median_kernels, single_times
from convnext_deploy.runners.session_options import OPENVINO_PRECISIONS, openvino_properties

_TELEMETRY = "openvino_telemetry"
_TYPES = {"f32": np.float32, "f16": np.float16, "u8": np.uint8}


def is_installed() -> bool:
    """Return whether the package is here, without importing it."""
    try:
        return importlib.util.find_spec("openvino") is not None
    except ValueError:  # what stands in for a package that is hidden
        return False


def computes_bf16() -> bool:
    """Return whether this CPU has units for bf16. Raises: BackendUnavailableError: if the package cannot be loaded."""
    return "BF16" in openvino_core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")


@functools.cache
def openvino_core() -> Any:
    """Return the `openvino.Core` of this process, which is all that anything here may use. Raises: BackendUnavailableError.

    There is one and it stays: the CPU plugin of each core replaces the stack that signals are handled on, and puts the one it
    found back when the core goes. Of two, the second puts back that of the first, which is gone, and the next signal, such as
    Ctrl-C or the end of a process that loads images, ends the program by a segmentation fault.
    """
    return _import().Core()


def _import() -> Any:
    # Being imported, the package tells its maker so over the network, unless the package that does it is not there.
    hidden = _TELEMETRY not in sys.modules
    if hidden:
        sys.modules[_TELEMETRY] = None  # type: ignore[assignment]  # which Python takes as: cannot be imported
    try:
        import openvino
    except ImportError as error:
        raise BackendUnavailableError(
            f"openvino cannot be loaded ({first_line(error)}); pip install 'convnext_deploy[openvino]'."
        ) from None
    finally:
        if hidden:
            del sys.modules[_TELEMETRY]
    return openvino


class OpenVINORunner:
    """A graph on OpenVINO's CPU plugin, in the types that `openvino_properties` chooses.

    Graphs with a fixed batch are 1.3 to 1.5 times as fast, so one is compiled for single images and one for the first larger batch;
    other batches are run in parts of that size.
    """

    device = "cpu"

    def __init__(
        self, artifact: Artifact, name: str = "openvino", threads: int | None = None, *, profiled: bool = False
    ) -> None:
        self.name = name
        core = openvino_core()
        computed = OPENVINO_PRECISIONS[name]
        if computed == "bf16" and not computes_bf16():
            raise BackendUnavailableError("this CPU has no bf16 units; use the runner openvino.")
        self._properties = openvino_properties(computed, artifact.precision, threads)
        if profiled:
            self._properties["PERF_COUNT"] = "YES"
        self._profiled, self._means = profiled, list[dict[tuple[str, str], float]]()
        self._file, self._io, self._preprocess = artifact.main_file, artifact.io, artifact.preprocess
        self._num_classes = artifact.model.num_classes
        try:
            self._model = core.read_model(str(self._file))
        except Exception as error:
            raise ArtifactError(f"OpenVINO cannot open {self._file}: {_reason(error)}") from None
        taken = self._model.inputs[0]
        self._shape, type_name = taken.get_partial_shape(), taken.get_element_type().get_type_name()
        if type_name not in _TYPES:
            raise ArtifactError(f"{self._file} takes {type_name}; expected one of {', '.join(_TYPES)}.")
        self._type = _TYPES[type_name]
        self._batch_size = None if self._shape[0].is_dynamic else int(self._shape[0].get_length())
        self._requests: dict[int, Any] = {}
        self._many = self._batch_size or 1

    def prepare(self, images: Images) -> NDArray[np.generic]:
        """Return pixels or normalized images as the file takes them."""
        return prepare_images(images, self._io, self._preprocess, self._type).astype(self._type, copy=False)

    def run(self, prepared: NDArray[np.generic]) -> Outputs:
        """Infer prepared images and return the outputs."""
        if self._many == 1 and self._batch_size is None:
            self._many = len(prepared)
        return run_in_two_sizes(prepared, self._run, self._many, single=self._batch_size is None)

    def logits(self, images: Images) -> NDArray[np.float32]:
        """Return the logits `(N, num_classes)`, or the features, float32 of pixels or normalized images."""
        return to_logits(self.run(self.prepare(images)), self._num_classes, self._io)

    def request(self, batch_size: int) -> Any:
        """Return what runs batches of this size, compiled when it is first asked for."""
        if batch_size not in self._requests:
            model = self._model.clone()
            try:
                if self._batch_size is None:
                    model.reshape([batch_size, *list(self._shape)[1:]])
                compiled = openvino_core().compile_model(model, "CPU", self._properties)
            except Exception as error:
                raise ArtifactError(f"OpenVINO cannot run {self._file}: {_reason(error)}") from None
            self._requests[batch_size] = compiled.create_infer_request()
        return self._requests[batch_size]

    def _run(self, taken: NDArray[np.generic]) -> Outputs:
        request = self.request(len(taken))
        try:
            results = request.infer([taken], share_inputs=True)
        except Exception as error:
            raise ArtifactError(
                f"OpenVINO cannot run {self._file} on images of shape {taken.shape}: {_reason(error)}"
            ) from None
        if self._profiled:
            self._means.append(
                {
                    (kernel.node_name, kernel.node_type): 1000 * kernel.real_time.total_seconds()
                    for kernel in request.profiling_info
                    if kernel.status == kernel.Status.EXECUTED
                }
            )
        return {name: values for port, values in results.items() for name in port.get_names()}

    def kernels(self) -> tuple[Kernel, ...]:
        """Return the kernels in the order in which they run."""
        return median_kernels(single_times(self._means))

    def close(self) -> None:
        """Let go of the compiled graphs."""
        del self._requests, self._model


def _reason(error: Exception) -> str:
    """Return what OpenVINO says, without the places in its source that stand before and between."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    said = [line for line in lines if not line.startswith(("Exception from", "Check '"))]
    return (said or lines or [type(error).__name__])[-1]
