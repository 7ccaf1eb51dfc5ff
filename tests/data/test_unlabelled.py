"""Images without labels: what is found in a folder, what is left out, and how batches mix them with labelled ones."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from convnext_deploy.api.open_inputs import open_named_data
from convnext_deploy.api.options import DataOptions
from convnext_deploy.config.fit import Augmentation
from convnext_deploy.data.batch_rows import EpochOrder
from convnext_deploy.data.contents import Contents
from convnext_deploy.data.datasets import ArrayImages, Data, FolderImages, open_data
from convnext_deploy.data.image_sets import TaughtImages
from convnext_deploy.data.loaders import Batch, BatchPlan, TrainingBatches
from convnext_deploy.data.shards import ShardImages
from convnext_deploy.data.unlabelled import MOST_SHARE, Unlabelled, mix_in, open_unlabelled, usual_share
from convnext_deploy.errors import DataError, RecipeError
from convnext_deploy.system.distributed import World
from convnext_deploy.system.execution import Execution
from tests.conftest import draw_image
from tests.data.test_loaders import PLAIN
from tests.shards import make_shards, write_tar

LABELLED, UNLABELLED = 10, 33


@pytest.fixture
def folder(tmp_path: Path, image_folder: Path) -> Path:
    """12 images at several depths, a file of another kind, copies of a validation image, of a training image and of nothing."""
    root, rng = tmp_path / "more", np.random.default_rng(7)
    (root / "2024" / "May").mkdir(parents=True)
    for number in range(12):
        place = (root, root / "2024", root / "2024" / "May")[number % 3]
        draw_image(number, rng).save(place / f"{number}.png")
    (root / "notes.txt").write_text("none")
    shutil.copy(image_folder / "val" / "cat" / "0.png", root / "2024" / "copy.png")
    shutil.copy(image_folder / "train" / "owl" / "3.png", root / "copied.png")
    return root


def open_for(data: Data, folder: Path, cache_dir: Path | None = None) -> Unlabelled:
    return open_unlabelled(str(folder), data.train, [data.validation], data.contents, cache_dir=cache_dir)


def test_images_at_any_depth_are_found_and_copies_of_others_left_out(folder: Path, small_data: Data) -> None:
    found = open_for(small_data, folder)
    assert len(found.images) == 12
    assert found.judging == (Path("2024/copy.png"),)
    assert (found.training, found.ignored_files) == (1, 1)
    assert set(found.images.labels) == {-1}
    notes = "\n".join(found.notes)
    assert "12 images without labels" in notes
    assert "copies of images that judge, which must not be trained on: 1 (2024/copy.png)" in notes
    assert "copies of labelled training images: 1" in notes
    before = found.identify(Contents())
    assert found.identify(small_data.contents) == before
    (folder / "0.png").write_bytes((folder / "2024" / "1.png").read_bytes())
    assert open_for(small_data, folder).identify(Contents()) != before


def test_a_folder_without_new_images_is_an_error_in_one_line(folder: Path, small_data: Data, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    shutil.copytree(small_data.name, tmp_path / "same")
    (tmp_path / "phone").mkdir()
    (tmp_path / "phone" / "1.heic").write_bytes(b"x")
    cases = {
        "none": "does not exist; expected a folder of images or shards",
        "more/0.png": "is a file",
        "empty": "is empty",
        "same": "is new: all are among the images of the data folder",
        "phone": r"has no image that can be read: 1 files \(.heic\).*heif-convert",
    }
    for name, message in cases.items():
        with pytest.raises(DataError, match=f"folder of unlabelled images .*{message}") as raised:
            open_for(small_data, tmp_path / name)
        assert "\n" not in str(raised.value)


def test_unreadable_images_are_an_error_or_left_out_and_listed(folder: Path, image_folder: Path) -> None:
    (folder / "2024" / "broken.jpg").write_bytes(b"\xff\xd8\xff")
    options = DataOptions(str(image_folder), unlabelled=folder)
    with pytest.raises(DataError, match=r"broken\.jpg cannot be read as an image .*--skip-unreadable"):
        open_named_data(str(image_folder), options, Execution())
    data = open_named_data(str(image_folder), dataclasses.replace(options, skip_unreadable=True), Execution())
    assert data.unlabelled is not None
    assert len(data.unlabelled.images) == 12
    assert [path.name for path in data.unreadable] == ["broken.jpg"]
    assert len(data.reasons) == 1
    assert any("1 image that cannot be read was left out" in note for note in data.notes)


def test_shards_need_no_labels_and_copies_are_found_across_forms(
    folder: Path, small_data: Data, image_folder: Path, tmp_path: Path
) -> None:
    (tmp_path / "tars").mkdir()
    names = sorted(path for path in folder.rglob("*.png"))
    write_tar(tmp_path / "tars" / "a.tar", [(f"{path.stem}.png", path.read_bytes()) for path in names])
    for _ in range(2):  # the second time from what was kept
        found = open_for(small_data, tmp_path / "tars", tmp_path / "cache")
        assert isinstance(found.images, ShardImages)
        assert (len(found.images), found.judging, found.training) == (12, (Path("a.tar/copy.png"),), 1)
        assert found.images.load(3).size == (32, 32)
    in_shards = open_data(str(make_shards(image_folder, tmp_path / "shards")))
    assert open_for(in_shards, folder).judging == (Path("2024/copy.png"),)


def taught(share: float | None = None, labelled: int = LABELLED, unlabelled: int = UNLABELLED) -> TaughtImages:
    """Images whose pixels are their number: those without labels from 100 on."""
    levels = np.arange(labelled + unlabelled) + np.where(np.arange(labelled + unlabelled) < labelled, 0, 100 - labelled)
    pixels = np.broadcast_to(levels[:, None, None, None], (len(levels), 8, 8, 3)).astype(np.uint8)
    known = ArrayImages(pixels[:labelled], np.arange(labelled) % 5)
    others = ArrayImages(pixels[labelled:], np.full(unlabelled, -1))
    return mix_in(known, Unlabelled("more", others), share)  # type: ignore[arg-type]  # which are files otherwise


def batches(images: TaughtImages, world: World | None = None, **wanted: float) -> TrainingBatches:
    augmentation = Augmentation(crop_scale_min=1.0, flip_probability=0.0, **wanted)  # type: ignore[arg-type]
    return TrainingBatches(images, PLAIN, BatchPlan(8, 5, augmentation, seed=3), world=world)


def test_each_batch_has_its_share_and_every_image_comes_as_often() -> None:
    images = taught()
    assert images.share == UNLABELLED / (LABELLED + UNLABELLED)
    assert len(batches(images)) == 43 // 8
    rows = [np.stack(EpochOrder(images, 8, 3, epoch)) for epoch in range(20)]
    every = np.concatenate(rows)
    assert every.shape == (20 * 5, 8)
    assert (every[:, :2] < LABELLED).all()
    assert (every[:, 2:] >= LABELLED).all()
    counts = np.bincount(every.ravel(), minlength=len(images))
    assert np.ptp(counts[:LABELLED]) <= 1
    assert np.ptp(counts[LABELLED:]) <= 1
    assert not np.array_equal(rows[0], rows[1])
    found = list(batches(images).epoch(1))
    for batch, row in zip(found, rows[1], strict=True):
        assert batch.numbers is not None
        assert batch.numbers.tolist() == row.tolist()
        assert ((batch.labels < 0) == (batch.numbers >= LABELLED)).all()
    later = list(batches(images).epoch(1, start=3))
    assert all(torch.equal(a.images, b.images) for a, b in zip(found[3:], later, strict=True))


def test_shares_that_are_asked_for_and_the_usual_one() -> None:
    assert usual_share(10_000, 40_000) == 0.8
    assert usual_share(10, 40_000) == MOST_SHARE == 7 / 8
    assert taught(0.5).counts(8) == (4, 4)
    assert taught(0.001).counts(8) == (7, 1)
    assert taught(0.999).counts(8) == (1, 7)
    with pytest.raises(RecipeError, match="no room for labelled and unlabelled ones"):
        taught(0.5).counts(1)
    alone = taught(1.0)
    assert (len(alone), alone.counts(8)) == (UNLABELLED, (0, 8))
    epoch = np.stack(EpochOrder(alone, 8, 0, 0))
    assert len(np.unique(epoch)) == 32


def test_mixing_stays_among_images_of_a_kind_also_in_parts_of_several_processes() -> None:
    images = taught(0.6)
    whole = next(iter(batches(images, mixup_alpha=0.8, cutmix_alpha=1.0).epoch(0)))
    assert whole.numbers is not None
    assert whole.mixed_in is not None
    labelled = images.counts(8)[0]
    assert labelled == 3
    assert whole.mixed_in.tolist() == whole.numbers[[2, 0, 1, 7, 3, 4, 5, 6]].tolist()
    assert (whole.labels[:labelled] >= 0).all()
    assert torch.allclose(whole.labels[:labelled].sum(1), torch.ones(labelled))
    assert (whole.labels[labelled:] == -1).all()
    for size in (2, 4):
        parts: list[Batch] = []
        for rank in range(size):
            parts.append(next(iter(batches(images, World(rank, size), mixup_alpha=0.8, cutmix_alpha=1.0).epoch(0))))
        assert torch.equal(torch.cat([part.images for part in parts]), whole.images)
        assert torch.equal(torch.cat([part.labels for part in parts]), whole.labels)
        assert torch.cat([part.mixed_in for part in parts if part.mixed_in is not None]).equal(whole.mixed_in)


def test_multi_label_data_gets_unknown_labels(small_data: Data, folder: Path) -> None:
    data = small_data.as_multi_label()
    images = mix_in(data.train, open_for(data, folder), None)
    assert isinstance(images.labelled, FolderImages)
    assert images.labels.shape == (36 + 12, 3)
    assert (images.labels[36:] == -1).all()
    assert images.load(40).size == (32, 32)
    assert images.content(40) == images.unlabelled.content(4)
    assert images.size_hint(3) == images.labelled.size_hint(3)
