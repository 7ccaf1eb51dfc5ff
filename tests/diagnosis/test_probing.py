"""Importing packages in other processes: what crashes, hangs, exits or prints there does no harm here."""

from __future__ import annotations

import time

import pytest

from convnext_deploy.diagnosis.probing import probe
from tests.diagnosis.conftest import Plant

CRASH = "import os, signal; os.kill(os.getpid(), signal.SIGSEGV)"


def test_module_that_can_be_imported_works_and_tells_its_version(plant: Plant) -> None:
    plant(well="__version__ = '1.2'", quiet="")
    found = probe([["well", "quiet"]], 60)
    assert found["well"].works
    assert found["well"].version == "1.2"
    assert found["quiet"].works
    assert found["quiet"].version is None


def test_missing_module_is_told_from_one_that_lacks_another(plant: Plant) -> None:
    plant(lacking="import nowhere_to_be_found")
    found = probe([["nowhere", "lacking"]], 60)
    assert (found["nowhere"].missing, found["nowhere"].works) == (True, False)
    assert (found["lacking"].missing, found["lacking"].works) == (False, False)
    assert "nowhere_to_be_found" in str(found["lacking"].error)


@pytest.mark.parametrize(
    ("text", "error"),
    [
        (CRASH, "importing it ends the process (SIGSEGV)"),
        ("import os; os._exit(3)", "importing it ends the process (exit code 3)"),
        ("raise SystemExit('no licence')", "SystemExit: no licence"),
        (
            "raise OSError('libfoo.so.1: cannot open shared object file\\nmore')",
            "OSError: libfoo.so.1: cannot open shared object file",
        ),
        ("raise RuntimeError", "RuntimeError"),
        ("def f(:", "SyntaxError: "),
    ],
    ids=["crash", "exit", "SystemExit", "missing library", "no text", "syntax"],
)
def test_broken_module_is_told_with_the_reason_and_the_others_are_still_tried(
    plant: Plant, text: str, error: str
) -> None:
    plant(broken=text, well="", other="")
    found = probe([["well", "broken", "other"]], 60)
    assert found["well"].works
    assert found["other"].works
    assert str(found["broken"].error).startswith(error)


def test_module_that_hangs_ends_with_its_time_and_what_it_started(plant: Plant) -> None:
    plant(hanging="import subprocess; subprocess.run(['sleep', '600'])", well="")
    begun = time.monotonic()
    found = probe([["hanging", "well"]], 2)
    assert time.monotonic() - begun < 30
    assert found["hanging"].error == "it is still being imported after 2 s"
    assert found["well"].works


def test_what_a_module_prints_is_taken_for_no_answer(plant: Plant) -> None:
    plant(
        loud='import os\nprint(\'{"module": "other", "error": "no"}\')\nos.write(1, b\'\\xff\\n\')',
        other="import sys; sys.stdout.close()",
    )
    found = probe([["loud", "other"]], 60)
    assert found["loud"].works
    assert found["other"].works


def test_version_that_is_no_text_is_written_as_text(plant: Plant) -> None:
    plant(odd="__version__ = (1, 2)")
    assert probe([["odd"]], 60)["odd"].version == "(1, 2)"


def test_no_chains_need_no_process() -> None:
    assert probe([[], []], 60) == {}
