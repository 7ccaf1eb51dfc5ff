"""Interleaved, isolated processes: which is faster, how sure that is, and what becomes of those that cannot or must not go on."""

from __future__ import annotations

import dataclasses
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from convnext_deploy.artifacts.artifact import Artifact
from convnext_deploy.evaluation.timing.interleaved import Candidate, ProcessTimes, Timing, relate, time_interleaved
from tests.evaluation.graphs import write_classifier
from tests.exporters.recorded_progress import RecordingProgress


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return write_classifier(tmp_path_factory.mktemp("small") / "small.onnx")


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return write_classifier(tmp_path_factory.mktemp("large") / "large.onnx", 1024, 12)


def quick(*candidates: Candidate, rounds: int = 2) -> tuple[Timing, ...]:
    return time_interleaved(candidates, rounds=rounds, seconds=0.05)


@pytest.mark.heavy
def test_slower_artifact_is_found_slower_whoever_comes_first(small: Artifact, large: Artifact) -> None:
    one, two = Candidate("small", small, threads=1), Candidate("large", large, threads=1)
    for first, second in ((one, two), (two, one)):
        found = {timing.candidate.name: timing for timing in quick(first, second)}
        ratio = found[second.name].ratio
        assert ratio is not None
        assert ratio.to == f"{first.name} on onnxruntime"
        assert (ratio.low > 2) if second is two else (ratio.high < 0.5)
        p50 = {name: timing.median("p50_ms") or 0.0 for name, timing in found.items()}
        assert 2 * p50["small"] < p50["large"]
    assert found["small"].runner == "onnxruntime"


@pytest.mark.heavy
def test_what_a_process_measures_belongs_together(large: Artifact) -> None:
    one, eight = quick(Candidate("one", large, threads=1), Candidate("eight", large, batch_size=8, threads=1))
    for timing in (one, eight):
        assert len(timing.processes) == 2
        for process in timing.processes:
            assert process.calls >= 10
            assert 0 < process.p50_ms <= process.p90_ms <= process.p99_ms
            expected = 1000 * timing.candidate.batch_size / process.p50_ms
            assert process.images_per_s == pytest.approx(expected, rel=0.8)
            assert 0 < process.load_s < 60
            assert process.peak_memory_bytes > large.size_bytes
            assert (process.power_w, process.temperature_c) == (None, None)
    # each is the first of its batch size
    assert [timing.ratio.to if timing.ratio else None for timing in (one, eight)] == [
        "one on onnxruntime",
        "eight on onnxruntime",
    ]


@pytest.mark.heavy
def test_memory_is_that_of_the_process_and_not_of_the_one_that_started_it(small: Artifact) -> None:
    ballast = np.ones(60_000_000)  # 480 MB, resident
    (timing,) = quick(Candidate("small", small), rounds=1)
    peak = timing.median("peak_memory_bytes")
    assert peak is not None
    assert peak < ballast.nbytes


@pytest.mark.heavy
def test_same_file_twice_is_as_fast_as_itself(large: Artifact) -> None:
    _, again = quick(Candidate("a", large, threads=1), Candidate("b", large, threads=1), rounds=6)
    assert again.ratio is not None
    assert again.ratio.low < 1.1  # at 1.0 one run in thirty would fail, because the interval has 97 %
    assert again.ratio.high > 0.9


@pytest.mark.heavy
def test_backend_that_is_not_here_is_no_error_for_the_others(
    small: Artifact, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    plant(tmp_path, monkeypatch, "openvino", "raise ImportError('planted')")
    progress = RecordingProgress()
    candidates = [Candidate("no", small, "openvino"), Candidate("yes", small)]
    no, yes = time_interleaved(candidates, rounds=2, seconds=0.05, progress=progress)
    assert (no.processes, no.ratio, no.failed) == ((), None, False)
    assert no.not_run is not None
    assert "pip install 'convnext_deploy[openvino]'" in no.not_run
    assert len(yes.processes) == 2
    assert yes.ratio is not None
    assert yes.ratio.to == "yes on onnxruntime"


def plant(folder: Path, monkeypatch: pytest.MonkeyPatch, package: str, code: str) -> None:
    """Put a package before the real one, in processes that are started from here on."""
    (folder / package).mkdir(parents=True)
    (folder / package / "__init__.py").write_text(f"import os, signal, sys\n{code}\n")
    monkeypatch.setenv("PYTHONPATH", str(folder))


@pytest.mark.heavy
@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("os.kill(os.getpid(), signal.SIGSEGV)", "its runtime crashed (segmentation fault)"),
        ("os.kill(os.getpid(), signal.SIGKILL)", "it was killed, as the system does when memory runs out"),
        ("sys.stderr.write('so it goes\\n'); os._exit(7)", "it ended with code 7; its last words: so it goes"),
        ("raise MemoryError", "too little memory"),
        ("raise ValueError('odd\\nand long')", "ValueError: odd"),
    ],
)
def test_crash_of_a_process_is_one_line_and_no_error_for_the_others(
    small: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: str, reason: str
) -> None:
    pytest.importorskip("openvino")
    plant(tmp_path, monkeypatch, "openvino", code)
    bad, good = quick(Candidate("bad", small, "openvino"), Candidate("good", small), rounds=1)
    assert bad.failed
    assert bad.not_run is not None
    assert bad.not_run.startswith(reason)
    assert "\n" not in bad.not_run
    assert len(good.processes) == 1


