"""Networks in what training scripts wrap around them, and with the heads that people give them, answer as where they come from."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import ConvNextConfig, ConvNextForImageClassification, DINOv3ConvNextConfig, DINOv3ConvNextModel

from convnext_deploy.api.convert import convert
from convnext_deploy.artifacts.spec import ModelSpec
from convnext_deploy.models.checkpoints.load_network import load_network
from convnext_deploy.models.checkpoints.state_dict import load_checkpoint, load_into
from convnext_deploy.models.variants import build_model
from convnext_deploy.pipeline.open_artifact import open_input
from tests.models.conftest import assert_equal_states, random_weights, refusal
from tests.models.wrappers import WRAPPERS, State, other, under

CLASSES = 7
IMAGES = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))


def timm_network(**options: Any) -> nn.Module:
    return filled(timm.create_model("test_convnext2", **{"num_classes": CLASSES, **options}))


def transformers_network() -> nn.Module:
    config = ConvNextConfig(depths=[2, 2, 6, 2], hidden_sizes=[40, 80, 160, 320], image_size=64)
    config.num_labels = CLASSES
    return filled(ConvNextForImageClassification(config))


def filled(network: nn.Module, seed: int = 0) -> nn.Module:
    network.load_state_dict(random_weights(network.state_dict(), seed))
    return network.eval()


def answers(network: Any) -> Tensor:
    with torch.no_grad():
        found = network(IMAGES)
    if isinstance(found, Tensor):
        return found
    answer: Tensor = (
        found.logits if "logits" in found else found.pooler_output
    )  # of transformers; without head its features
    return answer


BASES: dict[str, Callable[[], nn.Module]] = {"timm": timm_network, "transformers": transformers_network}


@pytest.fixture(scope="module", params=["timm", pytest.param("transformers", marks=pytest.mark.heavy)])
def base(request: pytest.FixtureRequest) -> tuple[nn.Module, Tensor]:
    network = BASES[request.param]()
    return network, answers(network)


@pytest.mark.parametrize("wrap", WRAPPERS.values(), ids=WRAPPERS)
def test_wrapped_networks_give_their_logits(
    wrap: Callable[[State], Any], base: tuple[nn.Module, Tensor], tmp_path: Path
) -> None:
    network, expected = base
    torch.save(wrap(dict(network.state_dict())), tmp_path / "w.pth")
    found = answers(load_network(open_input(tmp_path / "w.pth")))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_forty_wrappers_are_read() -> None:
    assert len(WRAPPERS) >= 40


@pytest.mark.parametrize("library", ["timm", "torchvision"])
def test_sequential_of_the_parts_of_a_network_is_read(library: str, tmp_path: Path) -> None:
    network = timm_network() if library == "timm" else filled(torchvision_network())
    parts = nn.Sequential(*network.children())
    torch.save({"state_dict": under("net.", parts.state_dict())}, tmp_path / "w.pth")
    torch.testing.assert_close(
        answers(load_network(open_input(tmp_path / "w.pth"))), answers(network), rtol=1e-5, atol=1e-5
    )


def test_a_head_without_bias_is_read_and_half_a_head_is_not(tmp_path: Path) -> None:
    network = timm_network()
    state = dict(network.state_dict())
    del state["head.fc.bias"]
    torch.save(state, tmp_path / "w.pth")
    artifact = open_input(tmp_path / "w.pth")
    expected = answers(network) - network.state_dict()["head.fc.bias"]
    torch.testing.assert_close(answers(load_network(artifact)), expected, rtol=1e-5, atol=1e-5)
    assert "the head has no bias, read as zeros" in " ".join(artifact.notes)
    torch.save(
        {"head.fc.bias": torch.zeros(CLASSES), **{k: v for k, v in state.items() if "head.fc" not in k}},
        tmp_path / "w.pth",
    )
    assert "it has 'head.bias' and no 'head.weight'" in refusal(lambda: open_input(tmp_path / "w.pth"))


def test_counters_in_every_module_are_named_and_left_out(tmp_path: Path) -> None:
    network = filled(Backbone(nn.Linear(128, CLASSES)))
    state = network.state_dict()
    torch.save(WRAPPERS["counts of thop"](dict(state)), tmp_path / "w.pth")
    artifact = open_input(tmp_path / "w.pth")
    (said,) = [note for note in artifact.notes if "left out" in note]
    assert re.search(r"total_(ops|params).* and \d+ more, which are no part of the network", said)
    torch.testing.assert_close(answers(load_network(artifact)), answers(network), rtol=1e-5, atol=1e-5)


def test_what_was_taken_and_left_is_said(tmp_path: Path) -> None:
    state = timm_network().state_dict()
    content = {**under("student.", state), **under("teacher.", other(state)), "criterion.weight": torch.ones(3)}
    torch.save({"state_dict": content}, tmp_path / "w.pth")
    notes = open_input(tmp_path / "w.pth").notes
    assert (
        "w.pth: took the weights under 'state_dict.student', and not state_dict.teacher (convert --entry NAME writes one of these)"
        in notes
    )
    assert "w.pth: left out criterion.weight, which are no part of the network" in notes
    torch.save(under("module.", state), tmp_path / "w.pth")
    assert not [note for note in open_input(tmp_path / "w.pth").notes if "left out" in note]


def test_backbone_that_was_cut_is_refused_by_its_missing_name(tmp_path: Path) -> None:
    state = {key: value for key, value in timm_network(num_classes=0).state_dict().items() if "stages.3" not in key}
    torch.save(under("backbone.", state), tmp_path / "w.pth")
    assert "it has no 'stages.3.0.dwconv.weight'" in refusal(lambda: open_input(tmp_path / "w.pth"))


def test_convert_writes_the_network_that_is_named(tmp_path: Path) -> None:
    state = timm_network().state_dict()
    content = {
        "model": {**under("student.", state), **under("teacher.", other(state)), **under("ema.", other(other(state)))}
    }
    torch.save(content, tmp_path / "w.pth")
    for entry, expected in (("student", state), ("model.teacher", other(state)), (None, other(other(state)))):
        convert(tmp_path / "w.pth", "timm", tmp_path / "out", entry=entry)
        assert_equal_states(load_file(tmp_path / "out" / "model.safetensors"), expected)
    torch.save(
        {"net": state, "ema": {"net": other(state)}}, tmp_path / "two.pth"
    )  # the whole name of one is the end of another's
    convert(tmp_path / "two.pth", "timm", tmp_path / "out", entry="net")
    assert_equal_states(load_file(tmp_path / "out" / "model.safetensors"), state)
    message = refusal(lambda: convert(tmp_path / "w.pth", "timm", tmp_path / "out", entry="teacher2"))
    assert "has no network 'teacher2'; it has: model.ema, model.student, model.teacher" in message


def test_one_logit_is_read_as_two_classes(tmp_path: Path) -> None:
    network = timm_network(num_classes=1)
    torch.save({"model": network.state_dict()}, tmp_path / "w.pth")
    artifact = open_input(tmp_path / "w.pth")
    assert artifact.model.num_classes == 2
    assert (
        "w.pth: its one logit is taken for that of the second of two classes; the first has a logit of 0"
        in artifact.notes
    )
    found = answers(load_network(artifact)).softmax(1)[:, 1:]
    torch.testing.assert_close(found, answers(network).sigmoid(), rtol=1e-5, atol=1e-5)


def test_many_classes_and_four_channels_are_read(tmp_path: Path) -> None:
    network = timm_network(num_classes=21841, in_chans=4)
    torch.save(network.state_dict(), tmp_path / "w.pth")
    artifact = open_input(tmp_path / "w.pth")
    assert (artifact.model.num_classes, artifact.model.in_channels) == (21841, 4)
    images = torch.cat([IMAGES, IMAGES[:, :1]], 1)
    with torch.no_grad():
        torch.testing.assert_close(load_network(artifact)(images), network(images), rtol=1e-4, atol=1e-4)


def with_head(network: Any, head: nn.Module) -> nn.Module:
    network.head.fc = head
    return filled(network)


def with_classifier(network: Any, *head: nn.Module) -> nn.Module:
    network.classifier = head[0] if len(head) == 1 else nn.Sequential(*head)
    return filled(network)


class Backbone(nn.Module):
    """A network of features and a head of one's own beside it, as people write them."""

    def __init__(self, head: nn.Module) -> None:
        super().__init__()
        self.backbone = timm.create_model("test_convnext2", num_classes=0)
        self.classifier = head

    def forward(self, images: Tensor) -> Tensor:
        return self.classifier(self.backbone(images))  # type: ignore[no-any-return]  # modules return Any


