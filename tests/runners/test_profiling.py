"""Profiles of runtimes as kernels: medians over calls, in the order of a call."""

from __future__ import annotations

import json
from typing import Any

import pytest

from convnext_deploy.artifacts.artifact import Artifact
from convnext_deploy.errors import ArtifactError, RunnerError
from convnext_deploy.runners import open_profiled
from convnext_deploy.runners.profiling import Kernel, median_kernels, read_onnxruntime_profile, single_times


def event(name: str, microseconds: int, operator: str = "MatMul", kind: str = "Node") -> dict[str, Any]:
    return {"cat": kind, "name": name, "dur": microseconds, "args": {"op_name": operator}}


def test_onnxruntime_profile_is_read_by_kernel_without_what_is_none() -> None:
    events = [
        event("model_run", 9999, kind="Session"),
        *(event("a/MatMul_kernel_time", dur) for dur in (9000, 2000, 1000)),
        event("a/MatMul_fence_before", 5),
        event("Reorder_kernel_time", 500, "ReorderInput"),
    ]
    expected = (Kernel("a/MatMul", "MatMul", 2.0), Kernel("Reorder", "ReorderInput", 0.5))
    assert read_onnxruntime_profile(json.dumps(events)) == expected


@pytest.mark.parametrize("text", ["", "{}x", "[1]", '[{"cat": "Node"}]', '[{"cat": "Node", "name": "a_kernel_time"}]'])
def test_damaged_profile_is_one_line(text: str) -> None:
    with pytest.raises(ArtifactError, match=r"^ONNX Runtime's profile cannot be read[^\n]*$"):
        read_onnxruntime_profile(text)


def test_times_of_single_calls_come_back_from_their_running_means() -> None:
    times = [2.0, 2.0, 44.0, 2.0]  # one call was interrupted, and is in all means after it
    means = [{("a", "X"): sum(times[: n + 1]) / (n + 1)} for n in range(len(times))]
    found = list(single_times(means))
    assert [ms for _, _, ms in found] == pytest.approx(times)
    (kernel,) = median_kernels(found)
    assert (kernel.name, kernel.operator) == ("a", "X")
    assert kernel.ms == pytest.approx(2.0)


def test_runner_without_a_profile_is_refused(small_artifacts: dict[str, Artifact]) -> None:
    with pytest.raises(RunnerError, match=r"^the runner torch has no profile"):
        open_profiled(small_artifacts["student"])
