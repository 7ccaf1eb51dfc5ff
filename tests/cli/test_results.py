"""What commands print and write: tables, JSON, exit codes, and the same score for a folder and its bare file."""

from __future__ import annotations

import dataclasses
import io
import json
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import onnx
import pytest
from rich.console import Console

from convnext_deploy.artifacts.artifact import Artifact, read_artifact
from convnext_deploy.cli import COMMANDS
from convnext_deploy.cli.report_table import print_stages
from convnext_deploy.pipeline.run import RunResult
from convnext_deploy.reports.record import read_report
from convnext_deploy.reports.stage_table import cells
from convnext_deploy.system.sealed_json import seal
from tests.cli.conftest import FailedRun, Outcome, assert_nothing_half_written, call
from tests.cli.drawn import cells_of, tables_in
from tests.pipeline.test_open_artifact import write_foreign_onnx
from tests.rows import accuracy_of, drop_of, rows_in
from tests.shared import heavy_except

HERE = ("--workers", "0", "--device", "cpu")
MEASURED = ("correct", "total", "top1", "top5", "runner")


def rows_of(outcome: Outcome) -> dict[str, dict[str, Any]]:
    assert outcome.code == 0, outcome.err
    return rows_in(outcome.out)


def test_failed_gate_exits_with_3_and_writes_both_reports(failed_run: FailedRun) -> None:
    assert failed_run.outcome.code == 3
    report = read_report(failed_run.out)
    assert (report.complete, report.passed) == (True, False)
    (reason,) = report.rows[0].verdict.reasons
    assert "is below the 100.00 % asked for" in reason
    assert f"- guess: {reason}" in failed_run.outcome.out
    assert "1 of 1 gates failed: guess" in failed_run.outcome.out
    assert "warning: guess: " in failed_run.outcome.out
    assert "WARNING: guess: " in failed_run.outcome.err
    assert f"- guess: {reason}" in (failed_run.out / "report.md").read_text()
    assert_nothing_half_written(failed_run.out)


def test_failed_gate_exits_with_3_again_when_nothing_is_executed(failed_run: FailedRun) -> None:
    again = call(*failed_run.command)
    assert (again.code, again.out) == (3, failed_run.outcome.out)
    assert again.err.splitlines()[0] == "guess: up to date"


def test_failed_gate_exits_with_3_and_prints_nothing_but_json(failed_run: FailedRun) -> None:
    outcome = call(*failed_run.command, "--json")
    assert outcome.code == 3
    assert json.loads(outcome.out) == json.loads((failed_run.out / "report.json").read_text())


def test_report_prints_the_table_of_the_run(failed_run: FailedRun) -> None:
    outcome = call("report", failed_run.out)
    assert (outcome.code, outcome.out) == (3, failed_run.outcome.out)
    assert outcome.err.splitlines()[0] == f"report: {failed_run.out / 'report.html'}"
    assert call("report", failed_run.out / "report.json") == outcome


def test_report_prints_the_json_of_the_run(failed_run: FailedRun) -> None:
    outcome = call("report", failed_run.out, "--json")
    assert (outcome.code, outcome.out) == (3, (failed_run.out / "report.json").read_text() + "\n")


def test_report_writes_the_markdown_anew(failed_run: FailedRun, tmp_path: Path) -> None:
    for name in ("report.json", "report.md"):
        shutil.copy(failed_run.out / name, tmp_path / name)
    (tmp_path / "report.md").write_text("lost")
    call("report", tmp_path)
    for name in ("report.json", "report.md"):
        assert (tmp_path / name).read_text() == (failed_run.out / name).read_text()


def test_report_shows_every_row_and_cell(small_run: RunResult) -> None:
    out = Path(small_run.report.rows[0].identity.artifact).parents[1]
    outcome = call("report", out / "report.json")
    assert outcome.code == 0
    table = next(tables_in(outcome.out))
    assert [tuple(cells_of(line)) for line in table] == [cells(row) for row in small_run.report.rows]
    assert "no gates were set" in outcome.out


def test_report_shows_names_with_brackets_as_they_are(failed_run: FailedRun, tmp_path: Path) -> None:
    content = json.loads((failed_run.out / "report.json").read_text())
    content |= {"recipe": "[/x] small [red]", "data": "photos [2024]"}
    (tmp_path / "report.json").write_text(json.dumps(seal(content)))
    outcome = call("report", tmp_path)
    assert outcome.code == 3
    assert "[/x] small [red]: photos [2024]" in outcome.out


@pytest.mark.parametrize(
    ("arguments", "code"),
    [(("--help",), 0), *(((verb, "--help"), 0) for verb in COMMANDS), (("--version",), 0), (("--nosuch",), 2)],
    ids=str,
)
def test_command_exits_with(arguments: tuple[str, ...], code: int) -> None:
    assert call(*arguments).code == code


