"""Import modules one after the other and report on each: the program of the child processes of `probing.py`.

It is run as a file, with the parent's `sys.path` as JSON and the names of the modules. A line of JSON is written when a module is
done; the first one without a line is the one that crashed.
"""

import importlib
import json
import os
import sys
from collections.abc import Callable
from typing import Any


def main() -> None:
    """Import what the arguments name."""
    path, *modules = sys.argv[1:]
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what packages print is not an answer
    sys.path[:] = json.loads(path)
    for module in modules:
        print(json.dumps({"module": module, **_import(module)}), file=answers, flush=True)


def _import(name: str) -> dict[str, Any]:
    try:
        module = importlib.import_module(name)
        version = getattr(module, "__version__", None)
        facts = _FACTS[name](module) if name in _FACTS else {}
        return {"version": None if version is None else str(version), "facts": facts}
    except BaseException as error:  # packages raise whatever they like, SystemExit too
        if isinstance(error, ModuleNotFoundError) and error.name == name.split(".")[0]:
            return {"missing": True}
        text = next(iter(str(error).splitlines()), "")
        return {"error": f"{type(error).__name__}: {text}"[:300] if text else type(error).__name__}


def _torch(torch: Any) -> dict[str, Any]:
    return {"cuda": torch.version.cuda, "gpus": torch.cuda.device_count() if torch.cuda.is_available() else 0}


def _driver(cuda_driver: Any) -> dict[str, Any]:
    error = cuda_driver.cuda_driver_error()
    return {"error": error, **({} if error else cuda_driver.describe_gpus())}


def _compiler(compilation: Any) -> dict[str, Any]:
    import torch

    from convnext_deploy.errors import BackendUnavailableError

    try:
        compilation.check_compiler(
            is_cuda=torch.cuda.is_available(), wanted_by="torch.compile", instead="do without torch.compile"
        )
    except BackendUnavailableError as error:
        return {"missing": str(error)}
    return {"missing": None}


_FACTS: dict[str, Callable[[Any], dict[str, Any]]] = {
    "torch": _torch,
    "onnxruntime": lambda onnxruntime: {"providers": list(onnxruntime.get_available_providers())},
    "convnext_deploy.system.cuda_driver": _driver,
    "convnext_deploy.training.torch_compile": _compiler,
}

if __name__ == "__main__":
    main()
