"""An option that a verb does not use is refused by name, and one that it uses changes what it does; nothing is trained or timed."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NoReturn

import pytest

import convnext_deploy as api
from convnext_deploy.api.options import RECORDS, DataOptions, EvaluationOptions, ExecutionOptions, TrainingOptions
from convnext_deploy.api.run_stages import create_gate
from convnext_deploy.api.uses import USES
from convnext_deploy.artifacts.artifact import Artifact, ArtifactFile
from convnext_deploy.artifacts.details import TorchDetails
from convnext_deploy.artifacts.spec import ModelSpec, default_preprocess
from convnext_deploy.compression.explore import Chosen, Exploration
from convnext_deploy.config.distill import DistillConfig
from convnext_deploy.config.ptq import PTQConfig
from convnext_deploy.config.recipe import SOURCE, Recipe, StageEntry
from convnext_deploy.config.train import ModelConfig
from convnext_deploy.data.datasets import Data, FolderImages
from convnext_deploy.data.unlabelled import Unlabelled
from convnext_deploy.errors import DeployError, RecipeError
from convnext_deploy.system.progress import SilentProgress

VERBS = [name for name in api.__all__ if name.islower()]


class OtherProgress(SilentProgress):
    """A display that is told apart by its class."""


VALUES: dict[str, Any] = {
    "data": "elsewhere",
    "validation_fraction": 0.3,
    "skip_unreadable": True,
    "image_size": 64,
    "crop_pct": 0.5,
    "classes": "classes.txt",
    "split": "val.txt",
    "groups": "p[0-9]+",
    "labels": "labels.csv",
    "unlabelled": "more",
    "crop_mode": "squash",
    "interpolation": "bilinear",
    "mean": (0.5,),
    "std": (0.25,),
    "output_name": "scores",
    "input_range": "0-1",
    "batch_size": 7,
    "max_top1_drop_pp": 0.25,
    "max_ece_increase_pp": 0.75,
    "max_class_drop_pp": 6.5,
    "min_speedup": 2.0,
    "speed_check": False,
    "epochs": 3,
    "patience": 3,
    "base_learning_rate": 0.125,
    "flip_probability": 0.25,
    "drop_path_rate": 0.25,
    "head_dropout": 0.25,
    "gradient_checkpointing": True,
    "compile": True,
    "augmentation_epochs": 2,
    "augmentation_seed": 5,
    "patch_size": 8,
    "head_hidden_size": 16,
    "device": "cpu",
    "workers": 1,
    "seed": 9,
    "cache_dir": "cache",
    "tensorboard": True,
    "mlflow": True,
    "measure_again": True,
    "restart": True,
    "dry_run": True,
    "progress": OtherProgress(),
    "command": "typed",
}


class EnoughError(DeployError):
    """Raised where the work would begin."""


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch, small_data: Data, tmp_path: Path) -> list[Any]:
    """What verbs open and hand to the work, which ends with `EnoughError` as it begins."""
    found: list[Any] = []

    def open_input(path: Path, **asked: Any) -> Artifact:
        found.append([path, asked])
        spec, preprocess = ModelSpec("convnext_atto", 3), default_preprocess(32)
        precision = "int8" if path.name == "int8" else "fp32"
        files = (ArtifactFile("model.safetensors", "0" * 64, 1),)
        return Artifact(
            path, TorchDetails(), precision, spec, small_data.class_names, preprocess, files, notes=("a note",)
        )

    def keep(*args: Any, **named: Any) -> Data:
        found.append([args, named])
        return small_data

    def unlabelled(*args: Any) -> Unlabelled:
        images = keep(*args).train
        assert isinstance(images, FolderImages)
        return Unlabelled("more", images)

    def stop(*args: Any, **named: Any) -> NoReturn:
        keep(*args, **named)
        raise EnoughError("enough")

    (tmp_path / "image.png").touch()
    (tmp_path / "classes.txt").write_text("\n".join(small_data.class_names[::-1]))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(SilentProgress, "say", lambda self, text: found.append([type(self).__name__, text]))
    for module, name, replacement in (
        ("system.execution", "cuda_driver_error", lambda: None),
        ("training.mlflow_tracker", "check_mlflow", lambda: None),
        ("api.open_inputs", "open_input", open_input),
        ("api.open_inputs", "check_graph_options", lambda *_: None),
        ("api.open_teachers", "check_graph_options", lambda *_: None),
        ("pipeline.open_foreign", "open_teacher_input", lambda place, _, asked: open_input(Path(place), asked=asked)),
        ("api.open_inputs", "open_data", keep),
        ("api.open_inputs", "open_unlabelled", unlabelled),
        ("api.run", "run_recipe", stop),
        ("api.run_stages", "run_recipe", stop),
        ("api.run_stages", "plan_run_of", stop),
        ("api.validate", "create_gate", lambda *args: keep(create_gate(*args))),
        ("api.validate", "check_report", keep),
        ("api.validate", "open_ledger", keep),
        ("evaluation.measure", "measure_artifact", stop),
        ("api.predict", "open_runner", keep),
        ("api.predict", "_classify", stop),
        ("api.bench", "time_interleaved", stop),
        ("api.convert", "check_writable", stop),
        ("api.bundle", "collect", lambda opened: SimpleNamespace(first=opened[0][1])),
        ("api.bundle", "choose_images", lambda *_: None),
        ("api.bundle", "find_reported", lambda *_: {}),
        ("api.bundle", "find_fp32_answers", lambda *_: None),
        ("api.bundle", "assemble", stop),
        ("api.recommend", "_within_budget", stop),
        ("api.compress", "_explore", lambda *_, **__: (EXPLORED, "known", True)),
        ("api.compress", "check_early", lambda *_: None),
    ):
        monkeypatch.setattr(importlib.import_module(f"convnext_deploy.{module}"), name, replacement)
    return found


DISTILLED = StageEntry("student", DistillConfig(ModelConfig("atto"), SOURCE), None)
RECIPE = Recipe("r", (StageEntry("ptq", PTQConfig(), SOURCE), DISTILLED), data="photos", source="model")
WIDTHS = Chosen("0.5x", 1.0, (32,) * 12, 0.9, 0.1, 0.9, 1, 0.1, ())
EXPLORED = Exploration(2.0, 0.5, (), (WIDTHS,))
ARGUMENTS: dict[str, dict[str, Any]] = {
    "run": {"recipe": RECIPE},
    "train": {"model": "atto", "data": DataOptions("photos")},
    "distill": {"teacher_checkpoint": "teacher.onnx", "student": "atto", "data": DataOptions("photos")},
    "quantize": {"checkpoint": "model", "data": DataOptions("photos")},
    "compress": {"checkpoint": "model", "latency_budget": "0.5x", "data": DataOptions("photos")},
    "export": {"artifact": "int8", "data": DataOptions("photos")},
    "validate": {"artifact": "model", "baseline": "other", "out": "out", "data": DataOptions("photos")},
    "predict": {"artifact": "model", "images": ["image.png"]},
    "bench": {"artifacts": ["model"]},
    "convert": {"checkpoint": "model", "dialect": "timm", "out": "out"},
    "bundle": {"artifacts": ["model"], "out": "out", "data": DataOptions("photos")},
    "recommend": {"data": DataOptions("photos"), "latency_budget_ms": 10.0},
}


def plain(value: Any) -> Any:
    """Return a value with what makes two calls different for no reason left out."""
    if isinstance(value, SilentProgress):
        return type(value).__name__
    if isinstance(value, Data):
        return [value.name, *value.class_names]
    if dataclasses.is_dataclass(value):
        return {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {name: plain(part) for name, part in value.items()}
    return [plain(part) for part in value] if isinstance(value, list | tuple) else str(value)


def call(verb: str, seen: list[Any], **options: Any) -> Any:
    seen.clear()
    with pytest.raises(EnoughError):
        getattr(api, verb)(**{**ARGUMENTS[verb], **options})
    return plain(seen)


@pytest.mark.parametrize("verb", USES)
def test_every_option_that_a_verb_uses_changes_what_it_does(verb: str, seen: list[Any]) -> None:
    assert verb in VERBS
    before = call(verb, seen)
    assert call(verb, seen) == before
    for record, names in USES[verb].items():
        for name in names:
            usual = ARGUMENTS[verb].get(record, RECORDS[record]())
            options = dataclasses.replace(usual, **{name: VALUES[name]})
            assert call(verb, seen, **{record: options}) != before, f"{verb} does nothing with {name}"


@pytest.mark.parametrize("verb", VERBS)
def test_every_option_that_a_verb_does_not_use_is_refused_by_name(verb: str) -> None:
    for record, kind in RECORDS.items():
        for field in dataclasses.fields(kind):
            if field.name in USES.get(verb, {}).get(record, ()):
                continue
            options = kind(**{field.name: VALUES[field.name]})
            with pytest.raises(RecipeError, match=rf"^{verb} does not use {field.name}, which is for [\w, ]+; .*\.$"):
                getattr(api, verb)(**{record: options})


@pytest.mark.parametrize("verb", VERBS)
def test_verbs_take_the_records_of_which_they_use_something(verb: str) -> None:
    parameters = inspect.signature(getattr(api, verb)).parameters
    records = {name: kind for name, kind in RECORDS.items() if name in parameters}
    assert records.keys() == USES.get(verb, {}).keys()
    for name, kind in records.items():
        assert parameters[name].default == kind()
        assert parameters[name].kind is inspect.Parameter.KEYWORD_ONLY
    for name in RECORDS.keys() - records.keys():
        with pytest.raises(RecipeError, match=f"^{verb} uses nothing of {RECORDS[name].__name__}; leave {name} out"):
            getattr(api, verb)(**{name: RECORDS[name]()})


def test_every_option_is_used_by_some_verb() -> None:
    fields = {(record, field.name) for record, kind in RECORDS.items() for field in dataclasses.fields(kind)}
    assert {(record, name) for uses in USES.values() for record, names in uses.items() for name in names} == fields


def test_no_option_has_the_name_of_another_that_the_same_verb_uses() -> None:
    for uses in USES.values():
        names = [name for fields in uses.values() for name in fields]
        assert len(names) == len(set(names))


@pytest.mark.parametrize("wrong", [{"data": "photos"}, "photos", None, ExecutionOptions()])
@pytest.mark.parametrize("verb", ["train", "report"])
def test_anything_but_a_record_is_refused_in_one_line(verb: str, wrong: Any) -> None:
    with pytest.raises(RecipeError, match=rf"^{verb}: data = .* is not a record of options; give DataOptions\(…\)\.$"):
        getattr(api, verb)(data=wrong)


@pytest.mark.parametrize(
    ("record", "wrong", "text"),
    [
        ("data", {"image_size": 0}, "image_size = 0 is out of range; expected 1 to 16384."),
        ("data", {"crop_pct": 2.0}, "crop_pct = 2.0 is out of range; expected 0.1 to 1.0."),
        ("evaluation", {"batch_size": -1}, "batch_size = -1 is out of range; expected >= 1."),
        ("execution", {"workers": -1}, "workers = -1 is out of range; expected >= 0."),
        (
            "execution",
            {"device": "tpu"},
            "device = 'tpu' is unknown; expected one of 'auto', 'cpu', 'cuda', 'mps'. Did you mean 'cpu'?",
        ),
    ],
)
def test_records_check_what_nothing_else_does(record: str, wrong: dict[str, Any], text: str) -> None:
    with pytest.raises(RecipeError, match=f"^{re.escape(text)}$"):
        RECORDS[record](**wrong)


FIT = TrainingOptions(epochs=5)
COMBINATIONS: list[tuple[str, dict[str, Any], str]] = [
    ("quantize", {"calibration_method": "mse", "training": FIT}, "does not use epochs: it does not train"),
    ("quantize", {"method": "ptq", "training": FIT}, "does not use epochs: it does not train"),
    ("quantize", {"calibration_method": "mse", "selection_images": 9}, "quantizes once, without .* --selection-images"),
    ("distill", {"distill_method": "hard-label", "temperature": 2.0}, "'hard-label' does not use temperature"),
    ("distill", {"distill_method": "teacher-only", "distill_loss_weight": 0.5}, "does not use distill_loss_weight"),
    ("distill", {"teacher_cache_top_k": 5}, "ask for teacher_cache too"),
    ("export", {"gpus": ("sm86",)}, "--gpu does not count for onnx; it is for tensorrt-rtx"),
    ("export", {"format": "tensorrt", "gpus": ("sm86",)}, "--gpu does not count for tensorrt; it is for tensorrt-rtx"),
    ("export", {"optimal_batch_size": 2}, "--optimal-batch-size does not count for onnx; it is for tensorrt-rtx and"),
    ("export", {"format": "torch-tensorrt", "fixed_batch_size": 2}, "--fixed-batch-size does not count for torch-t"),
    ("export", {"range_images": 4}, "--range-images counts with --precision fp16 only"),
    ("export", {"artifact": "x", "evaluation": EvaluationOptions(min_speedup=2.0)}, "this artifact is fp32; leave it"),
    ("export", {"evaluation": EvaluationOptions(min_speedup=2.0, speed_check=False)}, "leave out --no-speed-check"),
    ("export", {"data": DataOptions(), "evaluation": EvaluationOptions(max_top1_drop_pp=1.0)}, "nothing is validated"),
    ("export", {"data": DataOptions(), "evaluation": EvaluationOptions(max_class_drop_pp=9.0)}, "nothing is validated"),
    ("export", {"data": DataOptions(skip_unreadable=True)}, "does not use skip_unreadable: there are no images"),
    ("bundle", {"data": DataOptions(validation_fraction=0.2)}, "not use validation_fraction: there are no images"),
    ("train", {"data": DataOptions(validation_fraction=0.2)}, "'digits' does not use validation_fraction"),
    ("validate", {"baseline": None, "evaluation": EvaluationOptions(max_top1_drop_pp=1.0)}, "nothing to compare with"),
    (
        "validate",
        {"baseline": None, "evaluation": EvaluationOptions(max_ece_increase_pp=1.0)},
        "--max-ece-increase is about an increase, and there is nothing to compare with; give --baseline ARTIFACT.",
    ),
    (
        "run",
        {"recipe": dataclasses.replace(RECIPE, speed_check=False), "evaluation": EvaluationOptions(speed_check=True)},
        "says speed_check = false",
    ),
    ("validate", {"gate_on": "upper"}, "needs to know how much may be lost"),
]


@pytest.mark.parametrize(("verb", "arguments", "text"), COMBINATIONS)
def test_option_without_effect_beside_another_is_refused(
    verb: str, arguments: dict[str, Any], text: str, seen: list[Any]
) -> None:
    with pytest.raises(RecipeError, match=text):
        getattr(api, verb)(**{**ARGUMENTS[verb], **arguments})


def test_paths_may_be_strings(seen: list[Any], tmp_path: Path) -> None:
    named = {"out": "runs/x", "data": DataOptions("photos"), "execution": ExecutionOptions(cache_dir="cache")}
    paths = {
        "out": Path("runs/x"),
        "data": DataOptions(Path("photos")),
        "execution": ExecutionOptions(cache_dir=Path("cache")),
    }
    assert call("quantize", seen, **named) == call("quantize", seen, **paths)
    assert seen[-1][0][1].out == Path("runs/x")
    assert seen[-1][0][1].execution.cache_dir == Path("cache")
