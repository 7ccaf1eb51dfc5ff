"""Is a quantized network good enough, as far as some training images can tell.

A step is judged on training images that nothing else has seen, in the class mix of all; the validation images judge the result.
Of a few hundred or thousand images, top-1 says little: gains and losses cancel. So a step must hold two things against the
budget. The drop of top-1 may be within it as far as its 95 % interval tells. And the risk must be: the upper 95 % bound of the
drop on new images (`stages.drop_bound`). Several steps are judged on the same images, and the best-looking is kept; so that luck
does not choose, the error probability is divided among them (Bonferroni), and the bounds of all hold together.

Nothing is judged twice, and nothing that is decided is judged on: an answer that has changed stays changed, so what the changed
answers of the first images cost is the least that the risk of all can be. A step may end where that is over a limit; its choice is
the same as if all images had been judged, and goes on from there if it is needed after all.
"""

import copy
import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from convnext_deploy.artifacts.details import Step
from convnext_deploy.data.datasets import Data
from convnext_deploy.data.sampling import sample_in_proportion
from convnext_deploy.metrics.bounds import clopper_pearson_upper, images_without_event, stringer_bound
from convnext_deploy.metrics.paired import compare_predictions
from convnext_deploy.models.convnext import ConvNeXt
from convnext_deploy.quantization.sensitivity import kl_divergence, signal_to_noise_db
from convnext_deploy.stages.answers import answers_by, answers_of, extracts, metric_of_network
from convnext_deploy.stages.chosen_images import Images, outputs_by_batch, outputs_of
from convnext_deploy.stages.drop_bound import CONFIDENCE, Risk, UnseenImages, answer_costs, bound_drop, sharpest_scale
from convnext_deploy.stages.label_drop import (
    bound_drop_of_map,
    images_that_count,
    measure_drop_of_map,
    sharpest_label_scale,
)
from convnext_deploy.system.shared_work import AT_ONCE

_CERTAIN = Risk(1.0, 1.0)


@dataclass(frozen=True)
class Enough:
    """Whether `images` can tell a drop of `max_drop_pp`: with fewer than `needed` no step can pass, though no answer changes.

    `needed` None: no number of images is enough.
    """

    images: int
    needed: int | None
    max_drop_pp: float

    def __bool__(self) -> bool:
        return self.needed is not None and self.images >= self.needed

    def __str__(self) -> str:
        if self.needed is None:
            return f"no number of images can show a drop of at most {self.max_drop_pp:.2f} pp"
        what = "image is" if self.images == 1 else "images are"
        relation = "enough" if self else "too few"
        drop = f"a drop of {self.max_drop_pp:.2f} pp, which takes at least {self.needed:,}"
        return f"{self.images:,} {what} {relation} to tell {drop}"


