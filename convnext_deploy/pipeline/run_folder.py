"""The folder of a run: locked while somebody works in it, and never taken for one where something else lies."""

from __future__ import annotations

import contextlib
import os
import stat
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from convnext_deploy.artifacts.artifact import Artifact, read_artifact
from convnext_deploy.data.datasets import BUILT_IN, Data
from convnext_deploy.data.decoding import printable
from convnext_deploy.data.unreadable import UNREADABLE
from convnext_deploy.documents import read_json
from convnext_deploy.errors import ArtifactError, OutputError
from convnext_deploy.reports.record import REPORT_JSON, SCHEMA, Report, read_report
from convnext_deploy.system.distributed import world
from convnext_deploy.system.files import create_output_folder, write_text
from convnext_deploy.system.posix import locked
from convnext_deploy.system.sealed_json import unseal

VIEWS = ("report.md", "report.html", "model_card.md", UNREADABLE)
WAYS_OUT = "Nothing was changed; give another --out to keep that, or --restart to replace it."
_FOLDERS = ("stages", "scores", "flips", "checkpoints")
_LOCK = ".lock"
_NAMED = 3  # rows in a message
_BEAT_S = 60.0


@contextlib.contextmanager
def claim(out: Path) -> Iterator[None]:
    """Make the folder of a run and keep others out of it, processes and threads; the lock goes with the process, however that ends.

    It is touched every minute: whoever looks at the folder from another machine cannot ask it who holds it, and a stage may write
    nothing for hours. A new folder in which nothing was made goes again with the error that ended the work.

    Raises: OutputError: if somebody else works in it, it cannot be written, or holds what no run wrote.
    """
    _refuse_foreign(out)
    is_new = not os.path.lexists(out)
    create_output_folder(out)
    _check_folders(out)
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(locked(out / _LOCK))
        except BlockingIOError:
            raise OutputError(
                f"another process is working in {out}, or another thread of this one; wait for it, or choose another --out."
            ) from None
        except OSError as error:
            raise OutputError(
                f"{out / _LOCK} cannot be written and locked ({error.strerror}); choose another --out."
            ) from None
        stack.enter_context(_touched(out / _LOCK))
        try:
            yield
        except BaseException:
            if is_new:
                _remove_unused(out)
            raise


def _remove_unused(out: Path) -> None:
    """Remove the folder of a run that holds the lock alone."""
    with contextlib.suppress(OSError):
        if [path.name for path in out.iterdir()] == [_LOCK]:
            (out / _LOCK).unlink()
            out.rmdir()


