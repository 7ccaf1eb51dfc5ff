"""Look for the widths of a network under budgets: losses of blocks, the predicted front, choices near the optimum."""

import hashlib
import json
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass

import numpy as np

from convnext_deploy.artifacts.artifact import Artifact
from convnext_deploy.compression.budget import Budget
from convnext_deploy.compression.judge import WidthJudge
from convnext_deploy.compression.search import Widths, WidthSearch
from convnext_deploy.compression.times import Times
from convnext_deploy.config.choices import Activation
from convnext_deploy.errors import RecipeError
from convnext_deploy.evaluation.measure import read_kept, write_kept
from convnext_deploy.evaluation.timing.front import ExploredPoint
from convnext_deploy.models.block_shapes import WIDTH_STEP, block_shapes
from convnext_deploy.stages.context import StageContext

_FRONT_STEPS = 8
_PROPOSALS, _PROPOSALS_OF_LARGE = 8, 1  # a large network takes a minute to be fitted to other widths
_CHECKS = 4  # times that a choice is made at most
# Shares of the budget: what a choice is to take, and what one may that was timed. One machine gave ratios of 0.69 and of 0.72 for
# the same two files within the hour, by how fast its cores ran; what is trained must keep the budget on the slower day too.
_AIM, _ENOUGH = 0.94, 0.96
RESULT_VERSION = 2
"""In the key of what is kept: raised when the same times and images give other widths."""


@dataclass(frozen=True)
class BlockChoice:
    """What a block becomes, and what that means: `saved_ms` of a call, and its `loss` alone, in nats an image."""

    block: int
    stage: int
    channels: int
    dense: int
    width: int
    saved_ms: float
    loss: float

    def describe(self) -> str:
        """Say it in a line."""
        what = "goes" if self.width == 0 else f"{self.dense} → {self.width} hidden units"
        return (
            f"block {self.block + 1} (model stage {self.stage + 1}, {self.channels} channels): {what}, saves "
            f"{self.saved_ms:.3f} ms, loses {self.loss:.2g}"
        )


@dataclass(frozen=True)
class Chosen:
    """The widths for a budget: what they take by the model of times, and lose on the selection images before any training.

    `tried`: how many networks were judged; `first_kl`: the divergence of the one that the sum of the losses alone would choose.
    `checked`: milliseconds, and the share of the dense network's time, of a file of these widths; None: none was timed.
    """

    budget: str
    budget_ms: float
    widths: tuple[int, ...]
    predicted_ms: float
    kl: float
    agreement: float
    tried: int
    first_kl: float
    blocks: tuple[BlockChoice, ...]
    checked: tuple[float, float] | None = None

    def describe(self, dense_ms: float) -> list[str]:
        """Say what was chosen, and what that saves and loses, block by block."""
        head = (
            f"{self.predicted_ms:.3f} ms are predicted, {self.predicted_ms / dense_ms:.3f} of the dense network's "
            f"{dense_ms:.3f} ms; before training KL {self.kl:.3g} and {100 * self.agreement:.1f} % equal answers, the best of "
            f"{self.tried} choices near the optimum, of which the sum of the losses would take one with KL {self.first_kl:.3g}"
        )
        if self.checked is not None:
            head += (
                f"; a file of these widths took {self.checked[0]:.3f} ms, {self.checked[1]:.3f} of the dense one's time"
            )
        return [head, *(block.describe() for block in self.blocks if block.width != block.dense)]


@dataclass(frozen=True)
class Exploration:
    """The dense network's time, the least that any network takes, the front that is predicted, and the choice for each budget."""

    dense_ms: float
    least_ms: float
    front: tuple[ExploredPoint, ...]
    chosen: tuple[Chosen, ...]


def explore(
    source: Artifact,
    budgets: Sequence[Budget],
    times: Times,
    context: StageContext,
    activation: Activation | None = None,
    check: Callable[[Sequence[int]], tuple[float, float]] | None = None,
    *,
    keep: bool = True,
) -> Exploration:
    """Return the front of a network, and the widths for each budget.

    Args:
        source: the dense network, in PyTorch and float.
        budgets: of the time of a call.
        times: of its widths, in the form in which it will run.
        context: with the images, how work is done, and where results are kept.
        activation: of the pruned networks; None: as it is.
        check: times a file of some widths, see `check_widths`; a choice that turns out too slow is made again under a smaller
            budget. None: the predictions are taken as they are.
        keep: whether the result is kept.

    Raises: RecipeError: if a budget is less than any network takes, or not less than the dense one takes.
    """
    _check_budgets(source, budgets, times)
    key = _key(source, budgets, times, context, (activation, check is not None))
    kept = context.cache_dir / "widths" / f"{key[:32]}.json"
    known = read_kept(Exploration, kept, key)
    if known is not None:
        return known
    progress = context.execution.progress
    judge = WidthJudge(source, context, activation)
    with progress.task("losses of hidden units", len(judge.shapes), "blocks") as task:
        importance = judge.measure_blocks(task.advance)
    search = WidthSearch(judge.shapes, [each.losses for each in importance], times.model, context.execution.seed)
    steps = np.linspace(times.dense_ms, search.least_ms, _FRONT_STEPS + 2)[1:-1].tolist()
    front = search.front(steps)
    proposals = _PROPOSALS if judge.is_small else _PROPOSALS_OF_LARGE

    @contextmanager
    def measuring(networks: int) -> Iterator[Callable[[tuple[int, ...]], float]]:
        # how often a choice is made again is known only by its times, so each round is work of its own
        with progress.task("choices of widths", networks, "networks") as task:

            def measure(widths: tuple[int, ...]) -> float:
                found = judge.kl(widths)
                task.advance(note=f"KL {found:.3g}")
                return found

            yield measure

    def refine(limit_ms: float) -> list[Widths]:
        with measuring(1 + 2 * proposals) as measure:
            return search.refine(limit_ms, measure, proposals)

    if judge.is_small:
        with measuring(len(front)) as measure:
            points = tuple(_explored(each, times, measure(each.widths), judge) for each in front)
    else:
        points = tuple(_explored(each, times, None, judge) for each in front)
    chosen = tuple(choose_within(each, times, search, judge, refine, check) for each in budgets)
    result = Exploration(times.dense_ms, search.least_ms, points, chosen)
    if keep:
        write_kept(kept, key, result)
    return result


