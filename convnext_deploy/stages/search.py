"""Where the fallback sequence of `quantize` stands, when it may end, and what is said of it."""

import dataclasses
import math
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from convnext_deploy.artifacts.details import History, LayerEffect, PTQRecord, Selection, Step
from convnext_deploy.config.choices import MetricName
from convnext_deploy.models.convnext import ConvNeXt
from convnext_deploy.quantization.scheme import QuantizationScheme
from convnext_deploy.quantization.sensitivity import Effect
from convnext_deploy.stages.context import StageContext
from convnext_deploy.stages.drop_bound import UnseenImages
from convnext_deploy.stages.selection import Enough, Judge, confidence, finite_or_none

_NAMED = 5  # layers in a message
_MEMORIZED = 0.02  # so much surer of its answers on the images that judge is a network that knows them


@dataclass(frozen=True)
class Candidate:
    """A network that was tried, and the place of its step."""

    place: int
    network: ConvNeXt
    scheme: QuantizationScheme
    record: PTQRecord


@dataclass
class Search:
    """What was tried, the best of it, and why it ended.

    `ended` was not judged by all images, as it cannot pass; it is the best if all else is worse still. `float_outputs` are those
    of the float network for the images that judge. `held_out` are the judging images that training does not see; `unseen` is what
    the float network says to validation images.
    """

    max_drop_pp: float
    enough: Enough
    steps: list[Step] = dataclasses.field(default_factory=list)
    ended: list[Candidate] = dataclasses.field(default_factory=list)
    best: int = -1
    network: ConvNeXt | None = None
    scheme: QuantizationScheme | None = None
    record: PTQRecord = dataclasses.field(default_factory=lambda: PTQRecord(0))
    history: History = ()
    reason: str = ""
    effects: tuple[Effect, ...] = ()
    held_out: tuple[int, ...] = ()
    unseen: UnseenImages | None = None
    float_outputs: Tensor | None = None
    metric: Literal["top-1", "mAP"] = "top-1"

    def take(
        self,
        step: Step,
        network: ConvNeXt,
        scheme: QuantizationScheme,
        record: PTQRecord,
        history: History = (),
        *,
        is_new: bool = True,
    ) -> bool:
        """Take in a step; the best is the first that passed, otherwise the one with the least risk, the cheapest of equals.

        `is_new`: no network that computes the same was taken in before.
        """
        self.steps.append(step)
        if not is_new:
            return step.passed
        if step.judged is not None:
            self.ended.append(Candidate(len(self.steps) - 1, network, scheme, record))
            return False
        if self.best < 0 or step.passed or step.risk_pp < self.chosen.risk_pp:
            self.best = len(self.steps) - 1
            self.network, self.scheme, self.record, self.history = network, scheme, record, history
        return step.passed

    def judge_the_rest(self, judge: Judge) -> None:
        """Judge on what was ended, unless a step passed, as far as it may be the best; the cheapest of equals is."""
        for each in () if self.best >= 0 and self.chosen.passed else self.ended:
            before = self.steps[each.place]
            limit = math.inf if self.best < 0 else self.chosen.risk_pp
            if before.risk_pp > limit:
                continue
            step = judge.judge(before.name, each.network, before.seconds, limit_pp=limit)
            self.steps[each.place] = step
            better = self.best < 0 or (step.risk_pp, each.place) < (self.chosen.risk_pp, self.best)
            if step.judged is None and better:
                self.best, self.history = each.place, ()
                self.network, self.scheme, self.record = each.network, each.scheme, each.record
        self.ended.clear()

    def networks(self) -> list[tuple[Step, ConvNeXt]]:
        """Return the steps whose networks are at hand."""
        best = [] if self.network is None else [(self.chosen, self.network)]
        return [*best, *((self.steps[each.place], each.network) for each in self.ended)]

    @property
    def chosen(self) -> Step:
        """The best step."""
        return self.steps[self.best]

    def end_if_good_enough(self) -> bool:
        """End with the best step if it passed, or if there are too few images to tell and it is likely to be good enough."""
        best, budget = self.chosen, f"within the {self.max_drop_pp:.2f} pp allowed"
        if best.passed:
            self.reason = f"its risk of {best.risk_pp:.2f} pp is {budget}"
        elif not self.enough and max(best.expected_drop_pp, best.interval_pp[0]) <= self.max_drop_pp:
            self.reason = (
                f"unproven, as {self.enough}; its risk of {best.risk_pp:.2f} pp is the least, and its expected drop of "
                f"{best.expected_drop_pp:.2f} pp is {budget}"
            )
        return bool(self.reason)

    def end_without(self) -> None:
        """End with the best step though it is not good enough."""
        sensitive = f"; the most sensitive layers are {self.most_sensitive()}" if self.effects else ""
        risk = self.chosen.risk_pp
        self.reason = (
            f"no step's risk is within {self.max_drop_pp:.2f} pp, and its {risk:.2f} pp is the least{sensitive}"
        )

    def most_sensitive(self) -> str:
        """Name the layers that hurt most."""
        return ", ".join(effect.layer for effect in self.effects[:_NAMED])

    def as_record(self) -> Selection:
        """Return what the manifest says of it."""
        effects = tuple(LayerEffect(e.layer, finite_or_none(e.kl), e.changed, e.macs) for e in self.effects)
        return Selection(
            tuple(self.steps),
            self.chosen.name,
            self.reason,
            self.max_drop_pp,
            effects,
            self.enough.images,
            self.enough.needed,
            self.metric,
        )


def say_who_judges(judge: Judge, calibrating: int, context: StageContext) -> None:
    """Print how many images calibrate and judge, whether these can be enough, and whether the network knows them by heart."""
    say = context.execution.progress.say
    say(f"{context.name}: {calibrating:,} training images calibrate, {len(judge.labels):,} others judge")
    if not judge.enough:
        say(f"{context.name}: {judge.enough}; the step with the least risk is kept, unproven")
    if judge.unseen is None or not judge.reference.isfinite().all():
        return
    known, new = (
        confidence(logits, multi_label=judge.multi_label) for logits in (judge.reference, judge.unseen.logits)
    )
    if known - new > _MEMORIZED:
        say(
            f"{context.name}: the float network is {100 * known:.1f} % sure of its answers to them and {100 * new:.1f} % to "
            "validation images: it knows them from its training, and new images may lose more; the risk allows for that"
        )


def say_step(step: Step, metric: MetricName, context: StageContext) -> None:
    """Print what a step gave, scored by `metric`."""
    low, high = step.interval_pp
    distance = "" if step.kl is None else f"KL {step.kl:.2g}, "
    distance += "" if step.sqnr_db is None else f"{step.sqnr_db:.1f} dB, "
    scored = "mAP" if context.need_data().multi_label else metric
    least, after = "", ""
    if step.judged is not None:
        least, after = "at least ", f", ended after {step.judged:,} images"
    context.execution.progress.say(
        f"{context.name}: {step.name}: {scored} {100 * step.top1:.2f} %, drop {step.top1_drop_pp:+.2f} pp "
        f"[{low:+.2f}, {high:+.2f}], agreement {100 * step.agreement:.2f} %, {distance}"
        f"risk {least}{step.risk_pp:.2f} pp, {step.seconds:.1f} s{after}"
    )
