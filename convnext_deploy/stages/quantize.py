"""The fallback sequence: methods of quantization from the cheapest to the strongest, until a step is good enough for `Judge`."""

import copy
import dataclasses
import math
import time

import torch

from convnext_deploy.artifacts.artifact import Artifact
from convnext_deploy.artifacts.details import Step, TorchDetails
from convnext_deploy.config.choices import MetricName, QuantizeMethod
from convnext_deploy.config.ptq import PTQSteps
from convnext_deploy.config.quantize import QATConfig, QuantizeConfig
from convnext_deploy.data.sampling import without
from convnext_deploy.models.convnext import ConvNeXt
from convnext_deploy.models.fold import Folding
from convnext_deploy.quantization.prepare import fit_scheme, quantized_layers
from convnext_deploy.quantization.scheme import QuantizationScheme, resolve_scheme
from convnext_deploy.quantization.sensitivity import choose_float_layers
from convnext_deploy.stages.answers import extracts
from convnext_deploy.stages.chosen_images import Images, choose_images_to_judge, outputs_of
from convnext_deploy.stages.context import StageContext, require_source
from convnext_deploy.stages.float_layers import float_modules, leave_in_float
from convnext_deploy.stages.foresight import Given, Outlook, check_fit, given_to
from convnext_deploy.stages.layer_effects import layer_effects
from convnext_deploy.stages.ptq_steps import Calibrated, foresee_quantization, open_folded, quantize_network
from convnext_deploy.stages.quantized_training import train_quantized, training_seconds
from convnext_deploy.stages.search import Search, say_step, say_who_judges
from convnext_deploy.stages.selection import Enough, Judge, ask_about_unseen, choose_unseen
from convnext_deploy.stages.teachers import check_quantized_teachers
from convnext_deploy.stages.write_artifact import write_torch_artifact
from convnext_deploy.system.full_float32 import full_float32
from convnext_deploy.system.shared_work import from_first

_SENSITIVITY_IMAGES = 256

BARE = PTQSteps("minmax", smoothing=False, bias_correction=False, gptq=False)
SEQUENCE: dict[str, PTQSteps] = {
    "min-max": BARE,
    "ranges by error": dataclasses.replace(BARE, calibration_method="auto"),
    "smoothing": PTQSteps(bias_correction=False, gptq=False),
    "bias correction": PTQSteps(gptq=False),
    "GPTQ": PTQSteps(),
}
"""Name → steps, the cheapest first. After them come layers in float, and training."""
STRONGEST = "GPTQ"
BEFORE_TRAINING = "bias correction"  # training rounds anew
LOOKS: dict[QuantizeMethod, int] = {"ptq": len(SEQUENCE) + 1, "auto": len(SEQUENCE) + 2, "qat": 2}
"""Method → how many steps are judged at most: those of the sequence, layers in float, training."""
_HELD_OUT = 0.25  # most of the training images that training may miss so that they can judge it
_RESERVE = 1.5  # by how much the risk exceeds the expected drop, beyond that of a step that changes nothing


def check(config: QuantizeConfig) -> None:
    """Raises: RecipeError: if there is no such choice for a layer."""
    resolve_scheme(config.target, config.sites)


def foresee(config: QuantizeConfig, given: Given) -> Outlook:
    """Return what would be made. Raises: DeployError: if it could not be."""
    source = given.need_source("quantize")
    made = foresee_quantization(config.target, config.sites, source, given)
    if config.method != "ptq":
        check_fit(config.fit, given.device)
    check_quantized_teachers(given, source.model, needed=config.teacher is not None)
    return made


@full_float32()
def run(config: QuantizeConfig, source: Artifact | None, context: StageContext) -> Artifact:
    """Try the steps in order, and write the best that was found. Its details have every step and the reason for the choice.

    Of several processes the first one decides; all run networks on images, and train.
    """
    source = require_source(source, "quantize")
    scheme = resolve_scheme(config.target, config.sites)
    foresee(config, given_to(context, source))
    start = time.monotonic()
    folding = open_folded(source, scheme, context)
    scheme = fit_scheme(scheme, folding.network)
    search: Search = from_first(lambda: _try_steps(config, scheme, folding, context, start))
    assert search.network is not None  # the first step is always taken
    assert search.scheme is not None
    if not search.reason:
        _train(config, source, folding, search, context)
    context.execution.progress.say(f"{context.name}: selected {search.chosen.name}: {search.reason}")
    return write_torch_artifact(
        search.network,
        context,
        model=source.model,
        preprocess=folding.preprocess,
        class_names=source.class_names,
        precision=scheme.precision,
        details=TorchDetails(
            **search.scheme.details(),
            history=search.history,
            folding=folding.certificate,
            ptq=search.record,
            selection=search.as_record(),
        ),
        source=source,
    )


