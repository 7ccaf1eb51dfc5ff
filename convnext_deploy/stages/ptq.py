"""Post-training quantization: put quantizers into the folded network and fix their grids on calibration images."""

from convnext_deploy.artifacts.artifact import Artifact
from convnext_deploy.artifacts.details import TorchDetails
from convnext_deploy.config.ptq import PTQConfig
from convnext_deploy.quantization.prepare import fit_scheme
from convnext_deploy.quantization.scheme import resolve_scheme
from convnext_deploy.stages.chosen_images import choose_images
from convnext_deploy.stages.context import StageContext, require_source
from convnext_deploy.stages.foresight import Given, Outlook, given_to
from convnext_deploy.stages.ptq_steps import foresee_quantization, open_folded, quantize_network
from convnext_deploy.stages.write_artifact import write_torch_artifact
from convnext_deploy.system.full_float32 import full_float32


def check(config: PTQConfig) -> None:
    """Raises: RecipeError: if there is no such choice for a layer."""
    resolve_scheme(config.target, config.sites)


def foresee(config: PTQConfig, given: Given) -> Outlook:
    """Return what would be made. Raises: DeployError: if it could not be."""
    return foresee_quantization(config.target, config.sites, given.need_source("ptq"), given)


@full_float32()
def run(config: PTQConfig, source: Artifact | None, context: StageContext) -> Artifact:
    """Quantize an FP32 artifact. Its weights are kept in float beside the scales, so that QAT can start from them."""
    source = require_source(source, "ptq")
    foresee(config, given_to(context, source))
    scheme = resolve_scheme(config.target, config.sites)
    folding = open_folded(source, scheme, context)
    scheme = fit_scheme(scheme, folding.network)
    images = choose_images(config.calibration_images, folding.preprocess, context, config.batch_size)
    network, record = quantize_network(folding.network, scheme, config, images, context)
    return write_torch_artifact(
        network,
        context,
        model=source.model,
        preprocess=folding.preprocess,
        class_names=source.class_names,
        precision=scheme.precision,
        details=TorchDetails(**scheme.details(), folding=folding.certificate, ptq=record),
        source=source,
    )
