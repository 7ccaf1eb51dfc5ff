"""A machine that does other work says so, and what was timed on it then is never called the fastest."""

from __future__ import annotations

import dataclasses
import os
import time
from pathlib import Path
from typing import Any

import pytest

from convnext_deploy.api.bench import bench
from convnext_deploy.api.options import DataOptions, ExecutionOptions
from convnext_deploy.api.validate import validate
from convnext_deploy.artifacts.artifact import Artifact
from convnext_deploy.evaluation.latency import Latency, measure_latency
from convnext_deploy.evaluation.timing import interleaved, speedup
from convnext_deploy.evaluation.timing.speedup import Speed, Speedup, judge_speed
from convnext_deploy.reports.comparison import Run, compare_runs
from convnext_deploy.reports.html.accuracy_plot import find_points, pareto_front
from convnext_deploy.reports.html.tiles import create_tiles
from convnext_deploy.reports.model_card import render_model_card, shipped_row
from convnext_deploy.reports.record import Report, StageRow
from convnext_deploy.reports.stage_table import remarks
from convnext_deploy.system import load
from convnext_deploy.system.load import Load, said_once, unreliable, watch_load, without_load

WORDS = "load 17 on 2 cores"
SAID = f"{WORDS}: times are not to be relied on"


@pytest.fixture
def crowded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the machine say that 17 threads want its two cores."""
    monkeypatch.setattr(load, "_average", lambda: 17.2)
    monkeypatch.setattr(os, "cpu_count", lambda: 2)


@pytest.mark.parametrize(
    ("found", "words"),
    [
        (Load(17.2, 2), WORDS),
        (Load(6.0, 2), None),  # what a training with its decoding processes leaves behind for a minute
        (Load(17.2, 64), None),
        (Load(0.1, 2, others=0.4), None),
        (Load(0.1, 2, others=1.9), "load 2 on 2 cores"),  # it has only begun, and the average does not know of it
        (Load(0.1, 2, others=0.7), "load 0.7 on 2 cores"),
        (Load(30.0, 64, others=15.0), None),
        (Load(30.0, 64, others=30.0), "load 30 on 64 cores"),
    ],
)
def test_load_is_described_where_others_take_what_is_timed(found: Load, words: str | None) -> None:
    assert found.describe() == words


def test_work_of_others_is_what_is_not_this_process_own(monkeypatch: pytest.MonkeyPatch) -> None:
    busy, own = iter([100.0, 104.0]), iter([10.0, 13.0])
    clock = iter([0.0, 2.0])
    monkeypatch.setattr(load, "_busy_s", lambda: next(busy))
    monkeypatch.setattr(load, "_own_s", lambda: next(own))
    monkeypatch.setattr(time, "perf_counter", lambda: next(clock))
    with watch_load() as found:
        pass
    monkeypatch.undo()
    assert found.others == 0.5  # 4 seconds of work, 3 of them ours, in 2 seconds


def test_load_is_read_where_the_system_tells_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    ticks = os.sysconf("SC_CLK_TCK")
    (tmp_path / "stat").write_text(f"cpu  {ticks} {ticks} {ticks} 99 99 0 0 {2 * ticks} 7 7\ncpu0 1 2 3\n")
    for content, expected in ((tmp_path / "stat", 5.0), (tmp_path / "absent", None)):
        monkeypatch.setattr(load, "_STAT", content)
        assert CALLS["_busy_s"]() == expected
    assert CALLS["_average"]() >= 0


CALLS: dict[str, Any] = {"_busy_s": load._busy_s, "_average": load._average}


class _Runner:
    name, device = "torch", "cpu"

    def prepare(self, images: Any) -> Any:
        return images

    def run(self, prepared: Any) -> Any:
        return {"logits": prepared}

    def logits(self, images: Any) -> Any:
        return images

    def close(self) -> None:
        pass


def test_latency_says_that_it_was_measured_under_a_load(crowded: None, short_timing: None) -> None:
    assert measure_latency(_Runner(), (3, 8, 8)).loaded == WORDS


def test_speed_under_a_load_proves_nothing(
    crowded: None, monkeypatch: pytest.MonkeyPatch, small_artifacts: dict[str, Artifact]
) -> None:
    pair = [speedup.Contender(name, small_artifacts[name], "onnxruntime") for name in ("onnx-int8", "onnx-fp32")]
    monkeypatch.setattr(speedup, "_time_both", lambda *_: Speedup(1, 2.0, 1.9, 2.1, 1.0, 2.0))
    monkeypatch.setattr(speedup, "_layer_times", lambda *_: ())
    from convnext_deploy.system.progress import SilentProgress

    found = speedup.measure_speed(pair[0], pair[1], [1], SilentProgress())
    assert found.loaded == WORDS
    verdict = judge_speed(found, None)
    assert (verdict.passed, verdict.proven, verdict.notes[-1]) == (True, False, SAID)
    slow = dataclasses.replace(found, speedups=(Speedup(1, 0.5, 0.4, 0.6, 2.0, 1.0),))
    verdict = judge_speed(slow, None)
    assert (verdict.passed, verdict.proven) == (False, False)
    assert SAID in verdict.reasons
    assert judge_speed(dataclasses.replace(found, loaded=None), None).proven is True
    assert isinstance(found, Speed)


def test_bench_says_it(crowded: None, monkeypatch: pytest.MonkeyPatch, small_artifacts: dict[str, Artifact]) -> None:
    times = interleaved.ProcessTimes(10, 1.0, 1.0, 1.0, 1.0, 1.0, 1)
    monkeypatch.setattr(
        interleaved, "_time_once_more", lambda timing, _: dataclasses.replace(timing, processes=(times,) * 6)
    )
    assert bench([small_artifacts["student"].path], rounds=6).notes == (SAID,)


def loaded_row(row: StageRow) -> StageRow:
    latency = row.speed.latency
    assert latency is not None
    faster = dataclasses.replace(latency, p50_ms=latency.p50_ms / 100, loaded=WORDS)
    return dataclasses.replace(row, speed=dataclasses.replace(row.speed, latency=faster))


def test_what_was_timed_under_a_load_is_never_the_fastest(small_run: Any) -> None:
    report: Report = small_run.report
    graphs = [row for row in report.rows if row.identity.format == "onnx"]
    one, other = graphs
    assert one.speed.latency is not None
    assert other.speed.latency is not None
    rows = (loaded_row(one), other)
    found = dataclasses.replace(report, rows=rows)
    fastest = create_tiles(found)[0]
    assert fastest.title.startswith("Fastest")
    assert fastest.note.startswith(other.name)
    assert shipped_row(found) == other
    assert [point.row.name for point in pareto_front(find_points(rows))] == [other.name]
    every = dataclasses.replace(report, rows=tuple(map(loaded_row, graphs)))
    assert (create_tiles(every)[0].value, create_tiles(every)[0].note) == ("–", f"not known: {WORDS}")
    compared = compare_runs((Run("a", Path("a"), report), Run("b", Path("b"), every)))
    assert [text for text in compared.warnings if WORDS in text] == [
        f"latency was measured on a machine that did other work, and is not to be relied on (b: {WORDS})"
    ]


def test_row_of_the_report_says_it(small_run: Any, small_artifacts: dict[str, Artifact]) -> None:
    from convnext_deploy.evaluation.measure import Measurement
    from convnext_deploy.evaluation.score import Score
    from convnext_deploy.reports.rows import Role, create_row

    measured = Measurement(Score(1, 1, (0,), (0,)), Latency(1, 1.0, 1.0, WORDS), "torch", "cpu")
    assert measured.score is not None
    row = create_row(Role("x", "train", None), small_artifacts["student"], measured, {"x": measured.score})
    report = dataclasses.replace(small_run.report, rows=(row,))
    assert remarks(report)[0] == f"x: {SAID}; time it again on a free machine, in a run with --measure-again"


def test_validate_says_that_it_measures_anew_each_time(
    crowded: None, short_timing: None, small_artifacts: dict[str, Artifact], image_folder: Path
) -> None:
    here = ExecutionOptions(workers=0, device="cpu", progress="off")
    report = validate(small_artifacts["student"].path, data=DataOptions(image_folder), execution=here)
    assert f"artifact: {SAID}; time it again on a free machine, by validating it again" in remarks(report)


@pytest.mark.parametrize(
    ("found", "loaded", "passed", "proven"),
    [
        ((0.93, 0.83, 1.23), WORDS, True, False),  # neither slower nor faster: not known
        ((0.93, 0.83, 1.23), None, False, False),
        ((0.93, 0.83, 0.97), WORDS, False, False),  # slower in every round, whatever else ran
    ],
)
def test_median_under_a_load_that_the_interval_contradicts_fails_nothing(
    found: tuple[float, float, float], loaded: str | None, *, passed: bool, proven: bool
) -> None:
    speed = Speed(
        "float", "out/float", "onnxruntime", "onnxruntime", "cpu", (Speedup(1, *found, 1.0, 1.0),), (), loaded
    )
    verdict = judge_speed(speed, None)
    assert (verdict.passed, verdict.proven) == (passed, proven)
    if passed:
        assert verdict.reasons == ()
        assert verdict.notes[0].endswith("; the median is below, and the interval ends above the 1× asked for")
        assert verdict.notes[1] == (
            f"{SAID}; whether it reaches that is not known, time it again on a free machine: --measure-again"
        )


def test_model_card_says_which_times_are_not_to_be_relied_on(small_run: Any) -> None:
    report: Report = small_run.report
    assert "not to be relied on" not in render_model_card(dataclasses.replace(report, rows=_free(report.rows)))
    rows = tuple(loaded_row(row) if row.name == "onnx-int8" else row for row in _free(report.rows))
    speed = Speed(
        "onnx-fp32", "", "onnxruntime", "onnxruntime", "cpu", (Speedup(1, 2.0, 1.9, 2.1, 1.0, 2.0),), (), WORDS
    )
    slow = dataclasses.replace(rows[-1], speed=dataclasses.replace(rows[-1].speed, against_float=speed))
    card = render_model_card(dataclasses.replace(report, rows=(*rows[:-1], slow)))
    assert f"The machine did other work then, and times are not to be relied on: onnx-int8: {WORDS}." in card
    assert f"- {SAID}." in card


def _free(rows: tuple[StageRow, ...]) -> tuple[StageRow, ...]:
    """Return rows that were timed while nothing else ran."""
    return tuple(
        row
        if row.speed.latency is None
        else dataclasses.replace(
            row, speed=dataclasses.replace(row.speed, latency=dataclasses.replace(row.speed.latency, loaded=None))
        )
        for row in rows
    )


def test_what_differs_in_the_load_alone_is_said_once() -> None:
    texts = [unreliable(f"load {load} on 2 cores") for load in ("9", "13", "11")]
    assert {without_load(text) for text in texts} == {"load on 2 cores: times are not to be relied on"}
    assert said_once(texts) == "load 9 to 13 on 2 cores: times are not to be relied on"
    assert said_once(texts[:1]) == texts[0]
    assert said_once(["the load of 3 on 2"]) == without_load("the load of 3 on 2") == "the load of 3 on 2"
