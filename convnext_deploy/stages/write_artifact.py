"""A trained or quantized network as an artifact on disk."""

from torch import nn

from convnext_deploy.artifacts.artifact import Artifact, describe_file
from convnext_deploy.artifacts.details import TorchDetails
from convnext_deploy.artifacts.spec import ModelSpec, Preprocess, file_header
from convnext_deploy.models.checkpoints.load_network import WEIGHTS
from convnext_deploy.models.checkpoints.safe_reader import save_state
from convnext_deploy.stages.context import StageContext
from convnext_deploy.system.distributed import world


def write_torch_artifact(
    network: nn.Module,
    context: StageContext,
    *,
    model: ModelSpec,
    preprocess: Preprocess,
    class_names: tuple[str, ...] | None,
    precision: str,
    details: TorchDetails,
    source: Artifact | None,
) -> Artifact:
    """Write the weights, with a header that makes the file readable on its own, and describe them.

    Of several processes only the first one writes; what the others get describes no file.
    """
    start = source or context.weights
    license_ = None if start is None else start.license
    # what was trained on labels has the names that came with them
    trained = details.scheme is None and bool(details.history)
    class_order = None if source is None or trained else source.class_order
    header = {
        **file_header(model, preprocess, class_names, precision, license_),
        "details": {} if details.scheme is None else details.scheme.details(),
        **({} if class_order is None else {"class_order": class_order}),
    }
    path = context.output / WEIGHTS
    is_writer = world().is_first
    if is_writer:
        save_state(path, network.state_dict(), header)
    return Artifact(
        path=context.output,
        precision=precision,
        model=model,
        class_names=class_names,
        preprocess=preprocess,
        files=(describe_file(path),) if is_writer else (),
        details=details,
        lineage=source.lineage if source is not None else (),
        license=license_,
        class_order=class_order,
    )
