"""Float32 stays float32, whatever the program around it has switched on, and that is on again behind the block."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from convnext_deploy.system.full_float32 import full_float32

BACKENDS: Any = torch.backends


def switches() -> dict[str, Any]:
    """All that says how float32 is computed; what cannot be read is named so."""
    readers: dict[str, Callable[[], Any]] = {
        "products": torch.get_float32_matmul_precision,
        "cuda.matmul.allow_tf32": lambda: BACKENDS.cuda.matmul.allow_tf32,
        "cudnn.allow_tf32": lambda: BACKENDS.cudnn.allow_tf32,
        "generic": lambda: BACKENDS.fp32_precision,
        "cuda.matmul": lambda: BACKENDS.cuda.matmul.fp32_precision,
    }
    for library in ("cudnn", "mkldnn"):
        for name in ("conv", "rnn", "matmul") if library == "mkldnn" else ("conv", "rnn"):
            operation = getattr(getattr(BACKENDS, library), name)
            readers[f"{library}.{name}"] = lambda operation=operation: operation.fp32_precision  # type: ignore[misc]
    found = {}
    for name, read in readers.items():
        try:
            found[name] = read()
        except RuntimeError:
            found[name] = "cannot be read"
    return found


def by_old_switches() -> None:
    torch.set_float32_matmul_precision("medium")
    BACKENDS.cudnn.allow_tf32 = False


def by_new_switches() -> None:
    BACKENDS.cuda.matmul.fp32_precision = "tf32"
    BACKENDS.mkldnn.matmul.fp32_precision = "bf16"
    BACKENDS.cudnn.conv.fp32_precision = "ieee"


def for_everything() -> None:
    BACKENDS.fp32_precision = "tf32"


def nothing_said() -> None:
    BACKENDS.fp32_precision = "none"
    torch.set_float32_matmul_precision("highest")  # also says "ieee" to new switches
    BACKENDS.cudnn.allow_tf32 = True
    for operation in (BACKENDS.cuda.matmul, BACKENDS.mkldnn.matmul, BACKENDS.mkldnn.conv, BACKENDS.mkldnn.rnn):
        operation.fp32_precision = "none"


@pytest.fixture(params=[lambda: None, by_old_switches, by_new_switches, for_everything])
def switched(request: pytest.FixtureRequest) -> Iterator[dict[str, Any]]:
    nothing_said()
    before = switches()
    request.param()
    yield switches()
    nothing_said()
    assert switches() == before


def test_all_switches_say_float32_in_the_block_and_are_as_before_behind_it(switched: dict[str, Any]) -> None:
    with full_float32(), full_float32():
        found = switches()
    assert found.pop("products") == "highest"
    assert found.pop("cuda.matmul.allow_tf32") is found.pop("cudnn.allow_tf32") is False
    assert found.pop("generic") == switched["generic"]
    assert set(found.values()) == {"ieee"}
    assert switches() == switched
    with pytest.raises(KeyError), full_float32():
        raise KeyError
    assert switches() == switched


@pytest.mark.parametrize("autocast", [False, True])
def test_products_have_all_digits_in_the_block(switched: dict[str, Any], autocast: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    x, weight = torch.randn(64, 96, generator=generator), torch.randn(48, 96, generator=generator)
    exact = F.linear(x.double(), weight.double())
    with torch.autocast("cpu", torch.bfloat16) if autocast else nullcontext():
        with full_float32():
            found = F.linear(x, weight)
        rough = F.linear(x, weight)
    assert found.dtype == torch.float32
    assert (found - exact).abs().max() < 1e-5 * exact.abs().max()
    assert not autocast or (rough - exact).abs().max() > 1e-4 * exact.abs().max()


def test_threads_that_overlap_leave_the_switches_as_they_were(switched: dict[str, Any]) -> None:
    entered, left = threading.Event(), threading.Event()

    def stay_longer() -> None:
        with full_float32():
            entered.set()
            left.wait(10)

    thread = threading.Thread(target=stay_longer)
    with full_float32():
        thread.start()
        assert entered.wait(10)
    assert switches()["mkldnn.matmul"] == "ieee"
    left.set()
    thread.join()
    assert switches() == switched
