"""Held-out validation images: seeded, stratified, stable, and never the same image on both sides."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

import pytest

from convnext_deploy.data import contents, splits
from convnext_deploy.data.contents import Contents
from convnext_deploy.data.splits import Split, split_validation
from convnext_deploy.errors import DataError

Sides = tuple[set[str], set[str]]


def write_files(root: Path, counts: dict[str, int]) -> dict[str, list[Path]]:
    """Write files of different contents, which need not be images."""
    found = {}
    for name, count in counts.items():
        (root / name).mkdir(parents=True)
        found[name] = [root / name / f"{index:03}.png" for index in range(count)]
        for path in found[name]:
            path.write_text(f"{name} {path.name}")
    return found


def sides(found: dict[str, list[Path]], root: Path, fraction: float = 0.1, seed: int = 0) -> Sides:
    train, validation = split_validation(found, root, Split(fraction, seed), Contents())
    assert set(train) == set(validation) == set(found)
    for name in found:
        assert sorted([*train[name], *validation[name]]) == found[name]
        assert train[name] == sorted(train[name])
        assert validation[name] == sorted(validation[name])
    first, second = (
        {path.relative_to(root).as_posix() for paths in side.values() for path in paths} for side in (train, validation)
    )
    return first, second


@pytest.mark.parametrize(
    ("fraction", "expected"),
    [
        (0.1, {"a": 10, "b": 2, "c": 1, "d": 1, "e": 1}),
        (0.5, {"a": 50, "b": 9, "c": 4, "d": 2, "e": 1}),
        (0.99, {"a": 99, "b": 17, "c": 8, "d": 2, "e": 1}),
        (0.001, {"a": 1, "b": 1, "c": 1, "d": 1, "e": 1}),
    ],
)
def test_every_class_gives_its_share_and_keeps_one(tmp_path: Path, fraction: float, expected: dict[str, int]) -> None:
    found = write_files(tmp_path, {"a": 100, "b": 18, "c": 9, "d": 3, "e": 2})
    _, validation = split_validation(found, tmp_path, Split(fraction, 0), Contents())
    assert {name: len(paths) for name, paths in validation.items()} == expected
    sides(found, tmp_path, fraction)


def test_images_with_the_smallest_hashes_are_held_out(tmp_path: Path) -> None:
    found = write_files(tmp_path, {"a": 30, "b": 20})
    expected = set()
    for name, count in (("a", 3), ("b", 2)):
        names = [f"{name}/{path.name}" for path in found[name]]
        expected |= set(sorted(names, key=lambda text: hashlib.sha256(b"7\0" + text.encode()).digest())[:count])
    assert sides(found, tmp_path, seed=7)[1] == expected


def test_split_depends_on_the_seed_and_on_nothing_else(tmp_path: Path) -> None:
    found = write_files(tmp_path / "one", {"a": 40, "b": 30})
    shutil.copytree(tmp_path / "one", tmp_path / "elsewhere" / "two")
    moved = {
        name: [tmp_path / "elsewhere" / "two" / name / path.name for path in paths] for name, paths in found.items()
    }
    first = sides(found, tmp_path / "one")
    assert sides(moved, tmp_path / "elsewhere" / "two") == first
    backwards = {name: found[name][::-1] for name in reversed(found)}
    assert {
        p
        for paths in split_validation(backwards, tmp_path / "one", Split(0.1, 0), Contents())[1].values()
        for p in paths
    } == {tmp_path / "one" / name for name in first[1]}
    others = [sides(found, tmp_path / "one", seed=seed)[1] for seed in range(1, 6)]
    assert all(other != first[1] for other in others)
    assert len(set().union(*others)) > len(first[1]) * 2


def test_one_more_image_moves_at_most_one_other(tmp_path: Path) -> None:
    found = write_files(tmp_path, {"a": 40, "b": 40})
    before = sides(found, tmp_path)[1]
    entered = 0
    for index in range(30):
        new = tmp_path / "a" / f"new-{index}.png"
        new.write_text(new.name)
        found["a"] = sorted([*found["a"], new])
        after = sides(found, tmp_path)[1]
        left = before - after
        assert len(left) <= 1
        assert len(after - before) <= 1
        assert {name for name in before if name.startswith("b/")} <= after
        entered += f"a/{new.name}" in after
        before = after
    assert 0 < entered < 30


def test_copies_stay_on_one_side(tmp_path: Path) -> None:
    found = write_files(tmp_path, {"a": 30, "b": 30})
    for index in range(10):
        copy = tmp_path / "a" / f"copy-{index}.png"
        shutil.copy(found["a"][index], copy)
        found["a"].append(copy)
    found["a"].sort()
    copies_held_out = 0
    for seed in range(10):
        train, validation = sides(found, tmp_path, fraction=0.3, seed=seed)
        assert len(validation) == 12 + 9
        for index in range(10):
            pair = {f"a/{index:03}.png", f"a/copy-{index}.png"}
            assert pair <= train or pair <= validation
            copies_held_out += pair <= validation
    assert copies_held_out > 0


def test_copies_under_several_classes_stay_in_training(tmp_path: Path) -> None:
    found = write_files(tmp_path, {"a": 6, "b": 6})
    shutil.copy(found["a"][0], found["b"][0])
    for seed in range(20):
        train, _ = sides(found, tmp_path, fraction=0.9, seed=seed)
        assert {"a/000.png", "b/000.png"} <= train


def test_a_class_of_one_image_and_a_copy_elsewhere_is_enough(tmp_path: Path) -> None:
    found = write_files(tmp_path, {"a": 2, "b": 5})
    shutil.copy(found["b"][0], found["a"][0])
    assert {name for name in sides(found, tmp_path)[1] if name.startswith("a/")} == {"a/001.png"}


def test_the_smallest_group_is_held_out_when_all_are_larger_than_the_share(tmp_path: Path) -> None:
    found = write_files(tmp_path, {"a": 5, "b": 5})
    for index, content in enumerate("xxxyy"):
        found["a"][index].write_text(content)
    for seed in range(10):
        _, validation = sides(found, tmp_path, seed=seed)
        assert {name for name in validation if name.startswith("a/")} == {"a/003.png", "a/004.png"}


@pytest.mark.parametrize(
    ("classes", "reason"),
    [
        ("x", "class 'a' has only 1 image; at least 2 are needed, one to train on and one to hold out"),
        ("xxx", "class 'a' has no two different images; at least 2"),
        ("yz", "class 'a' has no image that is not in another class too; at least 2"),
        ("yzx", None),
    ],
)
def test_class_without_two_different_images_is_refused(tmp_path: Path, classes: str, reason: str | None) -> None:
    found = write_files(tmp_path, {"a": len(classes), "b": 4})
    for index, content in enumerate(classes):
        found["a"][index].write_text(content)
    for index, content in enumerate("yzuv"):
        found["b"][index].write_text(content)
    if reason is None:
        assert sides(found, tmp_path)[1] & {"a/000.png", "a/001.png", "a/002.png"} == {"a/002.png"}
        return
    with pytest.raises(DataError) as caught:
        split_validation(found, tmp_path, Split(0.1, 0), Contents())
    assert str(caught.value).startswith(reason)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("fraction", [0.0, 1.0, -0.1, 10.0, float("nan")])
def test_fraction_out_of_range_is_refused(tmp_path: Path, fraction: float) -> None:
    found = write_files(tmp_path, {"a": 3, "b": 3})
    with pytest.raises(DataError, match="is out of range; expected more than 0 and less than 1"):
        split_validation(found, tmp_path, Split(fraction, 0), Contents())


def test_files_are_read_only_as_far_as_needed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written = {
        "alone": b"x" * 9000,
        "same-size": b"a" * 8000,
        "other-end": b"a" * 7999 + b"b",
        "other-start": b"c" + b"a" * 7999,
    }
    paths = []
    for name, content in written.items():
        paths.append(tmp_path / name)
        paths[-1].write_bytes(content)
    read: dict[str, set[str]] = {}
    for step in ("_hash_end", "digest_file"):
        plain = getattr(contents, step)

        def recorded(path: Path, step: str = step, plain: object = plain) -> object:
            read.setdefault(step, set()).add(path.name)
            return plain(path)  # type: ignore[operator]

        monkeypatch.setattr(contents, step, recorded)
    found = splits.group_equal_files(paths, Contents())
    assert [[paths[place].name for place in group] for group in found] == [[path.name] for path in paths]
    assert read == {"_hash_end": {"same-size", "other-end", "other-start"}, "digest_file": {"same-size", "other-start"}}
