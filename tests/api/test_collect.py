"""`collect` puts what a device measured into the report of the run whose artifacts it was, and refuses the rest in a line."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from convnext_deploy import collect
from convnext_deploy.artifacts.artifact import Artifact
from convnext_deploy.errors import ArtifactError
from convnext_deploy.reports.device_table import device_cells
from convnext_deploy.reports.record import read_report
from tests.cli.conftest import call


def measured(artifact: str | None, board: str = "Jetson AGX Orin", ms: float = 1.5) -> dict[str, Any]:
    """Return what `choose_engine.py` would write of an engine of an artifact."""
    score = {
        "file": "built/int8.plan",
        "images": 18,
        "top1": 0.5,
        "worse": False,
        "fp32_top1": 0.6,
        "drop_pp": 10.0,
        "drop_interval_pp": [-3.0, 22.0],
        "agreement": 0.9,
    }
    latency = {"batch_size": 1, "p50_ms": ms, "p90_ms": 2 * ms, "count": 100, "rounds_ms": [ms, ms]}
    own = {"model": "int8", "artifact": artifact, "precision": "int8-fp16", "size_bytes": 10**6, "answers": "passed"}
    return {
        "schema": 1,
        "bundle": "b",
        "sha256": "0" * 64,
        "measured": "2026-11-29T20:00:00+00:00",
        "device": {
            **dict.fromkeys(("gpu", "driver", "power_mode")),
            "board": board,
            "capability": "SM87",
            "tensorrt": "10.3.0",
            "machine": "aarch64",
            "system": "Linux",
        },
        "engines": [
            {**own, "obstacle": None, "latency": latency, "power_w": 21.5, "rails_w": {"VDD_IN": 21.5}, "score": score},
            {"model": "other", "precision": "fp16", "answers": "not run", "obstacle": "it was not built"},
        ],
        "chosen": "int8",
        "why": "the only one that can be chosen",
    }


@pytest.fixture
def run(small_artifacts: dict[str, Artifact], tmp_path: Path) -> Path:
    """A copy of the reports of the small run."""
    folder = tmp_path / "run"
    folder.mkdir()
    source = small_artifacts["onnx-int8"].path.parents[1]
    for name in ("report.json", "report.html", "report.md", "model_card.md"):
        shutil.copy(source / name, folder / name)
    return folder


@pytest.fixture
def write(tmp_path: Path) -> Callable[[object], Path]:
    """Return what writes `measured.json`."""

    def create(content: object) -> Path:
        path = tmp_path / "measured.json"
        path.write_text(content if isinstance(content, str) else json.dumps(content))
        return path

    return create


def test_report_card_and_page_tell_what_the_device_measured(
    run: Path, write: Callable[[object], Path], small_artifacts: dict[str, Artifact]
) -> None:
    sha256 = small_artifacts["onnx-int8"].sha256
    found = collect(run, write(measured(sha256)))
    assert (found.stages, found.replaced) == (("onnx-int8",), False)
    for name in ("report.md", "model_card.md", "report.html"):
        text = (run / name).read_text(encoding="utf-8").replace("\\", "")
        assert "easured on Jetson AGX Orin, TensorRT 10.3.0" in text
        assert "+10.00 [-3.00, +22.00]" in text
    page = (run / "report.html").read_text(encoding="utf-8")
    assert 'href="#devices"' in page
    assert "against the median time that the GPU computes on Jetson AGX Orin" in page
    assert collect(run, write(measured(sha256, ms=3.0))).replaced
    collect(run, write(measured(sha256, board="Jetson Thor")))
    devices = read_report(run).devices
    assert [each.device.board for each in devices] == ["Jetson AGX Orin", "Jetson Thor"]
    assert devices[0].engines[0].latency is not None
    assert devices[0].engines[0].latency.p50_ms == 3.0


def test_the_command_prints_the_table(
    run: Path, write: Callable[[object], Path], small_artifacts: dict[str, Artifact]
) -> None:
    path = write(measured(small_artifacts["onnx-int8"].sha256))
    done = call("collect", run, path)
    assert done.code == 0, done.err
    printed = " ".join(done.out.split())
    assert "Measured on Jetson AGX Orin, TensorRT 10.3.0, 2026-11-29 20:00 UTC; chosen: int8" in printed
    assert "1.500" in printed
    assert "other cannot be chosen: it was not built" in printed
    assert "Measured on Jetson AGX Orin" in call("report", run).out


def changed(path: str, value: object) -> dict[str, Any]:
    """Return what was measured, with another value at a path such as `engines.0.latency.count`."""
    content: Any = measured(None)
    place, *names = path.split(".")
    inside = content
    for name in names:
        inside, place = inside[int(place) if isinstance(inside, list) else place], name
    inside[place] = value
    return dict(content)


@pytest.mark.parametrize(
    ("path", "value", "text"),
    [
        ("engines.0.latency.p50_ms", 0, "engines[0]: latency: p50_ms = 0 is out of range"),
        ("engines.0.latency.p90_ms", 1.4, "p90_ms = 1.4 is out of range; expected at least p50_ms, 1.5"),
        ("engines.0.latency.count", 0, "count = 0 is out of range; expected 1 to"),
        ("engines.0.latency.rounds_ms", [1.5, 0.0], "rounds_ms[1] = 0.0 is out of range"),
        ("engines.0.score.images", 0, "images = 0 is out of range; expected 1 to"),
        ("engines.0.score.drop_pp", 1e300, "drop_pp = 1e+300 is out of range; expected -100 to 100"),
        ("engines.0.score.drop_pp", 23.0, "drop_pp = 23.0 is out of range; expected within drop_interval_pp, -3 to 22"),
        ("engines.0.score.drop_interval_pp", [5, -5], "drop_interval_pp = (5.0, -5.0) is out of range; expected its lower"),
        ("engines.0.score.drop_interval_pp", [-5, 1e9], "drop_interval_pp = (-5.0, 1000000000.0) is out of range"),
        ("engines.0.obstacle", "it was not built", "'int8' was chosen, and cannot be ('it was not built')"),
        ("engines.0.answers", "failed", "'int8' was chosen, and its answers are 'failed'; expected"),
        ("engines.1.model", "int8", "'int8' is there several times among the engines; expected each of them once"),
        ("chosen", "int4", "chosen = 'int4' is none of the engines; expected one of them. Did you mean 'int8'?"),
        ("measured", "2026-13-99T99:99:99+00:00", "is no time (month must be in 1..12); expected one in UTC"),
    ],
)  # fmt: skip
def test_what_contradicts_itself_is_one_line(
    run: Path, write: Callable[[object], Path], path: str, value: object, text: str
) -> None:
    before = {each.name: each.read_bytes() for each in run.iterdir()}
    with pytest.raises(ArtifactError, match=re.escape(text)) as caught:
        collect(run, write(changed(path, value)))
    assert "\n" not in str(caught.value)
    assert {each.name: each.read_bytes() for each in run.iterdir()} == before


def test_times_of_an_engine_that_was_not_built_are_not_shown(
    run: Path, write: Callable[[object], Path], small_artifacts: dict[str, Artifact]
) -> None:
    content = measured(small_artifacts["onnx-int8"].sha256)
    old = {**content["engines"][0], "model": "other", "obstacle": "it was not built", "answers": "not run"}
    old["latency"] = {**old["latency"], "p50_ms": 0.125}
    content["engines"][1] = old
    found = collect(run, write(content)).found
    assert [engine.model for engine, _ in found.timed] == ["int8"]
    own, other = device_cells(found, ())
    assert (own[3], own[5], own[7]) == ("1.0", "1.500", "21.5")
    assert other[3:8] == ("–",) * 5
    content["engines"][1]["obstacle"] = "it failed its gates where the bundle was made"
    again = collect(run, write(content)).found
    assert device_cells(again, ())[1][5] == "0.125"
    assert [engine.model for engine, _ in again.timed] == ["int8"]


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ("", "is not what build_on_device.sh --choose writes"),
        ("[]", "is not what build_on_device.sh --choose writes"),
        ({"schema": 7}, "has the schema '7', this version reads 1"),
        ({**measured(None), "engines": [{"model": 1}]}, "is not what build_on_device.sh --choose writes"),
        ({**measured(None), "engines": []}, "of a bundle of nothing, and none of it was made in"),
        (measured("1" * 64), "of a bundle of int8, other, and none of it was made in"),
        (measured(None, ms=-1.0), "is not what build_on_device.sh --choose writes"),
    ],
)
def test_what_cannot_be_collected_is_one_line(
    run: Path, write: Callable[[object], Path], content: object, text: str
) -> None:
    before = (run / "report.json").read_bytes()
    with pytest.raises(ArtifactError, match=re.escape(text)) as caught:
        collect(run, write(content))
    assert "\n" not in str(caught.value)
    assert (run / "report.json").read_bytes() == before


def test_a_run_that_is_none_and_a_file_that_is_not_there(run: Path, tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="does not exist; expected measured"):
        collect(run, tmp_path / "nothing.json")
    with pytest.raises(ArtifactError, match="give the folder of the run"):
        collect(run / "report.json", tmp_path / "nothing.json")
