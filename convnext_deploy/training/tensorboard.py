"""The figures of each epoch as TensorBoard events, beside `history.json`."""

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
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
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
            events = [Event(file_version="brain.Event:2"), Event(step=step, session_log=start)]
        values = [Summary.Value(tag=name, simple_value=figure) for name, figure in row.items() if name != "epoch"]
        events.append(Event(step=step, summary=Summary(value=values)))
        records = io.BytesIO()
        for event in events:
            event.wall_time = now
            RecordWriter(records).write(event.SerializeToString())
        append(self._file, records.getvalue())
