"""The runs below a folder as they stand on disk: finished ones by their report, others by what their training has written."""

from __future__ import annotations

import os
import stat
import time
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from convnext_deploy.documents import read_json
from convnext_deploy.errors import ArtifactError, DeployError
from convnext_deploy.reports.record import REPORT_JSON, Report, StageRow, read_report
from convnext_deploy.reports.to_ship import choose_to_ship, offered

State = Literal["running", "recent", "complete", "stopped", "unreadable"]

_LOCK, _CHECKPOINTS, _HISTORY = ".lock", "checkpoints", "history.json"
MOST_FOLDERS = 5000  # that are looked into
_DEEPEST = 4  # below the folder that is shown
_LARGEST = 1e300  # of a figure: what diverged is no number that JSON or a plot has
_FRESH_S = 150.0  # whoever works in a run touches its lock every minute
_LOCKS = Path("/proc/locks")

Epoch = Mapping[str, float]


@dataclass(frozen=True)
class Run:
    """A run as it stands. `name` is its path below the folder that is shown; no other run has it.

    `report` is None as long as nothing was scored, or where it cannot be read, and `problem` then says why. `trainings` are the
    epochs of each training stage that has finished one. `changed`: when something was written last, in seconds since 1970.
    """

    name: str
    folder: Path
    state: State
    report: Report | None = None
    problem: str | None = None
    trainings: Mapping[str, tuple[Epoch, ...]] | None = None
    changed: float = 0.0


class Library:
    """Finds and reads runs; a report that has not changed is read once.

    `is_whole`: whether the runs that were returned last are all; False where there are more folders than are looked into.

    Args:
        root: folder of a run, or of several at any depth down to four.

    Raises: ArtifactError: if it is no folder.
    """

    def __init__(self, root: Path) -> None:
        if not root.is_dir():
            what = "is a file" if root.exists() else "does not exist"
            raise ArtifactError(f"{root} {what}; expected the folder of a run, or of several.")
        self.root = root.resolve()
        self.is_whole = True
        self._reports: dict[Path, tuple[tuple[int, int], Report | str]] = {}

    def runs(self) -> list[Run]:
        """Return all runs, the one that changed last first."""
        search = _Search(self.root)
        found = [self._read(folder) for folder in search]
        self.is_whole = search.is_whole
        return sorted(found, key=lambda run: (-run.changed, run.name))

    def run(self, name: str) -> Run | None:
        """Return the run of that name; None if there is none."""
        folder = next((folder for folder in _Search(self.root) if self._name(folder) == name), None)
        return None if folder is None else self._read(folder)

    def file(self, run: Run, name: str) -> bytes | None:
        """Return a file of a run, None if there is none; a link that leads out of the run counts as none.

        Args:
            run: one of ours.
            name: a name that we chose, never one from a request.
        """
        try:
            path = (run.folder / name).resolve(strict=True)
            if not path.is_relative_to(run.folder) or not stat.S_ISREG(path.stat().st_mode):
                return None
            return path.read_bytes()
        except OSError:
            return None

    def _name(self, folder: Path) -> str:
        return folder.name if folder == self.root else folder.relative_to(self.root).as_posix()

    def _read(self, folder: Path) -> Run:
        report = self._report(folder)
        changed = max(map(_modified, _signs(folder)), default=0.0)
        run = Run(self._name(folder), folder, "stopped", trainings=_trainings(folder, report), changed=changed)
        if isinstance(report, str):
            return replace(run, state="unreadable", problem=report)
        if _is_claimed(folder):
            return replace(run, state="running", report=report)
        if report is not None and report.complete:
            return replace(run, state="complete", report=report)
        return replace(run, state="recent" if time.time() - changed < _FRESH_S else "stopped", report=report)

    def _report(self, folder: Path) -> Report | str | None:
        """Return the report, why it cannot be read, or None if there is none."""
        path = folder / REPORT_JSON
        try:
            status = path.stat()
        except OSError:
            return None
        key = (status.st_mtime_ns, status.st_size)
        kept = self._reports.get(path)
        if kept is None or kept[0] != key:
            found: Report | str
            try:
                is_inside = path.resolve().is_relative_to(folder)
                found = read_report(folder) if is_inside else f"{path} is a link that leads out of the run"
            except DeployError as error:
                found = str(error)
            kept = self._reports[path] = (key, found)
        return kept[1]


