"""Programs of torch.export run operators on tensors and nothing else, whatever the archive asks for."""

from __future__ import annotations

import io
import json
import pickle
import re
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from convnext_deploy.errors import CheckpointError
from convnext_deploy.pipeline.open_foreign import open_teacher_input
from convnext_deploy.training.exported_program import open_program
from tests.stages.foreign_teachers import SIDE, normalized, write_program

MARK = "ran.txt"
MORE = r"^[^\n]*bad\.pt2 asks for more than operators on tensors: [^\n]* to ONNX instead\.$"


class Malicious:
    """A pickle that would write a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.write_text, (self.path, "it ran")


def rewrite(source: Path, target: Path, change: Callable[[str, bytes], bytes | None], **added: bytes) -> Path:
    """Write an archive again with other records; None: without one."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as new:
        top = old.namelist()[0].split("/")[0]
        for name in old.namelist():
            content = change(name.removeprefix(f"{top}/"), old.read(name))
            if content is not None:
                new.writestr(name, content)
        for name, content in added.items():
            new.writestr(f"{top}/{name.replace('__', '/')}", content)
    return target


def in_graph(change: Callable[[Any], None]) -> Callable[[str, bytes], bytes]:
    def apply(name: str, content: bytes) -> bytes:
        if not name.startswith("models/"):
            return content
        graph = json.loads(content)
        change(graph)
        return json.dumps(graph).encode()

    return apply


def _call(target: str) -> Callable[[Any], None]:
    def change(graph: Any) -> None:
        graph["graph_module"]["graph"]["nodes"][0]["target"] = target

    return change


def _size(text: str) -> Callable[[Any], None]:
    def change(graph: Any) -> None:
        graph["graph_module"]["graph"]["tensor_values"]["images"]["sizes"][0]["as_expr"]["expr_str"] = text

    return change


def _name(graph: Any) -> None:
    text = json.dumps(graph).replace('"images"', json.dumps("images=print('it ran')"))
    graph |= json.loads(text)


def _note(graph: Any) -> None:
    graph["graph_module"]["module_call_graph"][0]["signature"]["in_spec"] = '[1, {"__enum__": true, "fqn": "os:x"}]'


GRAPHS = {
    "a function of torch": _call("torch.os.system"),
    "a loader of torch": _call("torch.hub.load"),
    "an operator that is none": _call("torch.ops.aten.__class__.mro"),
    "an operator of a library that is not known": _call("torch.ops.mine.run.default"),
    "Python's own": _call("_operator.methodcaller"),
    "a size that is code": _size("__import__('os').system('true')"),
    "a size with an attribute": _size("Symbol('s0').__class__"),
    "a size that calls": _size("exec('1')"),
    "an enumeration": _note,
    "a name that is code": _name,
}


@pytest.fixture
def program(tmp_path: Path) -> Path:
    return write_program(tmp_path)[0]


@pytest.mark.parametrize("kind", GRAPHS)
def test_a_graph_that_calls_anything_but_operators_is_not_opened(kind: str, program: Path, tmp_path: Path) -> None:
    found = rewrite(program, tmp_path / "bad.pt2", in_graph(GRAPHS[kind]))
    with pytest.raises(CheckpointError, match=MORE):
        open_program(found)


@pytest.mark.parametrize("place", ["weights", "constants", "inputs", "an object", "compiled code"])
def test_pickles_and_code_in_an_archive_are_not_loaded(place: str, program: Path, tmp_path: Path) -> None:
    evil = pickle.dumps(Malicious(tmp_path / MARK))
    saved = io.BytesIO()
    torch.save(Malicious(tmp_path / MARK), saved)
    added: dict[str, bytes] = {}

    def change(name: str, content: bytes) -> bytes:
        entry = {"path_name": "weight_0", "is_param": True, "use_pickle": True, "tensor_meta": None}
        if place == "weights" and name == "data/weights/model_weights_config.json":
            return json.dumps({"config": {"stem.weight": entry}}).encode()
        if place == "weights" and name == "data/weights/weight_0":
            return saved.getvalue()
        if place == "constants" and name.endswith("constants_config.json"):
            return json.dumps({"config": {"c": {**entry, "path_name": "opaque_obj_0"}}}).encode()
        if place == "inputs" and name.startswith("data/sample_inputs/"):
            return saved.getvalue()
        return content

    if place in ("constants", "an object"):
        added[f"data__constants__{'opaque' if place == 'constants' else 'custom'}_obj_0"] = evil
    if place == "compiled code":
        added["data__aotinductor__model__model.so"] = b"\x7fELF"
    found = rewrite(program, tmp_path / "bad.pt2", change, **added)
    with pytest.raises(CheckpointError, match=MORE):
        open_program(found)
    assert not (tmp_path / MARK).exists()


