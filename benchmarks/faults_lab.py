"""What the drills share: drawn images, a small recipe, a whole run of it, and what a trial found.

The run trains two tiny networks, the second distilled from the first with a teacher cache, quantizes it and exports it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from faults_processes import LIMIT_S, Ended, Process, Words
from PIL import Image

from convnext_deploy.artifacts.artifact import read_artifact
from convnext_deploy.reports.record import read_report

CLASSES = ("cat", "hibou grand-duc é", "猫")


@dataclass(frozen=True)
class Trial:
    """One thing that was done, what came of it in a few words, and what is wrong with that; empty if nothing is."""

    what: str
    outcome: str
    problem: str
    seconds: float


def recipe_text(epochs: int = 1, more: str = "", *, short: bool = False) -> str:
    """Return the recipe; `more` are further lines of the settings of both trainings. Short: the first of them is all there is."""
    training = f"""[stages.model]
name = "test_convnext2"
image_size = 32
[stages.fit]
epochs = {epochs}
batch_size = 12
base_learning_rate = 0.256
warmup_epochs = 0
{more}"""
    first = f"""name = "drill"
speed_check = false
[[stages]]
kind = "train"
name = "teacher"
{training}"""
    if short:
        return first
    return f"""{first}
[[stages]]
kind = "distill"
name = "student"
teacher = "teacher"
teacher_cache = true
{training}
[[stages]]
kind = "ptq"
target = "onnxruntime"
calibration_method = "minmax"
calibration_images = 4
[[stages]]
kind = "onnx"
"""


def draw_images(root: Path, side: int = 32, train: int = 12, validation: int = 6) -> Path:
    """Write an image folder of three classes that differ in colour, `train` and `validation` images of each."""
    rng = np.random.default_rng(0)
    for split, count in (("train", train), ("val", validation)):
        for label, name in enumerate(CLASSES):
            folder = root / split / name
            folder.mkdir(parents=True)
            for index in range(count):
                pixels = rng.integers(0, 90, (side, side, 3))
                pixels[..., label] += 120
                Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{index}.png")
    return root


def results_of(out: Path) -> dict[str, Any]:
    """Return what must be the same after a fault: the files of every artifact with their hashes, and what they scored."""
    rows = {row.name: (row.accuracy, row.verdict) for row in read_report(out).rows}
    return {name: (read_artifact(out / "stages" / name).files, found) for name, found in rows.items()}


def leftovers(out: Path) -> list[str]:
    """Return files of a run's folder that are half written or were for a moment only."""
    found = [path.relative_to(out) for path in out.rglob("*") if path.name.startswith(".") and path.name != ".lock"]
    return sorted(str(path) for path in found)


class Lab:
    """A folder for the processes of a drill. Short: the recipe is one training, for a drill of seconds."""

    def __init__(self, folder: Path, *, shared: Path | None = None, short: bool = False) -> None:
        """Make the folder; `shared` has the images, the recipe and the run that nothing happened to, of a `Lab` that made them."""
        self.folder, self.shared, self.short = folder, shared or folder, short
        folder.mkdir(parents=True, exist_ok=True)
        self._started: list[Process] = []

    def close(self) -> None:
        """Let nothing run any more."""
        for process in self._started:
            process.kill()

    @cached_property
    def images(self) -> Path:
        """Images of the usual size, which are decoded once."""
        images = self.shared / "images"
        return images if images.exists() else draw_images(images)

    @cached_property
    def recipe(self) -> Path:
        """The file of the usual recipe."""
        path = self.shared / "drill.toml"
        if not path.exists():
            path.write_text(recipe_text(short=self.short), encoding="utf-8")
        return path

    @cached_property
    def reference(self) -> Path:
        """The folder of a run of the usual recipe that nothing happens to."""
        out = self.shared / "reference"
        if not out.exists():
            self.expect(self.run_words(self.recipe, self.images, out))
        return out

    def write_recipe(self, name: str, text: str) -> Path:
        """Write a recipe."""
        path = self.folder / name
        path.write_text(text, encoding="utf-8")
        return path

    def run_words(self, recipe: Path, images: Path, out: Path, workers: int | None = 0) -> Words:
        """Return the words that run a recipe."""
        words: Words = ["run", recipe, "--data", images, "--out", out, "--device", "cpu"]
        return words if workers is None else [*words, "--workers", str(workers)]

    def start(
        self,
        words: Words,
        *,
        fresh: bool = False,
        environment: Mapping[str, str] | None = None,
        cwd: Path | None = None,
        prefix: Sequence[str] = (),
    ) -> Process:
        """Start a command, see `Process`."""
        log = self.folder / f"process-{len(self._started)}"
        process = Process(words, log, fresh=fresh, environment=environment, cwd=cwd, prefix=prefix)
        self._started.append(process)
        return process

    def run(self, words: Words, *, limit_s: float = LIMIT_S, **how: Any) -> Ended:
        """Run a command to its end, see `start`."""
        return self.start(words, **how).wait(limit_s)

    def expect(self, words: Words, **how: Any) -> Ended:
        """Run a command that nothing happens to. Raises: RuntimeError: if it fails all the same."""
        ended = self.run(words, **how)
        if problem := ended.fault({0}):
            raise RuntimeError(f"without a fault, {' '.join(map(str, words))}: {problem}")
        return ended


def compare(out: Path, expected: Mapping[str, Any]) -> str:
    """Return what is wrong with a finished run, given the results of one that nothing happened to; empty if nothing is."""
    found = results_of(out)
    other = [name for name in expected if found.get(name) != expected[name]]
    if other:
        return f"OTHER BYTES or scores: {', '.join(other)}"
    left = leftovers(out)
    return f"left behind: {', '.join(left)}" if left else ""
