"""A stand-in for Torch-TensorRT, made from the parameters of its functions: what it does not know raises. PyTorch does the work."""

from __future__ import annotations

import json
import logging
import sys
import traceback
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from torch import fx, nn
from torch.export import ExportedProgram

from convnext_deploy.exporters.tensorrt import torch_tensorrt

GOLDEN = Path(__file__).parents[1] / "golden" / "torch_tensorrt_api" / "torch_tensorrt-2.14.0.json"
API: dict[str, Any] = json.loads(GOLDEN.read_text(encoding="utf-8"))
GPU = (8, 6)


@dataclass
class Script:
    """How a stand-in acts, and below `parts` what was done with it."""

    fails: str | None = None
    logged: tuple[str, ...] = ()
    parts: tuple[str, ...] = ("_run_on_acc_0",)

    programs: list[ExportedProgram] = field(default_factory=list)
    compiled_with: list[dict[str, Any]] = field(default_factory=list)
    saved_with: list[dict[str, Any]] = field(default_factory=list)


class Input:
    """The shapes of an argument; it has no other names than the real one reads."""

    def __init__(self, **specification: Any) -> None:
        assert set(specification) <= set(API["input"]), specification
        shapes = [name for name in ("shape", "profiles", "opt_shape") if name in specification]
        assert len(shapes) == 1, f"the real one takes one of them, and found {shapes}"
        self.specification = specification


def create_stand_in(script: Script) -> ModuleType:
    """Return a module that compiles a program by splitting nothing off: its one part is the program itself."""

    def compile_program(exported_program: ExportedProgram, **settings: Any) -> fx.GraphModule:
        _check("torch_tensorrt.dynamo.compile", settings)
        assert all(isinstance(entry, Input) for entry in settings["arg_inputs"])
        print("a line that the real one prints")
        for line in script.logged:
            logging.getLogger(API["logger"]).error(line)
        logging.getLogger("torch_tensorrt.dynamo._compiler").warning("The compiled engine's min will be 2.")
        if script.fails is not None:
            raise AssertionError(script.fails)
        script.programs.append(exported_program)
        script.compiled_with.append(settings)
        return _split(exported_program.module(), script.parts)

    def save(module: nn.Module, file_path: str, **settings: Any) -> None:
        _check("torch_tensorrt.save", settings)
        assert settings["output_format"] == "exported_program"
        assert all(isinstance(entry, torch.Tensor) for entry in settings["arg_inputs"])
        if script.fails is not None:
            raise ValueError(script.fails)
        script.saved_with.append(settings)
        program = torch.export.export(
            module, tuple(settings["arg_inputs"]), dynamic_shapes=settings["dynamic_shapes"], strict=False
        )
        torch.export.save(program, file_path)

    def load(file_path: str) -> ExportedProgram:
        try:
            return torch.export.load(file_path)
        except Exception:
            traceback.print_exc()
        raise ValueError(f"The file {file_path} doesn't correspond to a valid program.\nPlease verify the file path.")

    module = ModuleType("torch_tensorrt")
    contents: Any = module
    contents.__version__, contents.Input, contents.save, contents.load = API["release"], Input, save, load
    contents.dynamo = SimpleNamespace(compile=compile_program)
    return module


def install_stand_in(patch: pytest.MonkeyPatch, script: Script) -> None:
    """Let this machine look as if it had Torch-TensorRT and a GPU, whose memory is that of the CPU."""
    patch.setitem(sys.modules, "torch_tensorrt", create_stand_in(script))
    patch.setattr(torch_tensorrt, "cuda_driver_error", lambda: None)
    patch.setattr(torch_tensorrt, "DEVICE", "cpu")
    patch.setattr("convnext_deploy.runners.torch_tensorrt.DEVICE", "cpu")
    patch.setattr(torch.cuda, "is_available", lambda: True)
    patch.setattr(torch.cuda, "get_device_capability", lambda: GPU)


def _check(name: str, settings: dict[str, Any]) -> None:
    # The real functions take any other name, and ignore it.
    unknown = set(settings) - set(API["functions"][name]["keyword_only"])
    assert not unknown, f"{name} has no {unknown}"


def _split(program: nn.Module, parts: tuple[str, ...]) -> fx.GraphModule:
    graph = fx.Graph()
    images = graph.placeholder("images")
    root = nn.Module()
    if parts:
        root.add_module(parts[0], program)
    graph.output(graph.call_module(parts[0], (images,)) if parts else images)
    compiled = fx.GraphModule(root, graph)
    for part in parts[1:]:
        compiled.add_module(part, nn.Identity())
    return compiled