@pytest.mark.parametrize("cut", [0, 100, 5000])
def test_a_damaged_program_is_one_line(cut: int, program: Path, tmp_path: Path) -> None:
    (tmp_path / "cut.pt2").write_bytes(program.read_bytes()[:cut])
    with pytest.raises(CheckpointError, match=r"^[^\n]*cut\.pt2 is not a readable program of torch\.export [^\n]*$"):
        open_program(tmp_path / "cut.pt2")


class Attention(nn.Module):
    """What exports of transformers hold: sizes that are computed, attention, indexing."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.token = nn.Conv2d(3, 8, 8, 8), nn.Parameter(torch.zeros(1, 1, 8))
        self.attention, self.head = nn.MultiheadAttention(8, 2, batch_first=True), nn.Linear(8, 3)

    def forward(self, images: Tensor) -> Tensor:
        tokens = self.stem(images).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.token.expand(tokens.shape[0], -1, -1), tokens], 1)
        with torch.no_grad():
            scale = tokens.std()
        tokens, _ = self.attention(tokens / scale, tokens, tokens, need_weights=False)
        return self.head(tokens[:, 0])  # type: ignore[no-any-return]


def test_a_program_of_many_operators_gives_its_logits(tmp_path: Path) -> None:
    path, reference = write_program(tmp_path, Attention().eval())
    network, shape = open_program(path)
    assert (shape.batch, shape.channels, shape.height, shape.outputs) == (None, 3, SIDE, 3)
    pixels = torch.rand(5, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    images = normalized(pixels, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    with torch.no_grad():
        torch.testing.assert_close(network(images), reference(pixels))


def test_a_program_for_batches_of_one_size_takes_others_in_parts(tmp_path: Path) -> None:
    network = nn.Sequential(nn.Flatten(), nn.Linear(3 * SIDE * SIDE, 4)).eval()
    images = torch.rand(5, 3, SIDE, SIDE)
    torch.export.save(torch.export.export(network, (images[:2],)), tmp_path / "two.pt2")
    found, shape = open_program(tmp_path / "two.pt2")
    assert shape.batch == 2
    with torch.no_grad():
        torch.testing.assert_close(found(images), network(images))


@pytest.mark.parametrize(
    ("network", "example", "message"),
    [
        (nn.Linear(4, 3), torch.zeros(2, 4), "does not map one batch of images"),
        (nn.Sequential(nn.Conv2d(7, 3, 1), nn.Flatten()), torch.zeros(2, 7, 8, 8), "1 or 3 channels"),
    ],
)
def test_a_program_that_takes_no_images_is_refused(
    network: nn.Module, example: Tensor, message: str, tmp_path: Path
) -> None:
    torch.export.save(torch.export.export(network.eval(), (example,)), tmp_path / "other.pt2")
    with pytest.raises(CheckpointError, match=message):
        open_program(tmp_path / "other.pt2")


class Norm(nn.Module):
    """What tells training from evaluation: batch norm, dropout, chance in the code itself, and a buffer that counts."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind, self.stem, self.head = kind, nn.Conv2d(3, 8, 4, 4), nn.Linear(8, 3)
        self.norm = nn.BatchNorm2d(8, track_running_stats=kind != "batch statistics")
        self.calls: Tensor
        self.register_buffer("calls", torch.zeros(1))

    def forward(self, images: Tensor) -> Tensor:
        found = self.stem(images)
        if "batch" in self.kind:
            found = self.norm(found)
        if self.kind == "attention":
            tokens = found.flatten(2).transpose(1, 2)
            found = nn.functional.scaled_dot_product_attention(tokens, tokens, tokens, dropout_p=0.5 * self.training)
            found = found.transpose(1, 2)[..., None]
        found = found.mean((2, 3))
        if "dropout" in self.kind:
            found = nn.functional.dropout(found, 0.0 if self.kind == "dropout of nothing" else 0.5, self.training)
        if self.kind == "stochastic depth" and self.training:
            found = found * torch.bernoulli(torch.full((found.shape[0], 1), 0.5))
        if self.kind == "counter":
            self.calls.add_(1.0)
        return self.head(found)  # type: ignore[no-any-return]


TRAINING = {
    "batch norm": r"was exported in training mode \([a-z_]*batch_norm[a-z_]*\)",
    "batch statistics": r"normalizes each image by the others of its batch \([a-z_]+ without running statistics\)",
    "dropout": r"was exported in training mode \([a-z_]*dropout\)",
    "attention": r"was exported in training mode \([a-z_]+\)",
    "stochastic depth": r"draws random numbers \(bernoulli\)",
    "counter": r"was exported in training mode \(it changes the buffer 'calls'\)",
}


