"""Jobs of timing in this process: a process of their own takes ten times as long, and only tells more of speed."""

from __future__ import annotations

import json
import pickle
from typing import Any

from convnext_deploy.errors import BackendUnavailableError, ProcessFailedError
from convnext_deploy.evaluation.timing import _worker
from convnext_deploy.evaluation.timing.worker_process import Job


def run_job_here(job: Job) -> dict[str, Any]:
    """Do what `run_job` does; what goes to a process and comes back is written and read as there."""
    try:
        found: dict[str, Any] = json.loads(json.dumps(_worker._measure(pickle.loads(pickle.dumps(job)))))
    except Exception as error:
        told = _worker._describe(error)
        if "unavailable" in told:
            raise BackendUnavailableError(told["unavailable"]) from None
        raise ProcessFailedError(told["failed"]) from None
    return found