def hidden(width: int, *, dropout: bool = True) -> nn.Sequential:
    """The head of many tutorials."""
    layers = [nn.Dropout(0.3), nn.Linear(width, 12), nn.ReLU(), nn.Dropout(0.25), nn.Linear(12, CLASSES)]
    return nn.Sequential(*(layer for layer in layers if dropout or not isinstance(layer, nn.Dropout)))


def torchvision_network() -> Any:
    from torchvision.models.convnext import CNBlockConfig, ConvNeXt

    # the widths and depths of zepto or atto as torchvision would have them
    sizes = [(40, 80, 2), (80, 160, 2), (160, 320, 6), (320, None, 2)]
    return ConvNeXt([CNBlockConfig(*size) for size in sizes], num_classes=CLASSES)


HEADS: dict[str, Callable[[], nn.Module]] = {
    "timm, dropout": lambda: with_head(timm_network(), nn.Sequential(nn.Dropout(0.5), nn.Linear(128, CLASSES))),
    "timm, hidden layer": lambda: with_head(timm_network(), hidden(128)),
    "timm, hidden layer without dropout": lambda: with_head(timm_network(), hidden(128, dropout=False)),
    "timm, norm": lambda: with_head(timm_network(), nn.Sequential(nn.LayerNorm(128), nn.Linear(128, CLASSES))),
    "torchvision, dropout": lambda: with_classifier(
        (net := torchvision_network()), *list(net.classifier)[:2], nn.Dropout(0.2), nn.Linear(320, CLASSES)
    ),
    "torchvision, dropout within": lambda: with_classifier(
        (net := torchvision_network()),
        *list(net.classifier)[:2],
        nn.Sequential(nn.Dropout(0.2), nn.Linear(320, CLASSES)),
    ),
    "torchvision, hidden layer": lambda: with_classifier(
        (net := torchvision_network()), *list(net.classifier)[:2], *hidden(320)
    ),
    "torchvision, hidden layer within": lambda: with_classifier(
        (net := torchvision_network()), *list(net.classifier)[:2], hidden(320)
    ),
    "transformers, dropout": lambda: with_classifier(transformers_network(), nn.Dropout(0.1), nn.Linear(320, CLASSES)),
    "transformers, hidden layer": lambda: with_classifier(transformers_network(), hidden(320)),
    "beside, Linear": lambda: filled(Backbone(nn.Linear(128, CLASSES))),
    "beside, dropout": lambda: filled(Backbone(nn.Sequential(nn.Dropout(0.5), nn.Linear(128, CLASSES)))),
    "beside, hidden layer": lambda: filled(Backbone(hidden(128))),
    "beside, norm": lambda: filled(Backbone(nn.Sequential(nn.LayerNorm(128), nn.Linear(128, CLASSES)))),
}


