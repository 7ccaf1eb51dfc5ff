"""A wrong argument from Python is one line that says what to give, and a text is a path."""

from __future__ import annotations

import copy
import inspect
import json
import os
import re
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import convnext_deploy as api
from convnext_deploy.errors import ArtifactError, RecipeError

CASES: list[tuple[str, tuple[Any, ...], dict[str, Any], str]] = [
    ("quantize", ({"a": 1},), {}, "quantize: checkpoint = {'a': 1} is of type dict; expected a path."),
    ("run", ({"stages": []},), {}, "run: recipe = {'stages': []} is of type dict; expected a Recipe or a path."),
    (
        "predict",
        ("m", {"a": 1}),
        {},
        "predict: images = {'a': 1} is of type dict; expected a path or a list, each a path.",
    ),
    (
        "predict",
        ("m", ["a", 3]),
        {},
        "predict: images = ['a', 3] is of type list; expected a path or a list, each a path.",
    ),
    ("compare", ("a",), {}, "compare: runs = 'a' is of type str; expected a list, each a path."),
    (
        "bench",
        ("m",),
        {"batch_sizes": 8},
        "bench: batch_sizes = 8 is of type int; expected a list, each a whole number.",
    ),
    ("bench", ("m",), {"runners": "torch"}, "bench: runners = 'torch' is of type str; expected a list, each a text."),
    ("recommend", ("many", 3), {}, "recommend: images = 'many' is of type str; expected a whole number"),
    (
        "quantize",
        ("m",),
        {"target": "tensorr"},
        "quantize: target = 'tensorr' is unknown; expected one of 'tensorrt', ",
    ),
    ("quantize", ("m",), {"output": "Features"}, "Did you mean 'features'?"),
    ("export", ("m",), {"format": "TensorRT"}, "export: format = 'TensorRT' is unknown; expected one of "),
    (
        "compress",
        ("m",),
        {"latency_budget": "0.6x", "activation": "GELU"},
        "compress: activation = 'GELU' is unknown; ",
    ),
    (
        "verify_bundle",
        ("m",),
        {"require": ("Engine",)},
        "verify_bundle: require = 'Engine' is unknown; expected one of ",
    ),
    (
        "validate",
        ("a\0b",),
        {},
        "validate: artifact = 'a\\x00b' holds a null character, which no path and no name has.",
    ),
    ("doctor", (), {"timeout_s": float("nan")}, "timeout_s = nan is out of range; expected above 0"),
    ("doctor", (), {"timeout_s": 0}, "timeout_s = 0 is out of range; expected above 0"),
    ("view", (), {"port": 70000}, "port = 70000 is out of range; expected 0 to 65535"),
    (
        "recommend",
        (10, 2),
        {"latency_budget_ms": float("nan")},
        "latency_budget_ms = nan is out of range; expected > 0.",
    ),
    ("recommend", (10, 2), {"image_size": (224,) * 3}, "expected a whole number or a list of 2, each a whole number"),
    ("quantize", ("m",), {"target": 3}, "quantize: target = 3 is of type int; expected one of 'tensorrt', "),
    (
        "quantize",
        ("m",),
        {"epochs": 3},
        "quantize has no parameter epochs; it is a field of TrainingOptions: give training=TrainingOptions(epochs=3).",
    ),
    ("report", ("m",), {"epochs": 3}, "report has no parameter epochs; its parameters are run."),
    ("quantize", ("m",), {"tarjet": "x"}, "Did you mean 'target'?"),
    ("export", ("m",), {"data": {"data": "d"}}, "export: data = {'data': 'd'} is not a record of options; give Data"),
]


@pytest.mark.parametrize(("verb", "args", "kwargs", "text"), CASES)
def test_wrong_argument_is_refused_in_one_line(
    verb: str, args: tuple[Any, ...], kwargs: dict[str, Any], text: str
) -> None:
    with pytest.raises(RecipeError, match=re.escape(text)) as caught:
        getattr(api, verb)(*args, **kwargs)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("record", "values", "text"),
    [
        ("DataOptions", {"data": {"x": 1}}, "data = {'x': 1} is of type dict; expected a path or None."),
        (
            "DataOptions",
            {"mean": "0.5"},
            "mean = '0.5' is of type str; expected a number or a list, each a number or None.",
        ),
        ("TrainingOptions", {"epochs": "3"}, "epochs = '3' is of type str; expected a whole number or None."),
        ("TrainingOptions", {"epochs": True}, "epochs = True is of type bool; expected a whole number or None."),
        ("ExecutionOptions", {"progress": "bars"}, "progress = 'bars' is unknown; expected one of 'auto', 'off'."),
        (
            "ExecutionOptions",
            {"progress": 3},
            "progress = 3 is of type int; expected a Progress or one of 'auto', 'off'.",
        ),
        (
            "EvaluationOptions",
            {"batch_size": 1.5},
            "batch_size = 1.5 is of type float; expected a whole number or None.",
        ),
        (
            "ExecutionOptions",
            {"device": "gpu"},
            "device = 'gpu' is unknown; expected one of 'auto', 'cpu', 'cuda', 'mps'. Did you mean 'cpu'?",
        ),
        (
            "DataOptions",
            {"image_size": (64, 32, 99)},
            "image_size = (64, 32, 99) is of type tuple; expected a whole number or a list of 2, each a whole number or None.",
        ),
        ("DataOptions", {"data": "a\0b"}, "data = 'a\\x00b' holds a null character, which no path and no name has."),
    ],
)
def test_field_of_another_type_is_refused_in_one_line(record: str, values: dict[str, Any], text: str) -> None:
    with pytest.raises(RecipeError, match=f"^{re.escape(text)}$"):
        getattr(api, record)(**values)


