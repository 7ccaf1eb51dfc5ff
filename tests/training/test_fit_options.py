"""What the training loop can do besides: averages, clipping, accumulation, layer-wise rates, a head alone."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from convnext_deploy.artifacts.spec import ModelSpec
from convnext_deploy.data.loaders import Batch
from convnext_deploy.errors import DeployError
from convnext_deploy.models.variants import VARIANTS, build_model
from convnext_deploy.training.optimizer import MovingAverage, create_optimizer, layer_scales
from convnext_deploy.training.schedule import autocast_dtype
from tests.shared import heavy_except
from tests.training.fake_batches import FakeBatches, flat_weights, run_fit, small_network


def test_average_equals_its_formula() -> None:
    network = nn.Linear(2, 1, bias=False)
    average = MovingAverage(network, 0.5)
    expected = network.weight.detach().double().clone()
    for step in range(12):
        with torch.no_grad():
            network.weight.add_(1.0 + step)
        average.update_parameters(network)
        decay = min(0.5, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * network.weight.detach().double()
        torch.testing.assert_close(average.module.weight.double(), expected)


def test_fit_ends_with_the_average(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Tensor] = []
    update = MovingAverage.update_parameters

    def record(self: MovingAverage, model: nn.Module) -> None:
        update(self, model)
        seen.append(flat_weights(self.module))

    monkeypatch.setattr(MovingAverage, "update_parameters", record)
    averaged, plain = small_network(), small_network()
    run_fit(averaged, ema_decay=0.8)
    run_fit(plain)
    assert torch.equal(flat_weights(averaged), seen[-1])
    assert not torch.allclose(flat_weights(plain), seen[-1])
    assert len(seen) == 12


@pytest.mark.parametrize("parts", heavy_except((3,), (2, 3, 6)))
def test_fit_takes_the_same_steps_when_batches_are_cut_into_parts(parts: int) -> None:
    whole, cut = small_network(), small_network()
    first = run_fit(whole, weight_decay=0.0, base_learning_rate=0.2)
    second = run_fit(cut, weight_decay=0.0, base_learning_rate=0.2, accumulation_steps=parts)
    assert [row["train_loss"] for row in second] == pytest.approx([row["train_loss"] for row in first], rel=1e-4)
    # Adam divides by the size of the gradient, so rounding shows where a gradient is nearly nothing
    assert (flat_weights(whole) - flat_weights(cut)).abs().median() < 1e-6


def test_fit_weighs_unequal_parts_by_their_images() -> None:
    losses: list[float] = []

    def objective(network: nn.Module, batch: Batch) -> Tensor:
        losses.append(float(len(batch)))
        return model.head.bias.sum() * 0 + len(batch)

    model = small_network()
    history = run_fit(model, FakeBatches(1, 5), objective=objective, epochs=1, accumulation_steps=2)
    assert losses == [3.0, 2.0]
    assert history[0]["train_loss"] == pytest.approx(3 * 3 / 5 + 2 * 2 / 5)


def test_fit_clips_the_norm_of_all_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    norms: list[float] = []
    step = torch.optim.AdamW.step

    def record(self: torch.optim.AdamW, *given: Any) -> Any:
        gradients = [p.grad for group in self.param_groups for p in group["params"] if p.grad is not None]
        norms.append(torch.stack([g.norm() for g in gradients]).norm().item())
        return step(self, *given)

    monkeypatch.setattr(torch.optim.AdamW, "step", record)
    run_fit(small_network(), epochs=1)
    unclipped = list(norms)
    norms.clear()
    run_fit(small_network(), epochs=1, gradient_clip_norm=0.05)
    assert min(unclipped) > 0.05
    assert norms == pytest.approx([0.05] * 4, rel=1e-4)


def test_fit_trains_the_head_alone_at_first() -> None:
    model = small_network()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    run_fit(model, epochs=1, warmup_epochs=0.0, head_only_epochs=1.0)
    changed = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    assert changed == {"norm.weight", "norm.bias", "head.weight", "head.bias"}
    assert all(p.requires_grad for p in model.parameters())
    run_fit(model, epochs=2, warmup_epochs=0.0, head_only_epochs=1.0)
    assert all(not torch.equal(p, before[name]) for name, p in model.named_parameters())


# Of the official code, by name and block: twelve groups in version 1 and in version 2 from base on ("group"), otherwise one for
# each block ("single"), where the stem belongs to the first.
_GROUPED_TINY = [1] * 3 + [2] * 3 + [3, 3, 3, 4, 4, 4, 5, 5, 5] + [12] * 3
_GROUPED = [1] * 3 + [2] * 3 + [group for group in range(3, 12) for _ in range(3)] + [12] * 3


@pytest.mark.parametrize(
    ("variant", "groups", "stem", "head"),
    [
        ("convnext_atto", list(range(1, 13)), 1, 13),
        ("convnextv2_tiny", list(range(1, 19)), 1, 19),
        ("convnext_tiny", _GROUPED_TINY, 0, 13),
        ("convnext_base", _GROUPED, 0, 13),
        ("convnextv2_base", _GROUPED, 0, 13),
        # the official groups of three are 3 to 12 where the third model stage has 30 blocks
        ("convnext_xxlarge", [1] * 3 + [2] * 4 + [group for group in range(3, 13) for _ in range(3)] + [12] * 3, 0, 13),
    ],
)
def test_layer_scales_falls_from_group_to_group_of_the_official_code(
    variant: str, groups: list[int], stem: int, head: int
) -> None:
    with torch.device("meta"):
        names = [name for name, _ in build_model(ModelSpec(variant, 3)).named_parameters()]
    scales = layer_scales(names, 0.5)
    assert {scales[name] for name in names if name.startswith(("norm.", "head."))} == {1.0}
    assert {scales[name] for name in names if name.startswith("downsample_layers.0.")} == {0.5 ** (head - stem)}
    depths = VARIANTS[variant].depths
    blocks = [f"stages.{s}.{b}.dwconv.weight" for s in range(4) for b in range(depths[s])]
    assert [scales[name] for name in blocks] == [0.5 ** (head - group) for group in groups]
    for s in (1, 2, 3):
        assert scales[f"downsample_layers.{s}.1.weight"] == scales[f"stages.{s}.0.dwconv.weight"]
    assert set(layer_scales(names, 1.0).values()) == {1.0}


def test_create_optimizer_gives_each_group_its_learning_rate() -> None:
    model = small_network()
    optimizer = create_optimizer(model, 0.1, 0.05, 0.5)
    names = {id(p): name for name, p in model.named_parameters()}
    scales = layer_scales(names.values(), 0.5)
    groups = optimizer.param_groups
    members = [names[id(p)] for group in groups for p in group["params"]]
    assert sorted(members) == sorted(names.values())
    for group in groups:
        assert {scales[names[id(p)]] for p in group["params"]} <= {group["lr_scale"]}
        assert group["lr"] == pytest.approx(0.1 * group["lr_scale"])


def test_fit_moves_early_layers_less_when_rates_decay_with_depth() -> None:
    def movement(layer_decay: float) -> tuple[float, float]:
        model = small_network()
        before = {name: p.detach().clone() for name, p in model.named_parameters()}
        run_fit(model, epochs=1, weight_decay=0.0, layer_decay=layer_decay)
        moved = {name: (p.detach() - before[name]).abs().mean().item() for name, p in model.named_parameters()}
        return moved["downsample_layers.0.0.weight"], moved["head.weight"]

    (stem, head), (stem_decayed, head_decayed) = movement(1.0), movement(0.2)
    assert stem_decayed < stem / 1000
    assert head_decayed == pytest.approx(head, rel=0.2)


def test_fit_reports_speed_and_names_what_to_try_when_it_diverges() -> None:
    history = run_fit(small_network(), epochs=1)
    assert history[0]["images_per_s"] > 0
    values = itertools.chain([1.0, 1.0], itertools.repeat(float("nan")))
    model = small_network()
    with pytest.raises(
        DeployError, match=r"^student: the loss is nan at step 2 \(learning rate .*\); lower base_learning_rate"
    ):
        run_fit(model, objective=lambda network, batch: network(batch.images).sum() * 0 + next(values))


def test_autocast_dtype_refuses_float16_on_a_cpu() -> None:
    with pytest.raises(DeployError, match="needs a GPU"):
        autocast_dtype("fp16", "cpu")
