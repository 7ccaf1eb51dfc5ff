"""One command runs every benchmark, each with arguments that it takes."""

from __future__ import annotations

import argparse
import json
import runpy
import sys
from pathlib import Path
from typing import Any

import pytest

from convnext_deploy.system.sealed_json import unseal
from tests.benchmarks.conftest import BENCHMARKS

# started by others, with arguments of their own, or makes what they need
INNER = {
    "run_all.py",
    "gpu.py",
    "gpu_parts.py",
    "slow_store.py",
    "peers_methods.py",
    "latency_child.py",
    "foreign_teacher.py",
}
GIVEN = ["--data", ".", "--teacher", ".", "--students", ".", "..", "--python-nncf", ".", "--python-modelopt", "."]


def test_every_script_is_known() -> None:
    from run_all import BENCHMARKS as KNOWN

    scripts = {path.name for path in BENCHMARKS.glob("*.py") if '__name__ == "__main__"' in path.read_text("utf-8")}
    assert {benchmark.script for benchmark in KNOWN if benchmark.script} == scripts - INNER


def test_every_stored_result_is_made_by_one() -> None:
    from run_all import BENCHMARKS as KNOWN

    stored = {path.stem for path in (BENCHMARKS / "results").glob("*.json")}
    assert stored <= {benchmark.name for benchmark in KNOWN}


def test_every_script_takes_its_arguments(monkeypatch: pytest.MonkeyPatch) -> None:
    from run_all import BENCHMARKS as KNOWN
    from run_all import command, parse_arguments

    parsed: list[argparse.Namespace] = []
    parse = argparse.ArgumentParser.parse_args

    def parse_and_end(parser: argparse.ArgumentParser, *words: Any) -> None:
        parsed.append(parse(parser, *words))
        raise SystemExit(0)

    given, scripts = parse_arguments(GIVEN), [benchmark for benchmark in KNOWN if benchmark.script]
    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parse_and_end)
    for benchmark in scripts:
        words = command(benchmark, given, Path("there.json"))
        monkeypatch.setattr(sys, "argv", words[1:])
        with pytest.raises(SystemExit) as ended:
            runpy.run_path(str(BENCHMARKS.parent / words[1]), run_name="__main__")
        assert ended.value.code == 0, words
    assert [found.out for found in parsed] == [Path("there.json")] * len(scripts)


@pytest.fixture
def planted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Replace the benchmarks by four of seconds, whose script counts how often it ran; return their folder."""
    import run_all

    script = tmp_path / "benchmarks" / "script.py"
    script.parent.mkdir()
    script.write_text(
        "import json, pathlib, sys\n"
        "code, data, out = int(sys.argv[1]), sys.argv[2], sys.argv[-1]\n"
        "with open(pathlib.Path(__file__).parents[1] / 'ran.txt', 'a') as ran: ran.write(f'{code}\\n')\n"
        "from convnext_deploy.system.sealed_json import seal\n"
        "found = {'code': code, 'command': f'{data} {out}', 'started_in': str(pathlib.Path.cwd())}\n"
        "if code != 2: pathlib.Path(out).write_text(json.dumps(seal(found)))\n"
        "sys.exit(code)\n"
    )
    path = "script.py"
    benchmarks = (
        run_all.Benchmark("good", path, ("0", "x"), 1),
        run_all.Benchmark("broken-promise", path, ("1", "{data}"), 1),
        run_all.Benchmark("fails", path, ("2", "x"), 1),
        run_all.Benchmark("long", path, ("0", "{teacher}"), 600),
    )
    monkeypatch.setattr(run_all, "BENCHMARKS", benchmarks)
    monkeypatch.setattr(run_all, "DOCUMENTS", ())
    monkeypatch.setattr(run_all, "ROOT", tmp_path)
    return tmp_path


def start(folder: Path, monkeypatch: pytest.MonkeyPatch, *words: str) -> int:
    """Run the planted benchmarks; return the exit code."""
    import run_all

    fixed = ["run_all.py", "--out", str(folder / "results"), "--work", str(folder / "work"), *words]
    monkeypatch.setattr(sys, "argv", fixed)
    return run_all.main()


def test_results_are_stored_and_failures_said(
    planted: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    data = planted / "my pictures"
    data.mkdir()
    assert start(planted, monkeypatch, "--data", str(data)) == 1
    said = capfd.readouterr()
    assert "good: finished" in said.out
    assert "broken-promise: finds a promise that does not hold" in said.out
    assert "fails: failed with code 2" in said.out
    assert "long left out: give --teacher" in said.out
    assert "not as they should be: broken-promise, fails" in said.err
    assert {path.name for path in (planted / "results").iterdir()} == {"good.json", "broken-promise.json"}
    assert json.loads((planted / "results" / "broken-promise.json").read_text())["command"] == "DATA FILE.json"
    good = unseal(json.loads((planted / "results" / "good.json").read_text()))
    assert good["started_in"] == "."


def test_what_was_finished_is_not_run_again(planted: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def ran() -> int:
        return len((planted / "ran.txt").read_text().split())

    assert start(planted, monkeypatch, "--only", "good") == 0
    assert start(planted, monkeypatch, "--only", "good") == 0
    assert ran() == 1
    assert start(planted, monkeypatch, "--only", "good", "--again") == 0
    assert ran() == 2
    assert start(planted, monkeypatch, "--only", "fails") == 1
    assert start(planted, monkeypatch, "--only", "fails") == 1
    assert ran() == 4
    for teacher in ("a", "b"):
        (planted / teacher).mkdir()
        assert start(planted, monkeypatch, "--only", "long", "--teacher", str(planted / teacher)) == 0
    assert ran() == 6
    assert start(planted, monkeypatch, "--hours", "5", "--skip", "fails", "good") == 0
    assert ran() == 6


@pytest.mark.parametrize("words", [["--only", "nothing"], ["--skip", "nothing"], ["--data", "no folder"]])
def test_wrong_words_are_wrong_usage(
    words: list[str], planted: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        start(planted, monkeypatch, *words)
    assert ended.value.code == 2
    assert words[1] in capfd.readouterr().err
