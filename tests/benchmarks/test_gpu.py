"""The script for a GPU names what failed or took too long and goes on; without a GPU it ends with one line."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest


def test_a_part_that_fails_or_hangs_is_named_and_the_others_go_on(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import gpu

    parts = (
        gpu.Part("fails", (sys.executable, "-c", "raise SystemExit('error: no memory')"), 30),
        gpu.Part("hangs", ("/bin/sh", "-c", "sleep 60 & sleep 60"), 0.2),
        gpu.Part("works", ("/bin/sh", "-c", "echo 3 passed"), 30),
    )
    monkeypatch.setattr(gpu, "PARTS", parts)
    out = tmp_path / "gpu.json"
    monkeypatch.setattr(sys, "argv", ["gpu.py", "--device", "cpu", "--out", str(out)])
    with pytest.raises(SystemExit) as ended:
        gpu.main()
    assert ended.value.code == 1
    found = json.loads(out.read_text())["parts"]
    assert [(name, part["state"]) for name, part in found.items()] == [
        ("fails", "failed"), ("hangs", "too long"), ("works", "done"),
    ]  # fmt: skip
    printed = capsys.readouterr().out
    assert "| fails | failed |" in printed
    assert "error: no memory" in printed
    assert "3 passed" in printed
    assert "no figure says anything of a GPU" in printed


def test_parts_fit_into_their_time_one_by_one() -> None:
    import gpu
    import gpu_parts

    assert {part.name for part in gpu.PARTS if part.measures} == set(gpu_parts.MEASURES)
    assert gpu.TOTAL_S == 480
    assert all(part.seconds <= gpu.TOTAL_S / 4 for part in gpu.PARTS)


def test_without_a_gpu_it_is_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import gpu

    monkeypatch.setattr(gpu, "cuda_driver_error", lambda: "no GPU")
    monkeypatch.setattr(sys, "argv", ["gpu.py", "--out", str(tmp_path / "gpu.json")])
    with pytest.raises(SystemExit) as ended:
        gpu.main()
    assert str(ended.value.code).startswith("benchmarks/gpu.py needs an NVIDIA GPU, and here is no GPU;")
    assert "\n" not in str(ended.value.code)
    assert not (tmp_path / "gpu.json").exists()


@pytest.mark.heavy
@pytest.mark.parametrize("part", ["training", "memory", "engine-int8"])
def test_parts_run_on_a_cpu(part: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import gpu_parts

    out = tmp_path / "figures.json"
    monkeypatch.setattr(sys, "argv", ["gpu_parts.py", part, "--device", "cpu", "--quick", "--out", str(out)])
    gpu_parts.main()
    figures = json.loads(out.read_text())
    assert figures["ours, images/s"] > 0 if part == "training" else "not run" in figures
