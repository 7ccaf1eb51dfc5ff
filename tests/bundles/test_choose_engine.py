"""`build_on_device.sh --choose` builds and times all engines, and `choose_engine.py` takes the fastest that is right."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from convnext_deploy.bundles.device import choose_engine
from convnext_deploy.bundles.device.choose_engine import (
    ChoiceError,
    choose,
    gather,
    read_power,
    read_times,
    total_power,
)
from tests.bundles.gpu import Driver, plug_in
from tests.bundles.graphs import FP32, INT8
from tests.bundles.test_verify import rewrite
from tests.bundles.trtexec_device import Device
from tests.exporters.tensorrt_stand_in import RELEASES, Script


def engine(name: str, precision: str, ms: float, obstacle: str | None = None) -> dict[str, Any]:
    return {"model": name, "precision": precision, "latency": {"p50_ms": ms}, "obstacle": obstacle}


HALF, INTEGER = engine("h", "fp16", 1.5), engine("i", "int8-fp16", 1.0)


@pytest.mark.parametrize(
    ("engines", "chosen", "why"),
    [
        ([INTEGER, HALF], "i", "1.50 x as fast as h"),
        ([INTEGER, engine("h", "fp16", 1.04)], "h", "i is 1.04 x as fast, and less than 1.05 x is not"),
        ([engine("f", "fp32", 3.0), HALF, engine("i", "int8", 3.0)], "h", "the fastest, 2.00 x as fast as f"),
        ([engine("i", "int8", 1.0, "it was not built"), HALF], "h", "the only one"),
        ([INTEGER, engine("j", "int8", 1.01)], "i", "the fastest, 1.01 x as fast as j"),
        ([engine("8", "fp8-fp16", 1.0), HALF], "8", "1.50 x as fast as h"),
    ],
)
def test_the_fastest_is_chosen_where_it_is_worth_it(engines: list[dict[str, Any]], chosen: str, why: str) -> None:
    found, reason = choose(engines)
    assert (found["model"], reason[: len(why)]) == (chosen, why)


def test_nothing_is_chosen_where_nothing_can_be() -> None:
    with pytest.raises(ChoiceError, match=r"no engine can be chosen \(i: it was not built\)"):
        choose([engine("i", "int8", 1.0, "it was not built")])
    with pytest.raises(ChoiceError, match="nothing was built"):
        choose([])


def test_all_are_timed_forth_and_back(place: Callable[..., Device]) -> None:
    machine = place()
    assert machine.trtexec is not None
    path = f"{machine.trtexec.path.parent}:{Path(sys.executable).parent}:/usr/bin:/bin"
    done = machine.run("--choose", PATH=path, CUDA_VISIBLE_DEVICES="")
    built = machine.bundle / "built"
    timed = [call[-1] for call in machine.calls() if call[0].startswith("--loadEngine")]
    order = [(INT8, 1), (FP32, 1), (FP32, 2), (INT8, 2)]
    assert timed == [f"--exportTimes={built}/{name}.times.{number}.json" for name, number in order]
    times = read_times(built, INT8, None)
    assert times is not None
    assert (times["batch_size"], times["count"], times["p50_ms"]) == (1, 80, pytest.approx(2.195))
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: no engine can be chosen (")
    assert "NVIDIA driver" in line
    assert not (built / "measured.json").exists()


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("--choose", "--model", INT8), "--choose is among all models"),
        (("--data", "x"), "--data needs --choose"),
        (("--choose", "--data"), "--data needs a value"),
    ],
)
def test_wrong_usage_is_one_line(place: Callable[..., Device], arguments: tuple[str, ...], text: str) -> None:
    done = place().run(*arguments)
    assert done.returncode == 2
    assert text in done.stderr


@pytest.fixture
def timed(copied: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A bundle whose INT8 engine was built and timed here, and gives its answers; its FP32 engine could not be built."""
    built = copied / "built"
    built.mkdir()
    (built / f"{INT8}.plan").write_bytes(b"a plan")
    (built / f"{INT8}.bench.1.log").write_text(
        "&&&& RUNNING trtexec --loadEngine=a --shapes=images:2x3x32x32 --warmUp=5\n"
    )
    for number, ms in ((1, 1.0), (2, 1.2)):
        (built / f"{INT8}.times.{number}.json").write_text(json.dumps([{"computeMs": ms}] * 20))
    (built / f"{INT8}.power.1.log").write_text("12.5\n13.5\n[N/A]\n")
    plug_in(monkeypatch, RELEASES[-1], Script(), Driver())
    return copied


