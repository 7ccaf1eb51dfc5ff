"""Every block of the README, the how-tos and other pages is run, page by page, or says what it needs."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from convnext_deploy.config.recipe_toml import load_recipe
from convnext_deploy.evaluation.timing import speedup as speed
from tests.brought import CLASSES, write_photos, write_timm_checkpoint
from tests.cli.conftest import call
from tests.documentation.blocks import DOCUMENTS, NEEDS, ROOT, Block, read_blocks
from tests.documentation.flags import check_command
from tests.documentation.shortened import shorten, shorten_text

BLOCKS = [block for document in DOCUMENTS for block in read_blocks(document)]
LONG = ("x86-server.md", "slow-or-worse.md")  # each takes most of a minute
LANGUAGES = ("sh", "python", "toml", "cpp", "text")  # the last is what a command prints
_MINUTES = [block for block in BLOCKS if block.needs == "minutes"]


@pytest.fixture(scope="session")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a reader has: a folder of images `photos` and checkpoints of timm, in a checkout of the project."""
    import timm
    import torch

    folder = tmp_path_factory.mktemp("reader")
    write_photos(folder / "photos", train=6, validation=3)
    write_photos(folder / "more-photos", train=2, validation=2)
    write_timm_checkpoint(folder / "best.pth", folder / "photos")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = timm.create_model("convnext_atto", num_classes=len(CLASSES))
        torch.save({"state_dict": network.state_dict()}, folder / "atto.pth")
    return folder


@pytest.fixture
def here(prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, short_timing: None) -> Iterator[Path]:
    """A copy of that folder, as the working directory; what times anything does so for a moment."""
    folder = tmp_path / "reader"
    shutil.copytree(prepared, folder)
    for name in ("recipes", "benchmarks"):
        (folder / name).symlink_to(ROOT / name)
    monkeypatch.chdir(folder)
    monkeypatch.setattr(speed, "ROUNDS", 1)
    monkeypatch.setattr(speed, "SECONDS", 0.02)
    yield folder
    shutil.rmtree(folder)


@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: block.place)
def test_block_is_of_a_kind_that_the_tests_know(block: Block) -> None:
    assert block.language in LANGUAGES, f"{block.place}: name the language, one of {', '.join(LANGUAGES)}"
    assert block.needs is None or block.needs in NEEDS, f"{block.place}: expected one of {', '.join(NEEDS)}"
    assert set(block.marks) <= {"needs", "file", "command"}, f"{block.place}: {block.marks}"
    if block.is_script:
        assert block.needs in NEEDS, f"{block.place}: more than plain commands is not run; say what it needs"


@pytest.mark.parametrize(
    "block", [b for b in BLOCKS if b.language == "sh" and b.needs != "compiler"], ids=lambda block: block.place
)
def test_every_option_of_a_command_exists(block: Block) -> None:
    for words in block.commands():
        check_command(words)


@pytest.mark.parametrize(
    "document",
    [pytest.param(name, marks=pytest.mark.slow if name.endswith(LONG) else pytest.mark.heavy) for name in DOCUMENTS],
)
def test_page_does_what_it_says(document: str, here: Path) -> None:
    for block in read_blocks(document):
        if block.needs in (None, "compiler") and block.marks.get("command") != "folder":  # those test_readme.py runs
            _run(block, here)


@pytest.mark.parametrize("shape", [(301, 200), (200, 333), (160, 160), (97, 181), (640, 427)])
def test_image_of_the_server_page_is_that_of_the_evaluation(shape: tuple[int, int], tmp_path: Path) -> None:
    import numpy as np
    from PIL import Image, ImageOps

    from convnext_deploy.artifacts.spec import default_preprocess
    from convnext_deploy.data.transforms import evaluation_transform

    (text,) = (b.text for b in BLOCKS if b.document.endswith("x86-server.md") and "def load(" in b.text)
    preprocess = default_preprocess(96, 0.9)
    names: dict[str, Any] = {"np": np, "Image": Image, "ImageOps": ImageOps, "size": 96, "crop": 0.9}
    exec(text[text.index("def load(") : text.index("scores, classes")], names)
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (*shape[::-1], 3), dtype=np.uint8))
    image.save(tmp_path / "image.png")
    np.testing.assert_array_equal(names["load"](tmp_path / "image.png"), evaluation_transform(image, preprocess))


@pytest.mark.slow
@pytest.mark.parametrize("block", _MINUTES, ids=lambda block: block.place)
def test_page_does_what_takes_minutes(block: Block, here: Path) -> None:
    for words in block.commands():
        if words[0] != "torchrun":
            _run_command(words, block, here)
            continue
        start = words.index("convnext_deploy") + 1
        command = [sys.executable, "-m", "torch.distributed.run", *words[1:start], *shorten(words[start:])]
        subprocess.run(command, check=True, timeout=600, env=_environment(here))


def _run(block: Block, here: Path) -> None:
    """Run a block in the working directory. Raises: AssertionError: if it does not do what it says."""
    if block.language in ("toml", "cpp"):
        path = here / block.marks.get("file", "unnamed.toml")
        path.write_text(shorten_text(block.text), encoding="utf-8")
        if block.language == "toml":
            load_recipe(path)
    elif block.language == "python":
        exec(compile(shorten_text(block.text), block.place, "exec"), {})
    elif block.language == "text":
        pass
    elif block.needs == "compiler":
        if shutil.which("g++"):
            script = ["bash", "-euo", "pipefail", "-c", shorten_text(block.text)]
            done = subprocess.run(script, text=True, capture_output=True, timeout=300, env=_environment(here))
            assert done.returncode == 0, f"{block.place}: {done.stderr}"
            assert done.stdout, f"{block.place} printed nothing"
    else:
        for words in block.commands():
            _run_command(words, block, here)


def _run_command(words: list[str], block: Block, here: Path) -> None:
    if words[0] == "convnext-deploy":
        outcome = call(*shorten(words[1:]))
        # 3: with so few images a gate may fail, or INT8 be slower for the other work of this machine
        assert outcome.code in (0, 3), f"{block.place}: {' '.join(words)} ended with {outcome.code}: {outcome.err}"
        return
    program = [sys.executable] if words[0].startswith("python") else [words[0]]
    done = subprocess.run([*program, *words[1:]], text=True, capture_output=True, timeout=300, env=_environment(here))
    assert done.returncode == 0, f"{block.place}: {' '.join(words)} ended with {done.returncode}: {done.stderr}"


def _environment(here: Path) -> dict[str, str]:
    """Return this process's environment with its interpreter first, as in a virtual environment that is active."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return {**os.environ, "PATH": path, "PYTHONPATH": str(ROOT), "HOME": str(here)}
