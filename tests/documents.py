"""Every reader of documents, with a document that it takes, and mutations of that: for tests, and for `benchmarks/faults.py`.

`READERS` are all readers of what this package and its users write. `mutations(document, seed)` yields damaged documents without
end, the same ones for the same seed; `mutate_all(folder, count, seed)` feeds `count` of them to the readers, and returns what went
wrong. A reader may take a document, or refuse it by one of our own errors, in one line; nothing else.
"""

from __future__ import annotations

import copy
import itertools
import json
import os
import random
import signal
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from convnext_deploy.artifacts.artifact import MANIFEST, read_artifact, write_manifest
from convnext_deploy.artifacts.hashes import SUMS, check_bare_file
from convnext_deploy.artifacts.spec import ModelSpec, default_preprocess, file_header
from convnext_deploy.bundles.device import verify
from convnext_deploy.config.recipe_toml import load_recipe
from convnext_deploy.data.class_names import read_class_names
from convnext_deploy.data.split_lists import read_split_lists
from convnext_deploy.errors import DeployError
from convnext_deploy.evaluation.measure import Measurement, read_kept, write_kept
from convnext_deploy.evaluation.score import Score
from convnext_deploy.graphs.onnx_io import METADATA_KEY, parse_metadata
from convnext_deploy.models.checkpoints.hub_config import read_hub_config
from convnext_deploy.models.checkpoints.told_settings import read_told_settings
from convnext_deploy.models.checkpoints.weight_index import read_index
from convnext_deploy.pipeline.open_checkpoint import open_checkpoint
from convnext_deploy.reports.comparison import Run, compare_runs
from convnext_deploy.reports.markdown import render_markdown
from convnext_deploy.reports.record import REPORT_JSON, read_report
from convnext_deploy.training.checkpoint_store import LAST, TrainingStore
from tests.artifacts.test_artifact import EVERY, create_artifact
from tests.reports.conftest import BASELINE_ROW, ENGINE_ROW, INT8_ROW, create_report

SPEC = ModelSpec("convnextv2_atto", 3)
SECONDS = 20  # that a reader may take for one document, on a machine that does other work
_ERRORS = (DeployError, verify.BundleError)
_FILES = ("onnx/small.onnx", "golden/pixels.npy", "golden/small.0.npy")
_CLASSES = ["cat", "dog", "owl"]


@dataclass(frozen=True)
class Reader:
    """A reader, `read`, of the document `file` in a folder, which `write` writes with whatever else lies there."""

    name: str
    file: str
    write: Callable[[Path], object]
    read: Callable[[Path], object]


def _text(name: str, text: str) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_text(text, encoding="utf-8")


def _json(name: str, value: object) -> Callable[[Path], object]:
    return _text(name, json.dumps(value))


def _write_manifest(folder: Path, kind: int) -> None:
    write_manifest(create_artifact(folder, EVERY[kind]))


def _read_report(folder: Path) -> None:
    report = read_report(folder)
    render_markdown(report)
    assert compare_runs((Run("a", folder, report),)).to_json()


def _write_score(folder: Path) -> None:
    write_kept(
        folder / "score.json", "key", Measurement(Score(2, 2, (0, 1), (0, 1), (0.5, 0.75)), None, "torch", "cpu")
    )


def _read_header(folder: Path) -> None:
    text = (folder / "header.json").read_bytes().decode("utf-8", "replace")
    weights = folder / "model.safetensors"
    save_file({"head.weight": torch.zeros(3, 8)}, weights, metadata={METADATA_KEY: text})
    open_checkpoint(weights)


def _read_metadata(folder: Path) -> None:
    parse_metadata({METADATA_KEY: (folder / "metadata.json").read_bytes().decode("utf-8", "replace")})


def _read_told(folder: Path) -> None:
    read_told_settings({}, folder / "model.pth", SPEC)


def _write_bundle(folder: Path) -> None:
    (folder / verify.RECORD).write_text(json.dumps(BUNDLE), encoding="utf-8")
    for name in _FILES:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(b"content")


