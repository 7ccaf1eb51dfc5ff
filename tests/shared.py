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


def make_once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], T]) -> T:
    """Return what `make(folder)` returned in the worker that came first; nobody may change the folder afterwards.

    Args:
        factory: its base folder is a worker's own, below that of the session.
        name: of the folder, different for everything that is shared.
        make: what it returns is pickled, for the other workers.
    """
    base = factory.getbasetemp()
    root = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
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
