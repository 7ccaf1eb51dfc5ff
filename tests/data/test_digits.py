"""The built-in digits are those of scikit-learn, on whose order and values every earlier result rests."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest

from convnext_deploy.data import digits

FILE = Path(digits.__file__).with_name("digits.npz")
HASHES = (  # of release 0.2.0, which took them from scikit-learn
    "7cebc4569610d9e5bf68804dd51c2e1383f4cec5bd694f0a60c41a9cda0647e0",
    "3408d2d3c4c272ecaec91f3be82ef7822ff628cfd34c3a238129df8c6d91b8f9",
    "dea3e4faa8fae996c17aeef43cac9cf66ad01ac37c4c5e82df2181d63efba9ee",
    "8c23432a6f53565e9214f4174e8e0a348c100b09986d19d2bf55fa24256ad2cd",
)


def test_digits_are_those_of_earlier_releases() -> None:
    found = digits.read_digits()
    arrays = (found.train, found.train_labels, found.validation, found.validation_labels)
    assert [(array.shape, array.dtype.name) for array in arrays] == [
        ((1257, 32, 32, 3), "uint8"),
        ((1257,), "int64"),
        ((540, 32, 32, 3), "uint8"),
        ((540,), "int64"),
    ]
    assert tuple(hashlib.sha256(array.tobytes()).hexdigest() for array in arrays) == HASHES
    assert found.class_names == tuple("0123456789")


def test_file_equals_the_digits_of_scikit_learn() -> None:
    theirs = pytest.importorskip("sklearn.datasets", reason="scikit-learn is not installed").load_digits()
    with np.load(FILE, allow_pickle=False) as ours:
        assert ours["images"].shape == (1797, 8, 8)
        assert np.array_equal(ours["images"], theirs.images)
        assert np.array_equal(ours["labels"], theirs.target)


def test_licence_and_citation_lie_beside_the_file() -> None:
    text = FILE.with_name("digits_license.md").read_text(encoding="utf-8")
    assert all(
        words in text for words in ("CC BY 4.0", "E. Alpaydin and C. Kaynak", "doi.org/10.24432/C50P49", FILE.name)
    )
