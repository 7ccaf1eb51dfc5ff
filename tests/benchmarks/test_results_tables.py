"""The tables in Markdown files are what the stored results give."""

from __future__ import annotations

import itertools
import json
import re
import shutil
from pathlib import Path

import pytest

from tests.benchmarks.conftest import BENCHMARKS


def test_tables_are_those_of_the_results() -> None:
    from results_tables import fill
    from run_all import documents

    texts = {path: path.read_text(encoding="utf-8") for path in documents()}
    assert BENCHMARKS / "README.md" in texts
    old = [path.name for path, text in texts.items() if fill(text) != text]
    assert not old, "run: python benchmarks/run_all.py --tables"


def test_lines_of_a_table_have_the_same_number_of_cells() -> None:
    from run_all import documents

    for path in documents():
        lines = path.read_text(encoding="utf-8").splitlines()
        for is_table, group in itertools.groupby(lines, key=lambda line: line.startswith("| ")):
            rows = list(group)
            assert not is_table or len({len(re.split(r"(?<!\\)\|", row)) for row in rows}) == 1, (
                f"{path.name}: {rows[0]}"
            )


def test_folder_shows_every_table() -> None:
    from results_tables import TABLES, names_in

    assert set(names_in((BENCHMARKS / "README.md").read_text(encoding="utf-8"))) == set(TABLES)


def test_changed_result_changes_its_table(tmp_path: Path) -> None:
    from results_tables import RESULTS, fill

    shutil.copytree(RESULTS, tmp_path / "results")
    file = tmp_path / "results" / "distillation.json"
    cell = {"row": "alone", "seed": 1, "top1": 0.4711}
    file.write_text(json.dumps({**json.loads(file.read_text()), "cells": [cell]}))
    before = "a\n<!-- results: distillation -->\nold\n<!-- end -->\nb\n<!-- results: eager -->\n<!-- end -->\n"
    after = fill(before, tmp_path / "results")
    assert "| alone, on the labels | – | 47.11 | – | 47.11 | |" in after
    assert "old" not in after
    assert after.startswith("a\n<!-- results: distillation -->\n")
    assert "<!-- end -->\nb\n" in after
    assert "`--model tiny --batch-size 8`" in after
    assert fill(after, tmp_path / "results") == after


def test_gain_of_a_teacher_is_over_the_same_seed_alone() -> None:
    from distillation import ROWS
    from distillation_table import lines

    top1 = {("alone", 0): 0.70, ("alone", 1): 0.72, ("foreign", 0): 0.76, ("foreign", 1): 0.80, ("own", 2): 0.71}
    top1 |= {("alone-longer", 0): 0.75, ("foreign-longer", 0): 0.82}
    cells = [{"row": row, "seed": seed, "top1": value} for (row, seed), value in top1.items()]
    found = lines({"cells": cells})
    assert len(found) == len(ROWS)
    table = {row[0]: row[1:] for row in found}
    assert table["alone, on the labels"] == ["70.00", "72.00", "–", "71.00", ""]
    # gains 6 and 8: a standard error of 1, and 12.706 is the 97.5 % quantile of Student's t with one degree of freedom
    assert table["taught by the residual network"] == ["76.00", "80.00", "–", "78.00", "+7.00 [-5.71, +19.71]"]
    assert table["taught by the ConvNeXt"] == ["–", "–", "71.00", "71.00", "–"]
    # over the student alone of as many epochs
    assert table["twice as long: alone"] == ["75.00", "–", "–", "75.00", ""]
    assert table["twice as long: taught by the residual network"][-1] == "+7.00 (one seed)"


def test_teachers_are_compared_over_the_same_seeds() -> None:
    from distillation_table import facts

    top1 = {("foreign", 0): 0.76, ("foreign", 1): 0.80, ("own", 0): 0.74, ("own", 1): 0.76, ("own", 2): 0.9}
    cells = [{"row": row, "seed": seed, "top1": value} for (row, seed), value in top1.items()]
    found = facts({"cells": cells, "teachers": {"foreign": {"top1": 0.8895}}})
    assert found == (
        "5 of 33 cells are measured; the residual network has 88.95 %; taught by the residual network over taught by the "
        "ConvNeXt: +3.00 [-9.71, +15.71] pp."
    )


def test_missing_result_leaves_its_table(tmp_path: Path) -> None:
    from results_tables import TABLES, fill

    text = "".join(f"<!-- results: {name} -->\nwhat was there\n<!-- end -->\n" for name in TABLES)
    assert fill(text, tmp_path) == text


def test_unknown_table_is_an_error(tmp_path: Path) -> None:
    from results_tables import fill

    with pytest.raises(ValueError, match="no table 'kill'"):
        fill("<!-- results: kill -->\n<!-- end -->\n", tmp_path)
