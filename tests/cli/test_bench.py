"""`convnext-deploy bench`: the table, the JSON, exit codes, and the processes that it leaves when it is interrupted."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from convnext_deploy.artifacts.artifact import Artifact
from tests.cli.conftest import call
from tests.evaluation.graphs import write_classifier

QUICK = ("--rounds", "1", "--seconds", "0.02", "--threads", "1", "--device", "cpu")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A small float classifier and a large one that says it is INT8, under names that a table must not take for markup."""
    folder = tmp_path_factory.mktemp("models")
    small = write_classifier(folder / "[red]small.onnx").main_file
    return small, write_classifier(folder / "grün int8.onnx", 1024, 8, int8=True).main_file


def test_table_has_a_row_for_each_with_its_ratio_and_says_what_is_not_faster(models: tuple[Path, Path]) -> None:
    outcome = call("bench", *models, "--batch-size", "1,2", *QUICK)
    assert outcome.code == 0
    rows = [line for line in outcome.out.splitlines() if re.search(r"  (fp32|int8) ", line)]
    assert len(rows) == 4
    assert all("[red]small.onnx" in row for row in rows[::2])
    assert all("grün int8.onnx" in row for row in rows[1::2])
    assert all(re.search(r"\d+\.\d\d \[\d+\.\d\d, \d+\.\d\d\]$", row.rstrip()) for row in rows[1::2])
    assert all(row.rstrip().endswith(" 1") for row in rows[::2])
    assert "- grün int8.onnx on onnxruntime is INT8 and not faster than [red]small.onnx on onnxruntime" in outcome.out
    assert re.search(
        r"^medians of 1 isolated process each, interleaved; \d+ s in all; six rounds or more", outcome.out, re.MULTILINE
    )
    assert "4/4" in outcome.err or "timing: done in" in outcome.err
    assert "W" not in rows[0]
    assert "time, of the first's [least, most]" in outcome.out


@pytest.mark.usefixtures("timed_here")
def test_json_alone_is_printed_with_quiet(models: tuple[Path, Path]) -> None:
    outcome = call("bench", models[0], "--json", "--quiet", *QUICK)
    assert (outcome.code, outcome.err) == (0, "")
    found = json.loads(outcome.out)
    (timing,) = found["timings"]
    assert timing["name"] == "[red]small.onnx"
    assert timing["threads"] == 1
    assert len(timing["processes"]) == found["rounds"] == 1
    assert found["environment"]["cores"] >= 1


@pytest.mark.usefixtures("timed_here")
def test_what_is_not_here_is_told_and_the_exit_code_is_0(
    models: tuple[Path, Path], small_artifacts: dict[str, Artifact]
) -> None:
    outcome = call("bench", models[0], small_artifacts["engine"].path, *QUICK)
    if "- not run: " not in outcome.out:
        pytest.skip("this GPU runs the engine")
    assert outcome.code == 0
    assert "- not run: engine on tensorrt: built for SM86; not run: " in outcome.out
    alone = call("bench", small_artifacts["engine"].path, *QUICK)
    assert (alone.code, alone.out) == (1, "")
    assert alone.err.splitlines()[-1].startswith("error: nothing was timed: engine on tensorrt: built for SM86; ")


@pytest.mark.usefixtures("timed_here")
def test_artifact_that_fails_is_told_and_the_exit_code_is_1(models: tuple[Path, Path], tmp_path: Path) -> None:
    import onnx

    bad = write_classifier(tmp_path / "bad.onnx").main_file
    proto = onnx.load(bad)
    proto.graph.node[0].op_type = "NoSuchOperator"
    onnx.save(proto, bad)
    outcome = call("bench", models[0], bad, *QUICK)
    assert outcome.code == 1
    assert "- failed: bad.onnx on onnxruntime: ONNX Runtime cannot open " in outcome.out
    assert "Traceback" not in outcome.out + outcome.err


@pytest.mark.parametrize(
    ("arguments", "code", "expected"),
    [
        ((), 2, "Error: Missing argument 'ARTIFACT...'."),
        (
            ("MODEL", "--batch-size", "0"),
            2,
            "Error: Invalid value for '--batch-size': '0'; expected whole numbers >= 1",
        ),
        (("MODEL", "--batch-size", "1,x"), 2, "Error: Invalid value for '--batch-size': '1,x'; expected whole numbers"),
        (("MODEL", "--batch-size", ""), 2, "Error: Invalid value for '--batch-size': ''; expected whole numbers"),
        (("MODEL", "--batch-size", "-1"), 2, "Error: Invalid value for '--batch-size': '-1'; expected whole numbers"),
        (("MODEL", "--threads", "0"), 2, "Error: Invalid value for '--threads': 0 is not in the range x>=1."),
        (("MODEL", "--rounds", "0"), 2, "Error: Invalid value for '--rounds': 0 is not in the range x>=1."),
        (("MODEL", "--seconds", "nan"), 1, "error: seconds = nan is out of range; expected > 0."),
        (("MODEL", "--runner", "opnvino"), 1, "error: there is no runner 'opnvino'; expected one of torch, "),
        (("MODEL", "--runner", "torch"), 1, "error: "),
        (("none.onnx",), 1, "error: none.onnx does not exist"),
    ],
)
def test_wrong_usage_is_one_line_before_anything_is_timed(
    models: tuple[Path, Path], arguments: tuple[str, ...], code: int, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(models[0].parent)
    outcome = call("bench", *(models[0] if argument == "MODEL" else argument for argument in arguments))
    assert (outcome.code, outcome.out) == (code, "")
    last = outcome.err.splitlines()[-1]
    assert last.startswith(expected)


def test_empty_folder_is_one_line(tmp_path: Path) -> None:
    outcome = call("bench", tmp_path)
    assert (outcome.code, outcome.out) == (1, "")
    assert outcome.err.startswith(f"error: {tmp_path} is not an artifact folder: ")


@pytest.mark.usefixtures("timed_here")
def test_runners_may_be_repeated_or_separated_by_commas(models: tuple[Path, Path]) -> None:
    pytest.importorskip("openvino")
    outcome = call(
        "bench", models[0], "--runner", "onnxruntime, openvino", "--runner", "openvino-fp32", "--json", *QUICK
    )
    assert [timing["runner"] for timing in json.loads(outcome.out)["timings"]] == [
        "onnxruntime",
        "openvino",
        "openvino-fp32",
    ]
