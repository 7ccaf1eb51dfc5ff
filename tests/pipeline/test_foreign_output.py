"""Which output of an ONNX file of another origin holds the scores is told by the file, or by the user; otherwise it is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

import convnext_deploy as api
from convnext_deploy.api.options import DataOptions, EvaluationOptions
from convnext_deploy.config.preprocess import PreprocessSettings
from convnext_deploy.errors import ArtifactError
from convnext_deploy.pipeline.open_artifact import open_input
from convnext_deploy.runners import open_runner
from tests.pipeline.foreign_graphs import LOGITS, POOL, SIDE, WEIGHT, coloured_folder, write_graph
from tests.rows import accuracy_of

EMBEDDING = f"{POOL} embedding = LayerNormalization (f, g) logits = MatMul (embedding, w)"
ONES: dict[str, Any] = {"g": np.ones(3, np.float32)}
TOP_2 = "values, indices = TopK (scores, k)"
K: dict[str, Any] = {"k": np.array([2])}


def images(count: int = 5) -> NDArray[np.float32]:
    return np.random.default_rng(0).normal(size=(count, 3, SIDE, SIDE)).astype(np.float32)


def means(taken: NDArray[np.float32]) -> NDArray[np.float32]:
    found: NDArray[np.float32] = taken.mean(axis=(2, 3)) @ WEIGHT
    return found


def logits_of(path: Path, runner: str = "onnxruntime", **said: Any) -> NDArray[np.float32]:
    opened = open_runner(open_input(path, asked=PreprocessSettings(**said)), runner=runner)
    try:
        return opened.logits(images())
    finally:
        opened.close()


def softmax(values: NDArray[np.float32]) -> NDArray[np.float32]:
    powers = np.exp(values - values.max(axis=1, keepdims=True))
    result: NDArray[np.float32] = powers / powers.sum(axis=1, keepdims=True)
    return result


@pytest.mark.parametrize(
    ("body", "outputs", "name"),
    [
        (EMBEDDING, ["float[n,3] embedding", "float[n,3] logits"], "logits"),
        # names that tell nothing: what a norm made are features
        (EMBEDDING.replace("embedding", "a").replace("logits", "b"), ["float[n,3] a", "float[n,3] b"], "b"),
        # two linear layers, one of them called what it is
        (f"{LOGITS} a = MatMul (f, w)", ["float[n,3] a", "float[n,3] logits"], "logits"),
        (f"{LOGITS} output = MatMul (f, w) aux = MatMul (f, w)", ["float[n,3] aux", "float[n,3] output"], "output"),
        # the head that helps a training is called logits too, and is not what the network answers
        (
            f"{LOGITS.replace('logits', 'aux_logits')} output = MatMul (f, w)",
            ["float[n,3] output", "float[n,3] aux_logits"],
            "output",
        ),
        (f"{LOGITS.replace('logits', 'aux_logits')} y = MatMul (f, w)", ["float[n,3] aux_logits", "float[n,3] y"], "y"),
        (f"{LOGITS} pooled_output = MatMul (f, w)", ["float[n,3] pooled_output", "float[n,3] logits"], "logits"),
    ],
)
def test_scores_are_found_by_name_and_by_what_made_them(
    tmp_path: Path, body: str, outputs: list[str], name: str
) -> None:
    artifact = open_input(write_graph(tmp_path / "a.onnx", body, *outputs, **ONES))
    assert artifact.io.output_names == (name,)
    assert artifact.notes[0] == f"a.onnx: '{name}' is taken for the logits of 3 classes"


@pytest.mark.parametrize(
    ("body", "outputs", "text"),
    [
        (
            f"{LOGITS} a = MatMul (f, w) b = MatMul (f, w)",
            ["float[n,3] a", "float[n,3] b"],
            r"'a' FP32 \(n, 3\), 'b' FP32 \(n, 3\), several of which may be the scores",
        ),
        # the network without its head, under the name that most scripts give
        (
            f"{POOL} output = LayerNormalization (f, g)",
            ["float[n,3] output"],
            r"\(n, 3\) made by LayerNormalization, none of",
        ),
        ("p = GlobalAveragePool (images) y = Flatten (p)", ["float[n,3] y"], r"made by GlobalAveragePool, none of"),
        (f"{LOGITS} embedding = MatMul (f, w)", ["float[n,3] embedding"], "none of which is known to be scores"),
        ("features = Relu (images)", [f"float[n,3,{SIDE},{SIDE}] features"], r"'features' FP32 \(n, 3, 16, 16\)"),
        (LOGITS.replace("logits", "aux_logits"), ["float[n,3] aux_logits"], "none of which is known to be scores"),
        # what is left beside an auxiliary head is not of its classes
        (
            f"{LOGITS.replace('logits', 'aux_logits')} boxes = MatMul (f, v)",
            ["float[n,3] aux_logits", "float[n,4] boxes"],
            "several of which may be the scores",
        ),
        # the best values alone say nothing of whose they are
        (f"{LOGITS.replace('logits', 'scores')} {TOP_2}", ["float[n,2] values"], r"'values' FP32 \(n, 2\), none of"),
    ],
)
def test_what_cannot_be_told_is_refused_with_a_list_of_the_outputs(
    tmp_path: Path, body: str, outputs: list[str], text: str
) -> None:
    path = write_graph(tmp_path / "a.onnx", body, *outputs, **ONES, **K, v=np.ones((3, 4), np.float32))
    with pytest.raises(ArtifactError, match=rf"a\.onnx gives {text}|a\.onnx gives .*{text}") as caught:
        open_input(path)
    assert "\n" not in str(caught.value)
    assert str(caught.value).endswith("say which with --output-name.")


def test_output_name_settles_it(tmp_path: Path) -> None:
    body = f"{LOGITS.replace('logits', 'a')} b = MatMul (f, v)"
    path = write_graph(tmp_path / "a.onnx", body, "float[n,3] a", "float[n,3] b", v=-WEIGHT)
    assert np.allclose(logits_of(path, output_name="a"), means(images()), atol=1e-5)
    assert np.allclose(logits_of(path, output_name="b"), -means(images()), atol=1e-5)
    assert np.allclose(logits_of(path, "openvino", output_name="b"), -means(images()), atol=1e-4)
    with pytest.raises(ArtifactError, match=r"gives no output 'c', only 'a' FP32 \(n, 3\), 'b' FP32 \(n, 3\)\."):
        open_input(path, asked=PreprocessSettings(output_name="c"))


def test_scores_with_the_shape_of_a_map_are_not_called_features(tmp_path: Path) -> None:
    body = "p = GlobalAveragePool (images) y = Conv (p, c)"
    path = write_graph(tmp_path / "a.onnx", body, "float[n,3,1,1] y", c=WEIGHT[:, :, None, None])
    with pytest.raises(ArtifactError, match=r"If these are scores, export the network with a Flatten behind them\."):
        open_input(path, asked=PreprocessSettings(output_name="y"))


@pytest.mark.parametrize("soft", [False, True], ids=["logits", "probabilities"])
def test_values_and_indices_give_the_classes(tmp_path: Path, soft: bool) -> None:
    body = f"{LOGITS} scores = {'Softmax' if soft else 'Identity'} (logits) {TOP_2}"
    path = write_graph(tmp_path / "a.onnx", body, "float[n,2] values", "int64[n,2] indices", **K)
    artifact = open_input(path)
    assert (artifact.model.num_classes, artifact.io.output_names, artifact.io.top_k) == (3, ("values", "indices"), 2)
    found, expected = logits_of(path), means(images())
    assert found.argmax(axis=1).tolist() == expected.argmax(axis=1).tolist()
    assert len(set(found.argmax(axis=1).tolist())) > 1  # not class 0 for every image
    best_two = np.argsort(-expected, axis=1)[:, :2]
    assert np.argsort(-found, axis=1)[:, :2].tolist() == best_two.tolist()
    if soft:
        assert np.allclose(np.exp(found).max(axis=1), softmax(expected).max(axis=1), atol=1e-5)


@pytest.mark.parametrize("shape", ["float[n,1]", "float[n]"])
@pytest.mark.parametrize("last", ["Identity", "Sigmoid"])
def test_one_logit_is_that_of_the_second_of_two_classes(tmp_path: Path, shape: str, last: str) -> None:
    column = np.array([[2.0], [-3.0], [1.0]], np.float32)
    squeeze = "score = Squeeze (s, axis)" if shape == "float[n]" else "score = Identity (s)"
    body = f"{POOL} z = MatMul (f, w) s = {last} (z) {squeeze}"
    path = write_graph(tmp_path / "a.onnx", body, f"{shape} score", w=column, axis=np.array([1]))
    artifact = open_input(path)
    assert artifact.model.num_classes == 2
    kind = "probability" if last == "Sigmoid" else "logit"
    assert artifact.notes[0] == f"a.onnx: 'score' is taken for the {kind} of the second of two classes"
    found, z = logits_of(path), images().mean(axis=(2, 3)) @ column
    assert found.shape == (5, 2)
    assert np.allclose(softmax(found)[:, 1:], 1 / (1 + np.exp(-z)), atol=1e-5)


def test_softmax_inside_is_undone(tmp_path: Path) -> None:
    path = write_graph(tmp_path / "a.onnx", f"{LOGITS} y = Softmax (logits)", "float[n,3] y")
    assert open_input(path).io.output == "probabilities"
    assert np.allclose(softmax(logits_of(path)), softmax(means(images())), atol=1e-6)


def test_folder_is_classified_by_the_output_that_was_named(tmp_path: Path) -> None:
    folder = coloured_folder(tmp_path / "data")
    body = f"{LOGITS.replace('logits', 'a')} b = MatMul (f, v)"
    path = write_graph(tmp_path / "a.onnx", body, "float[n,3] a", "float[n,3] b", v=WEIGHT[::-1].copy())
    named = {
        name: accuracy_of(api.validate(path, data=DataOptions(folder, output_name=name)).rows[0]).top1 for name in "ab"
    }
    assert named == {"a": 1.0, "b": pytest.approx(1 / 3)}
    (first, *_) = api.predict(path, [folder / "val" / "rot"], data=DataOptions(output_name="a"))
    assert first.guesses[0].index == 2


def test_probabilities_are_those_of_the_file_or_not_known(tmp_path: Path) -> None:
    folder = coloured_folder(tmp_path / "data")
    sigmoid = write_graph(tmp_path / "sigmoid.onnx", f"{LOGITS} y = Sigmoid (logits)", "float[n,3] y")
    assert open_input(sigmoid).io.output == "probabilities"
    (first, *_) = api.predict(sigmoid, [folder / "val" / "rot"])
    logit = float(np.log(first.guesses[0].probability / (1 - first.guesses[0].probability)))
    runner = open_runner(open_input(write_graph(tmp_path / "logits.onnx", LOGITS)))
    pixels = np.asarray(Image.open(first.path))[None]
    assert np.allclose(runner.logits(pixels).max(), logit, atol=1e-4)
    runner.close()
    # the best logits say nothing of how probable they are among all
    outputs = ["float[n,2] values", "int64[n,2] indices"]
    best = write_graph(tmp_path / "best.onnx", f"{LOGITS.replace('logits', 'scores')} {TOP_2}", *outputs, **K)
    assert "how probable they are among all classes is not known" in open_input(best).notes[0]
    gate = EvaluationOptions(max_ece_increase_pp=1.0)
    row = api.validate(best, baseline=sigmoid, data=DataOptions(folder), evaluation=gate).rows[-1]
    assert (accuracy_of(row).top1, accuracy_of(row).calibration) == (1.0, None)
    assert (row.verdict.passed, row.verdict.proven) == (True, False)
