"""Take a trained ConvNeXt, make it small and fast, prove that it still works, and put it on an edge GPU.

Every verb of the command line is a function of the same name here; importing the package imports nothing heavy.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from convnext_deploy.api import distill, export, quantize, report, run, train, validate
    from convnext_deploy.errors import DeployError

__all__ = ["DeployError", "distill", "export", "quantize", "report", "run", "train", "validate"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from convnext_deploy import api, errors

    return getattr(errors if name == "DeployError" else api, name)
