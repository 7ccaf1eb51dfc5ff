"""The order of an epoch: NumPy's permutation of few images, and computed by index of many."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from scipy import stats

from convnext_deploy.data import permutation
from convnext_deploy.data.batch_rows import EpochOrder, generator
from convnext_deploy.data.image_sets import ArrayImages
from convnext_deploy.data.permutation import Permutation


def of(seed: int, count: int) -> np.ndarray:
    return Permutation(np.random.default_rng(seed), count).at(np.arange(count))


@pytest.mark.parametrize("count", [2, 3, 16, 17, 1000, 4097, 70_001])
def test_every_number_comes_once_also_where_it_is_computed(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    assert of(7, count).tolist() == np.random.default_rng(7).permutation(count).tolist()
    monkeypatch.setattr(permutation, "MOST_IN_MEMORY", 1)
    found = of(7, count)
    assert np.sort(found).tolist() == list(range(count))
    assert of(7, count).tolist() == found.tolist()
    if count > 3:
        assert of(8, count).tolist() != found.tolist()
    places = np.array([count - 1, 0, count // 2, 0])
    assert Permutation(np.random.default_rng(7), count).at(places).tolist() == found[places].tolist()


def test_computed_orders_are_as_random_as_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """Places, neighbours and rises are spread as of random orders, each by a chi-square or a normal test at 1e-4."""
    monkeypatch.setattr(permutation, "MOST_IN_MEMORY", 1)
    count = 50_000
    for seed in range(4):
        found = of(seed, count)
        cells = np.histogram2d(np.arange(count), found, bins=20)[0].ravel()
        assert stats.chisquare(cells).pvalue > 1e-4
        steps = np.histogram((np.diff(found) % count), bins=50, range=(0, count))[0]
        assert stats.chisquare(steps).pvalue > 1e-4
        rises = int((np.diff(found) > 0).sum())
        assert abs(rises - (count - 1) / 2) < 4 * ((count + 1) / 12) ** 0.5
        assert np.isin(found, [0, 1, 2]).sum() == 3


def test_an_order_of_many_images_takes_no_memory_and_is_the_same_everywhere() -> None:
    images = ArrayImages(np.broadcast_to(np.uint8(0), (14_000_000, 1, 1, 3)), np.broadcast_to(np.int64(0), 14_000_000))
    tracemalloc.start()
    order = EpochOrder(images, 128, 3, 5)
    assert len(order) == 109_375
    batches = [order[number] for number in (0, 1, 109_374)]
    assert tracemalloc.get_traced_memory()[1] < 1_000_000
    tracemalloc.stop()
    expected = Permutation(generator(1, 3, 5), 14_000_000).at(np.r_[0:256, 109_374 * 128 : 14_000_000])
    assert np.concatenate(batches).tolist() == expected.tolist()
    assert len({*expected.tolist()}) == 384
    with pytest.raises(IndexError):
        order[109_375]
