"""How much top-1 a quantized network loses on new images: by hand, in simulation, and for one that knows its images by heart."""

from __future__ import annotations

import math
from functools import cache

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy import stats
from torch import Tensor, nn

from convnext_deploy.stages.drop_bound import UnseenImages, answer_costs, bound_drop, sharpest_scale

TRIALS = 200
MOST = 10  # of 200 bounds at 95 % may be too low
POPULATION = 20_000


def softmax(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    powers: NDArray[np.float64] = np.exp(logits - logits.max(1, keepdims=True))
    shares: NDArray[np.float64] = powers / powers.sum(axis=1, keepdims=True)
    return shares


def test_cost_of_one_changed_answer_of_four() -> None:
    """With p = 0.9 and 0.1 for the one that changed, 0.8 of a correct answer is lost."""
    reference = torch.tensor([[0.9, 0.1], [0.6, 0.4], [0.2, 0.8], [0.5, 0.5]]).log()
    logits = torch.tensor([[0.0, 1.0], [3.0, 0.0], [-7.0, 0.0], [1.0, 0.0]])
    assert answer_costs(reference, logits) == pytest.approx([0.8, 0, 0, 0], abs=1e-6)
    found = bound_drop(reference, logits, level=0.05)
    first, second = stats.beta.isf(0.05, [1, 2], [4, 3])
    assert found.expected == pytest.approx(0.2, abs=1e-6)
    assert found.bound == pytest.approx(first + 0.8 * (second - first), abs=1e-6)


@pytest.mark.parametrize("seed", range(3))
def test_expected_drop_is_that_of_numpy(seed: int) -> None:
    rng = np.random.default_rng(seed)
    reference, logits = rng.normal(0, 3, (200, 7)), rng.normal(0, 3, (200, 7))
    logits[:80] = reference[:80]
    p, before, now = softmax(2 * reference), reference.argmax(1), logits.argmax(1)
    lost = [p[row, before[row]] - p[row, now[row]] for row in range(200) if before[row] != now[row]]
    found = bound_drop(torch.tensor(reference), torch.tensor(logits), sharpness=2.0)
    assert found.expected == pytest.approx(sum(lost) / 200, rel=1e-6)


@pytest.mark.parametrize(("count", "bound"), [(8, 0.3123), (50, 0.0582), (1497, 0.002), (5000, 0.0006)])
def test_no_changed_answer_of_few_images_proves_little(count: int, bound: float) -> None:
    """Eight images without a change once were a risk of 0.00 pp."""
    reference = torch.randn(count, 5, generator=torch.Generator().manual_seed(0))
    found = bound_drop(reference, 3 * reference + 1)
    assert found.expected == 0.0
    assert found.bound == pytest.approx(bound, rel=0.02)


def test_risk_grows_with_how_sure_the_float_network_was() -> None:
    logits = torch.tensor([[0.0, 2.0]])
    costs = [answer_costs(torch.tensor([[size, 0.0]]), logits).item() for size in (0.1, 1.0, 3.0, 9.0)]
    assert costs == sorted(set(costs))
    assert costs[-1] == pytest.approx(1, abs=1e-3)


def draw(rng: np.random.Generator, classes: int, truth: float = 1.0) -> tuple[Tensor, NDArray[np.float64]]:
    """Return logits of a population and the probabilities of its labels, which are those of the logits times `truth`."""
    logits = rng.normal(0, 1.5, (POPULATION, classes))
    logits[np.arange(POPULATION), rng.integers(0, classes, POPULATION)] += rng.gamma(3.0, 1.2, POPULATION)
    return torch.from_numpy(logits.astype(np.float32)), softmax(truth * logits)


def true_drop(p: NDArray[np.float64], before: Tensor, now: Tensor) -> float:
    rows = np.arange(len(p))
    return float((p[rows, before.argmax(1).numpy()] - p[rows, now.argmax(1).numpy()]).mean())


@pytest.mark.parametrize("kind", ["noise", "one class", "timid", "too sure"])
@pytest.mark.parametrize("images", [50, pytest.param(500, marks=pytest.mark.heavy)])
def test_true_drop_exceeds_the_bound_in_five_of_a_hundred_trials_at_most(kind: str, images: int) -> None:
    """The noise of quantization; one class in ten that is lost now and then; and networks that are surer than they say, or less."""
    rng = np.random.default_rng(images)
    truth = {"timid": 2.0, "too sure": 0.5}.get(kind, 1.0)
    reference, p = draw(rng, 10, truth)
    noise = rng.normal(0, 0.3, reference.shape)
    if kind == "one class":
        noise = np.zeros(reference.shape)
        noise[(reference.argmax(1).numpy() == 3) & (rng.uniform(size=POPULATION) < 0.15), 3] = -9
    logits = reference + torch.from_numpy(noise.astype(np.float32))
    drop, broken = true_drop(p, reference, logits), 0
    labels = torch.from_numpy((p.cumsum(1) > rng.uniform(size=(POPULATION, 1))).argmax(1))
    for _ in range(TRIALS):
        chosen, new = torch.from_numpy(rng.permutation(POPULATION)[: 2 * images]).chunk(2)
        unseen = UnseenImages(reference[new], labels[new])
        found = bound_drop(reference[chosen], logits[chosen], unseen, sharpest_scale(unseen))
        broken += found.bound < drop
    assert drop > 0.002
    assert broken <= MOST


@cache
def memorized(width: int = 192, known: int = 500) -> tuple[Tensor, Tensor, Tensor, tuple[tuple[Tensor, Tensor], ...]]:
    """Train a small network until it knows its 500 images by heart, and round its weights to 5 and to 4 bits.

    Returns: the float network's logits of the images it knows and of 20,000 new ones with their labels, and those of the others.
    """
    rng = np.random.default_rng(0)
    centres = rng.normal(0, 1, (10, 32))
    labels = rng.integers(0, 10, known + POPULATION)
    images = torch.from_numpy((centres[labels] + rng.normal(0, 3.2, (len(labels), 32))).astype(np.float32))
    targets = torch.from_numpy(labels)
    with torch.random.fork_rng([]), torch.enable_grad():
        torch.manual_seed(0)
        network = nn.Sequential(
            nn.Linear(32, width), nn.GELU(), nn.Linear(width, width), nn.GELU(), nn.Linear(width, 10)
        )
        optimizer = torch.optim.Adam(network.parameters(), 2e-3)
        for _ in range(120):
            optimizer.zero_grad()
            nn.functional.cross_entropy(network(images[:known]), targets[:known]).backward()
            optimizer.step()
    found = []
    with torch.no_grad():
        before = network(images)
        weights = [parameter for parameter in network.parameters() if parameter.ndim == 2]
        plain = [weight.clone() for weight in weights]
        for bits in (5, 4):
            for weight, original in zip(weights, plain, strict=True):
                scale = original.abs().amax(1, keepdim=True) / (2 ** (bits - 1) - 1)
                weight.copy_((original / scale).round() * scale)
            after = network(images)
            found.append((after[:known], after[known:]))
    assert (before[:known].argmax(1) == targets[:known]).float().mean() > 0.99
    return before[:known], before[known:], targets[known:], tuple(found)


@pytest.mark.parametrize("which", [pytest.param(0, marks=pytest.mark.heavy), 1])
def test_network_that_knows_its_images_is_judged_as_on_new_ones(which: int) -> None:
    known, new, labels, rounded = memorized()
    known_after, new_after = rounded[which]
    drop = ((new.argmax(1) == labels).double().mean() - (new_after.argmax(1) == labels).double().mean()).item()
    flips_of_known = (known.argmax(1) != known_after.argmax(1)).double().mean()
    flips_of_new = (new.argmax(1) != new_after.argmax(1)).double().mean()
    assert (new.argmax(1) == labels).double().mean() < 0.6
    assert flips_of_known < flips_of_new / 4  # what it knows hardly changes
    rng, broken, found = np.random.default_rng(which), 0, []
    for _ in range(TRIALS):
        judging = torch.from_numpy(rng.permutation(len(known))[:200])
        others = torch.from_numpy(rng.permutation(len(new))[:200])
        unseen = UnseenImages(new[others], labels[others])
        found.append(bound_drop(known[judging], known_after[judging], unseen, sharpest_scale(unseen)))
        broken += found[-1].bound < drop
    assert broken <= MOST
    # without what it does not know there is nothing to fear, and with it about what comes true
    assert bound_drop(known, known_after).expected == 0
    assert np.mean([risk.expected for risk in found]) == pytest.approx(drop, abs=0.002)


def test_bound_is_wider_where_unseen_images_are_nearer_to_another_answer() -> None:
    """The known images change no answer, whatever is done to them; of the new ones about a third would."""
    generator = torch.Generator().manual_seed(0)
    known = torch.tensor([30.0, 0.0]).repeat(400, 1)
    quantized = known + torch.randn(400, 2, generator=generator)
    unseen = UnseenImages(torch.randn(400, 2, generator=generator), torch.zeros(400, dtype=torch.int64))
    alone, found = bound_drop(known, quantized), bound_drop(known, quantized, unseen)
    assert alone.expected == 0.0
    assert found.expected > 0.05
    assert found.bound > max(alone.bound, found.expected)


def test_costs_of_what_is_known_already_are_not_added_twice() -> None:
    """Where the network is as sure of the images that judge as of others, the bound is hardly another one."""
    rng = np.random.default_rng(7)
    reference, p = draw(rng, 10)
    logits = reference + torch.from_numpy(rng.normal(0, 0.1, reference.shape).astype(np.float32))
    unseen = UnseenImages(reference[5000:10_000], torch.from_numpy(p[5000:10_000].argmax(1)))
    with_others = bound_drop(reference[:5000], logits[:5000], unseen)
    alone = bound_drop(reference[:5000], logits[:5000])
    assert with_others.expected == pytest.approx(alone.expected, rel=0.2)
    assert alone.bound < with_others.bound < 1.6 * alone.bound


@pytest.mark.parametrize("truth", [0.4, 1.0, 1.7, 4.0])
def test_sharpest_scale_is_that_of_the_labels(truth: float) -> None:
    rng = np.random.default_rng(3)
    reference, p = draw(rng, 10, truth)
    labels = torch.from_numpy((p.cumsum(1) > rng.uniform(size=(POPULATION, 1))).argmax(1))
    many, few = (sharpest_scale(UnseenImages(reference[:count], labels[:count])) for count in (POPULATION, 100))
    assert many == pytest.approx(truth, rel=0.06)
    assert few >= many * 0.95  # few labels contradict less


def test_network_that_is_always_right_loses_each_answer_that_it_changes() -> None:
    logits = torch.randn(300, 4, generator=torch.Generator().manual_seed(0))
    assert sharpest_scale(UnseenImages(logits, logits.argmax(1))) == pytest.approx(1e4)
    assert math.isclose(answer_costs(torch.tensor([[1.0, 0.9]]), torch.tensor([[0.0, 1.0]]), 1e4).item(), 1.0)


def test_bound_is_the_same_every_time() -> None:
    reference = torch.randn(60, 4, generator=torch.Generator().manual_seed(0))
    logits = reference + 0.2 * torch.randn(60, 4, generator=torch.Generator().manual_seed(1))
    unseen = UnseenImages(reference.flip(0) / 2, torch.zeros(60, dtype=torch.int64))
    assert bound_drop(reference, logits, unseen) == bound_drop(reference, logits, unseen)
