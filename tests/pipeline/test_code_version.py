"""The hash of a stage's code follows what the code does, and nothing else."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from convnext_deploy.config.recipe import Recipe
from convnext_deploy.config.stages import CONFIGS
from convnext_deploy.data.datasets import Data
from convnext_deploy.pipeline.run import plan_recipe
from convnext_deploy.system import code_hash as code_version

PTQ = "convnext_deploy.stages.ptq"


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A copy of the package whose code is hashed in place of the installed one."""
    copied = tmp_path / "convnext_deploy"
    shutil.copytree(code_version._ROOT, copied, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(code_version, "_ROOT", copied)
    code_version.of_module.cache_clear()
    yield copied
    code_version.of_module.cache_clear()


def hash_of(module: str) -> str:
    code_version.of_module.cache_clear()
    return code_version.of_module(module)


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


def test_of_module_is_the_same_for_a_copy_of_the_package(package: Path) -> None:
    copied = hash_of(PTQ)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(code_version, "_ROOT", Path(code_version.__file__).parent)
        assert hash_of(PTQ) == copied


@pytest.mark.parametrize("file", ["stages/ptq.py", "quantization/observers.py", "artifact.py"])
def test_of_module_does_not_change_with_comments_docstrings_and_layout(package: Path, file: str) -> None:
    before = hash_of(PTQ)
    path = package / file
    text = path.read_text()
    assert text.startswith('"""')
    path.write_text('"""Another summary."""\n\n\n# a remark\n' + text.split('"""', 2)[2] + "\n\n# the end\n")
    edit(path, '    """', '    """Another: ')
    edit(path, "\n\ndef ", "\n\n\n\n# a remark\ndef ")
    assert hash_of(PTQ) == before


@pytest.mark.parametrize(
    ("file", "old", "new"),
    [
        ("stages/ptq.py", 'precision="int8"', 'precision="int4"'),
        ("stages/context.py", "weight_decay=config.weight_decay", "weight_decay=0.0"),
        ("spec.py", "crop_pct = 0.875", "crop_pct = 0.9"),
        ("artifact.py", "frozen=True", "frozen=False"),
    ],
)
def test_of_module_changes_with_the_code_of_the_stage_and_of_what_it_imports(
    package: Path, file: str, old: str, new: str
) -> None:
    before = hash_of(PTQ)
    edit(package / file, old, new)
    assert hash_of(PTQ) != before


@pytest.mark.parametrize(
    "file", ["pipeline.py", "validation/gate.py", "reporting/markdown.py", "cli/run.py", "stages/qat.py"]
)
def test_of_module_does_not_change_with_code_that_the_stage_does_not_use(package: Path, file: str) -> None:
    before = hash_of(PTQ)
    with (package / file).open("a") as stream:
        stream.write("\nADDED = 1\n")
    assert hash_of(PTQ) == before


def test_of_module_tells_modules_apart() -> None:
    kinds = {f"convnext_deploy.stages.{kind.replace('-', '_')}" for kind in CONFIGS}
    assert len({hash_of(kind) for kind in kinds}) == len(CONFIGS)


def test_of_module_raises_when_there_is_no_such_module() -> None:
    with pytest.raises(LookupError, match=r"convnext_deploy\.none is no module"):
        code_version.of_module("convnext_deploy.none")


def test_imports_of_finds_imports_inside_functions_and_of_names() -> None:
    found = code_version.imports_of("convnext_deploy.pipeline.stage")
    assert {
        "convnext_deploy.artifacts.artifact",
        "convnext_deploy.reports.record",
        "convnext_deploy.stages.context",
    } <= found
    assert all(name.startswith("convnext_deploy") for name in found)


def test_every_module_that_a_stage_loads_is_in_its_hash() -> None:
    loaded = code_version._closure("convnext_deploy.stages.qat")
    needed = ("training.fit", "training.losses", "quantization.fake_quantize", "models.convnext", "data.transforms")
    assert {f"convnext_deploy.{name}" for name in needed} <= loaded


def test_plan_recipe_repeats_stages_whose_code_changed(
    package: Path, light_recipe: Recipe, small_data: Data, copied: Path
) -> None:
    def would_run() -> list[str]:
        code_version.of_module.cache_clear()
        return [stage.name for stage, runs in plan_recipe(light_recipe, copied, None, small_data, {}) if runs]

    assert would_run() == []
    edit(package / "stages" / "ptq.py", '"""', '"""Another summary: ')
    assert would_run() == []
    edit(package / "stages" / "ptq.py", 'precision="int8"', 'precision="int4"')
    assert would_run() == ["ptq", "qat", "minmax", "onnx"]
