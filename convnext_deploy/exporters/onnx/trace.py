"""Trace a float PyTorch model into an ONNX graph: nodes and weights named after their layers, dynamic batch, no dead nodes."""

import ast
import contextlib
import gc
import logging
import warnings
from collections.abc import Iterator

import onnx
import torch
from torch import nn

from convnext_deploy.config.image_size import ImageSize, sides_of
from convnext_deploy.errors import ExportError, first_line
from convnext_deploy.exporters.onnx.cleanup import cancel_transposes, name_weights
from convnext_deploy.exporters.onnx.graph_edits import finish
from convnext_deploy.graphs.names import INPUT_NAME, OUTPUT_NAME
from convnext_deploy.graphs.onnx_io import OPSET

_SCOPES = "pkg.torch.onnx.name_scopes"


def export_float(
    model: nn.Module, in_channels: int, image_size: ImageSize, batch_size: int | None = None
) -> onnx.ModelProto:
    """Trace a model in evaluation mode on the CPU; inputs `images (batch, C, S, S)`, outputs `logits (batch, classes)`.

    Every node that belongs to a module carries the module's name under `doc_string`, so that later steps find layers by the
    names that the scheme uses, and so do its weights.

    Args:
        model: maps images to logits.
        in_channels: C.
        image_size: side, or height and width, in pixels.
        batch_size: the only one that the graph is to take; None: any.

    Raises: ExportError: if the exporter refuses.
    """
    images = torch.zeros(batch_size or 2, in_channels, *sides_of(image_size))
    exporter_logger = logging.getLogger("torch.onnx")
    level = exporter_logger.level
    exporter_logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), _without_collections():
            # The exporter's own dependencies warn about their own deprecated calls.
            warnings.simplefilter("ignore")
            program = torch.onnx.export(
                model,
                (images,),
                dynamo=True,
                opset_version=OPSET,
                input_names=[INPUT_NAME],
                output_names=[OUTPUT_NAME],
                dynamic_shapes=None if batch_size else ({0: torch.export.Dim("batch", min=1)},),
                verbose=False,
            )
    except Exception as error:
        # The exporter raises whatever its many layers raise; all of it means the same to a user.
        raise ExportError(f"torch.onnx.export failed: {first_line(error)}") from error
    finally:
        exporter_logger.setLevel(level)
    assert program is not None  # dynamo=True without a file name returns the program
    exported = program.model
    for node in exported.graph:
        scopes = ast.literal_eval(node.metadata_props.get(_SCOPES, "[]"))  # outermost first, the node's own name last
        names = [name for name in scopes if name]
        node.doc_string = names[-2] if len(names) > 1 else ""
        node.metadata_props.clear()  # they hold stack traces with the paths of this machine
    for value in (*exported.graph.inputs, *exported.graph.outputs):
        value.metadata_props.clear()
    exported.graph.metadata_props.clear()
    exported.metadata_props.clear()
    exported.graph.name = "convnext"
    cancel_transposes(exported.graph)
    name_weights(exported.graph)
    return finish(exported)


@contextlib.contextmanager
def _without_collections() -> Iterator[None]:
    """Keep Python from looking for garbage: tracing makes millions of objects, hardly any of them garbage before it ends."""
    before = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if before:
            gc.enable()
