"""Judge the packages that this one uses: which are installed, which can be used, and which do not fit together."""

import importlib.metadata
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name

from convnext_deploy.config.choices import Flavor
from convnext_deploy.diagnosis.machine import Machine, is_jetson
from convnext_deploy.diagnosis.probing import Probe
from convnext_deploy.errors import BackendUnavailableError
from convnext_deploy.exporters.tensorrt.bindings import INSTALL, check_version
from convnext_deploy.system.environment import installed_version

OWN = "convnext_deploy"
DRIVER, COMPILER = "convnext_deploy.system.cuda_driver", "convnext_deploy.training.torch_compile"
_FLAVORS: dict[str, Flavor] = {"tensorrt": "tensorrt", "tensorrt_rtx": "tensorrt-rtx"}


@dataclass(frozen=True)
class Listed:
    """A package: what is imported of it, the names under which it is distributed, and the extra that installs it.

    `module` None: too slow to import for what it is needed for; that it is installed must do. `extra` None: this package needs it.
    """

    name: str
    module: str | None
    distributions: tuple[str, ...]
    extra: str | None = None


LISTED = (
    Listed("torch", "torch", ("torch",)),
    Listed("torchvision", "torchvision", ("torchvision",)),
    Listed("numpy", "numpy", ("numpy",)),
    Listed("pillow", "PIL.Image", ("pillow",)),
    Listed("safetensors", "safetensors", ("safetensors",)),
    Listed("click", "click", ("click",)),
    Listed("rich", "rich.console", ("rich",)),
    Listed("jinja2", "jinja2", ("jinja2",)),
    Listed("packaging", "packaging", ("packaging",)),
    Listed("pyyaml", "yaml", ("pyyaml",)),
    Listed("msgspec", "msgspec", ("msgspec",)),
    Listed("onnx", "onnx", ("onnx",)),
    Listed("ml_dtypes", None, ("ml_dtypes",)),
    Listed("onnx-ir", None, ("onnx-ir",)),
    Listed("onnxscript", None, ("onnxscript",)),
    Listed(
        "onnxruntime",
        "onnxruntime",
        ("onnxruntime", "onnxruntime-gpu", "onnxruntime-openvino", "onnxruntime-directml", "onnxruntime-training"),
    ),
    Listed("tensorrt_rtx", "tensorrt_rtx", ("tensorrt_rtx",)),
    Listed("openvino", "openvino", ("openvino",), "openvino"),
    Listed("tensorrt", "tensorrt", ("tensorrt", "tensorrt-cu13", "tensorrt-cu12"), "tensorrt"),
    Listed("torch_tensorrt", "torch_tensorrt", ("torch-tensorrt", "torch-tensorrt-rtx"), "torch-tensorrt"),
    Listed("huggingface_hub", "huggingface_hub", ("huggingface_hub",), "hub"),
    Listed("webdataset", "webdataset", ("webdataset",), "webdataset"),
    Listed("fsspec", "fsspec", ("fsspec",), "remote"),
    Listed("aiohttp", "aiohttp", ("aiohttp",), "remote"),
    Listed("tensorboard", "tensorboard", ("tensorboard",), "tensorboard"),
    Listed("mlflow", "mlflow", ("mlflow", "mlflow-skinny"), "mlflow"),
    Listed("nvidia-ml-py", "pynvml", ("nvidia-ml-py",), "nvml"),
)
# Of those that import torch, and so begin with its seconds; the others go beside them.
_WITH_TORCH = ("torch", "torchvision", "webdataset", "torch_tensorrt")


@dataclass(frozen=True)
class Package:
    """What became of a listed package. `version` None: not installed, or it does not tell; `error`: why it cannot be used."""

    name: str
    installed: bool
    version: str | None
    error: str | None
    distributions: tuple[str, ...]
    extra: str | None

    @property
    def works(self) -> bool:
        """Whether it is there and can be used."""
        return self.installed and self.error is None

    @property
    def fix(self) -> str:
        """What installs it, or mends it."""
        if self.name in _FLAVORS:
            return INSTALL[_FLAVORS[self.name]]
        if self.extra is not None and not self.installed:
            return f"pip install '{OWN}[{self.extra}]'"
        again = "--force-reinstall --no-deps " if self.installed else ""
        return f"pip install {again}{self.distributions[0]}"


def chains() -> tuple[tuple[str, ...], ...]:
    """Return the modules to import, those of a process in their order."""
    modules = {listed.name: listed.module for listed in LISTED if listed.module is not None}
    first = tuple(modules.pop(name) for name in _WITH_TORCH)
    # the compiler is looked for by a module of ours that needs torch
    return ((*first[:2], COMPILER, *first[2:]), (DRIVER, *modules.values()))