def test_numbers_of_numpy_and_paths_of_every_kind_are_taken() -> None:
    assert api.TrainingOptions(epochs=np.int64(3)).epochs == 3  # type: ignore[arg-type]
    assert api.EvaluationOptions(max_top1_drop_pp=np.float32(0.5)).max_top1_drop_pp == 0.5  # type: ignore[arg-type]
    assert api.DataOptions(mean=1).mean == 1
    assert api.recommend(np.int64(5000), 10).images == 5000  # type: ignore[arg-type]


def test_values_of_libraries_become_plain_ones_that_json_can_hold() -> None:
    training = api.TrainingOptions(epochs=np.int64(1), base_learning_rate=np.float32(0.5))  # type: ignore[arg-type]
    data = api.DataOptions(mean=np.array([0.5, 0.25, 0.5]), std=Fraction(1, 2), image_size=[np.int64(64), 32])  # type: ignore[arg-type]
    assert json.dumps([training.epochs, training.base_learning_rate, data.mean, data.std, data.image_size]) == (
        "[1, 0.5, [0.5, 0.25, 0.5], 0.5, [64, 32]]"
    )
    assert type(api.ExecutionOptions(seed=np.int64(3)).seed) is int  # type: ignore[arg-type]
    assert api.DataOptions(mean=1).mean == 1


def test_what_can_be_gone_through_once_is_taken_and_its_members_are_checked() -> None:
    with pytest.raises(RecipeError, match=r"^compare: runs = .* of type set; expected a list, each a path"):
        api.compare({None, 2})  # type: ignore[arg-type]
    with pytest.raises(RecipeError, match=r"^predict: images = .* of type generator; expected a path or a list"):
        api.predict("m", (number for number in [1]))  # type: ignore[misc]
    with pytest.raises(ArtifactError, match="nowhere"):
        api.bench(path for path in ["nowhere"])  # type: ignore[arg-type]


def test_what_the_system_lists_stands_for_its_path(tmp_path: Path) -> None:
    (tmp_path / "none.onnx").touch()
    (entry,) = os.scandir(tmp_path)
    assert api.DataOptions(data=entry).data == tmp_path / "none.onnx"  # type: ignore[arg-type]
    with pytest.raises(ArtifactError, match=r"none\.onnx"):
        api.bench(entry)  # type: ignore[arg-type]


def test_too_few_arguments_are_told_as_python_does() -> None:
    with pytest.raises(TypeError, match="missing a required argument: 'checkpoint'"):
        api.quantize()  # type: ignore[call-arg]


def test_calls_with_too_many_or_too_few_arguments_name_the_verb_and_what_it_takes() -> None:
    with pytest.raises(
        api.DeployError, match=re.escape("compare: too many positional arguments; it is compare(runs, out=…).")
    ):
        api.compare("a", "b")  # type: ignore[call-arg]
    with pytest.raises(api.DeployError, match=r"^predict: .* 'images'; it is predict\(artifact, images, stream=…, "):
        api.predict("m")  # type: ignore[call-overload]


def test_more_values_than_a_record_has_fields_are_refused_in_one_line() -> None:
    with pytest.raises(api.DeployError, match=r"^TrainingOptions has 13 fields, epochs, .*; found 14 values\.$"):
        api.TrainingOptions(*range(14))


def test_a_name_that_no_record_has_is_refused_in_one_line() -> None:
    with pytest.raises(
        RecipeError, match=r"^DataOptions has no field dta; its fields are data, .*\. Did you mean 'data'\?$"
    ):
        api.DataOptions(dta="photos")  # type: ignore[call-arg]


def test_records_show_what_was_given_alone() -> None:
    assert repr(api.DataOptions("photos", mean=0.5)) == "DataOptions(data='photos', mean=0.5)"
    assert "data: convnext_deploy.api.options.DataOptions = DataOptions()," in str(inspect.signature(api.quantize))
    assert copy.deepcopy(api.ExecutionOptions(seed=3)) == api.ExecutionOptions(seed=3)
