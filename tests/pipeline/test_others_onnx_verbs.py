"""ONNX files of others, one for each kind of version, layout, type and batch, go through `validate`, `bench` and `bundle`."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import convnext_deploy as api
from convnext_deploy.api.options import DataOptions, ExecutionOptions
from tests.pipeline.foreign_graphs import SIDE, coloured_folder, write_graph
from tests.rows import accuracy_of

LAST = f"uint8[n,{SIDE},{SIDE},3] images"
MEANS = "p = ReduceMean <axes = [1, 2], keepdims = 0> (x) logits = MatMul (p, w)"
HALF = {"w": np.diag([4.0, 4.0, 4.0]).astype(np.float16)}
# The colours are told by raw values as well as by normalized ones: every channel's mean is above the others' in its own class.
FILES: dict[str, dict[str, object]] = {
    **{f"opset {opset}": {"opset": opset} for opset in (9, 13, 17, 22)},
    "NHWC": {"images": f"float[n,{SIDE},{SIDE},3] images", "body": MEANS.replace("(x)", "(images)"), "opset": 13},
    "float16": {
        "images": f"float16[n,3,{SIDE},{SIDE}] images",
        "outputs": ("float16[n,3] logits",),
        "opset": 17,
        **HALF,
    },
    "uint8": {"images": LAST, "body": f"x = Cast <to = 1> (images) {MEANS}", "opset": 13},
    "batch of 4": {"images": f"float[4,3,{SIDE},{SIDE}] images", "outputs": ("float[4,3] logits",)},
}
POOL = "p = GlobalAveragePool (images) f = Flatten (p) logits = MatMul (f, w)"
HERE = ExecutionOptions(device="cpu", workers=0)


@pytest.mark.heavy
@pytest.mark.parametrize("kind", FILES)
def test_file_of_another_tool_is_validated_timed_and_bundled(kind: str, short_timing: None, tmp_path: Path) -> None:
    given = dict(FILES[kind])
    body, outputs = str(given.pop("body", POOL)), given.pop("outputs", ())
    path = write_graph(tmp_path / "theirs.onnx", body, *outputs, **given)  # type: ignore[misc, arg-type]
    images = DataOptions(coloured_folder(tmp_path / "photos"))

    found = accuracy_of(api.validate(path, data=images, execution=HERE).rows[0])
    assert (found.value, found.total) == (1.0, 12)

    batch = 4 if kind == "batch of 4" else 1
    timed = api.bench(
        path, batch_sizes=(batch,), threads=1, rounds=1, seconds=0.02, execution=ExecutionOptions(device="cpu")
    )
    (timing,) = timed.timings
    assert (timing.candidate.name, timing.not_run) == ("theirs.onnx", None)

    made = api.bundle(path, tmp_path / "bundle", golden_images=5, data=images, execution=ExecutionOptions())
    assert [Path(name).name for name in made.models] == [
        "theirs-fp16.onnx" if kind == "float16" else "theirs-fp32.onnx"
    ]
    assert api.verify_bundle(made.path, require=("onnx",)).passed


def test_file_of_another_tool_answers_labels_where_images_have_several(short_timing: None, tmp_path: Path) -> None:
    path = write_graph(tmp_path / "theirs.onnx", POOL)
    folder = coloured_folder(tmp_path / "photos")
    files = sorted((folder / "val").rglob("*.png"))
    rows = [f"{file.relative_to(folder)},{file.parent.name}{' rot' * (file.stem == '0')},val" for file in files]
    rows += [
        f"{file.relative_to(folder)},{file.parent.name},train" for file in sorted((folder / "train").rglob("*.png"))
    ]
    (tmp_path / "labels.csv").write_text("\n".join(["filename,labels,split", *rows]))
    images = DataOptions(folder, labels=tmp_path / "labels.csv")

    report = api.validate(path, data=images, execution=HERE)
    assert accuracy_of(report.rows[0]).metric == "mAP"
    assert any("each output of the network is taken for a label" in text for text in report.assumptions)

    made = api.bundle(path, tmp_path / "bundle", golden_images=5, data=images)
    record = json.loads((made.path / "bundle.json").read_text())
    assert [model.get("multi_label") for model in record["models"]] == [True]
    assert {*report.assumptions} <= {*made.notes}  # the bundle rests on them too
