"""Images without labels in a distillation: mixed with the labelled ones for the one stage, which is told in what proportion."""

import dataclasses

from convnext_deploy.config.distill import DistillConfig
from convnext_deploy.data.datasets import Data
from convnext_deploy.data.image_sets import TaughtImages
from convnext_deploy.data.unlabelled import mix_in
from convnext_deploy.errors import RecipeError
from convnext_deploy.stages.context import StageContext
from convnext_deploy.stages.foresight import Given


def check_unlabelled(config: DistillConfig, given: Given) -> None:
    """Check that there are images without labels where a share of them is asked for. Raises: RecipeError: if not."""
    if config.unlabelled_share and given.need_data().unlabelled is None:
        raise RecipeError(
            f"stage '{given.name}': unlabelled_share = {config.unlabelled_share} asks for images without labels, and there are "
            "none; name their folder with --unlabelled DIR, or unlabelled in the recipe."
        )


def with_unlabelled(config: DistillConfig, context: StageContext) -> StageContext:
    """Return the context with the images without labels among those to train on, if the stage wants any, and say how many."""
    data = mixed(config, context.need_data())
    if not isinstance(data.train, TaughtImages):
        return context
    context.execution.progress.say(f"{context.name}: {_describe(data.train, config.fit.batch_size)}")
    return dataclasses.replace(context, data=data)


def mixed(config: DistillConfig, data: Data) -> Data:
    """Return the data with the images without labels among those to train on, if the stage wants any."""
    if data.unlabelled is None or not config.reads_unlabelled:
        return data
    return dataclasses.replace(data, train=mix_in(data.train, data.unlabelled, config.unlabelled_share))


def labelled_share(images: object, batch_size: int) -> float:
    """Return which share of each training batch has labels."""
    if not isinstance(images, TaughtImages):
        return 1.0
    size = min(batch_size, len(images))
    return images.counts(size)[0] / size


def _describe(images: TaughtImages, batch_size: int) -> str:
    size = min(batch_size, len(images))
    batches = len(images) // size
    labelled, unlabelled = images.counts(size)
    if not labelled:
        return f"an epoch is {batches:,} batches of {size} images without labels"
    times = batches * labelled / len(images.labelled), batches * unlabelled / len(images.unlabelled)
    return (
        f"each batch has {labelled} images with and {unlabelled} without labels, an epoch is {batches:,} batches: every labelled "
        f"image comes {times[0]:.3g} times, every other {times[1]:.3g} times"
    )
