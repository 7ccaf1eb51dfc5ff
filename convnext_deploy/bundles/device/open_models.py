"""Open what a bundle holds, and what was built from it, with whatever this machine can run it with."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    import numpy as np

    Run = Callable[[np.ndarray], dict[str, np.ndarray]]

BUILT_HERE: dict[str, Any] = {"kind": "tensorrt", "gpus": [], "version": None, "host_code": False}


class NotRunError(Exception):
    """This machine cannot run it, which says nothing of the bundle."""


class BrokenError(Exception):
    """It should run here, and does not."""


@dataclass(frozen=True)
class Opener:
    """A model or engine of a bundle, not opened yet. `kind` is `onnx` or `engine`; `model` its entry in `bundle.json`.

    `open()` returns what maps images of the model's own type to its outputs by name. Raises: NotRunError, BrokenError.
    `plan`: the file, where it was built on this device.
    """

    what: str
    kind: str
    model: dict[str, Any]
    open: Callable[[], Run]
    plan: Path | None = None


class Models:
    """All models of a bundle. The GPU is opened once, when the first engine is."""

    def __init__(self, folder: Path, record: dict[str, Any], built: Path, load_sibling: Callable[[str], Any]) -> None:
        """Nothing is opened yet.

        Args:
            folder: the bundle.
            record: of `bundle.json`.
            built: folder of the engines that were built from it.
            load_sibling: imports a file that lies beside this one.
        """
        self._folder, self._record, self._built, self._load_sibling = folder, record, built, load_sibling
        self._gpu: Any = None

    def find(self) -> Iterator[Opener]:
        """Yield each model, each engine, and each engine that can be built on this device from a model."""
        models = {model["name"]: model for model in self._record["models"]}
        for model in models.values():
            yield Opener(model["file"], "onnx", model, lambda model=model: self._open_onnx(model))  # type: ignore[misc]
        for engine in self._record["engines"]:
            yield self._engine(self._folder / engine["file"], models[engine["model"]], engine)
        for model in models.values():
            plan = self._built / f"{model['name']}.plan"
            if plan.is_file():
                yield replace(self._engine(plan, model, BUILT_HERE), plan=plan)
            elif model["buildable"]:
                yield Opener(f"built/{plan.name}", "engine", model, _not_built)

    def _engine(self, path: Path, model: dict[str, Any], built: dict[str, Any]) -> Opener:
        """`built` says what it was built with and for."""
        return Opener(f"{path.parent.name}/{path.name}", "engine", model, lambda: self._open_engine(path, built))

    def _open_onnx(self, model: dict[str, Any]) -> Run:
        try:
            import onnxruntime
        except ImportError as error:
            raise NotRunError(f"onnxruntime cannot be loaded ({error})") from None
        answers = self._load_sibling("answers")
        try:
            run = answers.open_onnx(self._folder / model["file"], model["batch"]["frozen"], model["precision"])
        except Exception as error:
            raise _refused(error, onnxruntime.__version__) from None

        def call(images: np.ndarray) -> dict[str, np.ndarray]:
            try:
                found: dict[str, np.ndarray] = run(images)
            except Exception as error:
                raise _refused(error, onnxruntime.__version__) from None
            return found

        return call

    def _open_engine(self, path: Path, built: dict[str, Any]) -> Run:
        kind, gpus, version = built["kind"], built["gpus"], built["version"]
        device, answers = self._load_sibling("tensorrt_device"), self._load_sibling("answers")
        try:
            driver = device.open_driver()  # before anything of TensorRT, which would end the process
            self._gpu = self._gpu or device.GPU(driver)
            here = self._gpu.capability
            if gpus and here not in gpus:
                raise NotRunError(f"built for {', '.join(gpus)}, this GPU is {here}")
            trt = device.import_bindings(kind)
        except device.DeviceError as error:
            raise NotRunError(str(error)) from None
        try:
            engine = device.Engine(trt, path.read_bytes(), self._gpu, built["host_code"])
        except (device.DeviceError, OSError) as error:
            if version not in (None, trt.__version__):
                raise NotRunError(f"built with {kind} {version}, here is {trt.__version__}") from None
            raise BrokenError(str(error)) from None

        def call(images: np.ndarray) -> dict[str, np.ndarray]:
            try:
                found: dict[str, np.ndarray] = answers.run_in_parts(engine.run, images, *engine.batch_sizes)
            except device.DeviceError as error:
                raise BrokenError(str(error)) from None
            return found

        return call


def _not_built() -> Run:
    raise NotRunError("not built yet: bash build_on_device.sh")


def _refused(error: Exception, version: str) -> BrokenError:
    # ONNX Runtime raises classes of its C++ module that have no common public base
    return BrokenError(f"onnxruntime {version} cannot run it ({' '.join(str(error).split())})")
