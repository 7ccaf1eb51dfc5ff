"""Versions that fit and do not fit, as packages write them."""

from __future__ import annotations

import pytest
from packaging.requirements import Requirement

from convnext_deploy.diagnosis.packages import find_misfits, requirements_of
from convnext_deploy.system.environment import installed_version
from tests.diagnosis.conftest import Plant

FITTING = [
    (">=2.14,<2.15", "2.14.1+cu130", True),
    (">=2.14,<2.15", "2.15.0", False),
    (">=2.14,<2.15", "2.13.9", False),
    ("==2.14.1", "2.14.1+cpu", True),
    ("==2.14.*", "2.14.7", True),
    ("!=2.14.*", "2.14.7", False),
    ("~=2.1", "2.9", True),
    ("~=2.1", "3.0", False),
    ("", "1", True),
    ("@ file:///somewhere", "1", True),
    ("of any kind", "1", True),
    (">=1.0", "2.0rc1", True),
    (">=1.0", "nightly", False),
]


@pytest.mark.parametrize(("versions", "installed", "fits"), FITTING)
def test_misfits_are_what_pip_would_say(versions: str, installed: str, fits: bool, plant: Plant) -> None:
    plant("1.0", (f"engine {versions}",), vision="")
    plant(installed, engine="")
    assert (find_misfits(["vision", "engine"], "own") == []) is fits


def test_requirements_are_those_of_this_machine(plant: Plant) -> None:
    lines = (
        "torch (==2.14.1)",
        "numpy",
        "gdown>=4 ; extra == 'gdown'",
        "x[y]>=1; sys_platform == 'win32'",
        "y>=1; sys_platform != 'win32'",
        "a_B.c[d]<2",
    )
    plant("1.0", lines, extras=("gdown",), fitting="")
    held = ["torch==2.14.1", "numpy", "y>=1", "a_B.c<2"]
    assert [f"{found.name}{found.specifier}" for found in requirements_of("fitting")] == held
    with_extras = [f"{found.name}{found.specifier}" for found in requirements_of("fitting", extras=True)]
    assert with_extras == [*held[:2], "gdown>=4", *held[2:]]


def test_misfit_is_told_with_who_needs_it_and_what_is_there(plant: Plant) -> None:
    plant("0.29", ("engine==2.14.1", "fuel>=1"), vision="")
    plant("2.15", engine="")
    assert find_misfits(["vision", "engine", "fuel"], "own") == [("vision", Requirement("engine==2.14.1"), "2.15")]
    assert find_misfits(["engine"], "own") == []


def test_damaged_metadata_is_as_good_as_none(plant: Plant) -> None:
    folder = plant("1.0", ragged="")
    (folder / "ragged-1.0.dist-info" / "METADATA").unlink()
    assert installed_version("ragged") is None
    assert requirements_of("ragged") == []
    assert installed_version("not-installed-anywhere") is None
    assert requirements_of("not-installed-anywhere") == []
