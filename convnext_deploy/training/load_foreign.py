"""Load the network of another library that an artifact describes."""

from convnext_deploy.artifacts.artifact import Artifact
from convnext_deploy.artifacts.details import ForeignDetails
from convnext_deploy.system.random_state import forked_random
from convnext_deploy.training.exported_program import open_program
from convnext_deploy.training.foreign_libraries import build_timm, build_torchvision, build_transformers
from convnext_deploy.training.foreign_network import ForeignNetwork

_BUILDERS = {"timm": build_timm, "torchvision": build_torchvision, "transformers": build_transformers}


def load_foreign(artifact: Artifact) -> ForeignNetwork:
    """Return the network of a `foreign` artifact in evaluation mode on the CPU.

    Raises:
        ArtifactError: if the artifact is in another format.
        BackendUnavailableError: if its library is missing.
        CheckpointError: if the weights are not those of that network.
    """
    details = artifact.details_as(ForeignDetails)
    if details.library == "torch.export":
        return open_program(artifact.main_file)[0]
    # libraries draw the weights that are then replaced; what a student draws must not depend on when its teacher is opened
    with forked_random():
        network = _BUILDERS[details.library](details, artifact.main_file, artifact.model.num_classes)
    network.eval()
    return network
