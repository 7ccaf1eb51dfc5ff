"""Print the Python names of a TensorRT release as JSON: `python -m tests.golden.dump_tensorrt_api tensorrt`."""

from __future__ import annotations

import importlib
import json
import sys
from types import ModuleType
from typing import Any

CLASSES = (
    "Builder",
    "BuilderFlag",
    "ComputeCapability",
    "DataType",
    "EngineInspector",
    "EngineInvalidityDiagnostics",
    "EngineValidity",
    "IBuilderConfig",
    "ICudaEngine",
    "IExecutionContext",
    "IHostMemory",
    "ILogger",
    "INetworkDefinition",
    "IOptimizationProfile",
    "IProfiler",
    "IProgressMonitor",
    "ITensor",
    "ITimingCache",
    "LayerInformationFormat",
    "MemoryPoolType",
    "NetworkDefinitionCreationFlag",
    "OnnxParser",
    "ParserError",
    "ProfilingVerbosity",
    "Runtime",
    "TensorIOMode",
)
"""What the package uses, and the classes that those need."""


def dump(trt: ModuleType) -> dict[str, Any]:
    """Return the public names of the module, and of each class in `CLASSES` its attributes or its members and values."""
    names = sorted(name for name in dir(trt) if not name.startswith("_"))
    return {
        "release": trt.__version__,
        "module": trt.__name__,
        "names": names,
        "classes": {name: _describe(getattr(trt, name)) for name in CLASSES if name in names},
    }


def _describe(found: Any) -> list[str] | dict[str, int]:
    if hasattr(found, "__members__"):
        return {name: int(member) for name, member in found.__members__.items()}
    return sorted(name for name in dir(found) if not name.startswith("_"))


def as_json(content: dict[str, Any]) -> str:
    """Return the text of a golden file: one line per class."""
    head = [f" {json.dumps(key)}: {json.dumps(content[key])}" for key in ("release", "module", "names")]
    classes = [f"  {json.dumps(name)}: {json.dumps(value)}" for name, value in content["classes"].items()]
    return "{\n" + ",\n".join(head) + ',\n "classes": {\n' + ",\n".join(classes) + "\n }\n}\n"


if __name__ == "__main__":
    sys.stdout.write(as_json(dump(importlib.import_module(sys.argv[1]))))
