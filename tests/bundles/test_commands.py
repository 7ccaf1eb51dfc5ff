"""The two verbs, called as users call them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from convnext_deploy.artifacts.artifact import Artifact
from convnext_deploy.cli import group
from tests.bundles.graphs import FP32, INT8


def call_bundle(*arguments: str | Path) -> Result:
    return CliRunner().invoke(group, ["bundle", *map(str, arguments)], catch_exceptions=False)


def call_verify(*arguments: str | Path) -> Result:
    return CliRunner().invoke(group, ["verify-bundle", *map(str, arguments)], catch_exceptions=False)


def test_bundle_says_what_it_wrote_and_how_to_verify_it(graphs: dict[str, Artifact], tmp_path: Path) -> None:
    paths = [artifact.path for artifact in graphs.values()]
    done = call_bundle(*paths, "--out", tmp_path / "out", "--golden-images", "3")
    assert done.exit_code == 0
    lines = done.stdout.splitlines()
    assert lines[0].startswith(f"{tmp_path}/out: 0.")
    assert "golden answers to 3 synthetic images" in lines[0]
    assert lines[1:5] == [
        f"  onnx/{INT8}.onnx",
        f"  onnx/{FP32}.onnx",
        *(f"  engines/{INT8}.sm{n}.plan" for n in (86, 89)),
    ]
    assert lines[5] == "- no --data was given: the golden images are synthetic"
    assert f"next: convnext-deploy verify-bundle {tmp_path}/out" in done.stderr.splitlines()


def test_bundle_as_json_and_as_an_archive(graphs: dict[str, Artifact], tmp_path: Path) -> None:
    done = call_bundle(graphs["int8"].path, "--out", tmp_path / "out", "--zip", "--json", "--max-batch-size", "2")
    assert done.exit_code == 0
    record = json.loads(done.stdout)
    assert record["path"] == f"{tmp_path}/out.zip"
    assert call_verify(record["path"]).exit_code == 0


@pytest.mark.parametrize("arguments", [(), ("--out", "x"), ("artifact",), ("a", "--out", "x", "--golden-images", "0")])
def test_bundle_with_wrong_usage_ends_with_2(arguments: tuple[str, ...]) -> None:
    assert call_bundle(*arguments).exit_code == 2


def test_verify_bundle_prints_a_line_for_each_check(made: Path) -> None:
    done = call_verify(made)
    assert done.exit_code == 0
    lines = done.stdout.splitlines()
    assert [line[:8].strip() for line in lines] == ["passed"] * 3 + ["not run"] * 4
    assert lines[1].startswith(f"passed   onnx/{INT8}.onnx: error 0.0e+00 of ")


def test_verify_bundle_ends_with_1_when_something_disagrees(copied: Path) -> None:
    (copied / "README.md").write_text("other")
    done = call_verify(copied)
    assert (done.exit_code, done.stdout) == (1, "failed   SHA256SUMS: README.md was altered\n")
    assert not json.loads(call_verify(copied, "--json").stdout)["passed"]


def test_verify_bundle_ends_with_1_when_what_is_required_was_not_run(
    made: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    done = call_verify(made, "--require", "engine")
    assert done.exit_code == 1
    assert done.stdout.endswith("failed   no engine could be run here, and one was required\n")
    assert call_verify(made, "--require", "gpu").exit_code == 2
