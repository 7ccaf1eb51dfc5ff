"""Settings beside weights that are objects of other packages: read by classes that stand in for theirs; nothing of theirs runs.

Lightning keeps `hyper_parameters` as they were given: paths, OmegaConf's tables, dataclasses, functions. PyTorch's restricted
unpickler knows none of them. What a file asks for by name is given to it as a class that keeps what it is called with and does
nothing; no package is imported.
"""

from __future__ import annotations

import pickle
import sys
from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

# modules of the standard library that hold values; what else is in it may do anything, and a file that asks for it is refused
_VALUES = {
    "argparse", "collections", "dataclasses", "datetime", "decimal", "enum", "fractions", "functools", "pathlib", "types", "typing",
    "uuid",
}  # fmt: skip
_BUILT_IN_VALUES = {"dict", "float", "frozenset", "int", "list", "object", "range", "slice", "str", "tuple"}
# pickles name modules as Python 2 did: `commands` for `subprocess`
_OF_PYTHON = {*sys.stdlib_module_names, *IMPORT_MAPPING, *(module for module, _ in NAME_MAPPING)}
_MOST_NAMES = 200
_GETATTR = "builtins.getattr"


class StandIn:
    """An object of a class that is not imported: the arguments it was made of, and the state that was given to it."""

    name = ""
    arguments: tuple[Any, ...] = ()
    state: Any = None

    def __new__(cls, *arguments: Any) -> StandIn:
        """Keep the arguments of whatever the file calls."""
        made = super().__new__(cls)
        made.arguments = arguments
        return made

    def __init__(self, *_: Any) -> None: ...

    def __setstate__(self, state: Any) -> None:
        """Keep the state."""
        self.state = state

    def value(self) -> Any:
        """Return the text of a path, what a table or value of OmegaConf holds, or the attributes by name; None for all else."""
        if self.name.startswith("pathlib.") and all(type(part) is str for part in self.arguments):
            return str(PurePosixPath(*self.arguments))
        if not isinstance(self.state, Mapping):
            return None
        return next((self.state[key] for key in ("_content", "_val") if key in self.state), self.state)


class MemberStandIn(StandIn):
    """A member of an enumeration as some releases of Python write it: `getattr(CLASS, NAME)`, of a class that is stood in for."""

    def __new__(cls, *arguments: Any) -> MemberStandIn:
        """Keep class and name. Raises: pickle.UnpicklingError: for anything else, which may be more than a value."""
        owner = arguments[0] if len(arguments) == 2 and type(arguments[1]) is str else None
        stands_in = isinstance(owner, type) and issubclass(owner, StandIn)
        if owner is None or not stands_in or owner.name.partition(".")[0] in _OF_PYTHON:
            raise pickle.UnpicklingError(f"Unsupported global: GLOBAL {_GETATTR}")
        made = super().__new__(cls, *arguments)
        assert isinstance(made, MemberStandIn)
        return made


def load_with_stand_ins(path: Path, safe: Iterable[type]) -> tuple[Any, tuple[str, ...]] | None:
    """Read an archive of `torch.save` with stand-ins for what PyTorch does not know to be harmless.

    Args:
        path: of an archive that has been checked.
        safe: classes that are made as they are.

    Returns: what it holds, and the names of what is stood in for; None if there is none, one may be more than a value, or one is
        among weights.
    Raises: Exception: of any kind, as the unpickler does.
    """
    import torch

    classes: list[Any] = list(safe)
    with torch.serialization.safe_globals(classes):
        names = sorted(torch.serialization.get_unsafe_globals_in_checkpoint(path))
    if not 0 < len(names) <= _MOST_NAMES or not all(map(_holds_values, names)):
        return None
    kinds = {_GETATTR: MemberStandIn}
    stand_ins = [(type("StandIn", (kinds.get(name, StandIn),), {"name": name}), name) for name in names]
    with torch.serialization.safe_globals([*classes, *stand_ins]):
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    with_weights = [
        table
        for table in _tables(content)
        if any(isinstance(value, torch.Tensor) and value.ndim for value in table.values())
    ]
    among_weights = any(isinstance(value, StandIn) for table in with_weights for value in table.values())
    return (content, tuple(names)) if with_weights and not among_weights else None


def _tables(content: Any) -> Iterator[Mapping[Any, Any]]:
    """Yield the tables in what a file holds, each once."""
    pending, seen = [content], set[int]()
    while pending:
        table = pending.pop()
        if isinstance(table, dict) and id(table) not in seen:
            seen.add(id(table))
            yield table
            pending += table.values()


def _holds_values(name: str) -> bool:
    package, _, rest = name.partition(".")
    if package == "builtins":
        return rest in _BUILT_IN_VALUES or name == _GETATTR
    return package in _VALUES or package not in _OF_PYTHON
