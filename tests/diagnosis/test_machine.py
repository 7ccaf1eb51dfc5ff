"""Reading what Linux tells of a machine, with the files of other machines in the place of this one's."""

from __future__ import annotations

import dataclasses
import shutil

import pytest

from convnext_deploy.diagnosis import machine
from convnext_deploy.diagnosis.machine import GPU, Machine, examine_machine
from convnext_deploy.system import memory

XEON = "processor : 0\nmodel name : Intel(R) Xeon(R)\nflags : fpu avx2 avx512f avx512_vnni avx512_bf16 amx_int8\n"
OLD = "model name : Old\nflags : fpu sse4_2\n"
HASWELL = "model name : Haswell\nflags : fpu avx2\n"
ORIN = "processor : 0\nBogoMIPS : 62.50\nFeatures : fp asimd asimddp\n"
MEMORY = "MemTotal: 8000 kB\nMemFree: 100 kB\nMemAvailable: 6000 kB\n"


def examine(monkeypatch: pytest.MonkeyPatch, **files: str) -> Machine:
    """Examine a machine with these files: `cpuinfo`, `meminfo`, `limit`, `version`; what is not given is not there."""
    names = {"cpuinfo": "/proc/cpuinfo", "meminfo": "/proc/meminfo", "version": "/proc/driver/nvidia/version"}
    texts = {names.get(name, memory._CGROUPS[0][0]): text for name, text in files.items()}
    for module in (machine, memory):
        monkeypatch.setattr(module, "_read", lambda path: texts.get(path, ""))
    return examine_machine({"error": "no GPU"})


@pytest.mark.parametrize(
    ("text", "cpu", "features", "meaning"),
    [
        (XEON, "Intel(R) Xeon(R)", ("AVX2", "AVX-512", "VNNI", "BF16", "AMX"), "instructions of its own"),
        (HASWELL, "Haswell", ("AVX2",), "without VNNI"),
        (OLD, "Old", (), "without AVX2"),
        (ORIN, None, ("dot products",), "instructions of its own"),
        ("", None, None, "not known"),
    ],
    ids=["Xeon", "Haswell", "old", "Orin", "not Linux"],
)
def test_processor_is_told_with_what_int8_is_good_for(
    monkeypatch: pytest.MonkeyPatch, text: str, cpu: str | None, features: tuple[str, ...] | None, meaning: str
) -> None:
    found = examine(monkeypatch, cpuinfo=text)
    assert found.cpu == cpu or cpu is None
    assert found.cpu_features == features
    assert meaning in found.int8_on_cpu
    assert found.cores >= 1


def test_memory_is_that_of_the_container_where_it_is_less(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = examine(monkeypatch, meminfo=MEMORY)
    assert (whole.memory_bytes, whole.memory_available_bytes) == (8_192_000, 6_144_000)
    limited = examine(monkeypatch, meminfo=MEMORY, limit="5000000\n")
    assert (limited.memory_bytes, limited.memory_available_bytes) == (5_000_000, 5_000_000)
    unlimited = examine(monkeypatch, meminfo=MEMORY, limit="max\n")
    assert unlimited.memory_bytes == 8_192_000
    assert examine(monkeypatch).memory_bytes is None


def test_memory_of_a_container_is_free_but_for_what_is_used_and_cannot_be_dropped(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    limit, used, statistics, _ = memory._CGROUPS[0]
    texts = {limit: "5000000", used: "4000000", statistics: "anon 1500000\ninactive_file 2500000\n"}
    monkeypatch.setattr(memory, "_read", lambda path: texts.get(path, MEMORY if path == "/proc/meminfo" else ""))
    assert memory.memory_sizes() == (5_000_000, 3_500_000)


def test_shared_memory_is_told_with_what_it_allows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(64 << 20, 1 << 20, 63 << 20))
    found = examine_machine({"error": "no GPU"})
    assert (found.shared_bytes, found.shared_free_bytes) == (64 << 20, 63 << 20)
    assert "without it" in found.shared_allows
    gpu = GPU("NVIDIA H200", "SM90", 150 * 10**9)
    assert "--shm-size" in dataclasses.replace(found, gpus=(gpu, gpu)).shared_allows


def test_driver_is_told_by_its_version(monkeypatch: pytest.MonkeyPatch) -> None:
    text = (
        "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.95.05  Release Build\nGCC version: gcc 12.2.0\n"
    )
    assert examine(monkeypatch, version=text).driver == "580.95.05"
    assert examine(monkeypatch).driver is None


def test_folder_that_is_gone_has_no_disk_and_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def gone(path: object) -> None:
        raise FileNotFoundError(path)

    monkeypatch.setattr(shutil, "disk_usage", gone)
    assert examine_machine({"error": "no GPU"}).disk_free_bytes is None


def test_gpus_are_those_of_the_driver() -> None:
    gpu = {"name": "NVIDIA H200", "capability": "SM90", "memory_bytes": 150 * 10**9}
    found = examine_machine({"error": None, "cuda": "13.0", "gpus": [gpu]})
    assert found.gpus == (GPU("NVIDIA H200", "SM90", 150 * 10**9),)
    assert (found.gpu_error, found.driver_cuda) == (None, "13.0")


@pytest.mark.parametrize(
    ("capability", "abilities"),
    [
        ("SM61", "no tensor cores: FP16 and INT8 gain little"),
        ("SM70", "tensor cores for FP16"),
        ("SM75", "tensor cores for FP16, INT8"),
        ("SM87", "tensor cores for FP16, INT8, BF16"),
        ("SM120", "tensor cores for FP16, INT8, BF16, FP8"),
    ],
)
def test_abilities_of_a_gpu_follow_from_its_compute_capability(capability: str, abilities: str) -> None:
    assert GPU("some", capability, 1).abilities == abilities
