"""What was measured of a bundle's models, as the reports of their runs say it."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from convnext_deploy.artifacts.artifact import Artifact
from convnext_deploy.bundles import reported_accuracy
from convnext_deploy.bundles.reported_accuracy import find_reported
from convnext_deploy.reports.record import Report, read_report
from tests.bundles.graphs import row_sum_graph, write_onnx_artifact
from tests.bundles.test_contents import collected


def test_report_of_a_run_is_read_once_for_all_its_models(
    small_artifacts: dict[str, Artifact], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[Path] = []

    def count(run: Path) -> Report:
        read.append(run)
        return read_report(run)

    monkeypatch.setattr(reported_accuracy, "read_report", count)
    contents = collected(*(small_artifacts[name].path for name in ("onnx-fp32", "onnx-int8")))
    found = find_reported(contents)
    assert {name: each.row.name for name, each in found.items()} == {
        "test_convnext2-int8": "onnx-int8",
        "test_convnext2-fp32": "onnx-fp32",
    }
    assert read == [small_artifacts["onnx-fp32"].path.parents[1]]
    first = contents.models[0]
    file = dataclasses.replace(first.artifact.files[0], sha256="0" * 64)
    again = dataclasses.replace(first, artifact=dataclasses.replace(first.artifact, files=(file,)))
    assert first.name not in find_reported(dataclasses.replace(contents, models=(again, *contents.models[1:])))
    alone = collected(write_onnx_artifact(tmp_path / "graph", row_sum_graph()).path)
    assert find_reported(alone) == {}
