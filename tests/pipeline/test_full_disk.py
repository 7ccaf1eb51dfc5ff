"""A run on a disk that grows each time that it was full ends with the bytes of a run that had space from the start."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from convnext_deploy.config.recipe import Recipe
from convnext_deploy.data.datasets import Data
from convnext_deploy.errors import OutputError
from convnext_deploy.pipeline.run import RunResult, run_recipe
from tests.pipeline.conftest import hashes, settings_for
from tests.system.faulty_disk import largest_file

_GROWTH = 1.5


@pytest.mark.heavy
def test_run_on_a_growing_disk_ends_with_the_same_bytes(
    light_recipe: Recipe, light_run: RunResult, small_data: Data, tmp_path: Path
) -> None:
    limit, failed = 20_000, list[str]()
    while True:
        try:
            with largest_file(limit):
                result = run_recipe(light_recipe, settings_for(tmp_path), data=small_data)
            break
        except OutputError as error:
            said = str(error)
        assert "cannot be written (File too large); raise the limit on the size of files by ulimit -f" in said
        assert not [path for path in tmp_path.rglob(".*") if path.name != ".lock"]
        failed.append(Path(said.partition(" cannot be written")[0]).name)
        limit = int(limit * _GROWTH)
    assert {"best.safetensors", "last.pt"} <= {*failed}
    assert hashes(result) == hashes(light_run)


@pytest.mark.heavy
@pytest.mark.parametrize("kib", [400_000, 4_000_000])
def test_training_in_a_process_of_little_memory_ends_in_one_line(kib: int, tmp_path: Path) -> None:
    train = (
        "train --model test_convnext2 --data digits --epochs 1 --batch-size 1024 --image-size 128 --device cpu --out"
    )
    command = f"ulimit -v {kib}; exec '{sys.executable}' -m convnext_deploy {train} '{tmp_path}'"
    ended = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False, timeout=120)
    assert (ended.returncode, ended.stdout) == (1, "")
    assert "Traceback" not in ended.stderr
    assert [line for line in ended.stderr.splitlines() if "error: " in line and "too little memory" in line]