def _try_steps(
    config: QuantizeConfig, scheme: QuantizationScheme, folding: Folding, context: StageContext, start: float
) -> Search:
    """Try everything before training. The result has no reason where training is to come."""
    images, judge, held_out = _choose_judge(config, folding, context)
    search = Search(
        config.max_drop_pp,
        judge.enough,
        held_out=held_out,
        unseen=judge.unseen,
        metric="mAP" if judge.multi_label else "top-1",
    )
    search.float_outputs = judge.outputs
    deadline = math.inf if config.time_budget_s is None else start + config.time_budget_s
    calibrated: Calibrated = {}
    for name in SEQUENCE if config.method != "qat" else (BEFORE_TRAINING,):
        begun = time.monotonic()
        if search.steps and begun + max(step.seconds for step in search.steps) > deadline:
            search.reason = f"the time budget of {config.time_budget_s:.0f} s leaves none for '{name}'"
            break
        network, record = quantize_network(folding.network, scheme, SEQUENCE[name], images, context, calibrated)
        same = _same_as_before(search, name, network)
        if same is None:
            whole = config.method == "qat" or name == STRONGEST or deadline < math.inf or not judge.enough
            step = judge.judge(name, network, limit_pp=math.inf if whole else config.max_drop_pp)
        step = _timed(step if same is None else same, begun)
        say_step(step, judge.metric, context)
        passed = search.take(step, network, scheme, record, is_new=same is None)
        # what takes no time is all tried where nothing can pass
        may_end = passed or name == STRONGEST
        if may_end:
            search.judge_the_rest(judge)
        if config.method != "qat" and may_end and search.end_if_good_enough():
            return search
    if config.method != "qat":
        _keep_some_in_float(search, judge, images, folding, context, deadline)
    if not search.reason and config.method == "ptq":
        search.end_without()
    if not search.reason and deadline < math.inf:
        assert search.network is not None  # there is one step at least
        seconds = training_seconds(search.network, folding.preprocess, config.fit, context)
        if time.monotonic() + seconds > deadline:
            search.reason = f"training would take {seconds:.0f} s, more than the time budget leaves"
    return search


def _choose_judge(
    config: QuantizeConfig, folding: Folding, context: StageContext
) -> tuple[Images, Judge, tuple[int, ...]]:
    """Return the images that calibrate, the judge with others, and which of these training must not see."""
    data, counts = context.need_data(), (config.calibration_images, config.selection_images)
    images, selection = choose_images_to_judge(counts, folding.preprocess, context, config.batch_size)
    held_out = tuple(selection.indices[: max(1, int(_HELD_OUT * len(data.train)))])
    if not held_out:
        selection = images
        context.execution.progress.say(
            f"{context.name}: no training images are left to select by; those of calibration are used"
        )
    judging = selection
    if config.method == "qat" and held_out:  # one judge for what is before training and after it
        judging = dataclasses.replace(selection, indices=held_out)
    others = choose_unseen(data, selection)
    gallery = selection if extracts(folding.network) else judging
    with context.execution.progress.task(
        f"{context.name}: ask the float network", len(gallery) + len(others), "images"
    ) as task:
        outputs = outputs_of(folding.network, gallery, task.advance)
        unseen = ask_about_unseen(folding.network, others, outputs, gallery.labels, task.advance)
    outputs = outputs[: len(judging)]  # the first of the selection, where these are fewer
    judge = Judge(folding.network, judging, config.max_drop_pp, unseen, LOOKS[config.method], outputs)
    say_who_judges(judge, len(images), context)
    return images, judge, held_out