@pytest.mark.heavy
def test_process_exits_with_3_when_a_gate_failed(failed_run: FailedRun) -> None:
    command = [sys.executable, "-m", "convnext_deploy", "report", str(failed_run.out)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 3
    assert [line.partition(": ")[0] for line in done.stderr.splitlines()] == ["report", "next"]
    assert done.stdout == failed_run.outcome.out


def test_dry_run_says_what_would_run_and_writes_nothing(
    failed_run: FailedRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    verb, recipe, *rest = failed_run.command
    outcome = call(verb, recipe, "--dry-run", *rest)
    assert (outcome.code, outcome.out) == (0, "guess: train from the data: up to date\n")
    assert outcome.err.count("\n") == 1  # the command that runs it
    data = rest[rest.index("--data") + 1]
    outcome = call("run", recipe, "--dry-run", "--data", data)
    assert (outcome.code, outcome.out) == (0, "guess: train from the data: would run\n")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["teacher", "ptq", "qat", "onnx-fp32", "onnx-int8"])
def test_validate_gives_the_score_of_the_run_for_folder_and_bare_file(
    small_run: RunResult, small_artifacts: dict[str, Artifact], image_folder: Path, name: str
) -> None:
    artifact = small_artifacts[name]
    expected = accuracy_of(next(row for row in small_run.report.rows if row.name == name))
    for path in (artifact.path, artifact.main_file):
        row = rows_of(call("validate", path, "--data", image_folder, "--json", *HERE))["artifact"]
        assert {key: row["accuracy"][key] for key in MEASURED} == {key: getattr(expected, key) for key in MEASURED}


def test_validate_compares_with_a_baseline_image_by_image(
    small_run: RunResult, small_artifacts: dict[str, Artifact], image_folder: Path, tmp_path: Path
) -> None:
    expected = drop_of(next(row for row in small_run.report.rows if row.name == "onnx-int8"))
    baseline = small_artifacts["student"].main_file
    source = small_artifacts["onnx-int8"].main_file
    options = ("--data", image_folder, "--out", tmp_path / "out", "--max-drop", "100", "--json", *HERE)
    rows = rows_of(call("validate", source, "--baseline", baseline, *options))
    assert list(rows) == ["baseline", "artifact"]
    row = rows["artifact"]
    found, drop = row["accuracy"], row["accuracy"]["drop"]
    assert (drop["top1_drop_pp"], drop["agreement"]) == (expected.top1_drop_pp, expected.agreement)
    assert row["provenance"]["baseline"] == "baseline"
    assert (row["verdict"]["passed"], rows["baseline"]["verdict"]["passed"]) == (True, None)
    views = ["model_card.md", "report.html", "report.json", "report.md"]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [".lock", "flips", *views]
    content = json.loads((tmp_path / "out" / "flips" / "artifact.json").read_text())
    assert [path.name for path in (tmp_path / "out" / "flips").iterdir()] == ["artifact.json"]
    assert len(content["images"]) == content["flipped"] == found["flipped"] == round(18 * (1 - drop["agreement"]))
    assert found["flips"] == content["images"][:20]
    assert [change["name"] for change in found["classes"]] == ["cat", "dog", "owl"]
    assert sum(change["lost"] - change["gained"] for change in found["classes"]) == drop["lost"] - drop["gained"]


def test_validate_fails_on_the_upper_end_where_the_point_passes(
    small_artifacts: dict[str, Artifact], image_folder: Path
) -> None:
    """18 images cannot show that an artifact loses less than 5 pp, were it the baseline itself."""
    path = small_artifacts["student"].path
    command = ("validate", path, "--baseline", path, "--data", image_folder, "--max-drop", "5", *HERE)
    for options, code in (((), 0), (("--gate-on", "point"), 0), (("--gate-on", "upper"), 3)):
        outcome = call(*command, *options)
        assert outcome.code == code
        assert "- artifact: 18 images cannot tell whether top-1 drops by more than 5.00 pp" in outcome.out
        assert "about 160 would do if nothing was lost" in outcome.out
        assert ("passed, unproven" in outcome.out) is (code == 0)
        assert ("- artifact: the 95 % interval of the top-1 drop ends at" in outcome.out) is (code == 3)
        assert json.loads(call(*command, *options, "--json").out)["passed"] is (code == 0)
    assert call(*command[:-6], "--max-drop", "90", "--gate-on", "upper", *HERE).code == 0


def test_run_fails_on_the_upper_end_where_the_point_passes(
    small_artifacts: dict[str, Artifact], image_folder: Path, tmp_path: Path
) -> None:
    recipe = tmp_path / "r.toml"
    out = tmp_path / "out"
    codes = []
    for end in ("point", "upper"):
        recipe.write_text(
            f'name = "r"\nsource = "{small_artifacts["student"].path}"\n[gate]\nmax_top1_drop_pp = 5\non = "{end}"\n'
            '[[stages]]\nkind = "onnx"\n'
        )
        codes.append(call("run", recipe, "--data", image_folder, "--out", out, *HERE).code)
        assert read_report(out).rows[-1].provenance.gate.on == end
    assert codes == [0, 3]
    assert [path.name for path in (out / "flips").iterdir()] == ["onnx.json"]
    assert_nothing_half_written(out)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--max-drop", "1"), "there is nothing to compare with; give --baseline ARTIFACT"),
        (("--max-class-drop", "1"), "--max-class-drop is about a drop, and there is nothing to compare with"),
        (("--gate-on", "upper"), "--gate-on upper needs to know how much may be lost; give --max-drop"),
    ],
)
def test_validate_refuses_a_gate_that_judges_nothing(
    small_artifacts: dict[str, Artifact], image_folder: Path, options: tuple[str, ...], message: str
) -> None:
    outcome = call("validate", small_artifacts["student"].path, "--data", image_folder, *options, *HERE)
    assert (outcome.code, outcome.out) == (1, "")
    assert outcome.err.count("\n") == 1
    assert message in outcome.err


