"""Post-training quantization: put quantizers into the network and fix their grids on calibration images."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

from convnext_deploy.artifact import Artifact
from convnext_deploy.data.loaders import EvaluationBatches, calibration_indices
from convnext_deploy.errors import ArtifactError, DataError
from convnext_deploy.network import load_network
from convnext_deploy.quantization.prepare import calibrate, observer_factory, prepare
from convnext_deploy.quantization.scheme import resolve_scheme
from convnext_deploy.stage_config import PTQConfig
from convnext_deploy.stages.context import StageContext, require_source, write_torch_artifact


def run(config: PTQConfig, source: Artifact | None, context: StageContext) -> Artifact:
    """Quantize an FP32 artifact. Its weights are kept in float beside the scales, so that QAT can start from them."""
    source = require_source(source, "ptq")
    if source.precision != "fp32":
        raise ArtifactError(f"{source.path} is already {source.precision}; quantize its FP32 ancestor.")
    scheme = resolve_scheme(config.target)
    network = prepare(load_network(source), scheme).to(context.device)
    data = context.open_data()
    chosen = calibration_indices(data.train, data.validation, config.calibration_images, context.seed)
    if not chosen:
        raise DataError(
            f"every training image of {data.name} is also a validation image; none is left for calibration."
        )
    if len(chosen) < config.calibration_images:
        context.progress.say(f"{context.name}: {len(chosen)} calibration images, as the training set has no more")
    batches = EvaluationBatches(data.train, source.preprocess, config.batch_size, context.workers, chosen)
    with context.progress.task(f"{context.name}: calibrate", len(batches)) as task:

        def images() -> Iterator[Tensor]:
            for batch, _ in batches:
                yield batch.to(context.device)
                task.advance()

        calibrate(network, images(), observer_factory(config.calibration_method, config.percentile))
    return write_torch_artifact(
        network,
        context,
        model=source.model,
        preprocess=source.preprocess,
        class_names=source.class_names,
        precision="int8",
        details={"target": scheme.target, "calibration_images": len(chosen)},
        source=source,
    )
