"""Take a trained ConvNeXt, make it small and fast, prove that it still works, and put it on an edge GPU.

Every verb of the command line is a function of the same name here, but for `models`, which is a folder of the package: its
function is `list_models`. Importing the package imports nothing heavy.
"""

from __future__ import annotations

TYPE_CHECKING = False  # that of `typing`, which takes longer to import than all of this
if TYPE_CHECKING:
    from typing import Any

    from convnext_deploy.api.bench import bench
    from convnext_deploy.api.bundle import bundle
    from convnext_deploy.api.collect import collect
    from convnext_deploy.api.compare import compare
    from convnext_deploy.api.compress import compress
    from convnext_deploy.api.convert import convert
    from convnext_deploy.api.distill import distill
    from convnext_deploy.api.doctor import doctor
    from convnext_deploy.api.export import export
    from convnext_deploy.api.inspect import inspect
    from convnext_deploy.api.list_models import list_models
    from convnext_deploy.api.options import DataOptions, EvaluationOptions, ExecutionOptions, TrainingOptions
    from convnext_deploy.api.predict import predict
    from convnext_deploy.api.quantize import quantize
    from convnext_deploy.api.recommend import recommend
    from convnext_deploy.api.report import report
    from convnext_deploy.api.run import run
    from convnext_deploy.api.train import train
    from convnext_deploy.api.validate import validate
    from convnext_deploy.api.verify_bundle import verify_bundle
    from convnext_deploy.api.view import view
    from convnext_deploy.errors import DeployError

_OPTIONS = ("DataOptions", "EvaluationOptions", "ExecutionOptions", "TrainingOptions")
_HOMES = {"DeployError": "errors", **dict.fromkeys(_OPTIONS, "api.options")}  # every other one: `api.NAME`
__all__ = [
    "DataOptions",
    "DeployError",
    "EvaluationOptions",
    "ExecutionOptions",
    "TrainingOptions",
    "bench",
    "bundle",
    "collect",
    "compare",
    "compress",
    "convert",
    "distill",
    "doctor",
    "export",
    "inspect",
    "list_models",
    "predict",
    "quantize",
    "recommend",
    "report",
    "run",
    "train",
    "validate",
    "verify_bundle",
    "view",
]


def __dir__() -> list[str]:
    return sorted({*__all__, *(name for name in globals() if name.startswith("__"))})


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(f"convnext_deploy.{_HOMES.get(name, f'api.{name}')}"), name)
