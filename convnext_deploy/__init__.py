"""Take a trained ConvNeXt, make it small and fast, prove that it still works, and put it on an edge GPU.

Every verb of the command line is a function of the same name here; importing the package imports nothing heavy.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from convnext_deploy.api import distill, quantize, report, run, train, validate
    from convnext_deploy.benchmarking import bench
    from convnext_deploy.bundling.verification import verify_bundle
    from convnext_deploy.bundling.writing import bundle
    from convnext_deploy.catalog import list_models, recommend
    from convnext_deploy.conversion import convert
    from convnext_deploy.diagnosis.checkup import doctor
    from convnext_deploy.errors import DeployError
    from convnext_deploy.exporting import export
    from convnext_deploy.inspection.files import inspect
    from convnext_deploy.prediction import predict
    from convnext_deploy.reporting.runs import compare

# `models` is a folder of the package; the verb of that name is `list_models`.
_HOMES = {
    "DeployError": "errors",
    "bench": "benchmarking",
    "bundle": "bundling.writing",
    "compare": "reporting.runs",
    "convert": "conversion",
    "distill": "api",
    "doctor": "diagnosis.checkup",
    "export": "exporting",
    "inspect": "inspection.files",
    "list_models": "catalog",
    "predict": "prediction",
    "quantize": "api",
    "recommend": "catalog",
    "report": "api",
    "run": "api",
    "train": "api",
    "validate": "api",
    "verify_bundle": "bundling.verification",
}
__all__ = [
    "DeployError",
    "bench",
    "bundle",
    "compare",
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
]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"convnext_deploy.{_HOMES[name]}"), name)
