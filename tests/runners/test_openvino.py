"""What several OpenVINO runners of one process have in common."""

from __future__ import annotations

import signal
import subprocess
import sys
from typing import Any

import pytest

from convnext_deploy.artifacts.artifact import Artifact

_TWO_RUNNERS = """
import os, pathlib, signal, sys
import numpy as np
from convnext_deploy.artifacts.artifact import read_artifact
from convnext_deploy.runners import open_runner
signal.signal(signal.SIGTERM, lambda *_: print("handled"))
first, second = (open_runner(read_artifact(pathlib.Path(sys.argv[1])), runner="openvino") for _ in range(2))
for runner in (first, second):
    runner.logits(np.zeros((1, 3, 32, 32), np.float32))
for runner in (first, second):
    runner.close()
del first, second, runner
os.kill(os.getpid(), signal.SIGTERM)
"""


@pytest.mark.heavy
def test_signals_are_handled_after_runners_were_closed_in_the_order_of_opening(
    small_artifacts: dict[str, Artifact], core: Any
) -> None:
    """With a core for each runner, the second would leave the stack of signals in memory that the first has freed."""
    command = [sys.executable, "-c", _TWO_RUNNERS, str(small_artifacts["onnx-fp32"].path)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "handled\n"), signal.Signals(max(-done.returncode, 1)).name
