"""What is wrong with a path before anything of it is read: the same words in every verb."""

import errno
import stat
from pathlib import Path

from convnext_deploy.errors import ArtifactError

_MANIFEST, _WEIGHTS = "manifest.json", "model.safetensors"


def check_place(path: Path, expected: str) -> None:
    """Check that a path leads to a folder or to a file that can be read and holds something.

    Args:
        path: what the user named.
        expected: what should be there, in words.

    Raises: ArtifactError: if not.
    """
    try:
        mode = path.stat().st_mode
        if stat.S_ISDIR(mode):
            next(path.iterdir(), None)
            return
        if stat.S_ISREG(mode):
            with path.open("rb") as file:
                empty = not file.read(1)
        else:  # to open a pipe would wait for its writer
            raise ArtifactError(f"{path} is neither a file nor a folder; expected {expected}.")
    except (FileNotFoundError, NotADirectoryError):
        if path.is_symlink():
            raise ArtifactError(f"{path} is a symbolic link that leads nowhere; expected {expected}.") from None
        raise ArtifactError(f"{path} does not exist; expected {expected}.") from None
    except (OSError, ValueError) as error:
        if getattr(error, "errno", None) == errno.ELOOP:
            raise ArtifactError(f"{path} is a symbolic link that leads nowhere; expected {expected}.") from None
        reason = getattr(error, "strerror", None) or error
        raise ArtifactError(f"{path} cannot be read ({reason}); expected {expected}.") from None
    if empty:
        raise ArtifactError(f"{path} is empty; was it copied completely? Expected {expected}.")


def check_run(path: Path) -> None:
    """Check a path to a run or its report; one that is not there is left to the reader. Raises: ArtifactError: as `check_place`."""
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return
    except OSError:
        pass  # of which `check_place` tells
    check_place(path, "the folder of a run, or its report.json")


def no_artifact(folder: Path) -> ArtifactError:
    """Return the error of a folder that holds no artifact."""
    inside = sorted(p.parent for p in folder.glob(f"stages/*/{_MANIFEST}"))
    hint = f" It is a run; point at one of its artifacts, such as {inside[-1]}." if inside else ""
    missing = _MANIFEST if (folder / _WEIGHTS).exists() else f"{_MANIFEST} and no {_WEIGHTS}"
    return ArtifactError(f"{folder} is not an artifact folder: it has no {missing}.{hint}")
