"""Structured pruning: measure on calibration images which hidden units matter, and write the network without the others."""

from convnext_deploy.artifacts.artifact import Artifact
from convnext_deploy.artifacts.details import TorchDetails
from convnext_deploy.artifacts.spec import ModelSpec
from convnext_deploy.config.prune import PruneConfig
from convnext_deploy.errors import ArtifactError, RecipeError
from convnext_deploy.models.checkpoints.load_network import load_network
from convnext_deploy.models.variants import complete_spec, with_widths
from convnext_deploy.models.zoo.cost import count_macs
from convnext_deploy.pruning.build import prune_network
from convnext_deploy.pruning.choose import choose_widths
from convnext_deploy.pruning.importance import AT_ONCE, measure_importance
from convnext_deploy.stages.chosen_images import choose_images
from convnext_deploy.stages.context import StageContext, require_source
from convnext_deploy.stages.foresight import Given, Outlook, given_to
from convnext_deploy.stages.write_artifact import write_torch_artifact
from convnext_deploy.system.full_float32 import full_float32


def foresee(config: PruneConfig, given: Given) -> Outlook:
    """Return what would be made. Raises: DeployError: if it could not be."""
    source = given.need_source("prune")
    given.need_data()
    given.expect(source, "torch", "pruning starts from a PyTorch artifact")
    if source.precision != "fp32":
        raise ArtifactError(
            f"{given.called(source)} is {source.precision}; prune its FP32 ancestor, and quantize that."
        )
    if config.widths is None:
        return source.made(given.name)  # its blocks are chosen on the images
    try:
        return source.made(given.name, model=_pruned_spec(source.model, config.widths))
    except RecipeError as error:
        raise RecipeError(f"{given.of_stage(source)}{error}") from None


def _pruned_spec(spec: ModelSpec, widths: tuple[int, ...]) -> ModelSpec:
    made, before = with_widths(spec, widths), sum(complete_spec(spec).block_widths, ())
    for place, (width, most) in enumerate(zip(widths, before, strict=True)):
        if width > most:
            raise RecipeError(f"widths[{place}] = {width} is out of range; expected 0 to {most}, as the block has.")
    return made


@full_float32()
def run(config: PruneConfig, source: Artifact | None, context: StageContext) -> Artifact:
    """Prune an FP32 artifact, which may have been pruned before."""
    source = require_source(source, "prune")
    foresee(config, given_to(context, source))
    progress, side = context.execution.progress, max(source.preprocess.sides)
    network = load_network(source).to(context.execution.exact_device)
    images = choose_images(config.calibration_images, source.preprocess, context, AT_ONCE)
    batch, blocks = images.first(config.calibration_images), sum(complete_spec(source.model).depths)
    with progress.task(f"{context.name}: measure blocks", blocks, "blocks") as task:
        importance = measure_importance(
            network, batch, config.method, task.advance, multi_label=source.model.multi_label
        )
    widths = config.widths
    if widths is None:
        assert config.macs_share is not None  # one of the two is given
        widths = choose_widths(source.model, importance, config.macs_share, side)
    with progress.task(f"{context.name}: prune", blocks, "blocks") as task:
        pruned, spec = prune_network(
            network, source.model, importance, widths, batch, task.advance, activation=config.activation
        )
    before, after = (count_macs(each, side) / 1e9 for each in (source.model, spec))
    progress.say(f"{context.name}: {after:.3g} of {before:.3g} GMAC stay, hidden widths {', '.join(map(str, widths))}")
    return write_torch_artifact(
        pruned,
        context,
        model=spec,
        preprocess=source.preprocess,
        class_names=source.class_names,
        precision="fp32",
        details=TorchDetails(),
        source=source,
    )
