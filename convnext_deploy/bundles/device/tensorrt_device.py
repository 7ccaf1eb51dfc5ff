"""Run engines with TensorRT and the CUDA driver alone: a device has neither PyTorch nor this package."""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

BINDINGS = {"tensorrt": "tensorrt", "tensorrt-rtx": "tensorrt_rtx"}
NUMPY_TYPES = {
    "FLOAT": "float32",
    "HALF": "float16",
    "INT8": "int8",
    "UINT8": "uint8",
    "INT32": "int32",
    "INT64": "int64",
}
_CAPABILITY_MAJOR, _CAPABILITY_MINOR = 75, 76  # of CUdevice_attribute


class DeviceError(Exception):
    """What TensorRT or the driver could not do."""


class NoDeviceError(DeviceError):
    """This machine has no driver or no GPU. TensorRT must not be touched then: it would end the process."""


def open_driver() -> Any:
    """Return the CUDA driver's library, ready for use.

    Raises: NoDeviceError: if there is no driver or no GPU.
    """
    try:
        driver = ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
    except OSError:
        raise NoDeviceError("no NVIDIA driver") from None
    if driver.cuInit(0) != 0:
        raise NoDeviceError("the NVIDIA driver does not start")
    count = ctypes.c_int(0)
    if driver.cuDeviceGetCount(ctypes.byref(count)) != 0 or count.value == 0:
        raise NoDeviceError("the NVIDIA driver sees no GPU")
    return driver


def import_bindings(kind: str) -> Any:
    """Return the module of `tensorrt` or `tensorrt-rtx`; call `open_driver` first. Raises: DeviceError: if it is not there."""
    try:
        return importlib.import_module(BINDINGS[kind])
    except (ImportError, OSError) as error:
        raise DeviceError(f"the Python bindings of {kind} cannot be loaded ({error})") from None


def create_logger(trt: Any) -> Any:
    """Return a TensorRT logger that keeps error lines in its list `errors`: the bindings log what others raise."""

    class RecordingLogger(trt.ILogger):  # type: ignore[misc]  # the class is known at run time only
        def __init__(self) -> None:
            super().__init__()
            self.errors: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            if severity in (trt.ILogger.Severity.INTERNAL_ERROR, trt.ILogger.Severity.ERROR):
                self.errors.append(" ".join(message.split()))

    return RecordingLogger()


def reason(lines: list[str]) -> str:
    """Return error lines as one."""
    return "; ".join(dict.fromkeys(lines)) or "no reason given"


class GPU:
    """The first GPU, its memory and a stream, through the driver alone."""

    def __init__(self, driver: Any) -> None:
        self._driver = driver
        self._buffers: list[ctypes.c_uint64] = []
        self._device, self._context, self._stream = ctypes.c_int(0), ctypes.c_void_p(), ctypes.c_void_p()
        self._call("cuDeviceGet", ctypes.byref(self._device), 0)
        # the primary context, because it is the one that TensorRT uses
        self._call("cuDevicePrimaryCtxRetain", ctypes.byref(self._context), self._device)
        self._call("cuCtxSetCurrent", self._context)
        self._call("cuStreamCreate", ctypes.byref(self._stream), 0)

    def _call(self, name: str, *arguments: Any) -> None:
        code = getattr(self._driver, name)(*arguments)
        if code != 0:
            raise DeviceError(f"{name} of the CUDA driver failed with code {code}")

    @property
    def capability(self) -> str:
        """Compute capability, such as `SM87`."""
        parts = [ctypes.c_int(0), ctypes.c_int(0)]
        for part, attribute in zip(parts, (_CAPABILITY_MAJOR, _CAPABILITY_MINOR)):  # noqa: B905  (Python 3.8)
            self._call("cuDeviceGetAttribute", ctypes.byref(part), attribute, self._device)
        return f"SM{parts[0].value}{parts[1].value}"

    @property
    def stream(self) -> int:
        """Handle of the stream."""
        return self._stream.value or 0

    def allocate(self, size: int) -> int:
        """Return the address of `size` bytes, which `free` gives back."""
        address = ctypes.c_uint64(0)
        self._call("cuMemAlloc_v2", ctypes.byref(address), ctypes.c_size_t(max(1, size)))
        self._buffers.append(address)
        return address.value

    def upload(self, address: int, array: np.ndarray) -> None:
        """Copy a contiguous array to the GPU."""
        source = ctypes.c_void_p(array.ctypes.data)
        self._call("cuMemcpyHtoD_v2", ctypes.c_uint64(address), source, ctypes.c_size_t(array.nbytes))

    def download(self, array: np.ndarray, address: int) -> None:
        """Fill a contiguous array from the GPU, after everything on the stream is done."""
        self._call("cuStreamSynchronize", self._stream)
        target = ctypes.c_void_p(array.ctypes.data)
        self._call("cuMemcpyDtoH_v2", target, ctypes.c_uint64(address), ctypes.c_size_t(array.nbytes))

    def free(self) -> None:
        """Give back all memory."""
        while self._buffers:
            self._call("cuMemFree_v2", self._buffers.pop())


