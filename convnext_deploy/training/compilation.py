"""`torch.compile` by choice."""

from __future__ import annotations

import importlib.util
import os
import shutil

import torch
from torch import nn

from convnext_deploy.errors import BackendUnavailableError


def compile_network(network: nn.Module, device: str) -> None:
    """Let `torch.compile` make kernels for a network when it is first called.

    Raises: BackendUnavailableError: if there is no compiler.
    """
    is_cuda = torch.device(device).type == "cuda"
    compiler = os.environ.get("CXX", "g++")
    if not is_cuda and shutil.which(compiler) is None:
        raise BackendUnavailableError(
            f"compile = true needs a C++ compiler, and there is no {compiler}; install one, or leave compile out."
        )
    if is_cuda and importlib.util.find_spec("triton") is None:
        raise BackendUnavailableError(
            "compile = true needs the package triton, which comes with torch on Linux; or leave it out."
        )
    # Kernels are counted over all networks of a class: after eight, which three stages reach, the next would silently have none.
    torch.compiler.reset()
    network.compile()