@pytest.mark.parametrize("make", HEADS.values(), ids=HEADS)
def test_heads_of_other_forms_give_their_logits(make: Callable[[], nn.Module], tmp_path: Path) -> None:
    network = make()
    torch.save({"model": network.state_dict()}, tmp_path / "w.pth")
    artifact = open_input(tmp_path / "w.pth")
    assert artifact.model.num_classes == CLASSES
    torch.testing.assert_close(answers(load_network(artifact)), answers(network), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("head", "said"),
    [
        (hidden(128), "activation is taken to be ReLU, which the file does not tell"),
        (nn.Sequential(nn.LayerNorm(128), nn.Linear(128, CLASSES)), "eps is taken to be 1e-5"),
    ],
)
def test_what_is_assumed_of_a_head_is_said(head: nn.Module, said: str, tmp_path: Path) -> None:
    torch.save(with_head(timm_network(), copy.deepcopy(head)).state_dict(), tmp_path / "w.pth")
    assert said in " ".join(open_input(tmp_path / "w.pth").notes)


@pytest.mark.parametrize(
    ("head", "named"),
    [
        (
            nn.Sequential(nn.Linear(128, 12), nn.ReLU(), nn.BatchNorm1d(12), nn.Dropout(), nn.Linear(12, CLASSES)),
            "head.fc.2 (BatchNorm)",
        ),
        (nn.Sequential(nn.Linear(128, 12), nn.BatchNorm1d(12), nn.Linear(12, CLASSES)), "head.fc.1 (BatchNorm)"),
        (nn.Sequential(nn.BatchNorm1d(128)), "head.fc.0 (BatchNorm)"),
        (nn.Sequential(nn.Linear(128, 12), nn.Linear(12, CLASSES)), "head.fc.0 (Linear), head.fc.1 (Linear)"),
        (nn.Sequential(nn.Linear(128, 12), nn.ReLU(), nn.Linear(12, 9), nn.ReLU(), nn.Linear(9, CLASSES)), "head.fc.4 (Linear)"),
        (nn.Sequential(nn.PReLU(128), nn.Linear(128, CLASSES)), "head.fc.0 (PReLU or scale)"),
    ],
)  # fmt: skip
def test_heads_of_other_modules_are_refused_by_name(head: nn.Module, named: str, tmp_path: Path) -> None:
    torch.save(with_head(timm_network(), copy.deepcopy(head)).state_dict(), tmp_path / "w.pth")
    assert named in refusal(lambda: open_input(tmp_path / "w.pth"))