def _verify_bundle(folder: Path) -> None:
    lines = [f"{verify.hash_file(folder / name)}  {name}\n" for name in _FILES]
    if is_small_file(folder / verify.RECORD):
        lines.append(f"{verify.hash_file(folder / verify.RECORD)}  {verify.RECORD}\n")
    (folder / verify.SUMS).write_text("".join(lines), encoding="utf-8")
    verify.verify(folder)


def is_small_file(path: Path) -> bool:
    """Whether a file can be hashed in no time; a pipe would wait for ever."""
    return path.is_file() and path.stat().st_size < 1 << 20


def _write_index(folder: Path) -> None:
    (folder / "weights.bin").write_bytes(b"weights")
    (folder / "i.json").write_text(json.dumps({"weight_map": {"head.weight": "weights.bin"}}), encoding="utf-8")


def _write_state(folder: Path) -> None:
    state = {"step": 3, "sums": {"loss": 0.5}, "history": [{"epoch": 1.0}], "model": {"a": torch.zeros(3)}}
    TrainingStore(folder, "key").save(state)


BUNDLE: dict[str, Any] = {
    "schema": verify.SCHEMA,
    "name": "small",
    "tool": "convnext_deploy 0",
    "model": {"variant": "unknown"},
    "class_names": _CLASSES,
    "license": None,
    "preprocess": default_preprocess(32).settings() | {"resize_size": 36},
    "golden": {"pixels": "golden/pixels.npy", "images": 5, "origin": "random"},
    "models": [
        {
            "name": "small",
            "file": "onnx/small.onnx",
            "precision": "fp32",
            "input": {
                "name": "images",
                "dtype": "float32",
                "shape": [None, 3, 32, 32],
                "layout": "nchw",
                "white": None,
            },
            "outputs": [{"name": "logits", "dtype": "float32", "shape": [None, 3], "golden": "golden/small.0.npy"}],
            "tolerance": {"onnx": 1e-3, "engine": 1e-2},
            "batch": {"frozen": None, "optimal": 1, "maximum": 8},
            "buildable": True,
            "triton": "small",
            "measured": None,
            "history": [],
        }
    ],
    "engines": [],
}
RECIPE = """name = "small"
data = "digits"
seed = 3
[[stages]]
kind = "train"
name = "net"
gate = { min_top1 = 0.5 }
[stages.model]
name = "atto"
image_size = 32
mean = [0.5, 0.5, 0.5]
std = [0.25, 0.25, 0.25]
[stages.fit]
epochs = 3
batch_size = 32
base_learning_rate = 0.001
autocast = "off"
[[stages]]
kind = "ptq"
sites = { head = "float" }
[[stages]]
kind = "tensorrt"
source = "net"
gpus = ["sm86"]
"""
TIMM_CONFIG = {
    "architecture": "convnextv2_atto",
    "num_classes": 3,
    "label_names": _CLASSES,
    "model_args": {"norm_eps": 1e-6, "act_layer": "gelu"},
    "pretrained_cfg": {"input_size": [3, 288, 288], "crop_pct": 0.95, "mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]},
}
TRANSFORMERS_CONFIG = {
    "model_type": "convnextv2",
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-12,
    "id2label": {"0": "cat", "1": "dog", "2": "owl"},
    "image_size": 224,
}
TOLD = {
    "model": "convnextv2_atto",
    "num_classes": 3,
    "img_size": 224,
    "mean": [0.5, 0.4, 0.3],
    "args": {"crop_pct": 0.9},
}
SPLIT = {"train": ["cat/1.jpg", "dog/1.jpg"], "val": ["cat/2.jpg"], "test": ["dog/2.jpg"]}
_HEADER = file_header(SPEC, default_preprocess(32), tuple(_CLASSES), "fp32", "MIT")


def _hub(folder: Path) -> None:
    read_hub_config(folder, SPEC)


READERS: tuple[Reader, ...] = (
    *(
        Reader(f"manifest of {type(details).__name__}", MANIFEST, partial(_write_manifest, kind=kind), read_artifact)
        for kind, details in enumerate(EVERY)
    ),
    Reader(
        "report",
        REPORT_JSON,
        _text(REPORT_JSON, create_report(BASELINE_ROW, INT8_ROW, ENGINE_ROW).to_json()),
        _read_report,
    ),
    Reader("score", "score.json", _write_score, lambda folder: read_kept(Measurement, folder / "score.json", "key")),
    Reader("recipe", "r.toml", _text("r.toml", RECIPE), lambda folder: load_recipe(folder / "r.toml")),
    Reader("classes", "c.json", _json("c.json", _CLASSES), lambda folder: read_class_names(folder / "c.json")),
    Reader(
        "classes by number",
        "c.json",
        _json("c.json", {"id2label": {"0": "cat", "1": "dog"}}),
        lambda folder: read_class_names(folder / "c.json"),
    ),
    Reader(
        "classes, a line each", "c.txt", _text("c.txt", "cat\ndog\n"), lambda folder: read_class_names(folder / "c.txt")
    ),
    Reader("split", "s.json", _json("s.json", SPLIT), lambda folder: read_split_lists(folder / "s.json")),
    Reader(
        "split, a line each", "s.txt", _text("s.txt", "a/1.jpg\n"), lambda folder: read_split_lists(folder / "s.txt")
    ),
    Reader("config of timm", "config.json", _json("config.json", TIMM_CONFIG), _hub),
    Reader("config of transformers", "config.json", _json("config.json", TRANSFORMERS_CONFIG), _hub),
    Reader("args.yaml", "args.yaml", _json("args.yaml", TOLD), _read_told),
    Reader("header of weights", "header.json", _json("header.json", _HEADER), _read_header),
    Reader("metadata of ONNX", "metadata.json", _json("metadata.json", _HEADER), _read_metadata),
    Reader("index of weights", "i.json", _write_index, lambda folder: read_index(folder / "i.json")),
    Reader("index of a bundle", verify.RECORD, _write_bundle, _verify_bundle),
    Reader(
        "list of checksums", SUMS, _text(SUMS, f"{'0' * 64}  other\n"), lambda folder: check_bare_file(folder / "x")
    ),
    Reader("training state", LAST, _write_state, lambda folder: TrainingStore(folder, "key").load()),
)

HUGE = "9" * 5000
_MARK = "a place for what json.dumps cannot write"
_VALUES: tuple[object, ...] = (
    None, True, 0, -1, 1.5, 10**18, -(10**18), 2**63, 10**400, float("nan"), float("inf"), -float("inf"), 1e-320, "", "x",
    "a\0b", "\ud800", "\x1b[2J", "\u202e", "line\nline", "../x", "/etc/passwd", "..\\x", "C:\\x", "x" * 100_000, [], {},
    [None], {"": None}, [[[]]], ["x"] * 1000, _MARK,
)  # fmt: skip
_BOMBS = (
    "[" * 100_000,
    '{"a":' * 50_000,
    "[" * 900 + "]" * 900,
    '{"a":' * 200 + "1" + "}" * 200,
    HUGE,
    "-" + HUGE,
    "1e999",
)


def mutations(document: bytes, seed: int) -> Iterator[bytes]:
    """Yield damaged forms of a document, in JSON or any other form, without end: the same ones for the same seed."""
    chance = random.Random(seed)
    try:
        table = json.loads(document)
    except ValueError:
        table = None
    while True:
        is_structural = table is not None and chance.random() < 0.7
        yield _of_values(table, chance) if is_structural else _of_bytes(document, chance)


def _of_values(table: Any, chance: random.Random) -> bytes:
    changed = json.loads(json.dumps(table))
    for _ in range(chance.randint(1, 2)):
        _change(changed, chance)
    text = json.dumps(changed, ensure_ascii=chance.random() < 0.5).replace(f'"{_MARK}"', chance.choice(_BOMBS))
    if chance.random() < 0.1 and '": ' in text:  # a key twice: the text from some key on stands twice
        key = chance.choice(text.split('"')[1::2] or [""])
        text = text.replace(f'"{key}": ', f'"{key}": 1, "{key}": ', 1)
    return text.encode("utf-8", "surrogatepass")


def _change(value: Any, chance: random.Random) -> None:
    places = list(_places(value))
    if not places:
        return
    inside, key = chance.choice(places)
    kind = chance.choice(("replace", "replace", "replace", "delete", "rename", "add"))
    if kind == "delete":
        del inside[key]
    elif kind == "replace":
        inside[key] = copy.deepcopy(chance.choice(_VALUES))
    elif isinstance(inside, list):
        inside.append(copy.deepcopy(chance.choice(_VALUES)))
    else:
        name = chance.choice((f"{key}s", "", "checksum", "__class__", "a\0", "x" * 1000, "\n"))
        inside[name] = inside.pop(key) if kind == "rename" else copy.deepcopy(chance.choice(_VALUES))


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield value, key
        yield from _places(inner)


def _of_bytes(document: bytes, chance: random.Random) -> bytes:
    text = document.decode("utf-8", "replace")
    lines, place = document.splitlines(keepends=True) or [b""], chance.randrange(len(document) + 1)
    line = chance.randrange(len(lines))
    numbers = [number for number, each in enumerate(lines) if b"=" in each]
    value = chance.choice(
        (HUGE, "0x" + "f" * 5000, "nan", "-inf", "[" * 5000, '"' + "\\u0000" + '"', "1000000000000000000")
    )
    kind = chance.randrange(12)
    if kind < 4 and numbers:  # another value in a line `key = value`
        line = chance.choice(numbers)
        key = lines[line].split(b"=")[0]
        return b"".join((*lines[:line], key + b"= " + value.encode() + b"\n", *lines[line + 1 :]))
    made: tuple[Callable[[], bytes], ...] = (
        lambda: b"",
        lambda: document[:place],
        lambda: b"\xef\xbb\xbf" + document,
        lambda: text.encode("utf-16"),
        lambda: document[:place] + b"\xff\x00" + document[place:],
        lambda: document[:place] + bytes([chance.randrange(256)]) + document[place + 1 :],
        lambda: b"".join((*lines[:line], lines[line], *lines[line:])),
        lambda: b"".join((*lines[:line], *lines[line + 1 :])),
        lambda: chance.choice(_BOMBS).encode(),
        lambda: document + document,
        lambda: b"\0" * 1000,
        lambda: text.encode("utf-32"),
    )
    return made[kind]()


def complaint(reader: Reader, folder: Path) -> str | None:
    """Read the document in a folder, and return what is wrong with how that ended; None if nothing is."""
    try:
        with _limited(SECONDS):
            reader.read(folder)
    except _ERRORS as error:
        said = str(error)
        if "\n" in said or len(said) > 2000:
            return f"{reader.name}: {len(said)} characters in {said.count(chr(10)) + 1} lines: {said[:200]!r}"
    except BaseException as error:  # what no reader may raise
        return f"{reader.name}: {type(error).__name__}: {str(error)[:200]}"
    return None


def mutate_all(folder: Path, count: int = 300, seed: int = 0) -> list[str]:
    """Feed `count` mutated documents to all readers in turn, and return a line for each that was not read or refused properly.

    Args:
        folder: an empty one, which is filled.
        count: of documents, over all readers.
        seed: of the mutations.
    """
    prepared: list[tuple[Reader, Path, Iterator[bytes]]] = []
    for number, reader in enumerate(READERS):
        place = folder / str(number)
        place.mkdir()
        reader.write(place)
        prepared.append((reader, place, mutations((place / reader.file).read_bytes(), seed + number)))
    found = []
    for reader, place, documents in itertools.islice(itertools.cycle(prepared), count):
        document = next(documents)
        (place / reader.file).write_bytes(document)
        if (said := complaint(reader, place)) is not None:
            found.append(f"{said} of {document[:300]!r}")
    return found


def _pipe(path: Path) -> None:
    os.mkfifo(path)


def _sparse(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(1 << 40)  # a hole, not a terabyte


FILES: Mapping[str, Callable[[Path], object]] = {
    "pipe": _pipe,
    "device": lambda path: path.symlink_to("/dev/zero"),
    "folder": lambda path: path.mkdir(),
    "link to itself": lambda path: path.symlink_to(path),
    "terabyte": _sparse,
}
"""What may lie in the place of a document, and how it is made."""


@contextmanager
def _limited(seconds: int) -> Iterator[None]:
    def stop(*_: object) -> None:
        raise TimeoutError(f"not done after {seconds} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
