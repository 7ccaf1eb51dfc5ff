"""The figures of each epoch as TensorBoard events, beside `history.json`."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from convnext_deploy.errors import BackendUnavailableError


def check_tensorboard() -> None:
    """Raise BackendUnavailableError, with what to install, if events cannot be written here."""
    if importlib.util.find_spec("tensorboard") is None:
        raise BackendUnavailableError(
            'TensorBoard events need the package tensorboard: pip install "convnext_deploy[tensorboard]".'
        )


class TensorBoardEvents:
    """A folder of event files, one run of TensorBoard. Nothing is made before the first epoch has ended.

    Args:
        folder: the run.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._writer: Any = None

    def write(self, row: Mapping[str, float]) -> None:
        """Write an epoch's figures, `epoch` being the step; what an earlier process wrote of this epoch or later is dropped.

        Raises: BackendUnavailableError: without TensorBoard.
        """
        epoch = int(row["epoch"])
        if self._writer is None:
            check_tensorboard()
            from torch.utils.tensorboard import SummaryWriter

            self._writer = SummaryWriter(str(self.folder), purge_step=epoch)
        for name, figure in row.items():
            if name != "epoch":
                self._writer.add_scalar(name, figure, epoch)
        self._writer.flush()  # a killed training keeps what it wrote
