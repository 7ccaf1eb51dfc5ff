"""Print the parameters of Torch-TensorRT's functions as JSON: `python -m tests.golden.dump_torch_tensorrt_api WHEEL`."""

from __future__ import annotations

import ast
import json
import re
import sys
import zipfile
from pathlib import Path
from typing import Any

FUNCTIONS = {
    "torch_tensorrt.dynamo.compile": "torch_tensorrt/dynamo/_compiler.py",
    "torch_tensorrt.load": "torch_tensorrt/_compile.py",
    "torch_tensorrt.save": "torch_tensorrt/_compile.py",
}
"""What the package calls, and where it is defined. Both `compile` and `save` also take, and ignore, any other name."""
INPUT = "torch_tensorrt/_Input.py"


def dump(wheel: Path) -> dict[str, Any]:
    """Read a wheel without importing it: parameters of functions, keys that `Input` reads, and the logger of TensorRT."""
    with zipfile.ZipFile(wheel) as archive:
        texts = {
            name: archive.read(name).decode() for name in archive.namelist() if name.endswith((".py", "/METADATA"))
        }
    trees = {path: ast.parse(texts[path]) for path in {*FUNCTIONS.values(), INPUT}}
    metadata = next(text for name, text in texts.items() if name.endswith("/METADATA"))
    return {
        "release": _first(r'__version__ = "(.+)"', texts["torch_tensorrt/_version.py"]),
        "requires": re.findall(r"^Requires-Dist: ((?:torch|tensorrt)\S*)$", metadata, re.MULTILINE),
        "logger": _first(r'getLogger\("(.+)"\)', texts["torch_tensorrt/logging.py"]),
        "functions": {name: _parameters(trees[path], name.rpartition(".")[2]) for name, path in FUNCTIONS.items()},
        "input": _input_keys(trees[INPUT]),
    }


def _first(pattern: str, text: str) -> str:
    found = re.search(pattern, text)
    assert found is not None, f"{pattern} is not in the wheel"
    return found.group(1)


def _parameters(tree: ast.Module, name: str) -> dict[str, list[str]]:
    function = next(node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == name)
    arguments = function.args
    return {
        "positional": [argument.arg for argument in arguments.args],
        "keyword_only": [argument.arg for argument in arguments.kwonlyargs],
    }


def _input_keys(tree: ast.Module) -> list[str]:
    """Return the names that `Input.__init__` looks up in its `**kwargs`."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Subscript) and _is_kwargs(node.value):
            found.add(node.slice)
        elif isinstance(node, ast.Compare) and _is_kwargs(node.comparators[0]):
            found.add(node.left)
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and _is_kwargs(node.func.value):
            found.add(node.args[0])
    return sorted({key.value for key in found if isinstance(key, ast.Constant) and isinstance(key.value, str)})


def _is_kwargs(node: ast.expr) -> bool:
    return isinstance(node, ast.Name) and node.id == "kwargs"


if __name__ == "__main__":
    sys.stdout.write(json.dumps(dump(Path(sys.argv[1])), indent=1) + "\n")
