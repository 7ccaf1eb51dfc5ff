"""Every mutant finds its line and its tests, and what came out of one is told rightly."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from tests.benchmarks.conftest import BENCHMARKS

TREE = BENCHMARKS.parent
ADD = "def add(a: int, b: int) -> int:\n    return a + b\n"
TEST = "from convnext_deploy.sums import add\n\n\ndef test_add() -> None:\n    assert add(2, 1) == 3\n"


def plant(folder: Path, test: str = TEST) -> Path:
    """Write a package of one function with its test."""
    for name, text in {
        "convnext_deploy/__init__.py": "",
        "convnext_deploy/sums.py": ADD,
        "tests/test_sums.py": test,
        "pyproject.toml": "[tool.pytest.ini_options]\nmarkers = ['slow: none']\n",
    }.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder


def test_every_mutant_changes_one_place_and_names_tests_that_are_there() -> None:
    from mutants import PACKAGE, find_place, find_tests
    from mutants_list import MUTANTS

    assert len({mutant.name for mutant in MUTANTS}) == len(MUTANTS) == 33
    places = [find_place(TREE / PACKAGE, mutant) for mutant in MUTANTS]
    for path, text in places:
        assert text != path.read_text(encoding="utf-8")
        compile(text, str(path), "exec")
    assert all(find_tests(TREE, mutant) for mutant in MUTANTS)
    rooms = {path.parent for path in (TREE / PACKAGE).rglob("*.py") if path.name != "__init__.py"} - {TREE / PACKAGE}
    assert rooms - {path.parent for path, _ in places} == set(), "a room without a mutant"


@pytest.mark.heavy
@pytest.mark.parametrize(
    ("after", "test", "status"),
    [("a - b", TEST, "killed"), ("b + a", TEST, "survived"), ("a - b", TEST.replace("3", "4"), "unclear")],
)
def test_mutant_is_killed_by_a_test_that_passes_without_it(after: str, test: str, status: str, tmp_path: Path) -> None:
    from mutants import try_mutant
    from mutants_list import Mutant

    tree = plant(tmp_path, test)
    found = try_mutant(tree, Mutant("sum", "", "a   +\n b", after, ("test_sums.py",)), 2.0)
    assert found["status"] == status
    assert found["test"] == (None if status == "survived" else "tests/test_sums.py::test_add")
    assert (tree / "convnext_deploy" / "sums.py").read_text() == ADD


def test_mutant_without_its_place_or_tests_is_an_error(tmp_path: Path) -> None:
    from mutants import find_place, find_tests
    from mutants_list import Mutant

    tree = plant(tmp_path)
    for before in ("a * b", "a"):
        with pytest.raises(LookupError, match="expected one place"):
            find_place(tree / "convnext_deploy", Mutant("x", "", before, "", ()))
    with pytest.raises(LookupError, match="none of test_products"):
        find_tests(tree, Mutant("x", "", "a + b", "", ("test_products.py",)))


@pytest.mark.heavy
def test_results_are_kept_and_not_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import mutants
    from mutants_list import Mutant

    tree, out = plant(tmp_path / "tree"), tmp_path / "mutants.json"
    monkeypatch.setattr(mutants, "MUTANTS", (Mutant("sum", "", "a + b", "b + a", ("test_sums.py",)),))
    monkeypatch.setattr(sys, "argv", ["mutants.py", "--tree", str(tree), "--label", "here", "--out", str(out)])
    with pytest.raises(SystemExit, match="not killed: sum"):
        mutants.main()
    assert json.loads(out.read_text())["here"]["mutants"]["sum"]["status"] == "survived"
    monkeypatch.setattr(mutants, "try_mutant", None)
    with pytest.raises(SystemExit, match="not killed: sum"):
        mutants.main()
    assert "0 of 1 killed" in capsys.readouterr().out