def best_artifact(report: Report) -> StageRow | None:
    """Return what to ship: of the artifacts that failed no gate the fastest graph or engine; without times the smallest.

    Of a run that made neither it is what was made in PyTorch, of what is simulated the last. What was brought is none of it. Where
    something was to replace another artifact, the report says which.
    """
    if (choice := choose_to_ship(report)) is not None:
        return next((row for row in report.rows if row.name == choice.name), None)
    fine = [row for row in offered(report) if row.accuracy is not None]
    made = [row for row in fine if row.is_made_to_be_used]
    fine = (
        [row for row in made if row.identity.format != "torch"]
        or made
        or [row for row in fine if row.is_simulated][-1:]
    )
    timed = [
        (latency.p50_ms, row) for row in fine if (latency := row.speed.latency) is not None and latency.loaded is None
    ]
    if timed:
        return min(timed, key=lambda pair: pair[0])[1]
    return min(fine, key=lambda row: row.identity.size_bytes, default=None)


class _Search:
    """The folders of runs, those least deep first: images beside them, however many folders they lie in, hide none.

    Links are not followed, and what lies in a run is no other run. `is_whole`: whether all folders were looked into.
    """

    def __init__(self, root: Path) -> None:
        self._root = root
        self.is_whole = True

    def __iter__(self) -> Iterator[Path]:
        left, waiting = MOST_FOLDERS, deque([(self._root, 0)])
        while waiting and left:
            folder, depth = waiting.popleft()
            left -= 1
            if _is_run(folder):
                yield folder
            elif depth < _DEEPEST:
                waiting += [(inside, depth + 1) for inside in _folders_in(folder)]
        self.is_whole = not waiting


def _folders_in(folder: Path) -> list[Path]:
    try:
        with os.scandir(folder) as entries:
            found = [e.path for e in entries if not e.name.startswith(".") and e.is_dir(follow_symlinks=False)]
    except OSError:
        return []
    return [Path(path) for path in sorted(found)]


def _is_run(folder: Path) -> bool:
    return (folder / REPORT_JSON).is_file() or (folder / _LOCK).is_file() or any(_histories(folder))


def _histories(folder: Path) -> Iterator[Path]:
    """Yield the files in which trainings keep what each epoch gave."""
    try:
        inside = sorted(os.scandir(folder / _CHECKPOINTS), key=lambda entry: entry.name)
    except OSError:
        return
    for entry in inside:
        if entry.is_dir(follow_symlinks=False) and (path := Path(entry.path, _HISTORY)).is_file():
            yield path


def _signs(folder: Path) -> Iterator[Path]:
    """Yield what changes while somebody works in a run."""
    yield from (folder / REPORT_JSON, folder / _LOCK, folder / "stages", folder / "scores")
    for history in _histories(folder):
        yield from (history, history.with_name("last.pt"))


def _modified(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0


def _trainings(folder: Path, report: Report | str | None) -> dict[str, tuple[Epoch, ...]]:
    """Return the epochs of each training: of finished stages from the report, of others from their history."""
    found: dict[str, tuple[Epoch, ...]] = {}
    if isinstance(report, Report):
        found = {row.name: tuple(map(_numbers, row.history.epochs)) for row in report.rows if row.history.epochs}
    for path in _histories(folder):
        if path.resolve().is_relative_to(folder) and (epochs := _epochs(path)):
            found.setdefault(path.parent.name, epochs)
    return found


def _epochs(path: Path) -> tuple[Epoch, ...]:
    """Return what a history holds; nothing if that is not one."""
    try:
        content = read_json(path)
    except (OSError, ValueError):
        return ()
    rows = content if isinstance(content, list) else []
    return tuple(_numbers(row) for row in rows if isinstance(row, dict))


def _numbers(row: Mapping[str, Any]) -> Epoch:
    """Return the figures of an epoch; what is not finite is none."""
    return {
        name: value
        for name, value in row.items()
        if isinstance(value, int | float) and not isinstance(value, bool) and -_LARGEST <= value <= _LARGEST
    }


def _is_claimed(folder: Path) -> bool:
    """Whether a process of this machine holds the run's lock.

    To ask the lock itself one opens its file, and closing that would release it where this very process holds it.
    """
    try:
        own = (folder / _LOCK).stat()
        held = _LOCKS.read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return False
    place = f"{os.major(own.st_dev):02x}:{os.minor(own.st_dev):02x}:{own.st_ino}"
    return any(place in line.split() and "->" not in line for line in held)
