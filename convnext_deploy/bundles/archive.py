"""Write a bundle as a reproducible `.zip`, and unpack one without writing outside the folder meant for it."""

import shutil
import stat
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory

from convnext_deploy.bundles.device import verify
from convnext_deploy.errors import ArtifactError, first_line
from convnext_deploy.system.disk_faults import DISK_FAULTS, Target, cannot_write, system_error
from convnext_deploy.system.files import whole_file

_DATE = (1980, 1, 1, 0, 0, 0)  # of every entry
_BLOCK = 1 << 20


def write_archive(folder: Path, target: Path) -> None:
    """Write all files of a folder, under its name."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    with whole_file(target) as partial, zipfile.ZipFile(partial, "w", zipfile.ZIP_DEFLATED) as archive:
        for path in paths:
            name = (PurePosixPath(folder.name) / path.relative_to(folder).as_posix()).as_posix()
            entry = zipfile.ZipInfo(name, _DATE)
            entry.compress_type = zipfile.ZIP_DEFLATED
            entry.external_attr = (0o100755 if path.suffix == ".sh" else 0o100644) << 16
            entry.file_size = path.stat().st_size  # tells whether the large format is needed
            with path.open("rb") as source, archive.open(entry, "w") as stream:
                shutil.copyfileobj(source, stream, _BLOCK)


def is_archived_bundle(path: Path) -> bool:
    """Return whether a file is a `.zip` with a bundle in it."""
    try:
        with zipfile.ZipFile(path) as archive:
            return any(PurePosixPath(name).name == verify.RECORD for name in archive.namelist())
    except (OSError, zipfile.BadZipFile):
        return False


@contextmanager
def unpacked(path: Path) -> Iterator[Path]:
    """Yield the folder of an archived bundle, unpacked for as long as the block runs.

    Raises: ArtifactError: if the file is not an archive, is damaged, has no bundle in it, or would be unpacked elsewhere.
    """
    with TemporaryDirectory(prefix="convnext-deploy-bundle-") as temporary:
        size = 0
        try:
            with zipfile.ZipFile(path) as archive:
                entries = archive.infolist()
                size, free = sum(entry.file_size for entry in entries), shutil.disk_usage(temporary).free
                if size > free:
                    raise ArtifactError(
                        f"{path} needs {size:,} bytes unpacked, and {temporary} has {free:,}; make room, or choose another folder "
                        "with TMPDIR."
                    )
                for entry in entries:
                    parts = PurePosixPath(entry.filename.replace("\\", "/")).parts
                    if not parts or parts[0] == "/" or ".." in parts or ":" in parts[0] or _is_link(entry):
                        raise ArtifactError(
                            f"{path} holds '{entry.filename}', which no bundle has; it is not unpacked."
                        )
                archive.extractall(temporary)
        except (
            OSError,
            zipfile.BadZipFile,
            zlib.error,
            NotImplementedError,
            RuntimeError,
            EOFError,
            ValueError,
        ) as error:
            if (found := system_error(error)) is not None and found.errno in DISK_FAULTS:
                raise cannot_write(
                    Target(Path(temporary), size, f"what {path} holds", "another folder with TMPDIR"), found
                ) from None
            raise ArtifactError(f"{path} cannot be unpacked ({first_line(error)}); copy the bundle again.") from None
        records = [*Path(temporary).glob(verify.RECORD), *Path(temporary).glob(f"*/{verify.RECORD}")]
        if len(records) != 1:
            raise ArtifactError(f"{path} holds {len(records)} bundles; expected one, a folder with {verify.RECORD}.")
        yield records[0].parent


def _is_link(entry: zipfile.ZipInfo) -> bool:
    return stat.S_ISLNK(entry.external_attr >> 16)