def write_norm(kind: str, folder: Path, *, lowered: bool, training: bool) -> Path:
    network = Norm(kind).train(training)
    batch = torch.export.Dim("batch", min=1, max=4096)
    program = torch.export.export(network, (torch.zeros(2, 3, SIDE, SIDE),), dynamic_shapes=({0: batch},))
    torch.export.save(program.run_decompositions() if lowered else program, folder / "train.pt2")
    return folder / "train.pt2"


DECOMPOSED = [("batch norm", True), ("dropout", True)]


@pytest.mark.parametrize(("kind", "lowered"), [*((kind, False) for kind in TRAINING), *DECOMPOSED])
def test_a_program_that_was_exported_in_training_mode_is_refused(kind: str, lowered: bool, tmp_path: Path) -> None:
    path = write_norm(kind, tmp_path, lowered=lowered, training=True)
    with pytest.raises(CheckpointError, match=rf"train\.pt2 {TRAINING[kind]}") as caught:
        open_program(path)
    assert "\n" not in str(caught.value)
    assert str(caught.value).endswith(("call .eval() on the network before torch.export.", "running statistics."))


@pytest.mark.parametrize(
    ("kind", "lowered"), [("batch norm", False), ("dropout", False), ("attention", False), *DECOMPOSED]
)
def test_the_same_networks_in_evaluation_mode_say_the_same_each_time(kind: str, lowered: bool, tmp_path: Path) -> None:
    network, _ = open_program(write_norm(kind, tmp_path, lowered=lowered, training=False))
    images = torch.rand(4, 3, SIDE, SIDE)
    with torch.no_grad():
        torch.testing.assert_close(network(images)[:1], network(images[:1]))


def test_a_dropout_of_nothing_is_no_training(tmp_path: Path) -> None:
    open_program(write_norm("dropout of nothing", tmp_path, lowered=False, training=True))


class Several(nn.Module):
    """Gives several outputs, by their keys or as a tuple."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind, self.stem, self.head = kind, nn.Conv2d(3, 3, 4, 4), nn.Linear(3, 3)

    def forward(self, images: Tensor) -> Any:
        found = torch.relu(self.stem(images))
        pooled = found.mean((2, 3))
        logits = self.head(pooled)
        return {
            "named": {"features": pooled, "logits": logits},
            "map": (found, logits),
            "unnamed": (pooled, logits),
            "other names": {"features": pooled, "scores": logits},
        }[self.kind]


@pytest.mark.parametrize(
    ("kind", "note"),
    [
        ("named", "of its outputs 'features' (N, 3), 'logits' (N, 3) the output 'logits' is taken for the logits"),
        ("map", "of its outputs '0' (N, 3, 8, 8), '1' (N, 3) the output '1' is taken for the logits"),
    ],
)
def test_of_several_outputs_the_logits_are_taken_and_named(kind: str, note: str, tmp_path: Path) -> None:
    path, reference = write_program(tmp_path, Several(kind).eval())
    network, shape = open_program(path)
    assert shape.note == note
    assert any(text == f"{path.name}: {note}" for text in open_teacher_input(path).notes)
    pixels = torch.rand(3, 3, SIDE, SIDE)
    expected: Any = reference(pixels)
    with torch.no_grad():
        found = network(normalized(pixels, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    torch.testing.assert_close(found, expected["logits"] if kind == "named" else expected[1])


@pytest.mark.parametrize(("kind", "names"), [("unnamed", ("0", "1")), ("other names", ("features", "scores"))])
def test_of_several_outputs_without_the_name_none_is_guessed(kind: str, names: tuple[str, str], tmp_path: Path) -> None:
    path, _ = write_program(tmp_path, Several(kind).eval())
    listed = ", ".join(f"'{name}' (N, 3)" for name in names)
    with pytest.raises(CheckpointError, match=rf"gives 2 outputs, {re.escape(listed)}, and does not tell") as caught:
        open_program(path)
    assert "\n" not in str(caught.value)


@pytest.mark.filterwarnings("ignore:.torch.jit:FutureWarning", "ignore:.torch.jit:DeprecationWarning")
@pytest.mark.parametrize("name", ["script.pt", "script.pt2"])
def test_torchscript_is_called_by_its_name_and_not_run(name: str, tmp_path: Path) -> None:
    torch.jit.save(torch.jit.script(nn.Linear(2, 2)), str(tmp_path / name))
    with pytest.raises(
        CheckpointError, match=r"is a TorchScript program, which is not run because it is code\. .*ONNX\.$"
    ):
        open_teacher_input(tmp_path / name)
