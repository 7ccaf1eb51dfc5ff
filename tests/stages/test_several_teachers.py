"""Several teachers in a recipe: how they are named, recorded and refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from convnext_deploy.artifacts.artifact import read_artifact
from convnext_deploy.artifacts.spec import ModelSpec
from convnext_deploy.config.recipe_toml import load_recipe
from convnext_deploy.data.datasets import Data
from convnext_deploy.errors import RecipeError
from convnext_deploy.pipeline.open_artifact import open_input
from convnext_deploy.pipeline.run import run_recipe
from convnext_deploy.pipeline.stage import Settings
from convnext_deploy.system.execution import Execution
from tests.weights import PREPROCESS, write_weights

SEVERAL = """
name = "several"
source = "teacher.safetensors"
[[stages]]
kind = "train"
name = "second"
model = { name = "test_convnext2", image_size = 32 }
fit = { epochs = 1, batch_size = 18 }
[[stages]]
kind = "distill"
name = "student"
teacher = ["source", "second"]
method = "feature"
model = { name = "test_convnext2", image_size = 64 }
fit = { epochs = 1, batch_size = 18 }
"""


def test_recipe_distills_from_several_teachers(small_data: Data, short_timing: None, tmp_path: Path) -> None:
    (tmp_path / "r.toml").write_text(SEVERAL)
    recipe, teacher = (
        load_recipe(tmp_path / "r.toml"),
        open_input(
            write_weights(
                tmp_path / "teacher.safetensors", ModelSpec("test_convnext", 3), small_data.class_names, PREPROCESS
            )
        ),
    )
    assert recipe.stages[1].inputs == {"teacher": "source", "teacher2": "second"}
    run_recipe(recipe, Settings(tmp_path / "out", Execution()), source=teacher, data=small_data)
    second = read_artifact(tmp_path / "out" / "stages" / "second")
    record = read_artifact(tmp_path / "out" / "stages" / "student").lineage[-1]
    assert record.inputs == {"teacher": teacher.sha256, "teacher2": second.sha256}
    assert record.config["teacher"] == ["source", "second"]


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        ("[]", "teacher = () is out of range; expected at least one name, each once"),
        ('["source", "source"]', "is out of range; expected at least one name, each once"),
        ('["source", "third"]', "stage 'student': teacher2 = 'third' is not an earlier stage"),
        ('["source", 3]', "teacher[1] = 3 has the wrong type; expected str"),
    ],
)
def test_load_recipe_names_what_is_wrong_with_several_teachers(names: str, expected: str, tmp_path: Path) -> None:
    (tmp_path / "r.toml").write_text(SEVERAL.replace('["source", "second"]', names))
    with pytest.raises(RecipeError) as error:
        load_recipe(tmp_path / "r.toml")
    assert expected in str(error.value)
