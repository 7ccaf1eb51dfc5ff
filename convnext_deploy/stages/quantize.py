"""The fallback sequence: methods of quantization from the cheapest to the strongest, until a step is good enough for `Judge`."""

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
from convnext_deploy.config.quantize import QATConfig, QuantizeConfig
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
SEQUENCE: dict[str, PTQSteps] = {
    "min-max": BARE,
    "ranges by error": dataclasses.replace(BARE, calibration_method="auto"),
    "smoothing": PTQSteps(bias_correction=False),
    "bias correction": PTQSteps(),
    "learned rounding": PTQSteps(reconstruction=True),
}
"""Name → steps, the cheapest first. After them come layers in float, and training."""
STRONGEST_OF_ONE_PASS = "bias correction"


@dataclass
class _Search:
    """Where the sequence stands: what was tried, the best of it, and why it ended."""

    steps: list[Step]
    best: int = -1
    network: ConvNeXt | None = None
    scheme: QuantizationScheme | None = None
    record: PTQRecord = dataclasses.field(default_factory=lambda: PTQRecord(0))
    history: History = ()
    reason: str = ""
    effects: tuple[Effect, ...] = ()

    def take(
        self, step: Step, network: ConvNeXt, scheme: QuantizationScheme, record: PTQRecord, history: History = ()
    ) -> bool:
        """Take in a step; the best is the first that passed, otherwise the one with the least risk."""
        self.steps.append(step)
        if self.best < 0 or step.passed or step.risk_pp < self.steps[self.best].risk_pp:
            self.best = len(self.steps) - 1
            self.network, self.scheme, self.record, self.history = network, scheme, record, history
        return step.passed


def check(config: QuantizeConfig) -> None:
    """Raises: RecipeError: if there is no such choice for a layer."""
    resolve_scheme(config.target, config.sites)


def run(config: QuantizeConfig, source: Artifact | None, context: StageContext) -> Artifact:
    """Try the steps in order, and write the best that was found. Its details have every step and the reason for the choice.

    Of several processes the first one works alone until training, in which all take part.
    """
    source = require_source(source, "quantize")
    scheme = resolve_scheme(config.target, config.sites)
    check_teachers(source, config.teacher, context)
    start = time.monotonic()
    folding = open_folded(source, scheme, context)
    search: _Search = from_first(lambda: _try_steps(config, scheme, folding, context, start))
    assert search.network is not None  # the first step is always taken
    assert search.scheme is not None
    if not search.reason:
        _train(config, source, folding, search, context)
    best = search.steps[search.best]
    context.execution.progress.say(f"{context.name}: selected {best.name}: {search.reason}")
    effects = tuple(LayerEffect(e.layer, finite_or_none(e.kl), e.changed, e.macs) for e in search.effects)
    return write_torch_artifact(
        search.network,
        context,
        model=source.model,
        preprocess=folding.preprocess,
        class_names=source.class_names,
        precision="int8",
        details=TorchDetails(
            **search.scheme.details(),
            history=search.history,
            folding=folding.certificate,
            ptq=search.record,
            selection=Selection(tuple(search.steps), best.name, search.reason, config.max_drop_pp, effects),
        ),
        source=source,
    )


def _try_steps(
    config: QuantizeConfig, scheme: QuantizationScheme, folding: Folding, context: StageContext, start: float
) -> _Search:
    """Try everything before training. The result has no reason where training is to come."""
    counts = [config.calibration_images, config.selection_images]
    images, selection = choose_images(counts, folding.preprocess, context, config.batch_size)
    if not len(selection):
        selection = images
        context.execution.progress.say(
            f"{context.name}: no training images are left to select by; those of calibration are used"
        )
    judge = Judge(folding.network, selection, config.max_drop_pp)
    search = _Search([])
    deadline = math.inf if config.time_budget_s is None else start + config.time_budget_s
    for name in SEQUENCE if config.method != "qat" else (STRONGEST_OF_ONE_PASS,):
        begun = time.monotonic()
        longest = max((step.seconds for step in search.steps), default=0.0)
        if search.steps and begun + longest > deadline:
            search.reason = f"the time budget of {config.time_budget_s:.0f} s leaves none for '{name}'"
            break
        network, record = quantize_network(
            folding.network,
            scheme,
            SEQUENCE[name],
            images,
            context,
            seed=context.execution.seed,
            deadline=deadline - longest,
        )
        step = _timed(judge.judge(name, network), begun)
        _say(step, context)
        if search.take(step, network, scheme, record) and config.method != "qat":
            search.reason = _why(step, config.max_drop_pp)
            return search
    if config.method != "qat":
        _keep_some_in_float(search, judge, images, context, config, deadline)
    if not search.reason and config.method == "ptq":
        search.reason = _nothing(search, config.max_drop_pp)
    if not search.reason and deadline < math.inf:
        assert search.network is not None  # there is one step at least
        seconds = training_seconds(search.network, folding.preprocess, config.fit, context)
        if time.monotonic() + seconds > deadline:
            search.reason = f"training would take {seconds:.0f} s, more than the time budget leaves"
    return search