def _keep_some_in_float(
    search: Search, judge: Judge, images: Images, folding: Folding, context: StageContext, deadline: float
) -> None:
    """Find out which layers are sensitive, and try with the worst of them in float.

    How many it takes is rehearsed on the calibration images, so that the search is not one for luck on those that judge.
    """
    network, scheme = search.network, search.scheme
    assert network is not None
    assert scheme is not None
    begun = time.monotonic()
    if begun > deadline:
        return
    room = (judge.max_drop_pp - judge.least_risk_pp) / _RESERVE if judge.enough else judge.max_drop_pp
    rehearsal = Judge(folding.network, images, room, judge.unseen, looks=0)
    layers = len(list(quantized_layers(network)))
    with context.execution.progress.task(f"{context.name}: sensitivity", layers, "layers") as task:
        outputs = rehearsal.outputs[:_SENSITIVITY_IMAGES]
        search.effects = layer_effects(network, folding.network, images, outputs, task.advance)
    floats = float_modules(network, folding.network)
    if search.reason:
        return

    def passes() -> bool:
        if time.monotonic() > deadline:
            return False
        return rehearsal.judge("layers in float", network, limit_pp=room, may_go_on=False).passed

    chosen = choose_float_layers(network, search.effects, passes, floats=floats)
    if chosen is None:
        context.execution.progress.say(
            f"{context.name}: a few layers in float are not enough; the most sensitive: {search.most_sensitive()}"
        )
        return
    narrower = scheme.with_overrides({**dict(scheme.overrides), **dict.fromkeys(chosen, "float")})
    result = leave_in_float(network, folding.network, narrower, chosen)
    step = _timed(judge.judge("layers in float", result), begun)
    say_step(step, judge.metric, context)
    smoothing = {name: None if name in chosen else alpha for name, alpha in search.record.smoothing.items()}
    record = dataclasses.replace(search.record, smoothing=smoothing, float_layers=chosen)
    search.take(step, result, narrower, record)
    if search.chosen is step and search.end_if_good_enough():
        search.reason += f", with {', '.join(chosen)} in float"


def _train(config: QuantizeConfig, source: Artifact, folding: Folding, search: Search, context: StageContext) -> None:
    """Train the best step on, without the images that judge the result."""
    assert search.network is not None
    assert search.scheme is not None
    begun = time.monotonic()
    settings = QATConfig(config.fit, config.teacher, config.temperature, config.distill_loss_weight)
    network, scheme = copy.deepcopy(search.network).to(context.execution.device), search.scheme
    rest = dataclasses.replace(context, data=without(context.need_data(), search.held_out))
    teacher = folding.network
    if context.execution.device != context.execution.exact_device:
        teacher = copy.deepcopy(teacher).to(context.execution.device)
    history = train_quantized(network, teacher, source, folding.preprocess, settings, rest)
    network.to(context.execution.exact_device)
    counts = (config.calibration_images, config.selection_images)

    def judged() -> tuple[Step, Enough, MetricName]:
        images, selection = choose_images_to_judge(counts, folding.preprocess, context, config.batch_size)
        images = dataclasses.replace(selection, indices=search.held_out) if search.held_out else images
        known = None if search.float_outputs is None else search.float_outputs[: len(images)]
        judge = Judge(folding.network, images, config.max_drop_pp, search.unseen, LOOKS[config.method], known)
        return _timed(judge.judge("training", network), begun), judge.enough, judge.metric

    step, search.enough, metric = from_first(judged)
    say_step(step, metric, context)
    passed = search.take(step, network, scheme, search.record, history)
    if config.method == "qat" and not passed and step.risk_pp < 100 and step.top1_drop_pp <= config.max_drop_pp:
        # asked for, it may give other answers than the float network, as long as no fewer are right
        search.best, search.network, search.history = len(search.steps) - 1, network, history
        search.reason = f"its drop of {step.top1_drop_pp:+.2f} pp is within the {config.max_drop_pp:.2f} pp allowed"
        search.reason += "" if search.enough else f", unproven, as {search.enough}"
    elif not search.end_if_good_enough():
        search.end_without()


def _same_as_before(search: Search, name: str, network: ConvNeXt) -> Step | None:
    """Return the step if a network was judged that computes the same, as where nothing was to be smoothed."""
    state = network.state_dict()
    for step, other in search.networks():
        known = other.state_dict()
        if state.keys() == known.keys() and all(torch.equal(value, known[key]) for key, value in state.items()):
            return dataclasses.replace(step, name=name)
    return None


def _timed(step: Step, begun: float) -> Step:
    return dataclasses.replace(step, seconds=time.monotonic() - begun)