class Judge:
    """Compares quantized networks with the float one on the selection images.

    Attributes:
        reference: the float network's logits `(N, classes)` of them; of a feature extractor see `answers_of`.
        enough: whether they can tell a drop as small as the budget.
        least_risk_pp: the risk of a step that changes no answer.
    """

    def __init__(
        self,
        folded: ConvNeXt,
        images: Images,
        max_drop_pp: float,
        unseen: UnseenImages | None = None,
        looks: int = 1,
        outputs: Tensor | None = None,
    ) -> None:
        """Run the float network, unless it is known what it gives.

        Args:
            folded: the float network.
            images: to judge by.
            max_drop_pp: the budget.
            unseen: what the float network says to images that it does not know; None: it knows none.
            looks: how many steps are judged on these images; 0: by the expected drop alone, which proves nothing.
            outputs: of the float network for these images; None: it is run.
        """
        self.images, self.max_drop_pp, self.unseen = images, max_drop_pp, unseen
        self.labels = images.labels
        self.metric = metric_of_network(folded)
        self.answers = answers_of(folded, self.labels)
        self.outputs = outputs_of(folded, images) if outputs is None else outputs
        self.reference = self.answers(self.outputs)
        self.level = (1.0 - CONFIDENCE) / looks if looks else None
        self.multi_label = self.labels.ndim > 1
        find_scale = sharpest_label_scale if self.multi_label else sharpest_scale
        self.sharpness = 1.0 if unseen is None else find_scale(unseen)
        own = None if self.level is None else self.level / (1 if unseen is None else 2)
        needed = 1 if own is None else images_without_event(max_drop_pp / 100, own)
        counted = images_that_count(self.labels) if self.multi_label else len(self.labels)
        if needed is not None:  # of images such as these
            needed = -(-needed * len(self.labels) // counted)
        self.enough = Enough(len(self.labels), needed, max_drop_pp)
        least = 0.0 if own is None else clopper_pearson_upper(0, counted, own).item()
        self.least_risk_pp = 100.0 * least
        self._own_level = own
        # neighbours are among all images, and mAP is of all images
        self._adds_up = not self.multi_label and not extracts(folded)
        self._begun: dict[str, list[Tensor]] = {}

    def logits(self, network: nn.Module) -> Tensor:
        """Return the logits `(N, classes)` of the selection images, on the CPU."""
        return self.answers(outputs_of(network, self.images))

    def judge(
        self, name: str, network: nn.Module, seconds: float = 0.0, *, limit_pp: float = math.inf, may_go_on: bool = True
    ) -> Step:
        """Measure a step.

        Args:
            name: of the step; one that was ended goes on where it did.
            network: quantized.
            seconds: what making it took.
            limit_pp: to be ended as soon as it is certain that the risk is more.
            may_go_on: whether what was seen of an ended step is kept, for another call.
        """
        limit_pp = limit_pp if self._adds_up else math.inf
        seen = self._begun.pop(name, [])
        count = sum(map(len, seen))
        costs = np.zeros(len(self.labels))
        if seen:
            costs[:count] = self._costs(0, torch.cat(seen))
        may_end = limit_pp < math.inf
        for outputs in outputs_by_batch(network, self.images, len(seen), at_once=1 if may_end else AT_ONCE):
            seen.append(outputs)
            if not may_end:
                continue
            costs[count : count + len(outputs)] = self._costs(count, outputs)
            count += len(outputs)
            least = self._least_risk_pp(costs)
            if least > limit_pp and count < len(self.labels):
                if may_go_on:
                    self._begun[name] = seen
                return self._ended(name, torch.cat(seen), seconds, least)
        return self.compare(name, torch.cat(seen), seconds)

    def _costs(self, start: int, logits: Tensor) -> NDArray[np.float64]:
        """Return what the answers of some images cost, 1 where they are not finite; `start`: the first of them."""
        reference = self.reference[start : start + len(logits)]
        found = answer_costs(reference, logits.nan_to_num(), self.sharpness)
        found[~logits.isfinite().all(1).numpy()] = 1.0
        return found

    def _least_risk_pp(self, costs: NDArray[np.float64]) -> float:
        """Return the risk of all images by what their answers cost, `(images,)`, 0 where one was not seen yet."""
        least = costs.mean() if self._own_level is None else stringer_bound(costs, self._own_level)
        return 100.0 * (1.0 - 1e-9) * float(least)  # sums in another order

    def _ended(self, name: str, logits: Tensor, seconds: float, least_risk_pp: float) -> Step:
        """Return the figures of the images that were judged, with the risk that all have at least."""
        part = copy.copy(self)
        count = len(logits)
        part.labels, part.reference, part.outputs = (
            each[:count] for each in (self.labels, self.reference, self.outputs)
        )
        found = part.compare(name, logits, seconds)
        return dataclasses.replace(found, risk_pp=least_risk_pp, passed=False, judged=count)

    def compare(self, name: str, outputs: Tensor, seconds: float) -> Step:
        """Judge what a network gives for the selection images: logits `(N, classes)`, or features."""
        logits = self.answers(outputs)
        finite = bool(logits.isfinite().all())
        score, drop_pp, interval_pp, agreement = self._measure(logits if self.multi_label else logits.argmax(1))
        found = self._bound(logits) if finite else _CERTAIN
        risk = 100.0 * (found.expected if self.level is None else found.bound)
        return Step(
            name=name,
            top1=score,
            top1_drop_pp=drop_pp,
            interval_pp=interval_pp,
            agreement=agreement,
            kl=finite_or_none(kl_divergence(self.reference, logits, multi_label=self.multi_label)),
            sqnr_db=finite_or_none(signal_to_noise_db(self.outputs, outputs)),
            risk_pp=risk,
            seconds=seconds,
            passed=finite and risk <= self.max_drop_pp and interval_pp[0] <= self.max_drop_pp,
            expected_drop_pp=100.0 * found.expected,
        )

    def _measure(self, answers: Tensor) -> tuple[float, float, tuple[float, float], float]:
        """Return what is scored, what it lost in pp, the interval of that, and the agreement, of first guesses or logits."""
        if self.multi_label:
            return measure_drop_of_map(self.labels, self.reference, answers.nan_to_num(0.0))
        drop = compare_predictions(self.labels.numpy(), self.reference.argmax(1).numpy(), answers.numpy())
        return (drop.both + drop.gained) / len(answers), drop.top1_drop_pp, drop.interval_pp, drop.agreement

    def _bound(self, logits: Tensor) -> Risk:
        level = 1.0 - CONFIDENCE if self.level is None else self.level
        if self.multi_label:
            counted = images_that_count(self.labels)
            return bound_drop_of_map(self.reference, logits, counted, self.unseen, self.sharpness, level)
        return bound_drop(self.reference, logits, self.unseen, self.sharpness, level)


def choose_unseen(data: Data, images: Images) -> Images:
    """Return validation images, in their class mix, as many as `images`, which judge, or fewer where there are no more."""
    chosen = sample_in_proportion(data.validation.labels, np.arange(len(data.validation)), len(images), 0)
    return dataclasses.replace(images, source=data.validation, indices=chosen)


def ask_about_unseen(
    folded: ConvNeXt,
    unseen: Images,
    gallery: Tensor,
    gallery_labels: Tensor,
    advance: Callable[[int], None] = lambda count: None,
) -> UnseenImages | None:
    """Return what the float network says to images that no quantized network sees.

    Args:
        folded: the float network.
        unseen: of `choose_unseen`.
        gallery: what it gives for the images that judge: among these are the neighbours, where it gives features.
        gallery_labels: of them.
        advance: is told of so many more images done.

    Returns: None if none has a class that the network knows.
    """
    labels = unseen.labels
    logits = answers_by(folded, gallery, gallery_labels)(outputs_of(folded, unseen, advance))
    known = logits.isfinite().all(1)
    if labels.ndim == 1:
        known &= labels < logits.shape[1]
    return UnseenImages(logits[known], labels[known]) if known.any() else None


def confidence(logits: Tensor, *, multi_label: bool = False) -> float:
    """Return the mean probability of the first guess, of logits `(N, classes)`; or of the answer to each label."""
    if multi_label:
        return logits.double().abs().sigmoid().mean().item()
    return logits.double().softmax(1).amax(1).mean().item()


def finite_or_none(value: float) -> float | None:
    """Return what JSON can hold of a number."""
    return value if math.isfinite(value) else None
