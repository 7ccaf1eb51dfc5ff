"""What `pyproject.toml`, the sessions of `noxfile.py` and the workflow say of versions fits together."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
NEEDED = {found.name: found for found in map(Requirement, PROJECT["dependencies"])}
TENSORRT_RTX = NEEDED.pop("tensorrt_rtx")


@pytest.mark.parametrize("name", NEEDED)
def test_every_package_has_a_lowest_version_and_no_highest(name: str) -> None:
    assert [part.operator for part in NEEDED[name].specifier] == [">="]


@pytest.mark.parametrize(
    ("name", "version"),
    [
        ("torch", "2.10.0"),
        ("torch", "2.15.0"),
        ("torch", "2.10.0a0+b4e4ee81d3.nv25.12"),  # as in NVIDIA's containers
        ("torch", "2.14.0a0+b1ab2c3.nv26.05"),
        ("torch", "2.11.0+cpu"),
        ("torchvision", "0.25.0a0+ca221243"),
    ],
)
def test_containers_and_builds_without_cuda_count_as_installed(name: str, version: str) -> None:
    assert NEEDED[name].specifier.contains(version)


def test_older_torch_is_refused() -> None:
    assert not NEEDED["torch"].specifier.contains("2.9.1")


def test_versions_of_python_are_the_same_everywhere() -> None:
    named = re.findall(r'"(3\.\d+)"', re.search(r"^PYTHONS = \((.*)\)$", _text("noxfile.py"), re.MULTILINE)[1])  # type: ignore[index]
    prefix = "Programming Language :: Python :: "
    assert named == [line.removeprefix(prefix) for line in PROJECT["classifiers"] if line.startswith(prefix)]
    assert PROJECT["requires-python"] == f">={named[0]}"
    workflow = _text(".github/workflows/sessions.yml")
    assert {f"highest-{version}" for version in named} <= set(re.findall(r"highest-[\d.]+", workflow))


@pytest.mark.parametrize(
    ("system", "machine", "is_default"),
    [("linux", "x86_64", True), ("linux", "aarch64", False), ("win32", "AMD64", False), ("darwin", "arm64", False)],
)
def test_tensorrt_rtx_comes_where_it_was_tried(system: str, machine: str, is_default: bool) -> None:
    assert TENSORRT_RTX.marker is not None
    place = {"sys_platform": system, "platform_machine": machine, "python_version": "3.13"}
    assert TENSORRT_RTX.marker.evaluate(place) is is_default
    assert not TENSORRT_RTX.marker.evaluate({**place, "python_version": "3.15"})


def _text(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")
