"""A state of a training with an altered bit is not gone on from, and that is said."""

from __future__ import annotations

import math
import random
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from convnext_deploy.artifacts.artifact import describe_file
from convnext_deploy.artifacts.hashes import SUMS, check_recorded
from convnext_deploy.errors import ArtifactError, OutputError
from convnext_deploy.system.progress import SilentProgress
from convnext_deploy.training.checkpoint_store import BEST, LAST, TrainingStore
from convnext_deploy.training.fit import _goes_on
from convnext_deploy.training.training_state import TrainingState


class Said(SilentProgress):
    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, message: str) -> None:
        self.lines.append(message)


def test_state_with_any_bit_altered_is_not_loaded_or_is_the_same(tmp_path: Path) -> None:
    said = Said()
    store = TrainingStore(tmp_path, "key", progress=said)
    assert store.load() is None
    assert said.lines == []  # there is none yet
    weights = torch.arange(2000.0)
    store.save({"step": 3, "model": {"a": weights, "b": weights[:7] + 1}})
    path = tmp_path / LAST
    whole, rng, found = path.read_bytes(), random.Random(0), 0
    weights_at = whole.index(weights.numpy().tobytes()[400:800]) - 400
    places = [
        *range(weights_at, weights_at + 200),
        *rng.sample(range(len(whole)), 200),
        *range(len(whole) - 60, len(whole)),
    ]
    for place in places:
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1 << rng.randrange(8)]) + whole[place + 1 :])
        state = store.load()
        if state is None:
            found += 1
            continue
        assert (state["step"], state["key"]) == (3, "key"), place
        assert torch.equal(state["model"]["a"], weights), place
        assert torch.equal(state["model"]["b"], weights[:7] + 1), place
    assert found >= 200  # all that fell into the weights
    assert set(said.lines) == {f"the state of the training in {path} is damaged; the training begins again"}
    path.write_bytes(whole)
    assert TrainingStore(tmp_path, "another").load() is None
    assert len(said.lines) == found  # another training's state is not damaged


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"step": -1}, "Expected `int` >= 0 - at `$.step`"),
        ({"sums": {"loss": 0.5}}, "missing required field `seconds` - at `$.sums`"),
        ({"model": {"weight": [1.0]}}, "Expected `Tensor`, got `list` - at `$.model[...]`"),
        ({"model": {"weight": torch.zeros(2, 3)}}, "it does not fit the network or its optimizer"),
        ({"optimizer": {"state": {}}}, "it does not fit the network or its optimizer"),
        ({"random": [{"cpu": torch.zeros(3), "cuda": None}]}, "it does not fit the network or its optimizer"),
        ({"history": None}, "Expected `array`, got `null` - at `$.history`"),
    ],
)
def test_state_of_another_shape_is_refused_and_kept(change: dict[str, Any], says: str, tmp_path: Path) -> None:
    """Its checksums hold: another version wrote it, or somebody by hand."""
    network = nn.Linear(3, 2)
    state = TrainingState(network, torch.optim.SGD(network.parameters()), None, torch.amp.GradScaler("cpu"), "cpu")
    store = TrainingStore(tmp_path, "key")
    whole = {**state.snapshot(), "history": [{"epoch": 1, "validation_loss": math.nan}], "step": 4}
    store.save(whole)
    assert _goes_on(state, store)
    assert (state.step, repr(state.history)) == (4, "[{'epoch': 1, 'validation_loss': nan}]")
    store.save({**whole, **change})
    before = (tmp_path / LAST).read_bytes()
    with pytest.raises(OutputError, match="is no state that this training can go on from") as caught:
        _goes_on(state, store)
    assert says in str(caught.value)
    assert (tmp_path / LAST).read_bytes() == before


def test_best_weights_are_those_whose_checksum_lies_beside_them(tmp_path: Path) -> None:
    store, path = TrainingStore(tmp_path, "key"), tmp_path / BEST
    for value in (1.0, 2.0):
        store.save_best({"a": torch.full((3,), value)})
        check_recorded(path, describe_file(path).sha256)
    assert (tmp_path / SUMS).read_text() == f"{describe_file(path).sha256}  {BEST}\n"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(ArtifactError, match=r"is not the file that .*SHA256SUMS describes"):
        check_recorded(path, describe_file(path).sha256)


def test_best_weights_are_named_also_when_the_process_is_killed_between_two_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, path = TrainingStore(tmp_path, "key"), tmp_path / BEST
    store.save_best({"a": torch.zeros(3)})
    replace = Path.replace

    def kill(self: Path, target: Path) -> Path:
        if Path(target).name == BEST:
            shutil.copyfile(self, tmp_path / "left")  # an exception cleans up, as no kill does
            raise KeyboardInterrupt
        return replace(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", kill)
        with pytest.raises(KeyboardInterrupt):
            store.save_best({"a": torch.ones(3)})
    check_recorded(path, describe_file(path).sha256)
    assert not list(tmp_path.glob(".*"))
    (tmp_path / "left").replace(path)
    check_recorded(path, describe_file(path).sha256)
