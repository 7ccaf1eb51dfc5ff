"""Where programs of this user keep what can be computed again, and what goes when there is too much of it."""

import contextlib
import os
import sys
import time
from pathlib import Path

LARGEST = 4 << 30
"""Bytes of all indexes in a cache folder, of some hundred million files."""
_INDEXES = ("contents-*.bin", "shards-*.npz")
_FRESH_S = 24 * 3600.0  # for which a file that was used need not be marked again, and none is removed


def user_cache() -> Path | None:
    """Return the folder of this tool in the system's place for caches; None where the user has no such place."""
    if sys.platform == "win32":
        base = os.environ.get("LOCALAPPDATA")
    else:
        # https://specifications.freedesktop.org/basedir-spec: a path that is not absolute is to be ignored
        base = os.environ.get("XDG_CACHE_HOME")
    if base and Path(base).is_absolute():
        return Path(base) / "convnext_deploy"
    try:
        home = Path.home()
    except RuntimeError:  # neither HOME nor an entry among the users
        return None
    if not home.is_absolute():
        return None
    return home / ("Library/Caches" if sys.platform == "darwin" else ".cache") / "convnext_deploy"


def mark_used(path: Path) -> None:
    """Let the time of a file tell that it was used, to the day. Raises: OSError: if it is gone, or another user's."""
    if time.time() - path.stat().st_mtime > _FRESH_S:
        os.utime(path)


def remove_unused(folder: Path, largest: int = LARGEST) -> None:
    """Remove the indexes in a cache folder that were not used for longest, until the others have `largest` bytes; never new ones.

    What cannot be removed stays, without a word: it costs room alone.
    """
    found = []
    with contextlib.suppress(OSError):
        for pattern in _INDEXES:
            for path in folder.glob(pattern):
                with contextlib.suppress(OSError):  # removed by another process
                    status = path.stat()
                    found.append((status.st_mtime, status.st_size, path))
    total = sum(size for _, size, _ in found)
    for used, size, path in sorted(found):
        if total <= largest or time.time() - used <= _FRESH_S:
            return
        with contextlib.suppress(OSError):
            path.unlink()
            total -= size
