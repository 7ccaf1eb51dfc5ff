"""Random bytes of a run folder, its caches and a bundle are altered, one at a time: each must be found, or change nothing.

    python benchmarks/altered_bytes.py [--bytes 200] [--seed 0] [--out FILE.json]

The run trains two small networks on drawn images, the second distilled from the first with a teacher cache, quantizes it and
exports it; decoded pixels and predictions are kept in a cache folder, and the graph goes into a bundle. A file is drawn, then a
byte of it, then a bit. What reads that file is then used again: the recipe is run once more (after its stage was removed, for
states of trainings and caches, which are read by nothing else), a report is shown, bare weights are opened, the bundle is
verified. A byte is accepted, which is a failure, when that gives another network, score or report and nobody objects.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

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
from convnext_deploy.system.environment import describe_environment
from convnext_deploy.system.execution import Execution
from convnext_deploy.system.progress import SilentProgress

TRAINING = """[stages.model]
name = "test_convnext2"
image_size = 32
[stages.fit]
epochs = 1
batch_size = 12
base_learning_rate = 0.256
warmup_epochs = 0"""
RECIPE = f"""
name = "altered"
speed_check = false
[[stages]]
kind = "train"
name = "teacher"
{TRAINING}
[[stages]]
kind = "distill"
name = "student"
teacher = "teacher"
teacher_cache = true
{TRAINING}
[[stages]]
kind = "ptq"
target = "onnxruntime"
calibration_method = "minmax"
calibration_images = 4
[[stages]]
kind = "onnx"
"""
UNREAD = ("report.html", "report.md", "model_card.md", "history.json", ".lock")
FOUND, HARMLESS, ACCEPTED = "found", "harmless", "ACCEPTED"


@dataclass(frozen=True)
class Trial:
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


class Drill:
    """A finished run in `folder/out`, with its caches, and a bundle in `folder/bundle`; copies of both are altered."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.out, self.whole = folder, folder / "out", folder / "whole"
        self.said: list[str] = []  # by the last use
        draw_images(folder / "images")
        (folder / "recipe.toml").write_text(RECIPE)
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

    def alter(self, file: Path, byte: int, bit: int) -> Trial:
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
        return Trial(file.as_posix(), byte, bit, outcome, detail)

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


def draw_images(root: Path) -> None:
    """Write an image folder of three classes that differ in colour."""
    rng = np.random.default_rng(0)
    for split, count in (("train", 12), ("val", 6)):
        for label, name in enumerate(("cat", "dog", "owl")):
            folder = root / split / name
            folder.mkdir(parents=True)
            for index in range(count):
                pixels = rng.integers(0, 90, (32, 32, 3))
                pixels[..., label] += 120
                Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{index}.png")


def choose(drill: Drill, count: int, seed: int) -> list[tuple[Path, int, int]]:
    """Draw files, each as often as any other, bytes and bits."""
    rng = random.Random(seed)
    files = [file for file in drill.files if (drill.whole / file).stat().st_size]
    chosen = [rng.choice(files) for _ in range(count)]
    return [(file, rng.randrange((drill.whole / file).stat().st_size), rng.randrange(8)) for file in chosen]


def alter_all(folder: Path, count: int, seed: int, say: Callable[[str], object] = print) -> list[Trial]:
    """Do the drill in an empty folder."""
    drill = Drill(folder)
    trials = []
    for place, (file, byte, bit) in enumerate(choose(drill, count, seed), 1):
        trials.append(drill.alter(file, byte, bit))
        trial = trials[-1]
        say(f"{place:4} {trial.outcome:9} {trial.file} byte {byte} bit {bit}: {trial.detail[:110]}")
    return trials


def main() -> None:
    """Print what came of each byte; end with 1 if one was accepted."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--bytes", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        trials = alter_all(Path(folder), arguments.bytes, arguments.seed)
    places = Counter((trial.file.split("/")[0], trial.outcome) for trial in trials)
    for (place, outcome), count in sorted(places.items()):
        print(f"{place:14} {outcome:9} {count}")
    if arguments.out is not None:
        record = {
            "bytes": len(trials),
            "seed": arguments.seed,
            "counts": [[place, outcome, count] for (place, outcome), count in sorted(places.items())],
            "environment": describe_environment(),
        }
        arguments.out.write_text(json.dumps(record, indent=1) + "\n")
    sys.exit(any(trial.outcome == ACCEPTED for trial in trials))


if __name__ == "__main__":
    main()
