"""The ladder: from the cheapest way to INT8 to the strongest, until one is good enough, see `judging`."""

from __future__ import annotations

import copy
import dataclasses
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass

from torch import nn

from convnext_deploy.artifacts.artifact import Artifact
from convnext_deploy.artifacts.details import History, LayerEffect, PTQRecord, Selection, Step, TorchDetails
from convnext_deploy.config.ptq import PTQSteps
from convnext_deploy.config.qat import QATConfig
from convnext_deploy.config.quantize import QuantizeConfig
from convnext_deploy.models.convnext import ConvNeXt
from convnext_deploy.models.fold import Folding
from convnext_deploy.quantization.prepare import prepare, without_quantizers
from convnext_deploy.quantization.scheme import QuantizationScheme, resolve_scheme
from convnext_deploy.quantization.sensitivity import Effect, choose_float_layers, compute_logits, measure_sensitivity
from convnext_deploy.stages.context import StageContext, require_source
from convnext_deploy.stages.ptq_steps import Images, choose_images, open_folded, quantize_network
from convnext_deploy.stages.quantized_training import check_teachers, train_quantized, training_seconds
from convnext_deploy.stages.selection import Judge, finite_or_none
from convnext_deploy.stages.write_artifact import write_torch_artifact
from convnext_deploy.system.distributed import from_first

_SENSITIVITY_IMAGES = 256
_NAMED = 5  # layers in a message

BARE = PTQSteps("minmax", smoothing=False, bias_correction=False)
RUNGS: dict[str, PTQSteps] = {
    "min-max": BARE,
    "ranges by error": dataclasses.replace(BARE, calibration_method="auto"),
    "smoothing": PTQSteps(bias_correction=False),
    "bias correction": PTQSteps(),
    "learned rounding": PTQSteps(reconstruction=True),
}
"""Name → steps, the cheapest first. After them come layers in float, and training."""
STRONGEST_OF_ONE_PASS = "bias correction"


@dataclass
class _Climb:
    """Where the ladder stands: what was tried, the best of it, and why it ended."""

    rungs: list[Step]
    best: int = -1
    network: ConvNeXt | None = None
    scheme: QuantizationScheme | None = None
    record: PTQRecord = dataclasses.field(default_factory=lambda: PTQRecord(0))
    history: History = ()
    reason: str = ""
    effects: tuple[Effect, ...] = ()

    def take(
        self, rung: Step, network: ConvNeXt, scheme: QuantizationScheme, record: PTQRecord, history: History = ()
    ) -> bool:
        """Take in a rung; the best is the first that passed, otherwise the one with the least risk."""
        self.rungs.append(rung)
        if self.best < 0 or rung.passed or rung.risk_pp < self.rungs[self.best].risk_pp:
            self.best = len(self.rungs) - 1
            self.network, self.scheme, self.record, self.history = network, scheme, record, history
        return rung.passed


def check(config: QuantizeConfig) -> None:
    """Raises: RecipeError: if there is no such choice for a layer."""
    resolve_scheme(config.target, config.sites)


def run(config: QuantizeConfig, source: Artifact | None, context: StageContext) -> Artifact:
    """Climb, and write the best that was found. Its details have every rung and the reason for the choice.

    Of several processes the first one climbs as far as there is no training, in which all take part.
    """
    source = require_source(source, "quantize")
    scheme = resolve_scheme(config.target, config.sites)
    check_teachers(source, config.teacher, context)
    start = time.monotonic()
    folding = open_folded(source, scheme, context)
    climb: _Climb = from_first(lambda: _climb(config, scheme, folding, context, start))
    assert climb.network is not None  # the first rung is always taken
    assert climb.scheme is not None
    if not climb.reason:
        _train(config, source, folding, climb, context)
    best = climb.rungs[climb.best]
    context.execution.progress.say(f"{context.name}: {best.name} it is: {climb.reason}")
    effects = tuple(LayerEffect(e.layer, finite_or_none(e.kl), e.changed, e.macs) for e in climb.effects)
    return write_torch_artifact(
        climb.network,
        context,
        model=source.model,
        preprocess=folding.preprocess,
        class_names=source.class_names,
        precision="int8",
        details=TorchDetails(
            **climb.scheme.details(),
            history=climb.history,
            folding=folding.certificate,
            ptq=climb.record,
            selection=Selection(tuple(climb.rungs), best.name, climb.reason, config.max_drop_pp, effects),
        ),
        source=source,
    )


def _climb(
    config: QuantizeConfig, scheme: QuantizationScheme, folding: Folding, context: StageContext, start: float
) -> _Climb:
    """Try everything before training. The result has no reason where training is to come."""
    counts = [config.calibration_images, config.selection_images]
    images, selection = choose_images(counts, folding.preprocess, context, config.batch_size)
    if not len(selection):
        selection = images
        context.execution.progress.say(
            f"{context.name}: no training images are left to choose by; it is done by those of calibration"
        )
    judge = Judge(folding.network, selection, config.max_drop_pp)
    climb = _Climb([])
    deadline = math.inf if config.time_budget_s is None else start + config.time_budget_s
    for name in RUNGS if config.method != "qat" else (STRONGEST_OF_ONE_PASS,):
        begun = time.monotonic()
        longest = max((rung.seconds for rung in climb.rungs), default=0.0)
        if climb.rungs and begun + longest > deadline:
            climb.reason = f"the time budget of {config.time_budget_s:.0f} s leaves none for '{name}'"
            break
        network, record = quantize_network(
            folding.network,
            scheme,
            RUNGS[name],
            images,
            context,
            seed=context.execution.seed,
            deadline=deadline - longest,
        )
        rung = _timed(judge.judge(name, network), begun)
        _say(rung, context)
        if climb.take(rung, network, scheme, record) and config.method != "qat":
            climb.reason = _why(rung, config.max_drop_pp)
            return climb
    if config.method != "qat":
        _keep_some_in_float(climb, judge, images, context, config, deadline)
    if not climb.reason and config.method == "ptq":
        climb.reason = _nothing(climb, config.max_drop_pp)
    if not climb.reason and deadline < math.inf:
        assert climb.network is not None  # there is one rung at least
        seconds = training_seconds(climb.network, folding.preprocess, config.fit, context)
        if time.monotonic() + seconds > deadline:
            climb.reason = f"training would take {seconds:.0f} s, more than the time budget leaves"
    return climb


