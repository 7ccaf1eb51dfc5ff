"""`torch.compile` by choice."""

import importlib.util
import inspect
import os
import shlex
import shutil
import sysconfig
from pathlib import Path
from typing import Any

import torch
from torch import nn

from convnext_deploy.errors import BackendUnavailableError


def compile_network(network: nn.Module, device: str) -> None:
    """Let `torch.compile` make kernels for a network when it is first called.

    Raises: BackendUnavailableError: if there is no compiler, or not what it needs.
    """
    check_compiler(is_cuda=torch.device(device).type == "cuda", wanted_by="compile = true", instead="leave compile out")
    # Kernels are counted over all networks of a class: after eight, which three stages reach, the next would silently have none.
    torch.compiler.reset()
    network.compile()


def compile_alone(network: nn.Module) -> nn.Module:
    """Return a network with kernels of its own, for each batch size.

    They are otherwise counted over all networks of a class, and after eight there are no more. Releases of PyTorch without a way to
    keep them apart forget those of all other networks here, which are compiled again if they are called again.
    """
    compile_with: Any = torch.compile
    if "isolate_recompiles" in inspect.signature(compile_with).parameters:
        compiled: nn.Module = compile_with(network, dynamic=False, isolate_recompiles=True)
    else:
        torch.compiler.reset()
        compiled = compile_with(network, dynamic=False)
    return compiled


def check_compiler(*, is_cuda: bool, wanted_by: str, instead: str) -> None:
    """Check before any work what would end it in its first step, with pages of a compiler's text.

    Args:
        is_cuda: whether the kernels are for a GPU.
        wanted_by: what needs the compiler, for the message.
        instead: what to do without a compiler, for the message.

    Raises: BackendUnavailableError: if there is no compiler, or not what it needs.
    """
    if is_cuda and importlib.util.find_spec("triton") is None:
        raise BackendUnavailableError(
            f"{wanted_by} needs the package triton, which comes with torch on Linux; or {instead}."
        )
    # kernels for a CPU are C++; Triton compiles what loads its kernels, which is C
    language, variable, usual = ("C", "CC", ("gcc", "clang")) if is_cuda else ("C++", "CXX", ("g++",))
    asked = os.environ.get(variable)
    compilers = usual if asked is None else shlex.split(asked)[:1]  # such as "ccache g++"
    if not any(shutil.which(compiler) for compiler in compilers):
        missing = " or ".join(usual) if asked is None else f"'{asked}', which {variable} asks for"
        raise BackendUnavailableError(
            f"{wanted_by} needs a {language} compiler, and there is no {missing}; install one, or {instead}."
        )
    header = Path(sysconfig.get_path("include"), "Python.h")
    if not header.is_file():
        raise BackendUnavailableError(
            f"{wanted_by} needs the headers of Python, and there is no {header}; install them (python3-dev), or {instead}."
        )
