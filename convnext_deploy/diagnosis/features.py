"""List which features of this package work on this machine, and what to do for the others."""

from collections.abc import Mapping
from dataclasses import dataclass

from convnext_deploy.diagnosis.machine import Machine, is_jetson
from convnext_deploy.diagnosis.packages import COMPILER, Package
from convnext_deploy.diagnosis.probing import Probe

_NETWORK = ("torch", "torchvision", "numpy", "pillow", "safetensors")
_GRAPHS = ("torch", "numpy", "onnx")
_TENSORRT_FROM = 75  # the oldest compute capability of TensorRT 11 and TensorRT-RTX
_ORIN = 87


@dataclass(frozen=True)
class Feature:
    """Something that this package does: whether it works here, and where it runs, or what to do for it.

    `core`: all else is built on it.
    """

    name: str
    works: bool
    detail: str
    core: bool = False


@dataclass(frozen=True)
class Situation:
    """What a feature may depend on."""

    packages: Mapping[str, Package]
    probes: Mapping[str, Probe]
    machine: Machine

    @property
    def uses_gpu(self) -> bool:
        """Whether PyTorch computes on a GPU."""
        return bool(self.packages["torch"].works and self.probes["torch"].facts.get("gpus"))

    def needs(self, name: str, packages: tuple[str, ...], detail: str, *, core: bool = False) -> Feature:
        """Return a feature that works where all these packages do."""
        lacking = [package for package in packages if not self.packages[package].works]
        if not lacking:
            return Feature(name, True, detail, core)
        return Feature(name, False, "; ".join(self._fix(package) for package in lacking), core)

    def needs_gpu(self, name: str, package: str) -> Feature:
        """Return a feature that works where there is a GPU that TensorRT knows, and this package."""
        gpus = self.machine.gpus
        if not gpus:
            there = "" if self.packages[package].works else f"; there {self.packages[package].fix}"
            return Feature(
                name, False, f"{self.machine.gpu_error or 'no GPU'}: run it on the device that has one{there}"
            )
        if gpus[0].number < _TENSORRT_FROM:
            return Feature(name, False, f"{gpus[0].name} is older than SM{_TENSORRT_FROM}")
        if package in ("tensorrt_rtx", "torch_tensorrt") and gpus[0].number == _ORIN:
            return Feature(name, False, "not for a Jetson Orin: use the TensorRT of JetPack")
        return self.needs(name, (package,), f"on {gpus[0].name}")

    def _fix(self, package: str) -> str:
        found = self.packages[package]
        return f"{package} cannot be used, see above" if found.error is not None else found.fix


def list_features(
    packages: Mapping[str, Package], probes: Mapping[str, Probe], machine: Machine
) -> tuple[Feature, ...]:
    """Return all features in the order in which they are shown."""
    here = Situation(packages, probes, machine)
    cores = f"{machine.cores} core{'s' if machine.cores > 1 else ''}"
    where = f"on {machine.gpus[0].name}" if here.uses_gpu and machine.gpus else f"on the CPU, {cores}"
    return (
        here.needs("train, distill, quantize", _NETWORK, where, core=True),
        _compile(here),
        _several_gpus(here),
        here.needs("export to ONNX", (*_GRAPHS, "onnxscript"), "any precision", core=True),
        here.needs("ONNX Runtime, CPU", ("onnxruntime", "onnx", "numpy"), cores, core=True),
        _runtime_on_gpu(here),
        here.needs("OpenVINO", ("openvino", "numpy"), cores),
        _build_rtx(here),
        here.needs_gpu("TensorRT-RTX, run", "tensorrt_rtx"),
        here.needs_gpu("TensorRT, build and run", "tensorrt"),
        here.needs_gpu("Torch-TensorRT", "torch_tensorrt"),
        here.needs("report.html", ("jinja2",), "any browser"),
        here.needs("WebDataset shards", ("webdataset", "torch"), "--data with .tar files"),
        here.needs(
            "shards at URLs",
            ("webdataset", "fsspec", "aiohttp"),
            "--data https://…; s3:// and gs:// need s3fs and gcsfs",
        ),
        here.needs("published weights", ("huggingface_hub",), "timm/… and facebook/… by name"),
        here.needs("TensorBoard", ("tensorboard", "torch"), "--tensorboard"),
        here.needs("MLflow", ("mlflow",), "--mlflow"),
        _power(here),
    )


def _compile(here: Situation) -> Feature:
    probe = here.probes[COMPILER]
    name = "torch.compile"
    if not here.packages["torch"].works or not probe.works:
        return Feature(name, False, "torch cannot be used, see above" if probe.error is None else probe.error)
    missing = probe.facts.get("missing")
    return Feature(name, missing is None, missing or "--compile")


def _several_gpus(here: Situation) -> Feature:
    count = len(here.machine.gpus)
    name = "several GPUs"
    if count > 1 and here.uses_gpu:
        return Feature(name, True, f"torchrun --nproc-per-node {count} -m convnext_deploy run …")
    return Feature(name, False, "there is one" if count == 1 else here.machine.gpu_error or "torch finds none")


def _runtime_on_gpu(here: Situation) -> Feature:
    name = "ONNX Runtime, GPU"
    if not here.machine.gpus:
        return Feature(name, False, f"{here.machine.gpu_error or 'no GPU'}: run it where there is one")
    providers = here.probes["onnxruntime"].facts.get("providers", ())
    if "CUDAExecutionProvider" not in providers:
        return Feature(name, False, "pip uninstall onnxruntime, then pip install onnxruntime-gpu")
    return Feature(name, True, "--runner onnxruntime-cuda")


def _power(here: Situation) -> Feature:
    name = "GPU power, in bench"
    if not here.machine.gpus:
        return Feature(name, False, here.machine.gpu_error or "no GPU")
    return here.needs(name, ("nvidia-ml-py",), "and temperature")


def _build_rtx(here: Situation) -> Feature:
    name = "TensorRT-RTX, build"
    if is_jetson():
        return Feature(name, False, "not for a Jetson: export to ONNX, and build with the TensorRT of JetPack")
    return here.needs(name, ("tensorrt_rtx", "onnx"), "for SM75 and newer, FP8 for SM89 and newer, without a GPU")
