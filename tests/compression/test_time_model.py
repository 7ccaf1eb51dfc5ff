"""Times of networks as sums of costs: costs that are known are found again, and predict what was not timed."""

from __future__ import annotations

import math

import numpy as np
import pytest

from convnext_deploy.artifacts.spec import ModelSpec
from convnext_deploy.compression.probes import ProbeTimes, choose_probes
from convnext_deploy.compression.time_model import Curve, TimeModel, fit_times
from convnext_deploy.models.block_shapes import block_shapes, candidate_widths
from convnext_deploy.models.variants import with_widths

ATTO = ModelSpec("convnext_atto", 10, patch_size=2)
SHAPES = block_shapes(ATTO, 32)


def _cost_ms(stage: int, width: int) -> float:
    """Of a block: a part for its depthwise convolution, one for its linear layers, and steps of two tiles as kernels have them."""
    if not width:
        return 0.0
    return 0.02 / (stage + 1) + (0.0002 + 0.0001 * (stage == 1)) * 64 * math.ceil(width / 64) * 2.0**stage / 4


def _true_ms(widths: tuple[int, ...]) -> float:
    return 0.11 + sum(_cost_ms(shape.stage, width) for shape, width in zip(SHAPES, widths, strict=True))


def _random_widths(count: int, seed: int) -> list[tuple[int, ...]]:
    rng = np.random.default_rng(seed)
    return [tuple(int(rng.choice(candidate_widths(shape.hidden))) for shape in SHAPES) for _ in range(count)]


def test_shapes_are_those_of_the_blocks() -> None:
    assert [shape.channels for shape in SHAPES] == [40, 40, 80, 80, *[160] * 6, 320, 320]
    assert [shape.height for shape in SHAPES] == [16, 16, 8, 8, *[4] * 6, 2, 2]
    assert [shape.hidden for shape in block_shapes(with_widths(ATTO, [0, 32, *[64] * 10]), 32)][:3] == [0, 32, 64]
    assert [shape.width for shape in block_shapes(ATTO, (32, 64))][::4] == [32, 8, 8]
    assert candidate_widths(96) == (0, 32, 64, 96)
    assert candidate_widths(100) == (0, 32, 64, 96, 100)


def test_probes_see_all_widths_and_removed_blocks_of_each_stage() -> None:
    probes = choose_probes(SHAPES)
    assert probes[0] == tuple(shape.hidden for shape in SHAPES)
    assert probes == choose_probes(SHAPES)
    for stage in range(4):
        blocks = [place for place, shape in enumerate(SHAPES) if shape.stage == stage]
        full = SHAPES[blocks[0]].hidden
        widths = {max(each[block] for block in blocks) for each in probes}
        assert min(widths - {0}) <= full / 4
        assert {sum(each[block] > 0 for block in blocks) for each in probes} == set(range(len(blocks) + 1))
    for each in probes:
        with_widths(ATTO, each)  # which refuses networks that cannot be


def test_times_of_random_widths_are_predicted_from_few_networks() -> None:
    """Processes are some per cent faster or slower than others, and rounds too, as they are on a machine."""
    rng = np.random.default_rng(0)
    probes = choose_probes(SHAPES)
    true = np.array([_true_ms(each) for each in probes])
    rounds = true[:, None] * np.exp(0.03 * rng.standard_normal((len(probes), 3)) + [0.1, -0.2, 0.0])
    times = ProbeTimes(probes, tuple(map(tuple, rounds.tolist())), "onnxruntime", None, 1, "a machine")
    model = times.fit(SHAPES)
    unseen = _random_widths(30, seed=1)
    ratios = np.array([model.predict_ms(SHAPES, each) / _true_ms(each) for each in unseen])
    ratios /= np.median(ratios)  # which round was as usual nobody knows
    assert np.median(np.abs(ratios - 1)) < 0.03
    assert np.abs(ratios - 1).max() < 0.1


def test_costs_that_are_linear_are_found_exactly() -> None:
    truth = TimeModel(0.3, tuple(Curve((32, 160 << stage), (0.02, 0.06 + stage / 100)) for stage in range(4)))
    probes = choose_probes(SHAPES)
    model = fit_times(SHAPES, probes, [truth.predict_ms(SHAPES, each) for each in probes])
    for each in _random_widths(10, seed=2):
        assert model.predict_ms(SHAPES, each) == pytest.approx(truth.predict_ms(SHAPES, each), rel=1e-6)
    assert model.block_ms(SHAPES[0], 0) == 0.0


def test_a_pruned_network_has_times_for_what_is_left_of_it() -> None:
    shapes = block_shapes(with_widths(ATTO, [0, 0, 320, 64, *[640] * 5, 0, 1280, 1280]), 32)
    probes = choose_probes(shapes)
    assert all(each[:2] == (0, 0) and each[3] <= 64 and each[9] == 0 for each in probes)
    truth = [0.1 + sum(width / 1e4 for width in each) for each in probes]
    model = fit_times(shapes, probes, truth)
    assert model.predict_ms(shapes, probes[5]) == pytest.approx(truth[5], rel=0.02)
