"""Recipes that no one would write on purpose: planned, and run, each must be refused in one line within seconds.

What `--dry-run` accepts must not fail later; so a recipe that is planned without an error is a fault as well, unless it is one of
the few that are odd and right.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterator
from pathlib import Path

from faults_lab import Lab, Trial, recipe_text

_LIMIT_S = 120.0
_TEXT = recipe_text()


def _instead(old: str, new: str) -> str:
    assert old in _TEXT, old
    return _TEXT.replace(old, new)


_DIGITS = "9" * 5000
_STAGE = '[[stages]]\nkind = "onnx"\nname = "s{}"\nsource = "teacher"\n'
# what is odd of it → its text or bytes
TEXTS: dict[str, str | bytes] = {
    "epochs = 10**18": _instead("epochs = 1", "epochs = 1000000000000000000"),
    "epochs of 5,000 digits": _instead("epochs = 1", f"epochs = {_DIGITS}"),
    "epochs = -1": _instead("epochs = 1", "epochs = -1"),
    "epochs = 1.5": _instead("epochs = 1", "epochs = 1.5"),
    "image_size = 10**9": _instead("image_size = 32", "image_size = 1000000000"),
    "image_size = 0": _instead("image_size = 32", "image_size = 0"),
    "image_size = 1": _instead("image_size = 32", "image_size = 1"),
    "batch_size = 0": _instead("batch_size = 12", "batch_size = 0"),
    "batch_size as text": _instead("batch_size = 12", 'batch_size = "12"'),
    "a rate of nan": _instead("base_learning_rate = 0.256", "base_learning_rate = nan"),
    "a rate of inf": _instead("base_learning_rate = 0.256", "base_learning_rate = inf"),
    "calibration_images = 10**12": _instead("calibration_images = 4", "calibration_images = 1000000000000"),
    "a rate of 5,000 digits": _instead("base_learning_rate = 0.256", f"base_learning_rate = {_DIGITS}"),
    "calibration_images = -4": _instead("calibration_images = 4", "calibration_images = -4"),
    "seed = 2**70": f"seed = {2**70}\n{_TEXT}",
    "a name that leaves its folder": _instead('name = "drill"', 'name = "../../../tmp/drill"'),
    "a name with terminal codes": _instead('name = "drill"', 'name = "\\u001b[2J\\u001b]0;gone\\u0007"'),
    "a name of 5,000 letters": _instead('name = "drill"', f'name = "{"d" * 5000}"'),
    "a stage named ..": _instead('name = "student"', 'name = ".."'),
    "a stage named by a path": _instead('name = "student"', 'name = "/etc/student"'),
    "a stage that is its own teacher": _instead('teacher = "teacher"', 'teacher = "student"'),
    "two stages of one name": _instead('name = "student"', 'name = "teacher"'),
    "a stage from a later one": _instead('kind = "ptq"', 'kind = "ptq"\nsource = "onnx"'),
    "an unknown model": _instead('"test_convnext2"', '"convnext_immense"'),
    "a table for a number": _instead("epochs = 1", "epochs = { one = 1 }"),
    "stages that are no table": 'name = "drill"\nstages = 7\n',
    "no stage": 'name = "drill"\nstages = []\n',
    "brackets 100,000 deep": f"name = {'[' * 100_000}{']' * 100_000}\n",
    "tables 3,000 deep": f"[{'.'.join('a' * 3000)}]\nb = 1\n",
    "a key twice": _instead("epochs = 1", "epochs = 1\nepochs = 2"),
    "UTF-16": _TEXT.encode("utf-16"),
    "a picture": bytes(range(256)) * 64,
    "nothing": b"",
    "10,000 stages from nothing": "".join(_STAGE.format(number) for number in range(10_000)),
    "a zero byte": _instead("epochs = 1", "epochs = 1\0"),
}


def _fifo(path: Path) -> None:
    os.mkfifo(path)


def _zeros(path: Path) -> None:
    path.symlink_to("/dev/zero")


def _circle(path: Path) -> None:
    path.symlink_to(path)


def _large(path: Path) -> None:
    with path.open("wb") as stream:
        stream.truncate(8 << 30)  # takes no space


# what the file is → how it comes to be
FILES: dict[str, Callable[[Path], object]] = {
    "a FIFO": _fifo,
    "/dev/zero": _zeros,
    "a folder": Path.mkdir,
    "a link to itself": _circle,
    "8 GB of zeros": _large,
    "not there": lambda _path: None,
}


def refuse(lab: Lab, count: int, seed: int) -> Iterator[Trial]:
    """Plan and run `count` of them, all of the files first."""
    names = [*FILES, *random.Random(seed).sample(list(TEXTS), len(TEXTS))]
    # more than there are: none twice
    for number, name in enumerate(names[:count]):
        path = lab.folder / f"recipe-{number}.toml"
        if name in FILES:
            FILES[name](path)
        else:
            text = TEXTS[name]
            path.write_bytes(text if isinstance(text, bytes) else text.encode())
        out = lab.folder / f"out-{number}"
        words = lab.run_words(path, lab.images, out)
        for what, more in ("planned", ["--dry-run"]), ("run", []):
            ended = lab.run([*words, *more], limit_s=_LIMIT_S)
            problem = ended.fault({1, 2})
            if not problem and len(ended.err) > 2000:
                problem = f"{len(ended.err):,} letters are said"
            if not problem and any(letter in ended.err for letter in "\x1b\x07"):
                problem = "codes for the terminal are printed"
            yield Trial(f"{name}, {what}", "one line", problem, ended.seconds)
        for left in lab.folder.glob(f"out-{number}/stages/*"):
            yield Trial(f"{name}, afterwards", "nothing left", f"left behind: {left}", 0.0)
