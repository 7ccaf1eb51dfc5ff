"""The key of a stage: all that its result depends on, and nothing else."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from convnext_deploy.artifacts.artifact import Artifact
from convnext_deploy.artifacts.hashes import hash_file
from convnext_deploy.config.distill import DistillConfig
from convnext_deploy.config.engine import TensorRTConfig
from convnext_deploy.config.fit import FitConfig
from convnext_deploy.config.onnx import ONNXConfig
from convnext_deploy.config.ptq import PTQConfig
from convnext_deploy.config.quantize import QATConfig
from convnext_deploy.config.recipe import Recipe, StageEntry
from convnext_deploy.config.recipe_toml import load_recipe
from convnext_deploy.config.stage import StageConfig
from convnext_deploy.config.stages import STAGE_KINDS, stage_config
from convnext_deploy.config.train import ModelConfig, TrainConfig
from convnext_deploy.data.datasets import Data, open_data
from convnext_deploy.pipeline import ingredients
from convnext_deploy.pipeline.ingredients import Ingredients, differences, ingredients_of, read_ingredients
from convnext_deploy.pipeline.open_artifact import open_input
from convnext_deploy.pipeline.open_foreign import open_references

NEEDED: dict[str, dict[str, Any]] = {
    "train": {"model": ModelConfig("atto")},
    "distill": {"model": ModelConfig("atto"), "teacher": "teacher"},
    "prune": {"macs_share": 0.5},
}


def stage_of(config: StageConfig, source: str | None = "source", name: str = "stage") -> StageEntry:
    return StageEntry(name, config, source)


def leaves(table: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    for name, value in table.items():
        if isinstance(value, Mapping) and value:
            yield from leaves(value, f"{prefix}{name}.")
        else:
            yield prefix + name


@pytest.fixture(scope="module")
def digits() -> Data:
    return open_data("digits")


@pytest.mark.parametrize("kind", STAGE_KINDS)
def test_every_setting_counts_but_names_of_places_and_stages(kind: str, small_artifacts: dict[str, Artifact]) -> None:
    config = stage_config(kind)(**NEEDED.get(kind, {}))
    artifacts = {"source": small_artifacts["ptq"], "teacher": small_artifacts["teacher"]}
    found = ingredients_of(stage_of(config), artifacts, None, 0)
    every = set(leaves(dataclasses.asdict(config)))
    assert set(leaves(found.counted)) == every - set(config.references)
    assert set(config.references) <= every
    assert found.result_version == config.result_version


def test_key_of_a_stage_is_this_one() -> None:
    """Another formula, Python, order of a table or text of a float would begin all work of all users anew."""
    config: dict[str, Any] = {
        "fit": {"rate": 1e-05, "weight": 0.1, "epochs": 300},
        "name": "é",
        "none": None,
        "flag": True,
    }
    found = Ingredients("train", 1, config, {"source": {"contents": "ab" * 32}}, "cd" * 32, 7)
    assert found.key == "cc61fc67cab5e259faf06cbf597f19cf4e6faa25e24641c2e6e3632363b5fe76"
    turned = dict(reversed(config.items())) | {"fit": dict(reversed(config["fit"].items()))}
    assert dataclasses.replace(found, config=turned, places={"source": "/elsewhere"}).key == found.key


@pytest.mark.parametrize(
    "change",
    [{"kind": "ptq"}, {"result_version": 2}, {"config": {"a": 2}}, {"readings": {}}, {"data": None}, {"seed": 1}],
    ids=str,
)
def test_everything_in_it_counts_for_the_key(change: dict[str, Any]) -> None:
    found = Ingredients("train", 1, {"a": 1}, {"source": {"contents": "a"}}, "b", 0)
    other = dataclasses.replace(found, **change)
    assert other.key != found.key
    assert len(differences(found, other)) == 1


def test_numbers_count_by_their_value(small_artifacts: dict[str, Artifact], tmp_path: Path, digits: Data) -> None:
    keys = set()
    for number in ("0.001", "1e-3", "1E-03", "0.00100"):
        path = tmp_path / "r.toml"
        path.write_text(
            f'name = "r"\n[[stages]]\nkind = "train"\n[stages.model]\nname = "atto"\n[stages.fit]\nweight_decay = {number}\n'
        )
        keys.add(ingredients_of(load_recipe(path).stages[0], {}, digits, 0).key)
    fit = FitConfig(weight_decay=0.001)
    for config in (
        TrainConfig(ModelConfig("atto"), fit),
        TrainConfig(ModelConfig("convnext_atto"), dataclasses.replace(fit, mixup_alpha=0)),
    ):
        keys.add(ingredients_of(stage_of(config, None), {}, digits, 0).key)
    assert len(keys) == 1


def test_names_of_stages_and_files_do_not_count(
    small_artifacts: dict[str, Artifact], small_data: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    teacher, student = small_artifacts["teacher"], small_artifacts["student"]
    named = [
        ingredients_of(
            stage_of(DistillConfig(ModelConfig("atto"), name), None, f"student of {name}"),
            {name: teacher},
            small_data,
            0,
        )
        for name in ("teacher", "big")
    ]
    assert named[0].key == named[1].key
    other = ingredients_of(stage_of(DistillConfig(ModelConfig("atto"), "big"), None), {"big": student}, small_data, 0)
    assert other.key != named[0].key
    assert differences(named[0], other)[0].startswith("input teacher teacher (")

    (tmp_path / "here").mkdir()
    weights = shutil.copy(student.main_file, tmp_path / "here" / "start.safetensors")
    (tmp_path / "scratch").mkdir()
    moved = shutil.copy(weights, tmp_path / "scratch" / "other.safetensors")
    monkeypatch.chdir(tmp_path)
    keys = set()
    for place in (str(weights), "here/start.safetensors", "./here/../here/start.safetensors", str(moved)):
        stage = stage_of(TrainConfig(ModelConfig("test_convnext2", 32, weights=place)), None)
        keys.add(ingredients_of(stage, open_references(Recipe("r", (stage,))), small_data, 0).key)
    assert len(keys) == 1

    engines = [TensorRTConfig(timing_cache=cache) for cache in (None, "a.cache", "/b.cache")]
    graph = {"source": small_artifacts["onnx-fp32"]}
    assert len({ingredients_of(stage_of(config), graph, None, 0).key for config in engines}) == 1


def test_inputs_count_by_their_contents_and_by_how_they_are_read(
    small_artifacts: dict[str, Artifact], small_data: Data, tmp_path: Path
) -> None:
    student = small_artifacts["student"]

    def key(artifact: Artifact) -> Ingredients:
        return ingredients_of(stage_of(PTQConfig()), {"source": artifact}, small_data, 0)

    copy = shutil.copytree(student.path, tmp_path / "copy")
    assert key(open_input(copy)).key == key(student).key
    graph = small_artifacts["onnx-fp32"].main_file
    moved = shutil.copy(graph, tmp_path / "moved.onnx")
    assert hash_file(Path(moved)) == hash_file(graph)
    assert key(open_input(Path(moved))).key == key(open_input(graph)).key
    changes: dict[str, Artifact] = {
        "classes": dataclasses.replace(student, class_names=("a", "b", "c")),
        "network": dataclasses.replace(student, model=dataclasses.replace(student.model, activation="relu")),
        "preprocessing": dataclasses.replace(student, preprocess=dataclasses.replace(student.preprocess, crop_pct=0.5)),
        "license": dataclasses.replace(student, license="MIT"),
    }
    for about, changed in changes.items():
        assert differences(key(student), key(changed)) == [f"{about} of input source"]
        assert key(changed).key != key(student).key
    assert len(differences(key(student), key(small_artifacts["teacher"]))) == 1


def test_the_ancestor_that_teaches_counts(
    small_artifacts: dict[str, Artifact], small_data: Data, monkeypatch: pytest.MonkeyPatch
) -> None:
    artifacts = {"source": small_artifacts["ptq"], "teacher": small_artifacts["teacher"]}
    own, named = stage_of(QATConfig()), stage_of(QATConfig(teacher="teacher"))
    before = [ingredients_of(stage, artifacts, small_data, 0) for stage in (own, named)]
    monkeypatch.setattr(ingredients, "find_baseline", lambda artifact: "it is gone")
    after = [ingredients_of(stage, artifacts, small_data, 0) for stage in (own, named)]
    assert before[1].key == after[1].key
    (text,) = differences(before[0], after[0])
    assert text.startswith("input baseline student (")
    assert text.endswith(") → none")


def test_images_count_only_where_they_are_read(
    small_artifacts: dict[str, Artifact], small_data: Data, digits: Data
) -> None:
    artifacts = {"source": small_artifacts["student"]}
    for config, reads in ((ONNXConfig(), False), (ONNXConfig(precision="fp16"), True), (PTQConfig(), True)):
        one, other = (ingredients_of(stage_of(config), artifacts, data, 0) for data in (small_data, digits))
        assert (one.key != other.key) == reads


def test_what_is_written_is_read_back(small_artifacts: dict[str, Artifact], small_data: Data) -> None:
    stage = stage_of(DistillConfig(ModelConfig("test_convnext3", mean=(0.5,)), "teacher"))
    artifacts = {"source": small_artifacts["student"], "teacher": small_artifacts["teacher"]}
    found = ingredients_of(stage, artifacts, small_data, 3)
    read = read_ingredients(found.to_json())
    assert read is not None
    assert (read.key, differences(read, found)) == (found.key, [])
    older = json.loads(found.to_json())
    del older["config"]["fit"]["mixing_probability"], older["config"]["feature_loss_weight"]
    read = read_ingredients(json.dumps(older))
    assert read is not None
    assert read.key == found.key
    for text in ("", "{", "[]", '{"kind": "train"}', "[" * 100_000):
        assert read_ingredients(text) is None
