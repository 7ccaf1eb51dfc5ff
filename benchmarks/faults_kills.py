"""A run is killed, told to end or interrupted at random moments, and started again each time, until it has happened often enough.

Its trainings have stochastic depth, an average of weights and Mixup, so that a state which forgets anything gives other bytes.
Every third process is fresh, so that imports are hit too; every third is hit as soon as it has started its loader processes.
Signals go to the process alone and to all of its group in turn.
"""

from __future__ import annotations

import random
import shutil
import signal
import time
from collections.abc import Iterator

from faults_lab import Lab, Trial, compare, draw_images, recipe_text, results_of
from faults_processes import Ended, Process

EPOCHS = 6
SETTINGS = """crop_scale_min = 0.7
drop_path_rate = 0.2
mixup_alpha = 0.2
ema_decay = 0.9
"""
_PATIENCE_S = 120.0  # from a signal to the end of the process
_NUMBERS = {"SIGKILL": signal.SIGKILL, "SIGTERM": signal.SIGTERM, "SIGINT": signal.SIGINT}


def kill(lab: Lab, count: int, seed: int) -> Iterator[Trial]:
    """SIGKILL."""
    return _drill(lab, count, seed, "SIGKILL")


def terminate(lab: Lab, count: int, seed: int) -> Iterator[Trial]:
    """SIGTERM."""
    return _drill(lab, count, seed, "SIGTERM")


def interrupt(lab: Lab, count: int, seed: int) -> Iterator[Trial]:
    """SIGINT, which is Ctrl-C."""
    return _drill(lab, count, seed, "SIGINT")


def _drill(lab: Lab, count: int, seed: int, name: str) -> Iterator[Trial]:
    rng = random.Random(seed)
    # too large to be kept decoded, so that loader processes decode them
    images = draw_images(lab.folder / "large images", side=128)
    recipe, out = lab.write_recipe("kills.toml", recipe_text(EPOCHS, SETTINGS, short=lab.short)), lab.folder / "out"
    whole = lab.expect(lab.run_words(recipe, images, lab.folder / "whole"))
    expected = results_of(lab.folder / "whole")
    done = 0
    while done < count:
        fresh, at_workers, to_all = done % 3 == 0 and not lab.short, done % 3 == 1, done % 2 == 1
        process = lab.start(lab.run_words(recipe, images, out, workers=2 if at_workers else 0), fresh=fresh)
        ended, moment = _hit(process, name, rng.uniform(0.0, whole.seconds / 2), at_workers, to_all=to_all)
        if ended.code == 0:  # it came to its end before; again from the start, in the same folder
            problem = ended.fault({0}) or compare(out, expected)
            yield Trial(f"the end, after {done} times {name}", "the same bytes", problem, ended.seconds)
            for part in ("stages", "checkpoints", "cache"):
                shutil.rmtree(out / part, ignore_errors=True)
            continue
        done += 1
        target = "all its processes" if to_all else "it"
        yield Trial(f"{name} to {target} {moment}", "ended by it", _fault(ended, name), ended.seconds)
    ended = lab.run(lab.run_words(recipe, images, out))
    yield Trial(
        f"the end, after {done} times {name}",
        "the same bytes",
        ended.fault({0}) or compare(out, expected),
        ended.seconds,
    )


def _hit(process: Process, name: str, delay_s: float, at_workers: bool, *, to_all: bool) -> tuple[Ended, str]:
    """Send the signal after some seconds, or once there are children; return what is left, and when that was."""
    if at_workers:
        while not process.has_children() and not process.has_ended(0.001):
            pass
        delay_s /= 50  # while the others start, and a moment later
    start = time.monotonic()
    process.has_ended(delay_s)
    process.signal(_NUMBERS[name], to_all=to_all)
    ended = process.wait(_PATIENCE_S + time.monotonic() - start)
    return ended, f"{delay_s:.2f} s after {'its loader processes came' if at_workers else 'its start'}"


def _fault(ended: Ended, name: str) -> str:
    number = _NUMBERS[name]
    if name == "SIGKILL":
        return ended.fault({-number})
    ours = "convnext_deploy" in ended.err
    if ended.code in (-number, 1) and not ours:
        return ""  # before the package's first line, while Python itself starts; nothing was there to be saved
    return ended.fault({128 + number})
