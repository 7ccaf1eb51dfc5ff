"""A run of MLflow: settings, the figures of each epoch, what was measured of each artifact, and the report."""

from __future__ import annotations

import functools
import importlib.util
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from convnext_deploy.errors import BackendUnavailableError, OutputError, first_line

_PER_REQUEST = 100  # parameters that MLflow takes at once


def check_mlflow() -> None:
    """Raise BackendUnavailableError, with what to install, if MLflow is not here."""
    if importlib.util.find_spec("mlflow") is None:
        raise BackendUnavailableError(
            '--mlflow needs the package mlflow: pip install "convnext_deploy[mlflow]", or for a tracking server mlflow-skinny.'
        )


class MLflowTracker:
    """Writes figures into a run of MLflow. What its store does not take is said once, and ends nothing.

    Args:
        client: of MLflow.
        run_id: of the run.
        say: takes the sentence.
    """

    def __init__(self, client: Any, run_id: str, say: Callable[[str], None]) -> None:
        self._client, self._run_id, self._say = client, run_id, say
        self._failed = False

    def write_epoch(self, stage: str, row: Mapping[str, float]) -> None:
        """Write the figures of an epoch as `STAGE/figure`."""
        self._write(stage, {name: figure for name, figure in row.items() if name != "epoch"}, int(row["epoch"]))

    def write_result(self, stage: str, place: int, figures: Mapping[str, float], verdict: str) -> None:
        """Write figures likewise, at the step `place`, and the verdict as a tag."""
        self._write(stage, figures, place)
        self._attempt(lambda: self._client.set_tag(self._run_id, allowed(f"{stage}.verdict"), verdict))

    def write_files(self, files: Sequence[Path]) -> None:
        """Write those files that there are as artifacts."""
        for file in files:
            if file.is_file():
                self._attempt(functools.partial(self._client.log_artifact, self._run_id, str(file)))

    def _write(self, stage: str, figures: Mapping[str, float], step: int) -> None:
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        metrics = [Metric(allowed(f"{stage}/{name}"), float(figure), now, step) for name, figure in figures.items()]
        self._attempt(lambda: self._client.log_batch(self._run_id, metrics=metrics))

    def _attempt(self, write: Callable[[], object]) -> None:
        try:
            write()
        except Exception as error:  # of a server, a database or files: each store has its own
            if not self._failed:
                self._say(
                    f"MLflow does not take everything ({first_line(error)}); the run goes on, and its folder has all"
                )
            self._failed = True


def allowed(name: str) -> str:
    """Return a name with `_` for what MLflow does not allow in one."""
    return re.sub(r"[^\w.\-/ ]", "_", name)


@contextmanager
def tracked_run(
    name: str, parameters: Mapping[str, str], files: Sequence[Path], say: Callable[[str], None]
) -> Iterator[MLflowTracker]:
    """Open a run of MLflow, which ends as the block does: finished, failed or killed.

    Server, experiment and login are those that MLflow is set to (`MLFLOW_TRACKING_URI`, `MLFLOW_EXPERIMENT_NAME` and others). Where
    a run is active, as in a notebook, this is one below it.

    Args:
        name: of the run.
        parameters: its settings.
        files: become its artifacts at the end, as far as they are there then.
        say: takes a sentence for the user.

    Raises:
        BackendUnavailableError: if MLflow is not installed.
        OutputError: if its store cannot be reached or written.
    """
    check_mlflow()
    import mlflow

    pairs = [(allowed(key), value) for key, value in parameters.items()]
    begun = False
    try:
        run = mlflow.start_run(run_name=name, nested=mlflow.active_run() is not None)
        begun = True
        for start in range(0, len(pairs), _PER_REQUEST):
            mlflow.log_params(dict(pairs[start : start + _PER_REQUEST]))
    except Exception as error:  # of a server, a database or files: each store has its own
        if begun:
            mlflow.end_run("FAILED")
        raise OutputError(
            f"MLflow cannot write to {mlflow.get_tracking_uri()} ({first_line(error)}). Set MLFLOW_TRACKING_URI to a store that it "
            "can write to, or leave --mlflow out."
        ) from None
    say(f"MLflow: run {name}, {run.info.run_id}, in {mlflow.get_tracking_uri()}")
    tracker, status = MLflowTracker(mlflow.MlflowClient(), run.info.run_id, say), "FAILED"
    try:
        yield tracker
        status = "FINISHED"
    except (KeyboardInterrupt, SystemExit):
        status = "KILLED"
        raise
    finally:
        tracker.write_files(files)
        mlflow.end_run(status)
