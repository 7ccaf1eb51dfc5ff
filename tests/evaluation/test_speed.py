"""The verdict on the speed of INT8: the median decides, the interval tells how sure it is, and it says what to ship."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from convnext_deploy.artifacts.artifact import Artifact
from convnext_deploy.errors import BackendUnavailableError, ProcessFailedError
from convnext_deploy.evaluation.measure import read_kept, write_kept
from convnext_deploy.evaluation.timing import speedup as module
from convnext_deploy.evaluation.timing.interleaved import Candidate, ProcessTimes, Timing
from convnext_deploy.evaluation.timing.layer_times import LayerExcess
from convnext_deploy.evaluation.timing.speedup import Contender, Speed, Speedup, judge_speed, measure_speed
from convnext_deploy.system.progress import SilentProgress
from tests.evaluation.graphs import write_classifier

SLOW = (
    LayerExcess("stages.0.0.pwconv1", 9.31, 0.62, 0.1, 0.78),
    LayerExcess("stages.0.0.pwconv2", 2.0, 1.0, 1.5, 0.09),
)


def speed_of(median: float, low: float, high: float, layers: tuple[LayerExcess, ...] = SLOW) -> Speed:
    speedup = Speedup(1, median, low, high, 11.0, 11.0 * median)
    return Speed("student-float-openvino", "out/float", "openvino", "openvino-bf16", "cpu", (speedup,), layers)


@pytest.mark.parametrize(
    ("found", "wanted", "passed", "proven"),
    [
        ((1.5, 1.4, 1.6), None, True, True),
        ((1.02, 0.97, 1.1), None, True, False),
        ((1.0, 1.0, 1.0), None, True, True),
        ((0.98, 0.9, 1.05), None, False, False),
        ((0.5, 0.4, 0.6), None, False, True),
        ((1.5, 1.4, 1.6), 2.0, False, True),
        ((1.5, 1.4, 1.6), 1.45, True, False),
        ((0.5, 0.4, 0.6), 0.3, True, True),
    ],
)
def test_median_decides_and_the_interval_tells_how_sure_it_is(
    found: tuple[float, float, float], wanted: float | None, *, passed: bool, proven: bool
) -> None:
    verdict = judge_speed(speed_of(*found), wanted)
    assert (verdict.passed, verdict.proven) == (passed, proven)
    assert bool(verdict.reasons) is not passed
    assert any("ship student-float-openvino instead: out/float" in reason for reason in verdict.reasons) is not passed


def test_an_interval_that_ends_just_below_what_is_asked_for_does_not_seem_to_reach_it() -> None:
    reason = judge_speed(speed_of(0.99, 0.67, 0.9975), None).reasons[0]
    assert reason.startswith("0.9900× as fast as student-float-openvino [95 %: 0.6700 to 0.9975] on")


def test_failed_verdict_says_what_was_measured_which_layers_and_what_to_ship() -> None:
    verdict = judge_speed(speed_of(0.5, 0.4, 0.6), None)
    assert verdict.reasons == (
        "0.50× as fast as student-float-openvino [95 %: 0.40 to 0.60] on openvino and openvino-bf16, single images: 11.00 ms, "
        "float 5.50 ms, and INT8 must not be slower",
        "layers responsible: stages.0.0.pwconv1 9.310 ms, float 0.620 ms (more by 78 % of all kernels under the profiler); "
        "stages.0.0.pwconv2 2.000 ms, float 1.000 ms (more by 9 % of all kernels under the profiler, 1.500 ms of it conversions)",
        "ship student-float-openvino instead: out/float",
    )
    assert judge_speed(speed_of(0.997, 0.9, 1.1), None).reasons[0].startswith("0.9970× as fast")
    unsure = judge_speed(speed_of(0.99, 0.9, 1.1), None)
    assert unsure.reasons[0].endswith("must not be slower (not proven: the interval reaches further)")


def test_failed_verdict_without_a_slow_layer_names_the_longest_and_without_a_profile_says_so() -> None:
    fast = (LayerExcess("head", 3.0, 4.0, 0.0, -0.2),)
    reason = judge_speed(speed_of(1.3, 1.2, 1.4, fast), 2.0).reasons
    assert "and 2× is asked for" in reason[0]
    assert reason[1] == "no layer is slower than in float; the longest: head 3.000 ms, float 4.000 ms"
    assert "gave no profile" in judge_speed(speed_of(0.5, 0.4, 0.6, ()), None).reasons[1]


def test_every_batch_size_must_pass() -> None:
    good, bad = Speedup(1, 2.0, 1.9, 2.1, 5.0, 10.0), Speedup(8, 0.5, 0.4, 0.6, 20.0, 10.0)
    both = dataclasses.replace(speed_of(1, 1, 1), speedups=(good, bad))
    verdict = judge_speed(both, None)
    assert not verdict.passed
    assert "batches of 8" in verdict.reasons[0]
    assert both.worst == bad
    assert judge_speed(dataclasses.replace(both, speedups=(good,)), None).passed


@pytest.fixture
def contenders(tmp_path: Path) -> tuple[Contender, Contender]:
    return tuple(
        Contender(name, write_classifier(tmp_path / f"{name}.onnx", int8=name == "int8"), "onnxruntime")
        for name in ("int8", "float")
    )  # type: ignore[return-value]  # there are two


def stand_in_times(monkeypatch: pytest.MonkeyPatch, times: dict[str, Sequence[float] | str]) -> None:
    """Let processes find these milliseconds, or not run for a reason."""

    def time_interleaved(candidates: Sequence[Candidate], **_: Any) -> tuple[Timing, ...]:
        timings = []
        for candidate in candidates:
            found = times[candidate.name]
            timing = Timing(candidate, "onnxruntime", "cpu")
            if isinstance(found, str):
                timing = dataclasses.replace(timing, not_run=found, failed=found.startswith("crash"))
            else:
                processes = tuple(ProcessTimes(10, ms, ms, ms, 1000 / ms, 1.0, 1) for ms in found)
                timing = dataclasses.replace(timing, processes=processes)
            timings.append(timing)
        return tuple(timings)

    monkeypatch.setattr(module, "time_interleaved", time_interleaved)


def test_measure_speed_pairs_the_rounds_and_keeps_both_times(
    contenders: tuple[Contender, Contender], monkeypatch: pytest.MonkeyPatch
) -> None:
    # the machine gets three times slower; the ratio of each round stays
    slowing = [1.0, 1.0, 2.0, 2.0, 3.0, 3.0]
    stand_in_times(monkeypatch, {"int8": [10 * s for s in slowing], "float": [5 * s for s in slowing]})
    monkeypatch.setattr(module, "SECONDS", 0.02)
    found = measure_speed(*contenders, (1, 4), SilentProgress())
    assert [(s.batch_size, s.median, s.low, s.high) for s in found.speedups] == [(1, 0.5, 0.5, 0.5), (4, 0.5, 0.5, 0.5)]
    assert (found.speedups[0].ms, found.speedups[0].float_ms) == (20.0, 10.0)
    assert (found.compared_with, found.path) == ("float", str(contenders[1].artifact.location))
    assert not judge_speed(found, None).passed


@pytest.mark.parametrize(
    ("reason", "error"), [("crash: out of memory", ProcessFailedError), ("no provider", BackendUnavailableError)]
)
def test_measure_speed_raises_when_one_of_both_cannot_be_run(
    contenders: tuple[Contender, Contender], monkeypatch: pytest.MonkeyPatch, reason: str, error: type[Exception]
) -> None:
    stand_in_times(monkeypatch, {"int8": [1.0], "float": reason})
    with pytest.raises(error, match=f"^float: {reason}$"):
        measure_speed(*contenders, (1,), SilentProgress())


def test_measurement_is_read_as_it_was_kept_and_under_its_own_key_alone(tmp_path: Path) -> None:
    path, kept = tmp_path / "scores" / "int8.speed.json", speed_of(1.5, 1.4, 1.6)
    assert read_kept(Speed, path, "key") is None
    write_kept(path, "key", kept)
    assert read_kept(Speed, path, "key") == kept
    assert read_kept(Speed, path, "other") is None
    for damaged in ("", "{", "[]", '{"key": "key"}', '{"key": "key", "speedups": 3, "layers": []}'):
        path.write_text(damaged)
        assert read_kept(Speed, path, "key") is None


def test_layers_are_unknown_where_the_runtime_has_no_profile(
    small_artifacts: dict[str, Artifact], monkeypatch: pytest.MonkeyPatch
) -> None:
    stand_in_times(monkeypatch, {"a": [2.0], "b": [1.0]})
    both = [Contender(name, small_artifacts["student"], "torch") for name in "ab"]
    assert measure_speed(both[0], both[1], (1,), SilentProgress()).layers == ()