def _keep_some_in_float(
    climb: _Climb, judge: Judge, images: Images, context: StageContext, config: QuantizeConfig, deadline: float
) -> None:
    """Find out which layers hurt, and try with the worst of them in float."""
    network, scheme = climb.network, climb.scheme
    assert network is not None
    assert scheme is not None
    begun = time.monotonic()
    if begun > deadline:
        return
    some = images.first(_SENSITIVITY_IMAGES)
    reference = compute_logits(without_quantizers(network), some)
    with context.execution.progress.task(f"{context.name}: sensitivity", len(list(_names(network))), "layers") as task:
        climb.effects = measure_sensitivity(network, some, reference, task.advance)
    if climb.reason:
        return
    found: list[Step] = []

    def passes() -> bool:
        if time.monotonic() > deadline:
            return False
        found.append(judge.judge("layers in float", network))
        return found[-1].passed

    chosen = choose_float_layers(network, climb.effects, passes)
    if chosen is None:
        hurt = ", ".join(effect.layer for effect in climb.effects[:_NAMED])
        context.execution.progress.say(f"{context.name}: a few layers in float do not do; what hurts most: {hurt}")
        return
    narrower = scheme.with_overrides({**dict(scheme.overrides), **dict.fromkeys(chosen, "float")})
    result = prepare(without_quantizers(network), narrower)
    kept = result.state_dict().keys()
    result.load_state_dict({key: value for key, value in network.state_dict().items() if key in kept})
    rung = _timed(judge.judge("layers in float", result), begun)
    _say(rung, context)
    if climb.take(rung, result, narrower, dataclasses.replace(climb.record, float_layers=chosen)):
        climb.reason = f"{_why(rung, config.max_drop_pp)}, with {', '.join(chosen)} in float"


def _names(network: nn.Module) -> Iterator[str]:
    from convnext_deploy.quantization.prepare import quantized_layers

    return (name for name, _ in quantized_layers(network))


def _train(config: QuantizeConfig, source: Artifact, folding: Folding, climb: _Climb, context: StageContext) -> None:
    """Train the best rung on, and judge the result."""
    assert climb.network is not None
    assert climb.scheme is not None
    begun = time.monotonic()
    settings = QATConfig(config.fit, config.teacher, config.temperature, config.distill_loss_weight)
    network, scheme = copy.deepcopy(climb.network).to(context.execution.device), climb.scheme
    history = train_quantized(network, folding.network, source, folding.preprocess, settings, context)
    counts = [config.calibration_images, config.selection_images]

    def judged() -> Step:
        images, selection = choose_images(counts, folding.preprocess, context, config.batch_size)
        judge = Judge(folding.network, selection if len(selection) else images, config.max_drop_pp)
        return _timed(judge.judge("training", network), begun)

    rung = from_first(judged)
    _say(rung, context)
    passed = climb.take(rung, network, scheme, climb.record, history)
    if passed:
        climb.reason = _why(rung, config.max_drop_pp)
    elif config.method == "qat" and rung.risk_pp < 100 and rung.top1_drop_pp <= config.max_drop_pp:
        # asked for, it may give other answers than the float network, as long as no fewer are right
        climb.best, climb.network, climb.history = len(climb.rungs) - 1, network, history
        climb.reason = f"its drop of {rung.top1_drop_pp:+.2f} pp is within the {config.max_drop_pp:.2f} pp allowed"
    else:
        climb.reason = _nothing(climb, config.max_drop_pp)


def _timed(rung: Step, begun: float) -> Step:
    return dataclasses.replace(rung, seconds=time.monotonic() - begun)


def _say(rung: Step, context: StageContext) -> None:
    low, high = rung.interval_pp
    distance = "" if rung.kl is None else f"KL {rung.kl:.2g}, "
    distance += "" if rung.sqnr_db is None else f"{rung.sqnr_db:.1f} dB, "
    context.execution.progress.say(
        f"{context.name}: {rung.name}: top-1 {100 * rung.top1:.2f} %, drop {rung.top1_drop_pp:+.2f} pp [{low:+.2f}, {high:+.2f}], "
        f"agreement {100 * rung.agreement:.2f} %, {distance}risk {rung.risk_pp:.2f} pp, {rung.seconds:.1f} s"
    )


def _why(rung: Step, max_drop_pp: float) -> str:
    return f"its risk of {rung.risk_pp:.2f} pp is within the {max_drop_pp:.2f} pp allowed"


def _nothing(climb: _Climb, max_drop_pp: float) -> str:
    best = climb.rungs[climb.best]
    worst = ", ".join(effect.layer for effect in climb.effects[:_NAMED])
    hurt = f"; the layers that hurt most are {worst}" if worst else ""
    return f"no rung's risk is within {max_drop_pp:.2f} pp, and its {best.risk_pp:.2f} pp is the least{hurt}"
