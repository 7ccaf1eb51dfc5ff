"""A run killed with SIGKILL goes on from its last finished stage and ends with the same bytes."""

from __future__ import annotations

import random
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from convnext_deploy.artifacts.artifact import describe_file, read_artifact
from convnext_deploy.pipeline.run import RunResult
from convnext_deploy.reports.record import read_report
from tests.conftest import draw_image
from tests.pipeline.conftest import LIGHT_RECIPE, STAGES, hashes

SHORT_STAGES = STAGES[:3]
SHORT_RECIPE = "[[stages]]".join(LIGHT_RECIPE.split("[[stages]]")[: 1 + len(SHORT_STAGES)])


@contextmanager
def started(recipe: Path, data: Path, out: Path, workers: int = 0) -> Iterator[subprocess.Popen[str]]:
    """Start the command; whatever happens, it has ended after the block."""
    command = [sys.executable, "-m", "convnext_deploy", "run", str(recipe), "--data", str(data), "--out", str(out)]
    command += ["--workers", str(workers), "--device", "cpu"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def finish(recipe: Path, data: Path, out: Path, workers: int = 0) -> None:
    with started(recipe, data, out, workers) as process:
        _, errors = process.communicate(timeout=300)
        assert process.returncode == 0, errors


def wait_for_line(process: subprocess.Popen[str], start: str) -> None:
    """Return when the process has printed such a line, or has ended."""
    assert process.stderr is not None
    for line in process.stderr:
        if line.startswith(start):
            return


def wait_for_file(process: subprocess.Popen[str], path: Path) -> None:
    while not path.exists() and process.poll() is None:
        time.sleep(0.005)


def finished_stages(out: Path) -> dict[str, int]:
    """Return when each finished stage was written, after checking that all its files are whole."""
    found = {}
    for folder in (out / "stages").glob("[!.]*"):
        artifact = read_artifact(folder)
        assert tuple(describe_file(folder / file.name) for file in artifact.files) == artifact.files
        found[folder.name] = (folder / "manifest.json").stat().st_mtime_ns
    return found


def check_result(out: Path, stages: tuple[str, ...], uninterrupted: RunResult, seen: list[dict[str, int]]) -> None:
    expected = hashes(uninterrupted)
    report = read_report(out)
    assert report.complete
    assert {row.name: read_artifact(Path(row.identity.artifact)).sha256 for row in report.rows} == {
        name: expected[name] for name in stages
    }
    counted = {row.name: row.accuracy for row in uninterrupted.report.rows}
    assert {row.name: row.accuracy for row in report.rows} == {name: counted[name] for name in stages}
    assert {path.name for path in (out / "stages").iterdir()} == set(stages)
    final = finished_stages(out)
    for before in seen:
        assert before.items() <= final.items(), "a finished stage was executed again"


@pytest.mark.heavy
def test_run_killed_in_each_stage_ends_like_an_uninterrupted_one(
    tmp_path: Path, image_folder: Path, light_run: RunResult
) -> None:
    recipe, out = tmp_path / "light.toml", tmp_path / "out"
    recipe.write_text(SHORT_RECIPE)
    delays = random.Random(0)
    seen = []
    for line in ("model: done", "ptq: calibrate: done"):
        with started(recipe, image_folder, out) as process:
            wait_for_line(process, line)
            time.sleep(delays.uniform(0.0, 0.2))
        seen.append(finished_stages(out))
    assert len(seen[-1]) < len(SHORT_STAGES), "both processes ended before they were killed"
    finish(recipe, image_folder, out)
    check_result(out, SHORT_STAGES, light_run, seen)


@pytest.mark.slow
def test_run_killed_at_random_moments_ends_like_an_uninterrupted_one(
    tmp_path: Path, image_folder: Path, light_file: Path, light_run: RunResult
) -> None:
    out = tmp_path / "out"
    delays = random.Random(1)
    seen = []
    for _ in range(16):
        (out / ".lock").unlink(missing_ok=True)
        with started(light_file, image_folder, out) as process:
            wait_for_file(process, out / ".lock")
            time.sleep(delays.uniform(0.0, 6.0))
        if (out / "stages").exists():
            seen.append(finished_stages(out))
    finish(light_file, image_folder, out)
    check_result(out, STAGES, light_run, seen)


@pytest.mark.slow
def test_run_goes_on_at_once_after_a_kill_that_left_decoding_processes_behind(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for split, count in (("train", 40), ("val", 2)):
        for label, name in enumerate(("cat", "dog")):
            (tmp_path / "images" / split / name).mkdir(parents=True)
            for index in range(count):
                # too large to be kept decoded, so that training needs the processes
                image = draw_image(label, rng, side=128)
                image.save(tmp_path / "images" / split / name / f"{index}.png")
    recipe, out = tmp_path / "light.toml", tmp_path / "out"
    text = "[[stages]]".join(LIGHT_RECIPE.split("[[stages]]")[:2]).replace("image_size = 32", "image_size = 128")
    recipe.write_text(text.replace("epochs = 1", "epochs = 20"))
    with started(recipe, tmp_path / "images", out, workers=2) as process:
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
        while process.poll() is None and len(children.read_text().split()) < 2:
            time.sleep(0.001)
        time.sleep(
            0.5
        )  # now they have decoded ahead and wait, and would notice their parent's death only after seconds
        assert process.poll() is None, "the process ended before it could be killed"
    recipe.write_text(text)
    finish(recipe, tmp_path / "images", out)
