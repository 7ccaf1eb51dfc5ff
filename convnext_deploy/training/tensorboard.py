"""The figures of each epoch, and what was measured of each artifact, as TensorBoard events."""

import importlib.util
import io
import time
from collections.abc import Mapping
from pathlib import Path

from convnext_deploy.errors import BackendUnavailableError
from convnext_deploy.system.files import append


def check_tensorboard() -> None:
    """Raise BackendUnavailableError, with what to install, if events cannot be written here."""
    if importlib.util.find_spec("tensorboard") is None:
        raise BackendUnavailableError(
            'TensorBoard events need the package tensorboard: pip install "convnext_deploy[tensorboard]".'
        )


class TensorBoardEvents:
    """A folder of event files, one run of TensorBoard. Nothing is made before the first epoch has ended.

    Records are appended here, and not by `SummaryWriter`, whose thread prints its own traceback when the disk is full.

    Args:
        folder: the run.
        forgets_from: the step from which on TensorBoard forgets what an earlier process wrote; None: that of the first row.
    """

    def __init__(self, folder: Path, forgets_from: int | None = None) -> None:
        self.folder, self._forgets_from = folder, forgets_from
        self._file: Path | None = None

    def write(self, row: Mapping[str, float]) -> None:
        """Write an epoch's figures, `epoch` being the step; what an earlier process wrote of this epoch or later is dropped.

        Raises: BackendUnavailableError, OutputError: without TensorBoard, or if they cannot be written.
        """
        check_tensorboard()
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog  # type: ignore[import-untyped]
        from tensorboard.compat.proto.summary_pb2 import Summary  # type: ignore[import-untyped]
        from tensorboard.summary.writer.record_writer import RecordWriter  # type: ignore[import-untyped]

        now, step = time.time(), int(row["epoch"])
        events = []
        if self._file is None:
            # TensorBoard reads files in the order of their names, and forgets the steps from a start's own on
            self._file = self.folder / f"events.out.tfevents.{now:.6f}"
            start = SessionLog(status=SessionLog.START)
            forgotten = step if self._forgets_from is None else self._forgets_from
            events = [Event(file_version="brain.Event:2"), Event(step=forgotten, session_log=start)]
        values = [Summary.Value(tag=name, simple_value=figure) for name, figure in row.items() if name != "epoch"]
        events.append(Event(step=step, summary=Summary(value=values)))
        records = io.BytesIO()
        for event in events:
            event.wall_time = now
            RecordWriter(records).write(event.SerializeToString())
        append(self._file, records.getvalue())


class TensorBoardTracker:
    """A run of TensorBoard for each stage: curves of its training, and in another below it what was measured of its artifact.

    Args:
        folder: of all runs.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._epochs: dict[str, TensorBoardEvents] = {}

    def write_epoch(self, stage: str, row: Mapping[str, float]) -> None:
        """Write the figures of an epoch."""
        self._epochs.setdefault(stage, TensorBoardEvents(self._folder / stage)).write(row)

    def write_result(self, stage: str, place: int, figures: Mapping[str, float], verdict: str) -> None:
        """Write figures in the place of earlier ones; `place` is their step, so that the points of the stages lie side by side.

        `verdict` is left out: `passed` is among the figures.
        """
        named = {f"result/{name}": figure for name, figure in figures.items()}
        TensorBoardEvents(self._folder / stage / "result", forgets_from=0).write({"epoch": place, **named})
