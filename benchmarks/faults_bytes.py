"""Random bits of a run folder, its caches and a bundle are altered, one at a time: each must be found, or change nothing.

Decoded pixels and predictions are kept in a cache folder, and the graph goes into a bundle. A file is drawn, then a byte of it,
then a bit. What reads that file is then used again: the recipe is run once more (after its stage was removed, for states of
trainings and caches, which are read by nothing else), a report is shown, bare weights are opened, the bundle is verified. A bit is
accepted, which is a failure, when that gives another network, score or report and nobody objects.
"""

from __future__ import annotations

import random
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from faults_lab import Lab, Trial, draw_images, recipe_text

from convnext_deploy.api.bundle import bundle
from convnext_deploy.api.verify_bundle import verify_bundle
from convnext_deploy.artifacts.artifact import read_artifact
from convnext_deploy.config.recipe import Recipe
from convnext_deploy.config.recipe_toml import load_recipe
from convnext_deploy.data.datasets import open_data
from convnext_deploy.errors import DeployError
from convnext_deploy.pipeline.open_artifact import open_input
from convnext_deploy.pipeline.run import run_recipe
from convnext_deploy.pipeline.stage import Settings
from convnext_deploy.reports.record import Report, read_report
from convnext_deploy.system.execution import Execution
from convnext_deploy.system.progress import SilentProgress

UNREAD = ("report.html", "report.md", "model_card.md", "history.json", ".lock")
FOUND, HARMLESS, ACCEPTED = "found", "harmless", "ACCEPTED"


@dataclass(frozen=True)
class Altered:
    """An altered bit of a file, relative to the folder of the drill, and what came of it."""

    file: str
    byte: int
    bit: int
    outcome: str
    detail: str


class _Listening(SilentProgress):
    """Keeps what is said of damage."""

    def __init__(self, lines: list[str]) -> None:
        self.lines = lines

    def say(self, message: str) -> None:
        if any(word in message for word in ("altered", "damaged", "cannot be read", "manifest")):
            self.lines.append(message)


class Bench:
    """A finished run in `folder/out`, with its caches, and a bundle in `folder/bundle`; copies of both are altered."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.out, self.whole = folder, folder / "out", folder / "whole"
        self.said: list[str] = []  # by the last use
        draw_images(folder / "images")
        (folder / "recipe.toml").write_text(recipe_text(), encoding="utf-8")
        self.recipe: Recipe = load_recipe(folder / "recipe.toml")
        self.expected = self.figures(self.run())
        bundle([self.out / "stages" / "onnx"], self.out / "bundle", golden_images=4)
        self.out.rename(self.whole)
        self.files = sorted(path.relative_to(self.whole) for path in self.whole.rglob("*") if path.is_file())

    def run(self) -> Report:
        """Run the recipe in `out`, where everything is up to date but what was altered."""
        execution = Execution(cache_dir=self.out / "cache", progress=_Listening(self.said))
        data = open_data(str(self.folder / "images"))
        return run_recipe(self.recipe, Settings(self.out, execution), data=data).report

    def figures(self, report: Report) -> list[Any]:
        """Return what must not change: the hashes of all artifacts, what they answer, and the verdicts."""
        hashes = [read_artifact(self.out / "stages" / row.name).sha256 for row in report.rows]
        return [hashes, [(row.accuracy, row.verdict) for row in report.rows]]

    def alter(self, file: Path, byte: int, bit: int) -> Altered:
        """Alter a bit in a copy of all files and use what reads it."""
        shutil.rmtree(self.out, ignore_errors=True)
        shutil.copytree(self.whole, self.out)
        content = bytearray((self.out / file).read_bytes())
        content[byte] ^= 1 << bit
        (self.out / file).write_bytes(content)
        self.said = []
        try:
            same = self.use(file)
            outcome, detail = (HARMLESS, "the same results") if same else (ACCEPTED, "other results")
            if same and self.said:
                outcome, detail = FOUND, "; ".join(self.said)
        except DeployError as error:
            outcome, detail = FOUND, str(error)
        return Altered(file.as_posix(), byte, bit, outcome, detail)

    def use(self, file: Path) -> bool:
        """Use what reads a file, and return whether it was found, or that gives what it gave before."""
        kind, *inside = file.parts
        if kind == "bundle":
            checks = verify_bundle(self.out / "bundle").checks
            self.said = [check.detail for check in checks if check.status == "failed"]
            return bool(self.said) or (self.out / file).read_bytes() == (self.whole / file).read_bytes()
        if file.name == "report.json":
            return read_report(self.out) == read_report(self.whole)
        if file.name in UNREAD or kind in ("flips", "tensorboard"):
            return True  # nothing reads them, and every run writes them anew
        if kind == "checkpoints" and file.name != "last.pt":
            weights = Path(*file.parts[:2]) / "best.safetensors"
            return open_input(self.out / weights).sha256 == open_input(self.whole / weights).sha256
        if kind == "checkpoints":
            shutil.rmtree(self.out / "stages" / inside[0])
        if kind == "cache":
            for parts in ("stages", "checkpoints"):
                for stage in ("teacher", "student"):
                    shutil.rmtree(self.out / parts / stage)
        return self.figures(self.run()) == self.expected


def choose(bench: Bench, count: int, seed: int) -> list[tuple[Path, int, int]]:
    """Draw files, each as often as any other, bytes and bits."""
    rng = random.Random(seed)
    files = [file for file in bench.files if (bench.whole / file).stat().st_size]
    chosen = [rng.choice(files) for _ in range(count)]
    return [(file, rng.randrange((bench.whole / file).stat().st_size), rng.randrange(8)) for file in chosen]


def alter(lab: Lab, count: int, seed: int) -> Iterator[Trial]:
    """Alter `count` bits, one at a time."""
    bench = Bench(lab.folder)
    for file, byte, bit in choose(bench, count, seed):
        start = time.monotonic()
        altered = bench.alter(file, byte, bit)
        problem = f"other results, and nobody objects: {altered.detail}" if altered.outcome == ACCEPTED else ""
        what = f"{altered.file} byte {byte} bit {bit}"
        yield Trial(what, altered.outcome, problem, time.monotonic() - start)
