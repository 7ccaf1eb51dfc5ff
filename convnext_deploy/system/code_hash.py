"""A hash of the code behind a stage, so that results of older code are not taken for current ones."""

from __future__ import annotations

import ast
import functools
import hashlib
from pathlib import Path

_ROOT = Path(__file__).parents[1]
_PACKAGE = _ROOT.name


@functools.cache
def of_module(name: str) -> str:
    """Hash a module of this package together with every module of the package that it imports, directly or not.

    Comments, docstrings and formatting do not count.
    """
    digest = hashlib.sha256()
    for module in sorted(_closure(name)):
        digest.update(f"{module}\n{_normalized(module)}\n".encode())
    return digest.hexdigest()


def imports_of(name: str) -> set[str]:
    """Return the modules of this package that a module imports, anywhere in its text."""
    found: set[str] = set()
    for node in ast.walk(_parse(name)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return {module for module in found if module.split(".")[0] == _PACKAGE and _file(module) is not None}


def _closure(name: str) -> set[str]:
    seen: set[str] = set()
    pending = [name]
    while pending:
        module = pending.pop()
        if module not in seen:
            seen.add(module)
            pending += imports_of(module)
    return seen


def _file(name: str) -> Path | None:
    base = _ROOT.joinpath(*name.split(".")[1:])
    return next((path for path in (base.with_suffix(".py"), base / "__init__.py") if path.is_file()), None)


def _parse(name: str) -> ast.Module:
    path = _file(name)
    if path is None:
        raise LookupError(f"{name} is no module of {_PACKAGE}")
    return ast.parse(path.read_text(encoding="utf-8"))


def _normalized(name: str) -> str:
    tree = _parse(name)
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and ast.get_docstring(
            node
        ):
            node.body = node.body[1:] or [ast.Pass()]
    return ast.dump(tree)
