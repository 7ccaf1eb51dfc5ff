"""Whatever a manifest or a header says, reading it gives an artifact with every field as its type says, or one clear error."""

from __future__ import annotations

import copy
import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from convnext_deploy.artifacts.artifact import MANIFEST, Artifact, read_artifact, write_manifest
from convnext_deploy.artifacts.details import Details
from convnext_deploy.artifacts.spec import file_header
from convnext_deploy.config.image_size import sides_of
from convnext_deploy.errors import ArtifactError
from convnext_deploy.pipeline.open_checkpoint import open_header
from tests.artifacts.test_artifact import EVERY, create_artifact

_NUMBERS = st.integers() | st.floats() | st.sampled_from([0, -1, 2**64, 10**400, True])
_TEXTS = st.text(max_size=8) | st.sampled_from(
    ["torch", "onnx", "tensorrt", "float", "SM86", "../x", "\x00", "\x1b[2J"]
)
_JSON = st.recursive(
    st.none() | _NUMBERS | _TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_TEXTS, inner, max_size=3),
    max_leaves=5,
)


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield the way to every value inside a JSON document."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield (*path, key)
        yield from places(inner, (*path, key))


def mutate(document: dict[str, Any], data: st.DataObject) -> Any:
    """Return the document with one to three values replaced, removed, doubled, or added."""
    changed = copy.deepcopy(document)
    for _ in range(data.draw(st.integers(1, 3))):
        if not (known := list(places(changed))):
            break
        *path, key = data.draw(st.sampled_from(known))
        inside: Any = changed
        for step in path:
            inside = inside[step]
        kind = data.draw(st.sampled_from(["replace", "replace", "remove", "add"]))
        if kind == "replace":
            inside[key] = data.draw(_JSON)
        elif kind == "remove":
            del inside[key]
        elif isinstance(inside, list):
            inside.append(data.draw(_JSON))
        else:
            inside[data.draw(_TEXTS)] = data.draw(_JSON)
    return changed


def use(artifact: Artifact) -> None:
    """Read everything that others read of an artifact."""
    assert artifact.sha256
    assert artifact.size_bytes >= 0
    assert artifact.main_file.parent == artifact.path
    assert min(sides_of(artifact.preprocess.resize_size)) > 0
    assert json.dumps([artifact.history(), str(artifact.scheme), str(artifact.io), artifact.is_baseline])


@pytest.mark.parametrize("details", EVERY, ids=lambda details: type(details).__name__)
@settings(max_examples=80, deadline=None)
@given(data=st.data())
def test_mutated_manifest_is_read_whole_or_refused_in_one_line(
    tmp_path_factory: pytest.TempPathFactory, details: Details, data: st.DataObject
) -> None:
    folder = tmp_path_factory.getbasetemp() / type(details).__name__
    write_manifest(create_artifact(folder, details))
    document = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    (folder / MANIFEST).write_text(json.dumps(mutate(document, data)), encoding="utf-8")
    try:
        artifact = read_artifact(folder)
    except ArtifactError as error:
        said = str(error)
    else:
        use(artifact)
        write_manifest(artifact)
        assert read_artifact(folder) == artifact
        return
    assert str(folder) in said
    assert "\n" not in said


@pytest.mark.parametrize(("format_", "details"), [("torch", EVERY[0]), ("onnx", EVERY[1])])
@settings(max_examples=80, deadline=None)
@given(data=st.data())
def test_mutated_header_is_read_whole_or_refused_in_one_line(
    tmp_path_factory: pytest.TempPathFactory, format_: Any, details: Details, data: st.DataObject
) -> None:
    artifact = create_artifact(tmp_path_factory.getbasetemp() / "header", details)
    header = file_header(artifact.model, artifact.preprocess, artifact.class_names, "int8", "MIT")
    document = json.loads(json.dumps({**header, "details": dataclasses.asdict(details), "lineage": []}))
    mutated = json.loads(json.dumps(mutate(document, data)))
    try:
        found = open_header(artifact.main_file, format_, mutated)
    except ArtifactError as error:
        said = str(error)
    else:
        use(found)
        return
    assert f"{artifact.main_file} has a damaged header: " in said
    assert "\n" not in said


@pytest.mark.parametrize("text", ["[" * 100_000, '{"schema": 2, "details": ' + "[" * 100_000, "9" * 5000])
def test_document_that_no_parser_survives_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / MANIFEST).write_text(text)
    with pytest.raises(ArtifactError, match=r"manifest\.json cannot be read"):
        read_artifact(tmp_path)
