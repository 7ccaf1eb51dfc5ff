"""The recipes for teachers of other kinds: with its teacher each plans and runs, without it it says what is missing."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from huggingface_hub import constants

from convnext_deploy.api.options import DataOptions, EvaluationOptions, ExecutionOptions
from convnext_deploy.api.run import plan_run, run
from convnext_deploy.data.datasets import Data, FolderImages
from convnext_deploy.errors import DeployError
from tests.documentation.shortened import shorten_text
from tests.stages.foreign_teachers import NETWORKS, write_table

FOLDER = Path(__file__).parents[2] / "recipes" / "teachers"


@pytest.fixture
def here(tmp_path: Path, small_data: Data, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with the files that teach, and a cache of the hub in which nothing is."""
    (onnx,) = (kind for kind in NETWORKS if kind.name == "ONNX float")
    onnx.write(tmp_path)
    assert isinstance(small_data.train, FolderImages)
    names = ["/".join(path.parts[-2:]) for path in small_data.train.paths]
    vectors = np.random.default_rng(0).normal(size=(len(names), 3)).astype(np.float32)
    write_table(tmp_path, names, vectors, "logits")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_recipes_are_there() -> None:
    assert {path.stem for path in FOLDER.iterdir()} == {"onnx_teacher", "logits_teacher", "timm_teacher"}


@pytest.mark.parametrize("name", ["onnx_teacher", "logits_teacher"])
def test_recipe_plans_with_its_teacher(name: str, here: Path, image_folder: Path) -> None:
    plan = plan_run(FOLDER / f"{name}.toml", out=here / "out", data=DataOptions(image_folder))
    assert [(stage.name, would_run) for stage, would_run in plan] == [
        ("student", True),
        ("ptq", True),
        ("onnx-int8", True),
    ]


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("onnx_teacher", r"teacher\.onnx does not exist; expected an artifact, .* or file of predictions"),
        ("logits_teacher", r"logits\.safetensors does not exist; expected an artifact, .* or file of predictions"),
        ("timm_teacher", r"'timm/resnet50\.a1_in1k' is not in the cache .* hf download timm/resnet50\.a1_in1k"),
    ],
)
def test_recipe_says_that_its_teacher_is_missing(name: str, said: str, here: Path, image_folder: Path) -> None:
    for file in here.glob("*.*"):
        file.unlink()
    with pytest.raises(DeployError, match=said) as caught:
        plan_run(FOLDER / f"{name}.toml", out=here / "out", data=DataOptions(image_folder))
    assert "\n" not in str(caught.value)
    assert not (here / "out").exists()


@pytest.mark.heavy
def test_recipe_goes_from_a_foreign_teacher_to_int8(here: Path, image_folder: Path) -> None:
    recipe = here / "short.toml"
    text = shorten_text((FOLDER / "onnx_teacher.toml").read_text(encoding="utf-8"))
    recipe.write_text(text.replace('kind = "ptq"', 'kind = "ptq"\ncalibration_images = 12'), encoding="utf-8")
    result = run(
        recipe,
        out=here / "out",
        data=DataOptions(image_folder),
        evaluation=EvaluationOptions(speed_check=False),
        execution=ExecutionOptions("cpu", 0),
    )
    precisions = {row.name: row.identity.precision for row in result.report.rows}
    assert {"student": "fp32", "ptq": "int8", "onnx-int8": "int8"}.items() <= precisions.items()
    assert (here / "out" / "stages" / "onnx-int8" / "model.onnx").is_file()
    assert list((here / "out").rglob("teachers/*/epoch-0000.bin")), "what the teacher said is kept"