class Engine:
    """A plan on a GPU. Only names that TensorRT 10.3 to 11 and TensorRT-RTX all have are used."""

    def __init__(self, trt: Any, plan: bytes, gpu: GPU, host_code: bool = False) -> None:
        """Load a plan.

        Args:
            trt: bindings of its kind.
            plan: content of the file.
            gpu: where it runs.
            host_code: allow the code for the CPU that a plan for several versions of TensorRT carries.

        Raises: DeviceError: with TensorRT's own words.
        """
        self._gpu, self._logger = gpu, create_logger(trt)
        self._runtime = trt.Runtime(self._logger)
        if host_code:
            self._runtime.engine_host_code_allowed = True
        self._engine = self._runtime.deserialize_cuda_engine(plan)
        if self._engine is None:
            raise DeviceError(f"TensorRT {trt.__version__} cannot load it: {reason(self._logger.errors)}")
        self._context = self._engine.create_execution_context()
        if self._context is None:
            raise DeviceError(f"TensorRT {trt.__version__} cannot run it: {reason(self._logger.errors)}")
        names = [self._engine.get_tensor_name(index) for index in range(self._engine.num_io_tensors)]
        self.input = next(n for n in names if self._engine.get_tensor_mode(n) == trt.TensorIOMode.INPUT)
        self._outputs = [name for name in names if name != self.input]

    @property
    def batch_sizes(self) -> tuple[int, int]:
        """Smallest and largest batch that the engine takes."""
        frozen = int(next(iter(self._engine.get_tensor_shape(self.input))))
        if frozen > 0:
            return frozen, frozen
        shapes = self._engine.get_tensor_profile_shape(self.input, 0)
        return int(shapes[0][0]), int(shapes[2][0])

    def run(self, images: np.ndarray) -> dict[str, np.ndarray]:
        """Map images of the engine's own type and shape, `(N, ...)`, to its outputs by name.

        Raises: DeviceError: with TensorRT's own words.
        """
        import numpy as np

        images = np.ascontiguousarray(images)
        if images.dtype != self._type(self.input):
            raise DeviceError(f"it takes {self._type(self.input)} images, not {images.dtype}")
        if not self._context.set_input_shape(self.input, tuple(images.shape)):
            raise DeviceError(f"it does not take images of shape {images.shape}: {reason(self._logger.errors)}")
        try:
            found = {name: np.zeros((len(images), *self._item(name)), self._type(name)) for name in self._outputs}
            addresses = {name: self._gpu.allocate(array.nbytes) for name, array in found.items()}
            addresses[self.input] = self._gpu.allocate(images.nbytes)
            self._gpu.upload(addresses[self.input], images)
            for name, address in addresses.items():
                self._context.set_tensor_address(name, address)
            if not self._context.execute_async_v3(self._gpu.stream):
                raise DeviceError(f"it failed: {reason(self._logger.errors)}")
            for name, array in found.items():
                self._gpu.download(array, addresses[name])
        finally:
            self._gpu.free()
        return found

    def _item(self, name: str) -> tuple[int, ...]:
        return tuple(self._context.get_tensor_shape(name))[1:]

    def _type(self, name: str) -> str:
        kind = self._engine.get_tensor_dtype(name).name
        if kind not in NUMPY_TYPES:
            raise DeviceError(f"its tensor '{name}' has the type {kind}, which is not read here")
        return NUMPY_TYPES[kind]


def place_for_triton(bundle: Path, plan: Path, model: str) -> Path | None:
    """Put a built plan where the bundle's Triton repository expects it, if there is one; return where."""
    folder = bundle / "triton" / "tensorrt" / model
    if not folder.is_dir():
        return None
    target = folder / "1" / "model.plan"
    target.parent.mkdir(exist_ok=True)
    partial = target.with_name(".model.plan.partial")
    try:
        shutil.copyfile(plan, partial)
        partial.replace(target)
    except OSError as error:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
        raise OSError(f"{target} cannot be written ({error.strerror}); make room, and copy {plan} there") from None
    return target
