"""Is a quantized network good enough, as far as some training images can tell.

A step is judged on training images that nothing else has seen, never on the validation images, which judge the result. Of a few
hundred or thousand images, top-1 says little: gains and losses cancel. So a step must hold two things against the budget. The
drop of top-1 may be within it as far as its 95 % interval tells. And the risk must be: the drop that the float network's own
probabilities expect of the answers that changed, plus what chance may add to it on `JUDGED_ON` images, with probability 0.95.
"""

import math

import torch
from torch import Tensor, nn

from convnext_deploy.artifacts.details import Step
from convnext_deploy.metrics.paired import compare_predictions
from convnext_deploy.models.convnext import ConvNeXt
from convnext_deploy.quantization.sensitivity import kl_divergence, signal_to_noise_db
from convnext_deploy.stages.ptq_steps import Images

JUDGED_ON = 10_000  # fewer validation images tell less, but that is no reason to go on
_Z95_ONE_SIDED = 1.6448536269514722


class Judge:
    """Compares quantized networks with the float one on the selection images."""

    def __init__(self, folded: ConvNeXt, images: Images, max_drop_pp: float) -> None:
        self.images, self.max_drop_pp = images, max_drop_pp
        self.labels = images.labels
        self.reference = self.logits(folded)

    @torch.no_grad()
    def logits(self, network: nn.Module) -> Tensor:
        """Return the logits `(N, classes)` of the selection images, on the CPU."""
        return torch.cat([network(batch).float().cpu() for batch in self.images.batches()])

    def judge(self, name: str, network: nn.Module, seconds: float = 0.0) -> Step:
        """Measure a step. `seconds`: what making it took."""
        return self.compare(name, self.logits(network), seconds)

    def compare(self, name: str, logits: Tensor, seconds: float) -> Step:
        """Judge logits `(N, classes)`."""
        before, now = self.reference.argmax(1), logits.argmax(1)
        drop = compare_predictions(self.labels.numpy(), before.numpy(), now.numpy())
        finite = bool(logits.isfinite().all())
        risk = expected_drop_pp(self.reference, logits) if finite else 100.0
        return Step(
            name=name,
            top1=(drop.both + drop.gained) / len(now),
            top1_drop_pp=drop.top1_drop_pp,
            interval_pp=drop.interval_pp,
            agreement=drop.agreement,
            kl=finite_or_none(kl_divergence(self.reference, logits)),
            sqnr_db=finite_or_none(signal_to_noise_db(self.reference, logits)),
            risk_pp=risk,
            seconds=seconds,
            passed=finite and risk <= self.max_drop_pp and drop.interval_pp[0] <= self.max_drop_pp,
        )


def finite_or_none(value: float) -> float | None:
    """Return what JSON can hold of a number."""
    return value if math.isfinite(value) else None


def expected_drop_pp(reference: Tensor, logits: Tensor) -> float:
    """Return the drop of top-1 in percentage points that is to be feared, see the module; both `(N, classes)`, >= 0.

    If the float network's probabilities are right, an image whose answer changes from class a to class b costs `p_a - p_b` of a
    correct answer on average. The number of changed answers on other images varies, and with it, by at most one each, the drop:
    its standard deviation on `JUDGED_ON` images is at most the root of their share over that number.
    """
    probabilities = reference.double().softmax(1)
    before, now = reference.argmax(1, keepdim=True), logits.argmax(1, keepdim=True)
    cost = (probabilities.gather(1, before) - probabilities.gather(1, now)).mean().item()
    changed = (before != now).double().mean().item()
    return 100.0 * (cost + _Z95_ONE_SIDED * math.sqrt(changed / JUDGED_ON))