def requirements_of(distribution: str, *, extras: bool = False) -> list[Requirement]:
    """Return what a distribution needs on this machine, with `extras` also what any of its extras needs.

    What cannot be read is left out: pip has the last word, not this check.
    """
    try:
        metadata = importlib.metadata.metadata(distribution)
        asked = ["", *(metadata.get_all("Provides-Extra", []) if extras else [])]
        lines = metadata.get_all("Requires-Dist", [])
    except Exception:  # damaged
        return []
    found = []
    for line in lines:
        try:
            requirement = Requirement(line)
        except InvalidRequirement:
            continue
        if requirement.marker is None or any(requirement.marker.evaluate({"extra": extra}) for extra in asked):
            found.append(requirement)
    return found


def find_misfits(distributions: Iterable[str], own: str) -> list[tuple[str, Requirement, str]]:
    """Return each of the distributions that another one of them needs in another version: who needs it, what, and what is there.

    Args:
        distributions: names; those that are not installed do not count.
        own: the one of them whose extras count as well.
    """
    found = {canonicalize_name(name): version for name in distributions if (version := installed_version(name))}
    return [
        (name, requirement, found[needed])
        for name in found
        for requirement in requirements_of(name, extras=name == canonicalize_name(own))
        if (needed := canonicalize_name(requirement.name)) in found
        and not requirement.specifier.contains(found[needed], prereleases=True)
    ]


def judge_packages(probes: Mapping[str, Probe]) -> dict[str, Package]:
    """Return all listed packages by their names."""
    return {listed.name: _judge(listed, probes) for listed in LISTED}


def _judge(listed: Listed, probes: Mapping[str, Probe]) -> Package:
    installed = {name: version for name in listed.distributions if (version := installed_version(name)) is not None}
    found = tuple(installed) or listed.distributions
    version = next(iter(installed.values()), None)
    if listed.module is None:
        return Package(listed.name, bool(installed), version, None, found, listed.extra)
    probe = probes[listed.module]
    error = probe.error
    if probe.missing and installed:
        error = f"there is metadata of {found[0]} {version}, and no module {listed.module}"
    if probe.version is not None:  # what is imported counts, and not what the metadata in another folder says
        version = probe.version.partition("-")[0]
    if probe.works and listed.name in _FLAVORS:
        try:
            check_version(_FLAVORS[listed.name], probe.version or version or "of no version")
        except BackendUnavailableError as wrong:
            error = str(wrong)
    return Package(listed.name, bool(installed) or not probe.missing, version, error, found, listed.extra)


def find_problems(packages: Mapping[str, Package], probes: Mapping[str, Probe], machine: Machine) -> Iterator[str]:
    """Yield, in a line each, what is broken or does not fit together, and what to do."""
    for package in packages.values():
        if package.error is not None:
            yield f"{package.name} cannot be used ({package.error}): {package.fix}"
        elif not package.installed and package.extra is None and package.name != "tensorrt_rtx":
            yield f"{package.name} is not installed: {package.fix}"
    if installed_version(OWN) is None:
        yield f"{OWN} itself is not installed, only its files are here: pip install -e . in the folder of its pyproject.toml"
    names = [OWN, *(name for package in packages.values() for name in package.distributions)]
    for who, needed, found in find_misfits(names, OWN):
        what = f"{needed.name}{needed.specifier}"
        yield f"{who} needs {needed.name} {needed.specifier}, and {found} is installed: pip install '{what}'"
    runtimes = [name for name in packages["onnxruntime"].distributions if installed_version(name) is not None]
    if len(runtimes) > 1:
        yield (
            f"{' and '.join(runtimes)} are installed together, and each overwrites files of the other: pip uninstall "
            f"{' '.join(runtimes)}, then install one of them"
        )
    yield from _find_gpu_problems(packages, probes, machine)


def _find_gpu_problems(packages: Mapping[str, Package], probes: Mapping[str, Probe], machine: Machine) -> Iterator[str]:
    torch = probes["torch"]
    if not machine.gpus or not packages["torch"].works:
        return
    cuda = torch.facts.get("cuda")
    if cuda is None:
        again = "pip uninstall torch torchvision, then install them again"
        what = "take the build of JetPack" if is_jetson() else again
        yield f"torch {torch.version} is a build without CUDA, and there is a GPU: {what}"
    elif not torch.facts.get("gpus"):
        yield (
            f"torch {torch.version} for CUDA {cuda} finds no GPU, and the driver does (it runs CUDA up to {machine.driver_cuda}): "
            "update the driver, and look at CUDA_VISIBLE_DEVICES"
        )