def _keep_some_in_float(
    search: _Search, judge: Judge, images: Images, context: StageContext, config: QuantizeConfig, deadline: float
) -> None:
    """Find out which layers are sensitive, and try with the worst of them in float."""
    network, scheme = search.network, search.scheme
    assert network is not None
    assert scheme is not None
    begun = time.monotonic()
    if begun > deadline:
        return
    some = images.first(_SENSITIVITY_IMAGES)
    reference = compute_logits(without_quantizers(network), some)
    with context.execution.progress.task(f"{context.name}: sensitivity", len(list(_names(network))), "layers") as task:
        search.effects = measure_sensitivity(network, some, reference, task.advance)
    if search.reason:
        return
    found: list[Step] = []

    def passes() -> bool:
        if time.monotonic() > deadline:
            return False
        found.append(judge.judge("layers in float", network))
        return found[-1].passed

    chosen = choose_float_layers(network, search.effects, passes)
    if chosen is None:
        most = ", ".join(effect.layer for effect in search.effects[:_NAMED])
        context.execution.progress.say(
            f"{context.name}: a few layers in float are not enough; the most sensitive: {most}"
        )
        return
    narrower = scheme.with_overrides({**dict(scheme.overrides), **dict.fromkeys(chosen, "float")})
    result = prepare(without_quantizers(network), narrower)
    kept = result.state_dict().keys()
    result.load_state_dict({key: value for key, value in network.state_dict().items() if key in kept})
    step = _timed(judge.judge("layers in float", result), begun)
    _say(step, context)
    if search.take(step, result, narrower, dataclasses.replace(search.record, float_layers=chosen)):
        search.reason = f"{_why(step, config.max_drop_pp)}, with {', '.join(chosen)} in float"


def _names(network: nn.Module) -> Iterator[str]:
    from convnext_deploy.quantization.prepare import quantized_layers

    return (name for name, _ in quantized_layers(network))


def _train(config: QuantizeConfig, source: Artifact, folding: Folding, search: _Search, context: StageContext) -> None:
    """Train the best step on, and judge the result."""
    assert search.network is not None
    assert search.scheme is not None
    begun = time.monotonic()
    settings = QATConfig(config.fit, config.teacher, config.temperature, config.distill_loss_weight)
    network, scheme = copy.deepcopy(search.network).to(context.execution.device), search.scheme
    history = train_quantized(network, folding.network, source, folding.preprocess, settings, context)
    counts = [config.calibration_images, config.selection_images]

    def judged() -> Step:
        images, selection = choose_images(counts, folding.preprocess, context, config.batch_size)
        judge = Judge(folding.network, selection if len(selection) else images, config.max_drop_pp)
        return _timed(judge.judge("training", network), begun)

    step = from_first(judged)
    _say(step, context)
    passed = search.take(step, network, scheme, search.record, history)
    if passed:
        search.reason = _why(step, config.max_drop_pp)
    elif config.method == "qat" and step.risk_pp < 100 and step.top1_drop_pp <= config.max_drop_pp:
        # asked for, it may give other answers than the float network, as long as no fewer are right
        search.best, search.network, search.history = len(search.steps) - 1, network, history
        search.reason = f"its drop of {step.top1_drop_pp:+.2f} pp is within the {config.max_drop_pp:.2f} pp allowed"
    else:
        search.reason = _nothing(search, config.max_drop_pp)


def _timed(step: Step, begun: float) -> Step:
    return dataclasses.replace(step, seconds=time.monotonic() - begun)


def _say(step: Step, context: StageContext) -> None:
    low, high = step.interval_pp
    distance = "" if step.kl is None else f"KL {step.kl:.2g}, "
    distance += "" if step.sqnr_db is None else f"{step.sqnr_db:.1f} dB, "
    context.execution.progress.say(
        f"{context.name}: {step.name}: top-1 {100 * step.top1:.2f} %, drop {step.top1_drop_pp:+.2f} pp [{low:+.2f}, {high:+.2f}], "
        f"agreement {100 * step.agreement:.2f} %, {distance}risk {step.risk_pp:.2f} pp, {step.seconds:.1f} s"
    )


def _why(step: Step, max_drop_pp: float) -> str:
    return f"its risk of {step.risk_pp:.2f} pp is within the {max_drop_pp:.2f} pp allowed"


def _nothing(search: _Search, max_drop_pp: float) -> str:
    best = search.steps[search.best]
    worst = ", ".join(effect.layer for effect in search.effects[:_NAMED])
    sensitive = f"; the most sensitive layers are {worst}" if worst else ""
    return f"no step's risk is within {max_drop_pp:.2f} pp, and its {best.risk_pp:.2f} pp is the least{sensitive}"
