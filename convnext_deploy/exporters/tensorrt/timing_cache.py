"""Read and write the timing cache of standard TensorRT, which makes the next build on the same GPU faster."""

import os
from pathlib import Path
from typing import Any

from convnext_deploy.documents import read_bytes, reason
from convnext_deploy.errors import ExportError
from convnext_deploy.system.files import whole_file

_LARGEST = 1 << 30  # bytes


def check_cache_file(path: Path) -> None:
    """Check that a timing cache can be read and written back there, before a build that takes minutes.

    Raises: ExportError: if it is a folder, or it or its folder has not the right to it.
    """
    found = None
    if path.is_dir():
        found = "is a folder"
    elif not path.parent.is_dir():
        found = f"cannot be written: there is no folder {path.parent}"
    elif path.exists() and not path.is_file():
        found = "is no regular file but a device, pipe or socket"
    elif path.exists() and not os.access(path, os.R_OK):
        found = "cannot be read"
    elif not os.access(path.parent, os.W_OK):
        found = f"cannot be written into the folder {path.parent}"
    if found is not None:
        raise ExportError(f"the timing cache {path} {found}; give the name of a file that can be read and replaced.")


def use_timing_cache(config: Any, path: Path, logger: Any) -> None:
    """Give a build the cache of a file, or an empty one where there is none yet.

    Raises: ExportError: if the file is not a timing cache of this release and GPU.
    """
    content = _content(path) if path.exists() else b""
    cache = _read(config, content, path, logger)
    if not config.set_timing_cache(cache, False):
        raise ExportError(f"the timing cache {path} is {_OTHER}")


def save_timing_cache(config: Any, path: Path, logger: Any) -> None:
    """Write the cache of a build, with what another build has written there in the meantime; completely or not at all.

    Raises: OutputError: if it cannot be written.
    """
    cache = config.get_timing_cache()
    if path.exists() and not cache.combine(_read(config, _content(path), path, logger), False):
        raise ExportError(f"the timing cache {path} is {_OTHER}")
    content = bytes(cache.serialize())
    with whole_file(path, needed=len(content), what="the timing cache", instead="another file", shared=True) as partial:
        partial.write_bytes(content)


_OTHER = "not a timing cache, or one of another TensorRT release or GPU; give another file, or delete it to begin anew."


def _content(path: Path) -> bytes:
    try:
        return read_bytes(path, _LARGEST)
    except OSError as error:
        raise ExportError(f"the timing cache {path} cannot be read ({reason(error)}); give another file.") from None


def _read(config: Any, content: bytes, path: Path, logger: Any) -> Any:
    before = {*logger.warnings, *logger.errors}
    cache = config.create_timing_cache(content)
    # of what it cannot read TensorRT makes an empty cache, with which the file would then be replaced
    said = {line.lower() for line in {*logger.warnings, *logger.errors} - before}
    if cache is None or (content and any("timing cache" in line for line in said)):
        raise ExportError(f"the timing cache {path} is {_OTHER}")
    return cache
