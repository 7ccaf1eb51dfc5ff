"""Versions that fit and do not fit, as packages write them."""

from __future__ import annotations

import pytest

from convnext_deploy.diagnosis.requirements import Requirement, allows, find_misfits, installed_version, requirements_of
from tests.diagnosis.conftest import Plant

FITTING = [
    (">=2.14,<2.15", "2.14.1+cu130", True),
    (">=2.14,<2.15", "2.15.0", False),
    (">=2.14,<2.15", "2.13.9", False),
    (">=2.9", "2.14", True),
    ("==2.14.1", "2.14.1+cpu", True),
    ("==2.14.1+cpu", "2.14.1+cpu", True),
    ("==2.14", "2.14.0", True),
    ("==2.14.1", "2.14.2", False),
    ("==2.14.*", "2.14.7", True),
    ("==2.1.*", "2.14.7", False),
    ("!=2.14.*", "2.14.7", False),
    ("!=2.14.1", "2.14.2", True),
    ("~=2.1", "2.9", True),
    ("~=2.1", "3.0", False),
    ("~=2.1.3", "2.1.2", False),
    (">1,<=2", "2.0", True),
    ("===1.0", "1.0", True),
    ("", "1", True),
    ("@ file:///somewhere", "1", True),
    (">=1.0", "2.0rc1", True),
    (">=1.0", "nightly", False),
]


@pytest.mark.parametrize(("versions", "installed", "fits"), FITTING)
def test_allows_is_what_pip_would_say(versions: str, installed: str, fits: bool) -> None:
    assert allows(versions, installed) is fits


def test_allows_agrees_with_the_packaging_library() -> None:
    specifiers = pytest.importorskip("packaging.specifiers")
    clauses = [
        f"{operator}{v}" for operator in ("==", "!=", "<", "<=", ">", ">=") for v in ("1", "1.2", "1.2.3", "2.0")
    ]
    for clause in (*clauses, "~=1.2", "~=1.2.3", "==1.*", "!=1.2.*"):
        for version in ("0.9", "1", "1.0.0", "1.2", "1.2.3", "1.3", "2", "10.1"):
            assert allows(clause, version) is specifiers.SpecifierSet(clause).contains(version), (clause, version)


def test_requirements_are_those_that_hold_in_any_case(plant: Plant) -> None:
    lines = (
        "torch (==2.14.1)",
        "numpy",
        "gdown>=4 ; extra == 'gdown'",
        "x[y]>=1; sys_platform == 'win32'",
        "a_B.c[d]<2",
    )
    plant("1.0", lines, fitting="")
    assert requirements_of("fitting") == (
        Requirement("torch", "==2.14.1"),
        Requirement("numpy", ""),
        Requirement("a-b-c", "<2"),
    )
    assert Requirement("gdown", ">=4") in requirements_of("fitting", extras=True)
    assert len(requirements_of("fitting", extras=True)) == 4


def test_misfit_is_told_with_who_needs_it_and_what_is_there(plant: Plant) -> None:
    plant("0.29", ("engine==2.14.1", "fuel>=1"), vision="")
    plant("2.15", engine="")
    assert find_misfits(["vision", "engine", "fuel"], "own") == [("vision", Requirement("engine", "==2.14.1"), "2.15")]
    assert find_misfits(["engine"], "own") == []


def test_damaged_metadata_is_as_good_as_none(plant: Plant) -> None:
    folder = plant("1.0", ragged="")
    (folder / "ragged-1.0.dist-info" / "METADATA").unlink()
    assert installed_version("ragged") is None
    assert requirements_of("ragged") == ()
    assert installed_version("not-installed-anywhere") is None
    assert requirements_of("not-installed-anywhere") == ()
