"""What all workers of a session share: the first one that needs a thing makes it, the others wait and read it."""

from __future__ import annotations

import os
import pickle
import shutil
from collections.abc import Callable, Collection, Iterable
from pathlib import Path
from typing import Any, TypeVar

import pytest
from _pytest.mark import ParameterSet
from filelock import FileLock

T = TypeVar("T")
_roots: list[Path] = []


def share_with_all_workers(factory: pytest.TempPathFactory) -> None:
    """Have this worker share what it makes from here on; its own temporary folder lies below that of the session."""
    base = factory.getbasetemp()
    _roots[:] = [base.parent if "PYTEST_XDIST_WORKER" in os.environ else base]


def make_once(name: str, make: Callable[[Path], T]) -> T:
    """Return what `make(folder)` returned in the worker that came first; nobody may change the folder afterwards.

    Args:
        name: of the folder, different for everything that is shared.
        make: what it returns is pickled, for the other workers.
    """
    (root,) = _roots
    folder, made = root / f"shared-{name}", root / f"shared-{name}.pickle"
    with FileLock(root / f"shared-{name}.lock"):
        if not made.exists():
            shutil.rmtree(folder, ignore_errors=True)  # of an attempt that failed
            folder.mkdir()
            made.write_bytes(pickle.dumps(make(folder)))
    result: T = pickle.loads(made.read_bytes())
    return result


def heavy_except(quick: Collection[Any], values: Iterable[Any]) -> list[ParameterSet]:
    """Return values to parametrize with; those that are not quick are heavy."""
    return [pytest.param(value, marks=[] if value in quick else [pytest.mark.heavy]) for value in values]


def slow_except(chosen: Collection[Any], values: Iterable[Any]) -> list[ParameterSet]:
    """Return values to parametrize with; those that are not chosen repeat for releases what these show."""
    return [pytest.param(value, marks=[] if value in chosen else [pytest.mark.slow]) for value in values]