def test_safetensors_with_prefixes_and_others_beside(tmp_path: Path) -> None:
    network = timm_network()
    save_file({**under("model.", network.state_dict()), "n_averaged": torch.ones(1)}, tmp_path / "w.safetensors")
    found = answers(load_network(open_input(tmp_path / "w.safetensors")))
    torch.testing.assert_close(found, answers(network), rtol=1e-5, atol=1e-5)


def to_mmpretrain(state: State) -> State:
    """Name the weights of timm's network as mmpretrain does, see its `models/backbones/convnext.py`."""
    from convnext_deploy.models.checkpoints.key_maps import to_native

    named = {}
    for key, value in to_native(state, "timm").items():
        name = key.replace("dwconv", "depthwise_conv").replace("pwconv", "pointwise_conv")
        if name.startswith("head."):
            named[name.replace("head.", "head.fc.")] = value
        else:
            named["backbone." + ("norm3." + name[5:] if name.startswith("norm.") else name)] = value
    return named


def test_mmpretrain_is_read_by_its_names(tmp_path: Path) -> None:
    network = timm_network()
    torch.save({"meta": {"epoch": 3}, "state_dict": to_mmpretrain(network.state_dict())}, tmp_path / "w.pth")
    artifact = open_input(tmp_path / "w.pth")
    assert "w.pth: weights in the names of mmpretrain" in artifact.notes
    torch.testing.assert_close(answers(load_network(artifact)), answers(network), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("form", ["as saved", "as in the library", "with a head", "within a module"])
def test_dinov3_of_transformers_gives_its_features(form: str, tmp_path: Path) -> None:
    config = DINOv3ConvNextConfig(depths=[2, 2, 6, 2], hidden_sizes=[40, 80, 160, 320])
    network = filled(DINOv3ConvNextModel(config))
    head = filled(nn.Linear(320, CLASSES))
    state = {key.removeprefix("model." if form == "as saved" else ""): v for key, v in network.state_dict().items()}
    if form == "with a head":
        state = {**under("backbone.", state), **under("head.", head.state_dict())}
    elif form == "within a module":
        state = under("net.", state)
    save_file(state, tmp_path / "model.safetensors")
    artifact = open_input(tmp_path / "model.safetensors")
    assert artifact.model.num_classes == (CLASSES if form == "with a head" else 0)
    full = load_checkpoint(tmp_path / "model.safetensors").state
    ours = build_model(ModelSpec(artifact.model.variant, CLASSES))
    load_into(ours, {**full, **under("head.", head.state_dict())}, "w")
    with torch.no_grad():
        expected = head(network(IMAGES).pooler_output)
    torch.testing.assert_close(answers(ours.eval()), expected, rtol=1e-5, atol=1e-5)


def write_shards(folder: Path, state: State, parts: int, suffix: str) -> Path:
    """Write the weights among several files with an index, as transformers does."""
    keys = sorted(state)
    stem = "model" if suffix == ".safetensors" else "pytorch_model"
    places: dict[str, str] = {}
    for part in range(parts):
        name = f"{stem}-{part + 1:05}-of-{parts:05}{suffix}"
        held = {key: state[key].contiguous() for key in keys[part::parts]}
        save_file(held, folder / name) if suffix == ".safetensors" else torch.save(held, folder / name)
        places |= dict.fromkeys(held, name)
    index = folder / f"{stem}{suffix}.index.json"
    index.write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": places}))
    return index


def test_files_of_several_saves_are_not_mixed(tmp_path: Path) -> None:
    """A weight is read from the file that the index names, and a file with all but the head is no feature extractor."""
    network = timm_network()
    state, name = network.state_dict(), "model-00001-of-00002.safetensors"
    index = write_shards(tmp_path, state, 2, ".safetensors")
    first, second = (load_file(file) for file in sorted(tmp_path.glob("*.safetensors")))
    key = next(iter(first))
    save_file({**second, key: first[key] + 1}, tmp_path / "model-00002-of-00002.safetensors")
    torch.testing.assert_close(answers(load_network(open_input(index))), answers(network), rtol=1e-5, atol=1e-5)
    places = json.loads(index.read_text())["weight_map"]
    for wrong, said in (
        ({**places, "x": name}, f"{name} lacks 'x', which model.safetensors.index.json says is in it"),
        ({k: v for k, v in places.items() if k != key}, f"has '{key}', as another file has, and"),
    ):
        index.write_text(json.dumps({"weight_map": wrong}))
        assert said in refusal(lambda: open_input(index))
    save_file({k: v for k, v in state.items() if "head.fc" not in k}, tmp_path / name)
    assert "is one of the files of a network; give their index" in refusal(lambda: open_input(tmp_path / name))


@pytest.mark.parametrize("suffix", [".safetensors", ".bin"])
def test_weights_in_several_files_are_one_network(suffix: str, tmp_path: Path) -> None:
    network = transformers_network()
    index = write_shards(tmp_path, network.state_dict(), 3, suffix)
    for place in (index, tmp_path):
        artifact = open_input(place)
        assert len(artifact.files) == 4
        torch.testing.assert_close(answers(load_network(artifact)), answers(network), rtol=1e-5, atol=1e-5)
    shard = next(tmp_path.glob(f"*-00002-of-*{suffix}"))
    assert "is one of the files of a network; give their index" in refusal(lambda: open_input(shard))
    shard.unlink()
    assert f"names {shard.name}, which is not there" in refusal(lambda: open_input(index))
    index.write_text(json.dumps({"weight_map": {"a": "../w.bin"}}))
    assert "names '../w.bin'; expected the name of a file beside it" in refusal(lambda: open_input(index))
    for name in ("", "..", "/etc/passwd", index.name):
        index.write_text(json.dumps({"weight_map": {"a": name}}))
        assert f"names '{name}'; expected the name of a file beside it" in refusal(lambda: open_input(index))
    index.write_text("[1]")
    assert "is not an index of files of weights" in refusal(lambda: open_input(index))
