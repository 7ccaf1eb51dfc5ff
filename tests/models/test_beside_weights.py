"""What lies beside weights in a file: settings of every kind are read as plain values, and nothing in it is run."""

from __future__ import annotations

import collections
import dataclasses
import enum
import functools
import json
import subprocess
import sys
import types
from collections.abc import Iterator
from functools import cache
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from convnext_deploy.artifacts.spec import ModelSpec
from convnext_deploy.errors import CheckpointError
from convnext_deploy.models.checkpoints.beside_weights import read_properties
from convnext_deploy.pipeline.open_artifact import open_input
from tests.models.bad_files import Executes
from tests.models.conftest import random_state

NAMES = ["owl", "cat", "dog"]


@dataclasses.dataclass
class Settings:
    img_size: int = 64


class Colour(enum.Enum):
    GREY = 1


@cache
def native() -> dict[str, Tensor]:
    return random_state(ModelSpec("test_convnext", 3))


def save(folder: Path, **content: Any) -> Path:
    torch.save(content, folder / "best.ckpt")
    return folder / "best.ckpt"


@pytest.fixture
def omegaconf() -> Iterator[types.ModuleType]:
    """A package with the classes of OmegaConf, as these are pickled: attributes, with the parent among them."""
    module = types.ModuleType("omegaconf")
    for name in ("DictConfig", "ListConfig", "AnyNode"):
        setattr(module, name, type(name, (), {"__module__": "omegaconf"}))
    sys.modules["omegaconf"] = module
    yield module
    del sys.modules["omegaconf"]


def as_omegaconf(module: types.ModuleType, value: Any, parent: Any = None) -> Any:
    kind = "DictConfig" if isinstance(value, dict) else "ListConfig" if isinstance(value, list) else "AnyNode"
    made = getattr(module, kind)()
    made._parent = parent
    if kind == "DictConfig":
        made._content = {name: as_omegaconf(module, item, made) for name, item in value.items()}
    elif kind == "ListConfig":
        made._content = [as_omegaconf(module, item, made) for item in value]
    else:
        made._val = value
    return made


def test_tables_of_omegaconf_are_read_without_it(omegaconf: types.ModuleType, tmp_path: Path) -> None:
    told = {"data": {"img_size": 64, "mean": [0.1, 0.2, 0.3], "std": [0.4] * 3, "dir": "${root}"}, "classes": NAMES}
    path = save(tmp_path, state_dict=native(), hyper_parameters=as_omegaconf(omegaconf, told))
    del omegaconf.DictConfig  # it cannot be imported any more
    artifact = open_input(path)
    assert (artifact.preprocess.image_size, artifact.preprocess.mean) == (64, (0.1, 0.2, 0.3))
    assert artifact.class_names == tuple(NAMES)
    assert any("beside the weights are objects of omegaconf: paths, attributes" in note for note in artifact.notes)


def test_class_map_at_a_path_and_attributes_are_read(tmp_path: Path) -> None:
    (tmp_path / "map.txt").write_text("\n".join(NAMES), encoding="utf-8")
    told = {"class_map": PurePosixPath("/data") / "map.txt", "settings": Settings(), "colour": Colour.GREY}
    artifact = open_input(
        save(tmp_path, state_dict=native(), args=told, loss=np.float64(0.1), step=functools.partial(torch.nn.GELU))
    )
    assert (artifact.class_names, artifact.preprocess.image_size) == (tuple(NAMES), 64)


def test_members_of_enumerations_are_read_however_python_writes_them(tmp_path: Path) -> None:
    member = Executes(getattr, Colour, "GREY")  # as Python 3.11 did before 3.11.4
    path = save(tmp_path, state_dict=native(), hyper_parameters={"image_size": 64, "colour": member})
    assert open_input(path).preprocess.image_size == 64


