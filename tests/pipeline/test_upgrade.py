"""A release that only rewords messages goes on with what an earlier one has begun: two copies of the package show it."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

import convnext_deploy
from convnext_deploy.artifacts.artifact import read_artifact
from convnext_deploy.config.recipe_toml import load_recipe
from convnext_deploy.data.datasets import open_data
from convnext_deploy.pipeline.run import plan_recipe
from tests.pipeline.conftest import LIGHT_RECIPE

PACKAGE = Path(convnext_deploy.__file__).parent
RECIPE = "[[stages]]".join(LIGHT_RECIPE.split("[[stages]]")[:2]).replace("epochs = 1", "epochs = 60")
# words that stand in messages and docstrings alone
REWORDED = {
    "cannot be": "can not be",
    "because": "since",
    "choose another": "take another",
    "goes on at step": "is continued at step",
    "Raises:": "Errors:",
    "Return ": "Give ",
}


def reword(package: Path) -> int:
    """Reword messages, docstrings and comments of a copy of the package, and move its lines; return how many files changed."""
    changed = 0
    for path in package.rglob("*.py"):
        text = before = path.read_text(encoding="utf-8")
        for old, new in REWORDED.items():
            text = text.replace(old, new)
        changed += text != before
        future = "from __future__ import annotations\n"
        head, rest = text.split(future, 1) if future in text else ("", text)
        text = f"{head}{future}# reworded\n\n{rest}" if head else f"{rest}\n# reworded\n"
        path.write_text(text, encoding="utf-8")
    return changed


def command(recipe: Path, data: Path, out: Path) -> list[str]:
    arguments = ["run", str(recipe), "--data", str(data), "--out", str(out), "--workers", "0", "--device", "cpu"]
    return [sys.executable, "-m", "convnext_deploy", *arguments]


def environment(checkout: Path) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(checkout), "PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1"}


@pytest.mark.heavy
def test_a_release_that_rewords_messages_goes_on_with_a_training_and_gives_the_same_bytes(
    tmp_path: Path, image_folder: Path
) -> None:
    recipe, out = tmp_path / "light.toml", tmp_path / "out"
    recipe.write_text(RECIPE)
    for checkout in ("old", "new"):
        shutil.copytree(PACKAGE, tmp_path / checkout / PACKAGE.name, ignore=shutil.ignore_patterns("__pycache__"))
    assert reword(tmp_path / "new" / PACKAGE.name) > 150
    history = out / "checkpoints" / "model" / "history.json"
    old = command(recipe, image_folder, out)
    with subprocess.Popen(
        old, env=environment(tmp_path / "old"), cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as killed:
        while killed.poll() is None and not (history.exists() and history.read_text().count('"epoch"') >= 6):
            time.sleep(0.01)
        killed.kill()
    assert not (out / "stages" / "model").exists(), "the training ended before it could be killed"
    # a copy of the images, as on the scratch folder of the next job
    shutil.copytree(image_folder, tmp_path / "scratch" / image_folder.name)
    moved = command(recipe, tmp_path / "scratch" / image_folder.name, out)
    new = subprocess.run(
        moved, env=environment(tmp_path / "new"), cwd=tmp_path, capture_output=True, text=True, timeout=300
    )
    assert new.returncode == 0, new.stderr
    found = re.search(r"model: is continued at step (\d+) of 120", new.stderr)
    assert found is not None, new.stderr
    # the state of an epoch is written in the background, and is there when that of the next one begins to be written
    assert 8 <= int(found[1]) < 120
    whole = subprocess.run(
        command(recipe, image_folder, tmp_path / "whole"),
        env=environment(tmp_path / "old"),
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert whole.returncode == 0, whole.stderr
    hashes = {read_artifact(folder / "stages" / "model").sha256 for folder in (out, tmp_path / "whole")}
    assert len(hashes) == 1
    # what another copy has made is up to date
    plan = plan_recipe(load_recipe(recipe), tmp_path / "whole", None, open_data(str(image_folder)), {})
    assert [would_run for _, would_run in plan] == [False]
