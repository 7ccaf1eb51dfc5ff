"""Images that break amid their pixels are left out by every verb alike, listed, and decoded in full by the first one only."""

from __future__ import annotations

from pathlib import Path

import pytest

import convnext_deploy as api
from convnext_deploy.api.options import DataOptions, ExecutionOptions, TrainingOptions
from convnext_deploy.artifacts.artifact import read_artifact
from convnext_deploy.data import damage
from convnext_deploy.errors import DataError
from tests.colours import COUNT, save_colours, write_colours
from tests.rows import accuracy_of, drop_of

HERE = ExecutionOptions(device="cpu", workers=0)
NAMES = tuple(f"c{number}" for number in range(COUNT))


@pytest.fixture(autouse=True, scope="module")
def _short_timing(short_timing: None) -> None:
    """Nothing here looks at the latency."""


def break_amid(path: Path) -> Path:
    content = path.read_bytes()
    middle = len(content) // 2
    path.write_bytes(
        content[:middle] + bytes(byte ^ 0xFF for byte in content[middle : middle + 8]) + content[middle + 8 :]
    )
    return path


@pytest.fixture
def folder(tmp_path: Path) -> tuple[Path, list[Path]]:
    """Images of which some are broken, and these."""
    root = write_colours(tmp_path / "photos", NAMES, {"train": 3, "val": 2})
    return root, [break_amid(root / "train" / "c1" / "0.png"), break_amid(root / "val" / "c3" / "1.png")]


def test_both_sides_of_a_comparison_are_scored_on_the_images_that_are_left(
    folder: tuple[Path, list[Path]], tmp_path: Path
) -> None:
    root, broken = folder
    network = save_colours(tmp_path / "timm.pth")
    data = DataOptions(root, skip_unreadable=True, image_size=32, crop_pct=1.0)
    report = api.validate(network, baseline=network, out=tmp_path / "out", data=data, execution=HERE)
    assert report.validation_images == 19
    assert [accuracy_of(row).top1 for row in report.rows] == [1.0, 1.0]
    assert (drop_of(report.rows[1]).lost, drop_of(report.rows[1]).gained) == (0, 0)
    lines = (tmp_path / "out" / "unreadable.txt").read_text().splitlines()
    assert [line.partition(": ")[0] for line in lines] == [str(path) for path in broken]
    with pytest.raises(DataError, match=rf"{broken[1]} cannot be read .* or leave it out with --skip-unreadable\.$"):
        api.validate(network, data=DataOptions(root, image_size=32, crop_pct=1.0), execution=HERE)


@pytest.mark.heavy
def test_all_verbs_leave_out_the_same_and_only_the_first_decodes_all(
    folder: tuple[Path, list[Path]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, _ = folder
    data = DataOptions(root, skip_unreadable=True)
    execution = ExecutionOptions(device="cpu", workers=0, cache_dir=tmp_path / "cache")
    training = TrainingOptions(epochs=1, batch_size=10)
    own = DataOptions(root, skip_unreadable=True, image_size=32)
    trained = api.train("test_convnext", out=tmp_path / "a", data=own, training=training, execution=execution)
    checkpoint = tmp_path / "a" / "stages" / "model"
    monkeypatch.setattr(damage, "map_files", lambda *_: pytest.fail("nothing is to be decoded again"))
    distilled = api.distill(
        None,
        "test_convnext",
        teacher_checkpoint=checkpoint,
        teacher_cache=True,
        out=tmp_path / "b",
        data=own,
        training=TrainingOptions(epochs=1, batch_size=10, augmentation_epochs=1),
        execution=execution,
    )
    quantized = api.quantize(
        checkpoint, calibration_method="minmax", out=tmp_path / "c", data=data, execution=execution
    )
    fingerprints = {
        read_artifact(tmp_path / where / "stages" / name).lineage[-1].data_fingerprint
        for where, name in (("a", "model"), ("b", "student"), ("c", "ptq"))
    }
    assert len(fingerprints) == 1
    for found in (trained, distilled, quantized):
        assert found.report.validation_images == 19
    assert (tmp_path / "c" / "unreadable.txt").read_text() == (tmp_path / "a" / "unreadable.txt").read_text()
    again = api.train("test_convnext", out=tmp_path / "a", data=own, training=training, execution=execution)
    assert again.executed == ()


@pytest.mark.heavy
def test_the_folder_of_a_run_remembers_it(
    folder: tuple[Path, list[Path]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, broken = folder
    own = DataOptions(root, skip_unreadable=True, image_size=32)
    training = TrainingOptions(epochs=1, batch_size=10)
    api.train("test_convnext", out=tmp_path / "a", data=own, training=training, execution=HERE)
    counted: list[object] = []

    def count(function: object, items: list[object], _: int) -> list[None]:
        counted.extend(items)
        return [None] * len(items)

    monkeypatch.setattr(damage, "map_files", count)
    assert api.train("test_convnext", out=tmp_path / "a", data=own, training=training, execution=HERE).executed == ()
    assert not counted
    broken[0].unlink()
    broken[1].unlink()
    assert api.train("test_convnext", out=tmp_path / "a", data=own, training=training, execution=HERE).executed == ()
    assert not (tmp_path / "a" / "unreadable.txt").exists()