@pytest.mark.parametrize(
    "content",
    [
        {"hyper_parameters": {"x": Executes(subprocess.call, ["true"])}},
        {"hyper_parameters": {"x": Executes(getattr, Path, "touch")}},
        {"hyper_parameters": Executes(eval, "1")},
    ],
    ids=["subprocess", "getattr", "eval"],
)
def test_what_may_be_more_than_a_value_is_refused(content: dict[str, Any], tmp_path: Path) -> None:
    path = save(tmp_path, state_dict=native(), **content)
    with pytest.raises(
        CheckpointError, match=r"^[^\n]*reading it would execute code \([\w.]+\), which is refused[^\n]*$"
    ):
        open_input(path)


def test_weights_are_tensors_and_nothing_that_stands_in_for_them(tmp_path: Path) -> None:
    path = save(tmp_path, state_dict={**native(), "x": Settings()})
    with pytest.raises(CheckpointError, match="would execute code"):
        open_input(path)


@pytest.mark.parametrize(
    ("content", "origin"),
    [
        ({"config": {"model": {"img_size": 64}, "class_names": NAMES}}, "config"),
        ({"meta": {"CLASSES": tuple(NAMES), "img_size": 64}}, "meta"),
        ({"class_to_idx": {"cat": 1, "dog": 2, "owl": 0}, "image_size": 64, "epoch": 3}, "other entries"),
        ({"hyper_parameters": {"idx_to_class": dict(enumerate(NAMES)), "img_size": 64}}, "hyper_parameters"),
    ],
    ids=["config", "mm", "beside", "numbers"],
)
def test_settings_and_names_are_found_wherever_trainings_keep_them(
    content: dict[str, Any], origin: str, tmp_path: Path
) -> None:
    artifact = open_input(save(tmp_path, state_dict=native(), **content))
    assert (artifact.class_names, artifact.preprocess.image_size) == (tuple(NAMES), 64)
    assert f"best.ckpt: names of the classes from {origin} in the file" in artifact.notes
    assert artifact.preprocess.origins["image_size"] == f"from {origin} in the file"


def test_the_arguments_of_the_script_count_more_than_what_lies_beside(tmp_path: Path) -> None:
    path = save(tmp_path, state_dict=native(), args={"img_size": 64}, config={"img_size": 96}, image_size=128)
    assert open_input(path).preprocess.image_size == 64


def test_names_of_another_number_are_told(tmp_path: Path) -> None:
    artifact = open_input(save(tmp_path, state_dict=native(), hyper_parameters={"class_names": ["a", "b"]}))
    assert artifact.class_names is None
    assert (
        "best.ckpt: class_names of hyper_parameters in the file names 2 classes, and the network has 3: they are not taken"
        in artifact.notes
    )


def test_metadata_of_a_safetensors_file_is_read(tmp_path: Path) -> None:
    save_file(native(), tmp_path / "w.safetensors", {"classes": json.dumps(NAMES), "img_size": "64", "format": "pt"})
    artifact = open_input(tmp_path / "w.safetensors")
    assert (artifact.class_names, artifact.preprocess.image_size) == (tuple(NAMES), 64)


def test_folders_are_numbered_as_torchvision_does_where_lightning_trained(tmp_path: Path) -> None:
    renamed = collections.OrderedDict((f"model.{name}", tensor) for name, tensor in native().items())
    own = open_input(save(tmp_path, state_dict=renamed, **{"pytorch-lightning_version": "2.5"}))
    assert own.class_order is None  # that of their characters


def test_texts_are_read_as_json_or_literals_and_never_run() -> None:
    code = "__import__('os').getpid()"
    texts = {"a": "{0: 'x', 1: 'y'}", "b": '{"m": [1, 2.5]}', "c": code, "d": "[" * 100_000, "e": "[64, 64]"}
    found = read_properties(texts)
    assert found == {"a": {"0": "x", "1": "y"}, "b": {"m": [1, 2.5]}, "c": code, "d": texts["d"], "e": [64, 64]}
