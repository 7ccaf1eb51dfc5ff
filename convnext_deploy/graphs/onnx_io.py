"""Read and write ONNX files, with the metadata inside."""

import errno
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import onnx

from convnext_deploy.documents import RefusedFileError, open_file, parse_json, reason
from convnext_deploy.errors import ArtifactError, ExportError, first_line
from convnext_deploy.graphs.names import name_nodes
from convnext_deploy.system.files import write_bytes

OPSET = 20  # the newest that TensorRT 10.0 reads; it has single Gelu and LayerNormalization nodes
METADATA_KEY = "convnext_deploy"
_POINTER = b"version https://git-lfs"
_LARGEST = 2**31 - 1  # bytes of a protobuf message


def save_onnx(proto: onnx.ModelProto, path: Path, metadata: Mapping[str, Any]) -> None:
    """Check the model and write it with `metadata` (JSON) inside, its nodes named by `name_nodes`.

    Raises: ExportError, OutputError: if the ONNX checker finds it invalid, or it cannot be written.
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
    write_bytes(path, saved.SerializeToString(deterministic=True))


def load_onnx(path: Path) -> onnx.ModelProto:
    """Read an ONNX file, without the tensors that it keeps in files beside it.

    Raises: ArtifactError: if it cannot be read, or is not an ONNX file.
    """
    try:
        check_size(path)
        proto = onnx.load(path, load_external_data=False)
    except OSError as error:
        raise ArtifactError(f"{path} cannot be read ({reason(error)}).") from None
    except Exception as error:
        # protobuf's DecodeError has no public home that is the same in all its implementations
        raise ArtifactError(
            f"{path} is not an ONNX file or is cut off ({first_line(error)}); expected a file that an ONNX exporter wrote."
        ) from None
    if not proto.graph.node or not proto.opset_import:
        missing = "operators" if not proto.graph.node else "operator set"
        raise ArtifactError(f"{path} is not an ONNX file or is cut off: it has no {missing}.")
    return proto


def check_size(path: Path) -> None:
    """Refuse a file that no protobuf message can be, before all of it is read. Raises: OSError."""
    with open_file(path, _LARGEST) as file:
        if file.read(len(_POINTER)) == _POINTER:
            raise RefusedFileError(
                errno.EINVAL, "it is a Git LFS pointer and not the model; run 'git lfs pull' where it came from"
            )


def read_metadata(proto: onnx.ModelProto) -> dict[str, Any]:
    """Return what `save_onnx` put inside; empty for a file of another origin.

    Raises: ArtifactError: if it is not JSON.
    """
    return parse_metadata({entry.key: entry.value for entry in proto.metadata_props})


def parse_metadata(properties: Mapping[str, str]) -> dict[str, Any]:
    """Return what `save_onnx` put among a model's properties; empty for a file of another origin.

    Raises: ArtifactError: if it is not JSON.
    """
    try:
        found = parse_json(properties.get(METADATA_KEY, "{}"))
    except ValueError as error:
        raise ArtifactError(f"the ONNX file has damaged metadata ({error}); export it again.") from None
    return found if isinstance(found, dict) else {}


def tensor_shape(value: onnx.ValueInfoProto) -> tuple[int | None, ...]:
    """Return the shape of a graph input or output; None where a dimension is dynamic."""
    dims = value.type.tensor_type.shape.dim
    return tuple(d.dim_value if d.HasField("dim_value") else None for d in dims)


def join_weights(proto: onnx.ModelProto, path: Path) -> None:
    """Take the tensors that the file of a model keeps beside it into the model, in place.

    Raises: ArtifactError: if they cannot be read, or are too large for one file.
    """
    try:
        for tensor in filter(onnx.external_data_helper.uses_external_data, _tensors_of(proto.graph)):
            place = next(entry for entry in tensor.external_data if entry.key == "location")
            real = Path(os.path.realpath(path.parent / place.value))  # onnx reads through no link
            place.value = real.name
            onnx.external_data_helper.load_external_data_for_tensor(tensor, str(real.parent))
            tensor.data_location = onnx.TensorProto.DEFAULT
            del tensor.external_data[:]
    except Exception as error:  # missing, cut, or outside of the folder: each has an error of its own
        raise ArtifactError(f"{path}: the weights beside it cannot be read ({first_line(error)}).") from None
    if proto.ByteSize() > _LARGEST:
        raise ArtifactError(
            f"{path} and the weights beside it have {proto.ByteSize():,} bytes, and one ONNX file at most {_LARGEST:,}; a bundle "
            "has one file for each model."
        )


def _tensors_of(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    """Yield the tensors of a graph, with those in attributes and subgraphs."""
    yield from graph.initializer
    for node in graph.node:
        for attribute in node.attribute:
            yield from ([attribute.t] if attribute.HasField("t") else attribute.tensors)
            for inner in [attribute.g] if attribute.HasField("g") else attribute.graphs:
                yield from _tensors_of(inner)


def fix_image(proto: onnx.ModelProto, image: tuple[int, ...]) -> None:
    """Fix the shape of the images that a graph with one input takes, in place; its batch stays as it is."""
    dims = proto.graph.input[0].type.tensor_type.shape.dim
    for dim, size in zip(list(dims)[1:], image, strict=True):
        dim.dim_value = size  # which takes the place of a name