@pytest.mark.heavy
def test_damaged_artifact_is_one_line(small: Artifact, tmp_path: Path) -> None:
    (timing,) = quick(Candidate("gone", dataclasses.replace(small, path=tmp_path)))
    assert timing.failed
    assert timing.not_run is not None
    assert timing.not_run.startswith(f"ONNX Runtime cannot open {tmp_path / 'small.onnx'}")


@pytest.mark.heavy
def test_what_libraries_print_and_what_lies_in_the_folder_disturb_nothing(
    small: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    noise = "os.write(1, b'noise ' * 20000); print('noise'); raise ImportError('planted')"
    plant(tmp_path / "planted", monkeypatch, "openvino", noise)
    (tmp_path / "numpy.py").write_text("raise SystemExit('the wrong numpy')")
    monkeypatch.chdir(tmp_path)
    no, yes = quick(Candidate("no", small, "openvino"), Candidate("yes", small), rounds=1)
    assert no.not_run is not None
    assert no.not_run.startswith("openvino cannot be loaded (planted)")
    assert len(yes.processes) == 1


_PARENT = """
import sys
from pathlib import Path
from convnext_deploy.pipeline.open_artifact import open_input
from convnext_deploy.evaluation.timing.interleaved import Candidate, time_interleaved
time_interleaved([Candidate("c", open_input(Path(sys.argv[1])))], rounds=1, seconds=300.0)
"""


def timing_child(pid: int) -> int | None:
    """Return the child of a process that has loaded the runtime, and with it threads of its own; None if there is none yet."""
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        return next(
            (int(child) for child in children if "onnxruntime" in Path(f"/proc/{child}/maps").read_text()), None
        )
    except OSError:
        return None


def wait_until(holds: object, seconds: float = 60.0) -> bool:
    assert callable(holds)
    end = time.monotonic() + seconds
    while not holds():
        if time.monotonic() > end:
            return False
        time.sleep(0.02)
    return True


@pytest.mark.heavy
@pytest.mark.skipif(not Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children").exists(), reason="needs Linux's /proc")
@pytest.mark.parametrize("sent", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_processes_end_with_the_one_that_started_them(large: Artifact, sent: signal.Signals) -> None:
    command = [sys.executable, "-c", _PARENT, str(large.main_file)]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as parent:
        try:
            assert wait_until(lambda: timing_child(parent.pid) is not None)
            child = timing_child(parent.pid)
            assert child is not None
            parent.send_signal(sent)
            parent.wait(60)
            assert wait_until(lambda: not Path(f"/proc/{child}").exists() or _is_zombie(child))
        finally:
            parent.kill()


def _is_zombie(pid: int) -> bool:
    """Whether a process has ended, and waits for somebody to ask how."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def test_relate_refuses_times_of_other_rounds(small: Artifact) -> None:
    times = ProcessTimes(10, 1.0, 1.0, 1.0, 1000.0, 1.0, 1)
    one = Timing(Candidate("one", small), "onnxruntime", "cpu", (times,))
    two = Timing(Candidate("two", small), "onnxruntime", "cpu", (times, dataclasses.replace(times, p50_ms=2.0)))
    with pytest.raises(ValueError, match="zip"):
        relate(two, one)
    ratio = relate(two, two)
    assert ratio is not None
    assert (ratio.median, ratio.low, ratio.high) == (1.0, 1.0, 1.0)
    assert relate(dataclasses.replace(one, processes=(), not_run="no"), one) is None
