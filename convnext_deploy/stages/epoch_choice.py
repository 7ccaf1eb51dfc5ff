"""Training images that are set aside, so that the best epoch is not chosen by the images on which the result is judged.

The best of many epochs looks better than it is on the very images that it was chosen by. Validation images judge the result, its
gates, and the gain over other trainings; so they choose nothing.
"""

import dataclasses

from convnext_deploy.config.fit import FitConfig
from convnext_deploy.data.sampling import only, selection_indices, without
from convnext_deploy.stages.context import StageContext

_FRACTION = 0.1
_MOST = 5000  # images, of which top-1 has a standard error of 0.7 pp at most


def set_aside(fit: FitConfig, context: StageContext) -> StageContext:
    """Return what a training stage that waits for a better epoch works on: fewer training images, and those that choose.

    Without patience it is what was given.
    """
    if not fit.patience:
        return context
    data, execution = context.need_data(), context.execution
    chosen = selection_indices(data, _FRACTION, _MOST, execution.seed)
    if not chosen:
        return context
    execution.progress.say(
        f"{context.name}: {len(chosen):,} of {len(data.train):,} training images are set aside to choose the best epoch by"
    )
    return dataclasses.replace(context, data=without(data, chosen), selection=only(data.train, chosen))