@pytest.mark.parametrize("width", [72, 80, 100, 149, 150, 200])
def test_table_cuts_nothing_off_in_a_terminal_of_any_width(small_run: RunResult, width: int) -> None:
    out = io.StringIO()
    print_stages(small_run.report, Console(width=width, file=out))
    lines = out.getvalue().splitlines()
    assert max(map(len, lines)) <= width
    words = Counter("\n".join(lines).split())
    expected = Counter(word for row in small_run.report.rows for cell in cells(row) for word in cell.split())
    assert expected - words == Counter()


def test_title_without_images_says_so(small_run: RunResult) -> None:
    out = io.StringIO()
    report = dataclasses.replace(small_run.report, data="none", validation_images=0)
    print_stages(report, Console(width=80, file=out))
    assert out.getvalue().splitlines()[0] == f"{report.recipe}: not validated, because no images were given"


def test_validate_prints_json_alone_on_standard_output(
    small_artifacts: dict[str, Artifact], image_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    outcome = call("validate", small_artifacts["student"].path, "--data", image_folder, "--json", *HERE)
    assert json.loads(outcome.out)["rows"][0]["identity"]["name"] == "artifact"
    assert "validate: done in" in outcome.err
    assert list(tmp_path.iterdir()) == []


def test_validate_says_why_an_engine_was_not_run(
    small_artifacts: dict[str, Artifact], image_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from convnext_deploy.runners import tensorrt

    monkeypatch.setattr(tensorrt, "cuda_driver_error", lambda: "no GPU")
    row = rows_of(call("validate", small_artifacts["engine"].path, "--data", image_folder, "--json", *HERE))["artifact"]
    assert (row["not_run"], row["accuracy"], row["verdict"]["passed"]) == (
        "built for SM86; not run: no GPU",
        None,
        None,
    )


def test_validate_runs_a_foreign_onnx_file(image_folder: Path, tmp_path: Path) -> None:
    path = write_foreign_onnx(tmp_path / "foreign.onnx")
    row = rows_of(call("validate", path, "--data", image_folder, "--json", *HERE))["artifact"]
    # the mean of each colour tells the three classes apart
    assert (row["accuracy"]["top1"], row["accuracy"]["total"], row["identity"]["variant"]) == (1.0, 18, "unknown")


def test_quantize_gives_the_same_artifact_for_folder_and_bare_file(
    small_artifacts: dict[str, Artifact], image_folder: Path, tmp_path: Path
) -> None:
    source = small_artifacts["student"]
    flags = ("--data", image_folder, "--calibration-images", "12", "--seed", "3", "--max-drop", "100", "--json", *HERE)
    found = []
    for name, path in (("folder", source.path), ("file", source.main_file)):
        rows = rows_of(call("quantize", path, "--out", tmp_path / name, *flags, "--calibration-method", "auto"))
        found.append({key: rows["ptq"][key] for key in ("accuracy", "verdict")})
        assert (rows["ptq"]["provenance"]["baseline"], rows["ptq"]["verdict"]["passed"]) == ("source", True)
        # the same settings as in the small run, so the same bytes
        assert read_artifact(tmp_path / name / "stages" / "ptq").sha256 == small_artifacts["ptq"].sha256
    assert found[0] == found[1]


@pytest.mark.parametrize("bare", heavy_except((True,), (False, True)))
def test_export_gives_the_same_artifact_for_folder_and_bare_file(
    small_run: RunResult, small_artifacts: dict[str, Artifact], image_folder: Path, tmp_path: Path, bare: bool
) -> None:
    source = small_artifacts["qat"]
    path = source.main_file if bare else source.path
    flags = ("--data", image_folder, "--max-drop", "100", "--json", *HERE)
    rows = rows_of(call("export", path, "--out", tmp_path / "out", *flags))
    expected = accuracy_of(next(row for row in small_run.report.rows if row.name == "onnx-int8"))
    assert {key: rows["onnx"]["accuracy"][key] for key in MEASURED} == {key: getattr(expected, key) for key in MEASURED}
    exported = read_artifact(tmp_path / "out" / "stages" / "onnx")
    assert exported.precision == "int8"
    graphs = [onnx.load(artifact.main_file).graph for artifact in (exported, small_artifacts["onnx-int8"])]
    assert graphs[0] == graphs[1]  # only what is said of the lineage may differ
    # a folder knows its FP32 ancestor, a bare file does not
    assert list(rows) == (["source", "onnx"] if bare else ["baseline", "source", "onnx"])
    assert rows["onnx"]["provenance"]["baseline"] == ("source" if bare else "baseline")


def test_train_starts_from_a_bare_checkpoint(
    small_artifacts: dict[str, Artifact], image_folder: Path, tmp_path: Path
) -> None:
    source = small_artifacts["student"].main_file
    flags = ("--epochs", "1", "--batch-size", "16", "--base-learning-rate", "1e-9", "--data", image_folder, "--json")
    rows = rows_of(
        call("train", "--model", "test_convnext2", "--checkpoint", source, "--out", tmp_path / "out", *flags, *HERE)
    )
    assert list(rows) == ["source", "model"]
    assert rows["model"]["accuracy"]["correct"] == rows["source"]["accuracy"]["correct"]


def test_distill_from_a_brought_teacher_trains_the_student_only(
    small_artifacts: dict[str, Artifact], image_folder: Path, tmp_path: Path
) -> None:
    teacher = small_artifacts["teacher"].main_file
    names = ("--teacher", "test_convnext3", "--student", "test_convnext2", "--teacher-checkpoint", teacher)
    flags = ("--image-size", "32", "--epochs", "1", "--batch-size", "16", "--data", image_folder, "--json", *HERE)
    outcome = call("distill", *names, "--out", tmp_path / "out", *flags)
    assert list(rows_of(outcome)) == ["source", "student"]
    assert "training the teacher" not in outcome.err


def test_distill_without_teacher_checkpoint_says_that_it_trains_the_teacher_first(
    image_folder: Path, tmp_path: Path
) -> None:
    names = (
        "--teacher",
        "test_convnext3",
        "--student",
        "test_convnext2",
        "--data",
        image_folder,
        "--out",
        tmp_path / "out",
    )
    outcome = call("distill", *names, "--image-size", "32", "--epochs", "1", "--batch-size", "16", *HERE)
    assert outcome.code == 0
    assert outcome.err.startswith(
        "no teacher checkpoint was given: training the teacher 'test_convnext3' first, from scratch, on these 36 images alone;"
    )
    assert {path.name for path in (tmp_path / "out" / "stages").iterdir()} == {"teacher", "student"}


def test_train_without_data_says_that_it_uses_the_digits(tmp_path: Path) -> None:
    flags = ("--epochs", "1", "--batch-size", "1024", "--out", tmp_path / "out")
    outcome = call("train", "--model", "test_convnext2", *flags, *HERE, "--json")
    assert outcome.err.startswith("no --data was given: using the built-in handwritten digits\n")
    row = rows_of(outcome)["model"]["accuracy"]
    assert row["total"] == 540
    outcome = call("validate", tmp_path / "out" / "stages" / "model", "--json", *HERE)
    assert outcome.err.startswith(
        "no --data was given: using the built-in digits, on which this artifact was trained\n"
    )
    assert rows_of(outcome)["artifact"]["accuracy"]["correct"] == row["correct"]


def test_files_that_are_no_images_are_counted(
    small_artifacts: dict[str, Artifact], image_folder: Path, tmp_path: Path
) -> None:
    data = Path(shutil.copytree(image_folder, tmp_path / "images"))
    (data / "val" / "dog" / "notes.txt").write_text("x")
    outcome = call("validate", small_artifacts["student"].path, "--data", data, *HERE)
    assert outcome.code == 0
    assert f"1 files in {data} are not images and were left out" in outcome.err
