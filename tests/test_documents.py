"""Whatever lies in the place of a document, its reader takes it, or refuses it in one line: no traceback, no hang, no memory."""

from __future__ import annotations

import json
import resource
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from convnext_deploy.artifacts.artifact import MANIFEST, read_artifact, write_manifest
from convnext_deploy.documents import leads_out, open_file, parse_json, read_bytes, read_json, read_text, read_toml
from convnext_deploy.errors import ArtifactError, CheckpointError, DeployError
from convnext_deploy.pipeline.open_artifact import open_input
from tests.artifacts.test_artifact import create_artifact
from tests.documents import FILES, READERS, Reader, complaint, mutate_all, mutations

EMBEDDED = ("header.json", "metadata.json")  # which are put into another file


@pytest.fixture(autouse=True)
def little_memory() -> Iterator[None]:
    """Let 8 GiB of addresses be all that may still be asked for: a file without end needs more."""
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (used + (8 << 30), before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)


@pytest.mark.parametrize("reader", READERS, ids=lambda reader: reader.name)
def test_reader_takes_its_document_and_refuses_what_is_no_file(reader: Reader, tmp_path: Path) -> None:
    reader.write(tmp_path)
    reader.read(tmp_path)
    for make in FILES.values() if reader.file not in EMBEDDED else ():
        path = tmp_path / reader.file
        path.unlink() if path.is_symlink() or not path.is_dir() else path.rmdir()
        make(path)
        assert complaint(reader, tmp_path) is None


def test_readers_refuse_mutated_documents_in_one_line(tmp_path: Path) -> None:
    assert mutate_all(tmp_path, count=600, seed=17) == []


@pytest.mark.heavy
def test_readers_refuse_many_mutated_documents_in_one_line(tmp_path: Path) -> None:
    assert mutate_all(tmp_path, count=6000, seed=1) == []


def test_mutations_are_the_same_for_the_same_seed() -> None:
    first, second, other = mutations(b'{"a": 1}', 3), mutations(b'{"a": 1}', 3), mutations(b'{"a": 1}', 4)
    found = [next(first) for _ in range(20)]
    assert found == [next(second) for _ in range(20)]
    assert found != [next(other) for _ in range(20)]


_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=4),
    max_leaves=8,
)


@settings(max_examples=60, deadline=None)
@given(value=_VALUES)
def test_parse_json_returns_what_json_dumps_wrote(value: object) -> None:
    assert json.dumps(parse_json(json.dumps(value))) == json.dumps(value)


@settings(max_examples=100, deadline=None)
@given(content=st.binary(max_size=60) | st.text('[]{}",:01eE-.x \n', max_size=30).map(str.encode))
def test_parse_json_raises_nothing_but_value_errors_of_one_line(content: bytes) -> None:
    said = ""
    try:
        parse_json(content)
    except ValueError as error:
        said = str(error)
    assert "\n" not in said


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "it is empty"),
        ("[" * 100_000, "it is nested more than 64 deep"),
        ("[" * 70 + "]" * 70, "it is nested more than 64 deep"),
        ("9" * 5000, "a number in it has thousands of digits"),
        ('{"a": 1, "b": {"c": 1, "c": 2}}', "the key 'c' stands twice in one table"),
        (b"\xff\xfe{}", r"it is not UTF-8 text \(byte 1\)"),
        ("{'a': 1}", "it is not JSON: Expecting property name"),
    ],
)
def test_parse_json_says_what_is_wrong(text: str | bytes, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        parse_json(text)


def test_text_is_read_with_and_without_the_mark_of_windows(tmp_path: Path) -> None:
    for start in (b"", b"\xef\xbb\xbf"):
        (tmp_path / "a").write_bytes(start + b"[1]")
        assert read_text(tmp_path / "a") == "[1]"
        assert read_json(tmp_path / "a") == [1]
    (tmp_path / "r.toml").write_bytes(b"\xef\xbb\xbfa = 1")
    assert read_toml(tmp_path / "r.toml") == {"a": 1}
    (tmp_path / "r.toml").write_bytes(b'a = "\\u0000"')
    with pytest.raises(ValueError, match=r"a text in it holds '\\x00'"):
        read_toml(tmp_path / "r.toml")


@pytest.mark.parametrize("kind", FILES)
def test_open_file_says_what_it_is_instead(kind: str, tmp_path: Path) -> None:
    FILES[kind](tmp_path / "x")
    words = {"pipe": "it is a pipe", "device": "it is a device", "folder": "it is a folder", "terabyte": "has 1099511"}
    with pytest.raises(OSError, match=words.get(kind, "symbolic links")):
        open_file(tmp_path / "x", 100)


def test_read_bytes_takes_what_the_system_makes_up_and_refuses_what_no_file_is_called(tmp_path: Path) -> None:
    assert read_bytes(Path("/proc/self/status")).startswith(b"Name:")
    for name in ("a\0b", "\ud800", "x" * 300):
        with pytest.raises(OSError, match=r"no file can have this name|too long"):
            read_bytes(tmp_path / name)


@pytest.mark.parametrize("suffix", [".onnx", ".pth", ".safetensors", ".ckpt"])
@pytest.mark.parametrize("kind", ["pipe", "device", "terabyte"])
def test_open_input_refuses_what_is_no_file_of_weights(suffix: str, kind: str, tmp_path: Path) -> None:
    path = tmp_path / f"model{suffix}"
    FILES[kind](path)
    with pytest.raises((ArtifactError, CheckpointError), match=str(path)) as caught:
        open_input(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["", "/etc/passwd", "../a", "a/../../b", "..\\a", "a\0", "link", "folder/a"])
def test_leads_out_knows_names_of_files_elsewhere(name: str, tmp_path: Path) -> None:
    inside = tmp_path / "inside"
    (inside / "own").mkdir(parents=True)
    (tmp_path / "elsewhere").write_text("x")
    (inside / "link").symlink_to(tmp_path / "elsewhere")
    (inside / "folder").symlink_to(tmp_path)
    assert leads_out(inside, name)
    assert not leads_out(inside, "own/a.bin")
    assert not leads_out(inside, "a..b")


def test_read_artifact_refuses_a_file_that_is_a_link_out_of_the_folder(tmp_path: Path) -> None:
    artifact = create_artifact(tmp_path / "a")
    write_manifest(artifact)
    moved = (tmp_path / "a" / "weights.bin").rename(tmp_path / "weights.bin")
    (tmp_path / "a" / "weights.bin").symlink_to(moved)
    with pytest.raises(ArtifactError, match=r"weights\.bin leads out of its folder"):
        read_artifact(tmp_path / "a")
    (tmp_path / "a" / MANIFEST).unlink()
    with pytest.raises(DeployError):
        read_artifact(tmp_path / "a")