def _check_budgets(source: Artifact, budgets: Sequence[Budget], times: Times) -> None:
    """Check budgets before anything is measured on images.

    Raises: RecipeError: if one is less than any network takes, or not less than the dense one takes, or in ms of another machine.
    """
    shapes = block_shapes(source.model, source.preprocess.image_size)
    search = WidthSearch(
        shapes, [{shape.hidden: 0.0, min(WIDTH_STEP, shape.hidden): 0.0, 0: 0.0} for shape in shapes], times.model
    )
    for budget in budgets:
        if budget.ms is not None and not times.is_measured:
            raise RecipeError(
                f"latency_budget = '{budget}' is a time on the device, which is not known here: {times.origin}. Give a share such "
                "as 0.6x; or bundle this run, let the device time it, bring that with 'convnext-deploy collect', and run again."
            )
        allowed = budget.within(times.dense_ms)
        if allowed >= times.dense_ms:
            raise RecipeError(
                f"latency_budget = '{budget}' asks for nothing: the dense network takes {times.dense_ms:.3f} ms "
                f"({times.origin}); quantize it alone."
            )
        if allowed < search.least_ms:
            raise RecipeError(
                f"latency_budget = '{budget}' is {allowed:.3f} ms, and all but the blocks takes {search.least_ms:.3f} ms of the "
                f"dense network's {times.dense_ms:.3f} ms ({times.origin}); ask for "
                f"{math.ceil(100 * search.least_ms / times.dense_ms) / 100:.2f}x or more, or start from a smaller model."
            )


def _explored(choice: Widths, times: Times, kl: float | None, judge: WidthJudge) -> ExploredPoint:
    ratio, agreement = choice.predicted_ms / times.dense_ms, None if kl is None else judge.agreement(choice.widths)
    return ExploredPoint(choice.predicted_ms, ratio, choice.loss, kl, agreement, choice.widths)


def choose_within(
    budget: Budget,
    times: Times,
    search: WidthSearch,
    judge: WidthJudge,
    refine: Callable[[float], list[Widths]],
    check: Callable[[Sequence[int]], tuple[float, float]] | None,
) -> Chosen:
    """Return the choice for a budget; as far as files of it can be timed, one that keeps it."""
    allowed = budget.within(times.dense_ms)
    limit = searched = allowed if check is None else max(search.least_ms, _AIM * allowed)
    tried, checked = 0, None
    found: list[Widths] = []
    for _ in range(_CHECKS):
        if proposals := refine(limit):
            found, searched = proposals, limit
        tried += len(proposals)
        if check is None:
            break
        checked = check(found[0].widths)
        over = checked[0] / budget.ms if budget.ms is not None else checked[1] / (budget.ratio or 1.0)
        if over <= _ENOUGH:
            break
        reached = min(limit, found[0].predicted_ms)
        limit = max(search.least_ms, reached / over * _AIM)
        if limit >= reached:  # nothing is faster: the same file would be timed again
            break
    best, first = found[0], search.choose(searched) or found[0]
    blocks = tuple(
        BlockChoice(
            place, each.shape.stage, each.shape.channels, each.shape.hidden, each.width, each.saved_ms, each.loss
        )
        for place, each in enumerate(search.prices(best))
    )
    kl, agreement, own = judge.kl(best.widths), judge.agreement(best.widths), judge.kl(first.widths)
    return Chosen(str(budget), allowed, best.widths, best.predicted_ms, kl, agreement, tried, own, blocks, checked)


def _key(
    source: Artifact, budgets: Sequence[Budget], times: Times, context: StageContext, how: tuple[object, ...]
) -> str:
    content = [
        [source.sha256, source.model.settings(), source.preprocess.settings()],
        context.need_data().fingerprint,
        [str(budget) for budget in budgets],
        asdict(times),
        [*how, context.execution.seed, context.execution.exact_device, RESULT_VERSION],
    ]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
