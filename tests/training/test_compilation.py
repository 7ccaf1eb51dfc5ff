"""`torch.compile`: the same training and the same files, every network compiled, and one line where there is no compiler."""

from __future__ import annotations

import functools
import importlib.util
import shutil
import sysconfig
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import convnext_deploy as api
from convnext_deploy.api.options import DataOptions, ExecutionOptions, TrainingOptions
from convnext_deploy.errors import BackendUnavailableError
from convnext_deploy.models import depthwise
from convnext_deploy.stages import training_setup
from convnext_deploy.training.checkpoint_store import BEST, LAST, TrainingStore
from convnext_deploy.training.torch_compile import compile_network
from tests.training.fake_batches import KilledError, flat_weights, killed_at, run_fit, small_network

DROPPING = {"drop_path_rate": 0.3, "head_dropout": 0.2}


@pytest.fixture(autouse=True)
def _fresh_compiler(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A compiler that remembers nothing; and one way to the gradient of depthwise weights, since compiled graphs take PyTorch's."""
    monkeypatch.setattr(depthwise, "_has_fast_convolutions", lambda: False)
    yield
    torch.compiler.reset()


@pytest.fixture
def graphs(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The graphs that `torch.compile` captures; they are run as they are, and no kernel is made, which takes minutes."""
    found: list[Any] = []

    def run_as_it_is(graph: torch.fx.GraphModule, _: object) -> Callable[..., Any]:
        found.append(graph)
        return graph.forward

    monkeypatch.setattr(nn.Module, "compile", functools.partialmethod(nn.Module.compile, backend=run_as_it_is))
    return found


def evaluate(network: nn.Module) -> dict[str, float]:
    network.eval()
    with torch.inference_mode():
        logits = network(torch.linspace(-1, 1, 4 * 3 * 32 * 32).view(4, 3, 32, 32))
    return {"validation_loss": logits.square().mean().item(), "validation_top1": 0.5}


def train(
    folder: Path,
    *,
    compiled: bool = True,
    kill_at: int | None = None,
    options: dict[str, float] | None = None,
    **fit: Any,
) -> tuple[nn.Module, list[dict[str, float]]]:
    """Train for three epochs of four steps; raise `KilledError` when a step computes its loss."""
    network = small_network(**(options or {}))
    if compiled:
        compile_network(network, "cpu")
    store = TrainingStore(folder, "key", 0.0)
    history = run_fit(network, objective=killed_at(kill_at), store=store, evaluate=evaluate, **fit)
    return network, [{name: row[name] for name in row if name != "images_per_s"} for row in history]


FITS: dict[str, dict[str, Any]] = {
    "plain": {},
    "average, parts and head first": {"ema_decay": 0.9, "accumulation_steps": 4, "head_only_epochs": 1.0},
}


@pytest.mark.heavy
@pytest.mark.parametrize("fit", FITS.values(), ids=FITS)
def test_fit_of_a_compiled_network_is_that_of_the_network(
    fit: dict[str, Any], graphs: list[Any], tmp_path: Path
) -> None:
    plain, history = train(tmp_path / "plain", compiled=False, options=DROPPING, **fit)
    assert graphs == []
    network, found = train(tmp_path / "compiled", options=DROPPING, **fit)
    assert len(graphs) >= 2  # in training and in evaluation
    assert found == history
    assert torch.equal(flat_weights(network), flat_weights(plain))
    names = list(plain.state_dict())
    assert list(network.state_dict()) == names
    for folder in ("plain", "compiled"):
        state = torch.load(tmp_path / folder / LAST, weights_only=True)
        assert list(state["model"]) == names
        assert set(load_file(tmp_path / folder / BEST)) == set(names)


@pytest.mark.heavy
@pytest.mark.parametrize(("before", "after"), [(True, True), (True, False), (False, True)])
def test_compiled_training_goes_on_after_a_kill(before: bool, after: bool, graphs: list[Any], tmp_path: Path) -> None:
    whole, history = train(tmp_path / "whole", compiled=False, options=DROPPING)
    with pytest.raises(KilledError):
        train(tmp_path / "killed", compiled=before, kill_at=6, options=DROPPING)
    network, found = train(tmp_path / "killed", compiled=after, options=DROPPING)
    assert torch.equal(flat_weights(network), flat_weights(whole))
    assert found == history


@pytest.mark.heavy
def test_compile_network_compiles_however_many_networks_there_were(graphs: list[Any]) -> None:
    """The stages of a recipe train one network after the other in one process, and all are of one class."""
    with torch._dynamo.config.patch(recompile_limit=2):
        for number in range(3):
            network = small_network(head_dropout=0.1 * number)
            compile_network(network, "cpu")
            network.train()(torch.zeros(2, 3, 32, 32))
            assert len(graphs) == number + 1


def assert_refused(text: str, device: str = "cpu") -> None:
    network = small_network()
    with pytest.raises(BackendUnavailableError, match=f"^compile = true needs {text}$"):
        compile_network(network, device)
    assert network._compiled_call_impl is None


def test_compile_network_says_in_one_line_that_there_is_no_compiler(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda *_: object())  # of triton
    for variable, device in (("CXX", "cpu"), ("CC", "cuda")):
        for asked in ("/nonexistent", "/nonexistent -m64", ""):
            monkeypatch.setenv(variable, asked)
            assert_refused(
                rf"a C(\+\+)? compiler, and there is no '{asked}', which {variable} asks for; install [^\n]+", device
            )
        monkeypatch.delenv(variable)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert_refused(r"a C\+\+ compiler, and there is no g\+\+; install one, or leave compile out\.")
    assert_refused(r"a C compiler, and there is no gcc or clang; install one, or leave compile out\.", "cuda")


def test_compile_network_says_in_one_line_what_else_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("g++", "gcc"):
        (tmp_path / name).touch(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    for variable in ("CC", "CXX"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr(sysconfig, "get_path", lambda *_: str(tmp_path / "include"))
    assert_refused(r"the headers of Python, and there is no \S+/include/Python\.h; install them [^\n]+")
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == "triton" else find(name, *rest)
    )
    assert_refused(r"the package triton, which comes with torch on Linux; or leave compile out\.", "cuda")


@pytest.mark.parametrize("asked", ["cc", "wrapper g++", "{folder}/cc"])
def test_compile_network_takes_the_compiler_that_is_asked_for(
    asked: str, graphs: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("cc", "wrapper"):
        (tmp_path / name).touch(0o755)
    (tmp_path / "Python.h").touch()
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("CXX", asked.format(folder=tmp_path))
    monkeypatch.setattr(sysconfig, "get_path", lambda *_: str(tmp_path))
    network = small_network()
    compile_network(network, "cpu")
    assert network._compiled_call_impl is not None


def test_train_compiles_only_when_asked_and_refuses_before_it_trains(
    image_folder: Path, tmp_path: Path, short_timing: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[str] = []
    monkeypatch.setattr(training_setup, "compile_network", lambda network, device: given.append(device))

    def run(**options: Any) -> None:
        path = tmp_path / f"{len(given)}{options}"
        api.train(
            "test_convnext",
            out=path,
            data=DataOptions(image_folder, image_size=64),
            training=TrainingOptions(epochs=1, batch_size=36, **options),
            execution=ExecutionOptions(device="cpu", workers=0),
        )

    run()
    assert given == []
    run(compile=True)
    assert given == ["cpu"]
    monkeypatch.setattr(training_setup, "compile_network", compile_network)
    monkeypatch.setattr(training_setup, "fit", lambda *_, **__: pytest.fail("it trains"))
    monkeypatch.setenv("CXX", "/nonexistent")
    with pytest.raises(
        BackendUnavailableError, match=r"^compile = true needs a C\+\+ compiler, and there is no '/nonexistent'"
    ):
        run(compile=True)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler")
def test_fit_of_a_really_compiled_network_has_the_losses_of_the_network(tmp_path: Path) -> None:
    plain, history = train(tmp_path / "plain", compiled=False)
    network, found = train(tmp_path / "compiled")
    for row, expected in zip(found, history, strict=True):
        assert row == pytest.approx(expected, rel=1e-4)
    torch.testing.assert_close(flat_weights(network), flat_weights(plain), rtol=0, atol=1e-4)
    assert set(load_file(tmp_path / "compiled" / BEST)) == set(plain.state_dict())
    with pytest.raises(KilledError):
        train(tmp_path / "killed", kill_at=6)
    again, found_again = train(tmp_path / "killed")
    for row, expected in zip(found_again, found, strict=True):
        assert row == pytest.approx(expected, rel=1e-6)
    torch.testing.assert_close(flat_weights(again), flat_weights(network), rtol=0, atol=1e-6)
