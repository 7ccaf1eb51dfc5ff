"""Images in folders that are named as classes tell whether a network works."""

from __future__ import annotations

from pathlib import Path

import pytest

from convnext_deploy.evaluation.folder_labels import FolderLabels
from tests.evaluation.test_guessing import network

NAMES = ("cat", "dog", "eel")


@pytest.mark.parametrize(
    ("folders", "shift", "doubted"),
    [
        (NAMES, 0, False),
        (NAMES, 1, True),
        (("eel",), 1, False),  # one class alone may be the hardest one
        (("cat", "dog", "holiday"), 1, False),
    ],
)
def test_folders_that_name_classes_are_labels(folders: tuple[str, ...], shift: int, doubted: bool) -> None:
    labels = FolderLabels(NAMES)
    for index in range(60):
        name = folders[index % len(folders)]
        truth = NAMES.index(name) if name in NAMES else 0
        labels.add(Path("photos", name, f"{index}.png"), (truth + shift) % 3)
    found = labels.doubt(network(3, class_names=NAMES))
    assert (found is not None) is doubted
    if found is not None:
        assert found.startswith("top-1 0.00 % on 60 images is worse than guessing")
        assert "order of the classes (here 0 = cat, 1 = dog, 2 = eel); " in found


def test_a_network_without_names_has_no_labels() -> None:
    labels = FolderLabels(None)
    labels.add(Path("cat/1.png"), 0)
    assert labels.doubt(network(3)) is None
