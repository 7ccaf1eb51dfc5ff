"""A float PyTorch model as an ONNX file that a deployment engineer would sign: known names, dynamic batch, no leftovers."""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import onnx
import torch
from torch import nn

from convnext_deploy.errors import ArtifactError, ExportError, first_line
from convnext_deploy.exporters.tidy import cancel_transposes, name_nodes, name_weights

OPSET = 20  # the newest that TensorRT 10.0 reads; it has single Gelu and LayerNormalization nodes
INPUT_NAME, OUTPUT_NAME = "images", "logits"
METADATA_KEY = "convnext_deploy"
_SCOPES = "pkg.torch.onnx.name_scopes"


def export_float(model: nn.Module, in_channels: int, image_size: int, batch_size: int | None = None) -> onnx.ModelProto:
    """Trace a model in evaluation mode on the CPU; inputs `images (batch, C, S, S)`, outputs `logits (batch, classes)`.

    Every node that belongs to a module carries the module's name under `doc_string`, so that later steps find layers by the
    names that the scheme uses, and so do its weights.

    Args:
        model: maps images to logits.
        in_channels: C.
        image_size: S in pixels.
        batch_size: the only one that the graph is to take; None: any.

    Raises: ExportError: if the exporter refuses.
    """
    images = torch.zeros(batch_size or 2, in_channels, image_size, image_size)
    exporter_logger = logging.getLogger("torch.onnx")
    level = exporter_logger.level
    exporter_logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
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
    proto: onnx.ModelProto = program.model_proto
    for node in proto.graph.node:
        scopes = next((p.value for p in node.metadata_props if p.key == _SCOPES), "[]")
        names = [name for name in _parse_scopes(scopes) if name]
        node.doc_string = names[-2] if len(names) > 1 else ""
        del node.metadata_props[:]  # they hold stack traces with the paths of this machine
    for value in [*proto.graph.value_info, *proto.graph.input, *proto.graph.output]:
        del value.metadata_props[:]
    del proto.graph.metadata_props[:], proto.metadata_props[:]
    proto.graph.name = "convnext"
    cancel_transposes(proto.graph)
    name_weights(proto.graph)
    del proto.graph.value_info[:]  # of names that are gone; whoever needs types infers them
    return proto


def _parse_scopes(text: str) -> list[str]:
    # A Python list literal of module names, outermost first, with the node's own name last: ['', 'stages.0', …, 'linear'].
    return [part.strip().strip("'\"") for part in text.strip("[]").split(",")]


def save_onnx(proto: onnx.ModelProto, path: Path, metadata: Mapping[str, Any]) -> None:
    """Check the model and write it with `metadata` (JSON) inside, its nodes named by `name_nodes`.

    Raises: ExportError: if the ONNX checker finds it invalid.
    """
    saved = onnx.ModelProto()
    saved.CopyFrom(proto)
    entry = saved.metadata_props.add()
    entry.key, entry.value = METADATA_KEY, json.dumps(metadata, sort_keys=True)
    name_nodes(saved.graph)
    try:
        onnx.checker.check_model(saved, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise ExportError(f"the exported graph is not valid ONNX: {first_line(error)}") from error
    for node in saved.graph.node:
        node.doc_string = ""
    path.write_bytes(saved.SerializeToString(deterministic=True))


def load_onnx(path: Path) -> onnx.ModelProto:
    """Read an ONNX file.

    Raises: ArtifactError: if it is missing or no ONNX file.
    """
    try:
        proto = onnx.load(path)
    except FileNotFoundError:
        raise ArtifactError(f"there is no ONNX file {path}.") from None
    except Exception as error:
        # protobuf's DecodeError has no public home that is the same in all its implementations
        raise ArtifactError(f"{path} is no readable ONNX file ({first_line(error)}).") from None
    if not proto.graph.node:
        raise ArtifactError(f"{path} is no readable ONNX file: it has no graph.")
    return proto


def read_metadata(proto: onnx.ModelProto) -> dict[str, Any]:
    """Return what `save_onnx` put inside; empty for a file of another origin.

    Raises: ArtifactError: if it is no JSON.
    """
    text = next((p.value for p in proto.metadata_props if p.key == METADATA_KEY), "{}")
    try:
        found = json.loads(text)
    except ValueError as error:
        raise ArtifactError(f"the ONNX file has damaged metadata ({error}); export it again.") from None
    return found if isinstance(found, dict) else {}


def tensor_shape(value: onnx.ValueInfoProto) -> tuple[int | None, ...]:
    """Return the shape of a graph input or output; None where a dimension is dynamic."""
    dims = value.type.tensor_type.shape.dim
    return tuple(d.dim_value if d.HasField("dim_value") else None for d in dims)
