"""A wrong argument from Python is one line that says what to give, and a text is a path."""

from __future__ import annotations

import copy
import inspect
import re
from typing import Any

import numpy as np
import pytest

import convnext_deploy as api
from convnext_deploy.errors import RecipeError

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


def test_a_name_that_no_record_has_is_refused_in_one_line() -> None:
    with pytest.raises(
        RecipeError, match=r"^DataOptions has no field dta; its fields are data, .*\. Did you mean 'data'\?$"
    ):
        api.DataOptions(dta="photos")  # type: ignore[call-arg]


def test_records_show_what_was_given_alone() -> None:
    assert repr(api.DataOptions("photos", mean=0.5)) == "DataOptions(data='photos', mean=0.5)"
    assert "data: convnext_deploy.api.options.DataOptions = DataOptions()," in str(inspect.signature(api.quantize))
    assert copy.deepcopy(api.ExecutionOptions(seed=3)) == api.ExecutionOptions(seed=3)
