"""Where programs of this user keep what can be computed again."""

import os
import sys
from pathlib import Path


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
