"""Read the index of weights that are divided among several files, as transformers writes it."""

import os
from pathlib import Path

from convnext_deploy.config.records import name_shown
from convnext_deploy.documents import read_json
from convnext_deploy.errors import CheckpointError
from convnext_deploy.models.checkpoints import INDEX
from convnext_deploy.models.checkpoints.file_checks import check_file


def read_weight_map(path: Path) -> dict[str, str]:
    """Return which weights an index says are in which file. Raises: CheckpointError: if it is damaged."""
    check_file(path)
    try:
        found: dict[str, str] = read_json(path)["weight_map"]
        if not found or not all(type(name) is str for name in found.values()):
            raise ValueError(found)
    except (OSError, ValueError, TypeError, LookupError, AttributeError):
        raise CheckpointError(
            f"{path} is not an index of files of weights; expected JSON with a 'weight_map'."
        ) from None
    return dict(found)


def read_index(path: Path) -> list[Path]:
    """Return the files among which an index says that the weights are divided, as transformers writes it.

    Raises: CheckpointError: if it is damaged, a file is missing, or a name is that of no file beside it.
    """
    names = sorted({*read_weight_map(path).values()})
    for name in names:
        if not name.strip(".") or name != Path(name).name or name.endswith(INDEX) or "\0" in name:
            raise CheckpointError(f"{path} names {name[:80]!r}; expected the name of a file beside it.")
        if not os.path.isfile(path.parent / name):  # noqa: PTH113  (false for names that no file can have)
            raise CheckpointError(
                f"{path} names {name_shown(name)}, which is not there; the weights are in {len(names)} files."
            )
    return [path.parent / name for name in names]
