"""`inspect`: what is in a file that the user points at, an ONNX file or engine plan of any origin, or an artifact folder."""

from pathlib import Path

from convnext_deploy.api.options import verb
from convnext_deploy.artifacts.artifact import MANIFEST, read_artifact
from convnext_deploy.artifacts.hashes import check_bare_file
from convnext_deploy.artifacts.places import check_place, no_artifact
from convnext_deploy.errors import ArtifactError
from convnext_deploy.graphs.engine_plan import PLAN_SUFFIXES, EngineRecord, inspect_plan
from convnext_deploy.graphs.lint.onnx_summary import ONNXRecord, inspect_onnx


@verb
def inspect(file: Path | str) -> ONNXRecord | EngineRecord:
    """Say what is in a file, or in the main file of an artifact folder.

    Raises: ArtifactError: if there is nothing there, it is neither ONNX nor a plan, it cannot be read, or it was altered.
    """
    path = Path(file)
    check_place(path, "an ONNX file, an engine plan or an artifact folder")
    if path.is_dir():
        if not (path / MANIFEST).is_file():
            raise no_artifact(path)
        artifact = read_artifact(path)
        if artifact.format == "torch":
            raise ArtifactError(
                f"{path} holds a PyTorch model; expected an ONNX file or an engine. Run 'convnext-deploy export' on it first."
            )
        path = artifact.main_file
    check_bare_file(path)
    if path.suffix in PLAN_SUFFIXES:
        return inspect_plan(path)
    if path.suffix == ".onnx":
        return inspect_onnx(path)
    raise ArtifactError(
        f"{path} is neither ONNX nor an engine; expected a file ending in .onnx, {', '.join(PLAN_SUFFIXES)}."
    )
