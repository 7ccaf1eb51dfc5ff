"""Names of GPUs as people and drivers write them."""

from __future__ import annotations

import pytest

from convnext_deploy.errors import ExportError
from convnext_deploy.system.gpu_models import GPUS, resolve_gpu, resolve_gpus


@pytest.mark.parametrize(
    ("text", "capability"),
    [
        ("rtx-4070", "SM89"),
        ("RTX 4070 Ti SUPER", "SM89"),
        ("rtx4070ti", "SM89"),
        ("RTX4090D", "SM89"),
        ("rtx_3060", "SM86"),
        ("4070", "SM89"),
        ("geforce4070", "SM89"),
        ("GeForceRTX4070Ti", "SM89"),
        ("orin-nano", "SM87"),
        ("Jetson Orin Nano Super Developer Kit", "SM87"),
        ("jetson_agx_orin", "SM87"),
        ("Orin NX 16GB", "SM87"),
        ("Jetson Thor", "SM110"),
        ("DGX Spark", "SM121"),
        ("rtx a2000", "SM86"),
        ("A10G", "SM86"),
        ("Quadro T1000", "SM75"),
        ("quadro-rtx-6000", "SM75"),
        ("rtx-6000-ada", "SM89"),
        ("rtx-pro-6000", "SM120"),
        ("GeForce GTX 1660 Ti", "SM75"),
        ("RTX 2050", "SM86"),
        ("rtx-8000", "SM75"),
        (" l4 ", "SM89"),
    ],
)
def test_resolve_gpu_reads_what_people_write(text: str, capability: str) -> None:
    assert resolve_gpu(text) == capability


@pytest.mark.parametrize(
    ("name", "capability"),
    [
        ("NVIDIA GeForce RTX 4070 Laptop GPU", "SM89"),
        ("NVIDIA GeForce RTX 3080 Ti", "SM86"),
        ("NVIDIA A100-SXM4-80GB", "SM80"),
        ("NVIDIA H100 80GB HBM3", "SM90"),
        ("NVIDIA H100 PCIe", "SM90"),
        ("NVIDIA L40S", "SM89"),
        ("Tesla T4", "SM75"),
        ("Tesla V100-SXM2-16GB", "SM70"),
        ("NVIDIA RTX A6000", "SM86"),
        ("NVIDIA RTX 6000 Ada Generation", "SM89"),
        ("NVIDIA RTX 4000 SFF Ada Generation", "SM89"),
        ("Quadro RTX 5000 with Max-Q Design", "SM75"),
        ("NVIDIA RTX PRO 6000 Blackwell Max-Q Workstation Edition", "SM120"),
        ("NVIDIA B200", "SM100"),
        ("NVIDIA GB10", "SM121"),
        ("Orin", "SM87"),
        ("NVIDIA Jetson Orin NX Engineering Reference Developer Kit", "SM87"),
        ("NVIDIA Jetson AGX Thor Developer Kit", "SM110"),
    ],
)
def test_resolve_gpu_reads_what_drivers_say(name: str, capability: str) -> None:
    assert resolve_gpu(name) == capability


@pytest.mark.parametrize("text", ["sm86", "SM86", "sm_86", "8.6", "86", "compute_86", "cc8.6", " sm86\n"])
def test_resolve_gpu_reads_compute_capabilities(text: str) -> None:
    assert resolve_gpu(text) == "SM86"


@pytest.mark.parametrize(
    ("text", "capability"), [("12.0", "SM120"), ("sm_121", "SM121"), ("sm90a", "SM90"), ("sm101", "SM110")]
)
def test_resolve_gpu_reads_newer_compute_capabilities(text: str, capability: str) -> None:
    assert resolve_gpu(text) == capability


def test_resolve_gpu_reads_every_name_of_its_table() -> None:
    assert [resolve_gpu(name) for names in GPUS.values() for name in names.split()] == [
        f"SM{number}" for number, names in GPUS.items() for _ in names.split()
    ]


@pytest.mark.parametrize(
    ("text", "suggestion"),
    [
        ("rtx-4071", "rtx-4070"),
        ("orin-nono", "orin-nano"),
        ("sm98", "sm90"),
        ("NVIDIA GeForce RTX 5099 Ti", "rtx-5090"),
    ],
)
def test_resolve_gpu_suggests_what_is_near(text: str, suggestion: str) -> None:
    with pytest.raises(
        ExportError, match=rf"^[^\n]*'{text}'[^\n]*Did you mean '{suggestion}'\? Give a name such as rtx-4070[^\n]*$"
    ):
        resolve_gpu(text)


@pytest.mark.parametrize("text", ["", "gfx90a", "nvidia", "8", "999", "rtx", "sm", "rtx-4070;rm"])
def test_resolve_gpu_raises_when_it_is_no_gpu(text: str) -> None:
    with pytest.raises(ExportError, match=r"^[^\n]*nvidia-smi[^\n]*$"):
        resolve_gpu(text)


def test_resolve_gpu_asks_which_when_a_name_was_sold_more_than_once() -> None:
    with pytest.raises(
        ExportError, match=r"^'RTX 6000' may be any of quadro-rtx-6000, rtx-6000-ada, rtx-pro-6000; write which\.$"
    ):
        resolve_gpu("RTX 6000")


def test_resolve_gpus_reads_lists_and_names_each_capability_once() -> None:
    assert resolve_gpus(("rtx-4070, sm86", "RTX 4090", "rtx-3060,", "8.9")) == ("SM89", "SM86")


@pytest.mark.parametrize("texts", [(), ("",), (" , ",)])
def test_resolve_gpus_raises_when_there_is_none(texts: tuple[str, ...]) -> None:
    with pytest.raises(ExportError, match="no GPU is given"):
        resolve_gpus(texts)
