"""The hashes of files: computed, remembered for large ones while they stay as they are, and compared with what is recorded."""

import hashlib
import os
import re
from collections.abc import Iterator
from pathlib import Path

from convnext_deploy.documents import open_file, read_bytes, read_json
from convnext_deploy.errors import ArtifactError

SUMS = "SHA256SUMS"
LARGE = 16 << 20  # bytes, from which on a file is not hashed twice by one process
_BLOCK = 1 << 20
_DEPTH = 4  # folders between a file and the list of checksums that names it: those of a bundle's Triton entries
_MANIFEST = "manifest.json"
_BY_HASH = re.compile("[0-9a-f]{64}")
_known: dict[tuple[int, ...], str] = {}


def hash_file(path: Path, end: int = 0) -> str:
    """Return the SHA-256 of a file in hexadecimal, of all but its last `end` bytes.

    Within a process a large file is hashed once for each inode, size and time of change; no other process relies on that,
    because what goes wrong on a disk leaves all of them as they were. Raises: OSError.
    """
    with open_file(path) as stream:
        status = os.fstat(stream.fileno())
        key = (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns, end)
        if key in _known:
            return _known[key]
        digest, left = hashlib.sha256(), status.st_size - end
        while left > 0 and (block := stream.read(min(left, _BLOCK))):
            digest.update(block)
            left -= len(block)
    if status.st_size >= LARGE:
        _known[key] = digest.hexdigest()
    return digest.hexdigest()


def check_recorded(path: Path, sha256: str) -> None:
    """Check a bare file against what is written of it nearby.

    That is the manifest beside it, the `SHA256SUMS` of a folder that it lies in, or its own name in a store that calls its files by
    their hashes, as the cache of the Hugging Face hub does.

    Raises: ArtifactError: if it is not the file that was recorded.
    """
    for record, expected in _recorded(path):
        if sha256 not in expected:
            raise altered(path, record, sha256, expected[0])


def check_bare_file(path: Path) -> None:
    """Hash a file and check it; one that cannot be read is left to its reader. Raises: ArtifactError: as `check_recorded`."""
    try:
        found = hash_file(path)
    except OSError:
        return
    check_recorded(path, found)


def altered(path: Path, record: str, found: str, expected: str) -> ArtifactError:
    """Return the error of a file that is not what a record beside it says."""
    return ArtifactError(
        f"{path} is not the file that {record} describes: it was altered after it was written (SHA-256 {found[:12]}…, expected "
        f"{expected[:12]}…). Make the artifact again, or copy it again from where it is whole."
    )


def _recorded(path: Path) -> Iterator[tuple[str, list[str]]]:
    """Yield what is written of a file nearby: in which record, and the hashes that it may have."""
    try:
        files = read_json(path.parent / _MANIFEST)["files"]
        found = [str(file["sha256"]) for file in files if file["name"] == path.name]
    except (OSError, ValueError, KeyError, TypeError):
        found = []  # there is none, or not one of ours
    if found:
        yield "its manifest", found
    if _BY_HASH.fullmatch(stored := Path(os.path.realpath(path)).name):
        yield "its name in the cache", [stored]
    place = path.absolute()
    for folder in place.parents[: _DEPTH + 1]:
        name = place.relative_to(folder).as_posix()
        try:
            lines = read_bytes(folder / SUMS).decode(errors="replace").splitlines()
        except OSError:
            continue  # there is none
        # after the digest two spaces, or a space and a star for files read as binary
        if found := [line[:64].lower() for line in lines if line[66:].removeprefix("./") == name]:
            yield str(folder / SUMS), found