@contextlib.contextmanager
def _touched(file: Path) -> Iterator[None]:
    ended = threading.Event()

    def touch() -> None:
        while not ended.wait(_BEAT_S):
            with contextlib.suppress(OSError):
                os.utime(file)

    thread = threading.Thread(target=touch, name="lock", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def _refuse_foreign(out: Path) -> None:
    """Raise if something lies where a run writes its files, and no run has been here."""
    lock = out / _LOCK
    with contextlib.suppress(OSError):
        if stat.S_ISREG(lock.lstat().st_mode):
            return
        raise OutputError(f"{lock} is no file of this tool; choose another --out.")
    if read_earlier(out) is not None or {"schema", "recipe", "rows"} <= _content_of(out / REPORT_JSON).keys():
        return
    files = [out / name for name in (REPORT_JSON, *VIEWS) if (out / name).exists() or (out / name).is_symlink()]
    folders = [out / name for name in _FOLDERS if (out / name).is_file() or _has_entries(out / name)]
    if found := [*files, *folders]:
        raise OutputError(
            f"{found[0]} was not written by this tool and would be overwritten; choose another --out, or move it away."
        )


def _check_folders(out: Path) -> None:
    """Check before any work that what a run keeps in folders can be kept there. Raises: OutputError: if one is none."""
    for folder in (out / name for name in _FOLDERS):
        if os.path.lexists(folder) and not folder.is_dir():
            what = f"leads to {folder.readlink()}, which is no folder here" if folder.is_symlink() else "is no folder"
            raise OutputError(f"{folder} {what}; a run writes there: mend that, or choose another --out.")


def see_artifact(folder: Path) -> Artifact:
    """Read what the first process wrote. Raises: OutputError: if it is not there, because this is another machine's folder."""
    try:
        return read_artifact(folder)
    except ArtifactError as error:
        raise OutputError(
            f"process {world().rank} does not see what the first one wrote ({error}); "
            "--out must be a folder that all machines share."
        ) from None


def list_unreadable(out: Path, data: Data | None) -> None:
    """Write which images were left out of a run and why, one a line; without any there is no such list."""
    if data is None or not data.unreadable:
        with contextlib.suppress(OSError):
            (out / UNREADABLE).unlink()
        return
    pairs = zip(data.unreadable, data.reasons, strict=True)
    write_text(out / UNREADABLE, "".join(f"{printable(path)}: {printable(reason)}\n" for path, reason in pairs))


def _has_entries(folder: Path) -> bool:
    return folder.is_dir() and any(folder.iterdir())


def read_earlier(out: Path) -> Report | None:
    """Return the report of an earlier run in a folder; None if there is none that can be read."""
    try:
        return read_report(out) if (out / REPORT_JSON).is_file() else None
    except ArtifactError:
        return None


def is_of_another_version(file: Path, schema: int) -> bool:
    """Whether a record, of which this version writes such a schema, was written by another one, and is as it was written."""
    content = _content_of(file)
    try:
        unseal(content)
    except ValueError:
        return False
    return bool(content.get("schema", schema) != schema)


def _content_of(file: Path) -> dict[str, Any]:
    """Return the entries of a JSON file; none if it cannot be read."""
    try:
        content = read_json(file)
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def check_report(out: Path, what: str, rows: Mapping[str, str | None], data: Data | None, *, restart: bool) -> None:
    """Check that a new report drops no row of the one that is there, and speaks of the same images.

    Args:
        out: folder of the run.
        what: the recipe or verb whose report it is to be.
        rows: that the new report will have, with the hashes of artifacts that the user brought.
        data: the images; None: there are none.
        restart: replace it whatever it says.

    Raises: OutputError: naming what would be lost.
    """
    if restart:
        return
    report = read_earlier(out)
    if report is None:
        if is_of_another_version(out / REPORT_JSON, SCHEMA):
            raise OutputError(f"{out} holds a report that another version of this tool wrote. {WAYS_OUT}")
        return
    lost = [row.name for row in report.rows if row.name not in rows and not row.provenance.for_comparison]
    if lost:
        more = f" and {len(lost) - _NAMED} more" if len(lost) > _NAMED else ""
        raise OutputError(
            f"{out} holds the report of '{report.recipe}' with {len(report.rows)} rows, and that of '{what}' would drop "
            f"{', '.join(lost[:_NAMED])}{more}. {WAYS_OUT}"
        )
    for row in report.rows:
        if rows.get(row.name) not in (None, row.identity.sha256):
            raise OutputError(
                f"{out} holds the report of '{report.recipe}' on another {row.name} ({row.identity.artifact}). {WAYS_OUT}"
            )
    if report.rows and _judged_on_others(report, data):
        after = "none" if data is None else data.name
        other = f"data {report.data} → {after}" if report.data != after else f"the images in {after} have changed"
        raise OutputError(
            f"{out} holds the report of '{report.recipe}' on other validation images ({other}). {WAYS_OUT}"
        )


def _judged_on_others(report: Report, data: Data | None) -> bool:
    if data is None or report.data == "none":
        return report.data != "none"  # what was not judged may be
    if report.judged_on is None or data.judged_on is None:
        return (report.data == BUILT_IN) != (data.name == BUILT_IN)
    return report.judged_on != data.judged_on