def test_what_was_measured_is_written(
    timed: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["choose_engine.py", str(timed)])
    assert choose_engine.main() == 0
    found = json.loads((timed / "built" / "measured.json").read_text())
    assert (found["chosen"], found["why"]) == (INT8, "the only one that can be chosen")
    own, other = found["engines"]
    assert own["latency"] == {
        "batch_size": 2,
        "p50_ms": pytest.approx(1.1),
        "p90_ms": pytest.approx(1.2),
        "count": 40,
        "rounds_ms": [1.0, 1.2],
    }
    assert (own["answers"], own["power_w"], own["rails_w"]) == ("passed", 13.0, {"GPU": 13.0})
    assert (other["answers"], other["obstacle"]) == ("not run", "it was not built")
    assert found["device"]["capability"] == "SM86"
    printed = capsys.readouterr().out
    assert f"chosen: {timed}/built/{INT8}.plan (the only one that can be chosen)" in printed
    assert f"convnext-deploy collect RUN '{timed}/built/measured.json'" in printed


def test_an_engine_whose_model_failed_its_gates_is_not_chosen(timed: Path) -> None:
    rewrite(timed, lambda record: record["models"][0].update(measured={"passed": False}))
    (own, _) = gather(timed, timed / "built", None, None)["engines"]
    assert own["obstacle"] == "it failed its gates where the bundle was made"


def test_times_of_an_engine_that_is_no_longer_there_are_not_told(timed: Path) -> None:
    (timed / "built" / f"{INT8}.plan").unlink()
    (own, _) = gather(timed, timed / "built", None, None)["engines"]
    assert (own["latency"], own["power_w"], own["rails_w"], own["obstacle"]) == (None, None, None, "it was not built")


def test_a_build_that_fails_leaves_no_times_of_an_earlier_one(place: Callable[..., Device]) -> None:
    machine = place(fails=True)
    built = machine.bundle / "built"
    built.mkdir()
    for name in (FP32, INT8):
        for end in ("plan", "times.1.json", "times.2.json", "power.1.log", "bench.1.log"):
            (built / f"{name}.{end}").write_text("of an earlier build")
    assert machine.trtexec is not None
    path = f"{machine.trtexec.path.parent}:{Path(sys.executable).parent}:/usr/bin:/bin"
    done = machine.run("--choose", PATH=path, CUDA_VISIBLE_DEVICES="")
    assert done.returncode == 1
    assert sorted(each.name for each in built.iterdir()) == [f"{name}.log" for name in sorted((FP32, INT8))]


@pytest.mark.parametrize("content", ["", "[1]", '[{"latencyMs": 1}]', '[{"computeMs": "fast"}]'])
def test_times_that_are_none_are_one_line(timed: Path, content: str) -> None:
    (timed / "built" / f"{INT8}.times.1.json").write_text(content)
    with pytest.raises(ChoiceError, match="does not hold the times that trtexec writes"):
        read_times(timed / "built", INT8, None)


@pytest.mark.parametrize(
    ("text", "rails", "total"),
    [
        ("RAM 1/2MB VDD_GPU_SOC 4000mW/3900mW VDD_CPU_CV 800mW/790mW VIN_SYS_5V0 3000mW/2900mW\n", 3, None),
        ("RAM 1/2MB VDD_IN 7000mW/6000mW VDD_CPU_GPU_CV 2000mW/1900mW VDD_SOC 1000mW/900mW\n" * 2, 3, 7.0),
        ("RAM 1/2MB POM_5V_IN 5000/4900 POM_5V_GPU 1000/900 POM_5V_CPU 800/700\n", 3, 5.0),
        ("31.25\n", 1, 31.25),
        ("No devices were found\n", 0, None),
    ],
)
def test_power_is_that_of_the_board_or_the_gpu(tmp_path: Path, text: str, rails: int, total: float | None) -> None:
    (tmp_path / "m.power.1.log").write_text(text)
    found = read_power(tmp_path, "m")
    assert len(found or {}) == rails
    assert total_power(found) == total


def test_alone_it_says_what_is_missing(
    copied: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["choose_engine.py", str(copied)])
    assert choose_engine.main() == 1
    assert "nothing was built; bash build_on_device.sh --choose" in capsys.readouterr().err
    assert not (copied / "built").exists()
