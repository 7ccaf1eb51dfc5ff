"""Shell completion: the scripts, and what is offered for values, through the protocol that click's scripts speak."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from convnext_deploy.cli.completions import RUNNER_NAMES
from convnext_deploy.runners import RUNNERS
from tests.cli.conftest import call

BASH = shutil.which("bash")
COMPLETE = "_CONVNEXT_DEPLOY_COMPLETE"
PROGRAM = "import sys; sys.argv[0] = 'convnext-deploy'; from convnext_deploy.cli import main; main()"


def offered(*words: str, folder: Path | None = None) -> list[str]:
    """Return what is offered for the last word, as `TYPE,VALUE`; in a process, because click exits."""
    line = " ".join(["convnext-deploy", *words])
    environment = os.environ | {COMPLETE: "bash_complete", "COMP_WORDS": line, "COMP_CWORD": str(len(words))}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        capture_output=True,
        text=True,
        timeout=300,
        check=True,
        env=environment,
        cwd=folder,
    )
    assert done.stderr == ""
    return done.stdout.splitlines()


def plain(*words: str, folder: Path | None = None) -> list[str]:
    return [value.removeprefix("plain,") for value in offered(*words, folder=folder)]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as users have it: recipes, a run, an ONNX file, and things that are none of these."""
    root = tmp_path_factory.mktemp("place")
    (root / "recipes" / "sizes").mkdir(parents=True)
    for name in ("one.toml", "two.toml", "sizes/tiny.toml", "README.md"):
        (root / "recipes" / name).write_text("")
    run = root / "runs" / "first"
    for stage in ("teacher", "student"):
        (run / "stages" / stage).mkdir(parents=True)
        (run / "stages" / stage / "manifest.json").write_text("{}")
        (run / "stages" / stage / "model.safetensors").write_text("")
        (run / "checkpoints" / stage).mkdir(parents=True)
        (run / "checkpoints" / stage / "last.pt").write_text("")
    (run / "report.json").write_text("{}")
    (root / "models").mkdir()
    (root / "models" / "net.onnx").write_text("")
    (root / "odd names").mkdir()
    (root / "odd names" / "a b.onnx").write_text("")
    (root / ".hidden").mkdir()
    (root / ".hidden" / "x.toml").write_text("")
    return root


def test_verbs_are_offered() -> None:
    assert plain("re") == ["report", "recommend"]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("run", "rec"), ["recipes/one.toml", "recipes/sizes/tiny.toml", "recipes/two.toml"]),
        (("run", "recipes/o"), ["recipes/one.toml"]),
        (("run", "./recipes/o"), ["./recipes/one.toml"]),
        (("validate", "runs/"), ["runs/first/stages/student", "runs/first/stages/teacher"]),
        (("predict", "runs/first/stages/t"), ["runs/first/stages/teacher"]),
        (("quantize", "mo"), ["models/net.onnx"]),
        (("validate", "x", "--baseline", "models/"), ["models/net.onnx"]),
    ],
    ids=str,
)
def test_files_of_the_right_kind_are_offered(place: Path, words: tuple[str, ...], expected: list[str]) -> None:
    assert plain(*words, folder=place) == expected


@pytest.mark.parametrize(
    ("words", "kind"),
    [
        (("run", "models/"), "file"),
        (("run", "nowhere/"), "file"),
        (("quantize", "odd"), "file"),  # click's scripts do not quote
        (("train", "--data", "mo"), "dir"),
        (("train", "--out", "mo"), "dir"),
        (("inspect", "mo"), "file"),
        (("predict", "x", "mo"), "file"),
    ],
    ids=str,
)
def test_shell_completes_paths_where_nothing_better_is_known(place: Path, words: tuple[str, ...], kind: str) -> None:
    assert [line.partition(",")[0] for line in offered(*words, folder=place)] == [kind]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("train", "--model", "at"), ["atto", "atto_ols", "atto_rms"]),
        (("distill", "--teacher", "v2-at"), ["v2-atto"]),
        (("distill", "--student", "convnext_at"), ["convnext_atto", "convnext_atto_ols", "convnext_atto_rms"]),
        (("models", "v2-at"), ["v2-atto"]),
        (("train", "--weights", "timm/convnext_atto."), ["timm/convnext_atto.d2_in1k"]),
        (("distill", "--student-weights", "timm/convnext_atto."), ["timm/convnext_atto.d2_in1k"]),
        (("validate", "timm/convnext_atto."), ["timm/convnext_atto.d2_in1k"]),
        (("quantize", "--target", "on"), ["onnxruntime"]),
        (("export", "--format", "tensorrt"), ["tensorrt-rtx", "tensorrt"]),
        (("export", "--gpu", "sm86,rtx-408"), ["sm86,rtx-4080"]),
        (("predict", "--runner", "openvino-"), ["openvino-fp32", "openvino-bf16"]),
        (("train", "--data", "dig"), ["digits"]),
        (("completion", "z"), ["zsh"]),
    ],
    ids=str,
)
def test_values_are_offered_by_name(words: tuple[str, ...], expected: list[str]) -> None:
    assert plain(*words) == expected


def test_runners_that_are_offered_are_those_that_there_are() -> None:
    assert set(RUNNER_NAMES) == set(RUNNERS)


@pytest.mark.heavy
def test_completion_imports_nothing_heavy() -> None:
    code = f"import atexit, json, sys; atexit.register(lambda: print(json.dumps(sorted(sys.modules)))); {PROGRAM}"
    for line in ("convnext-deploy train --model v2-", "convnext-deploy export --gpu rtx", "convnext-deploy run x"):
        words = {"COMP_WORDS": line, "COMP_CWORD": str(line.count(" "))}
        done = subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True,
            text=True,
            timeout=300,
            check=True,
            env=os.environ | {COMPLETE: "bash_complete", **words},
        )
        loaded = set(json.loads(done.stdout.splitlines()[-1]))
        assert not loaded & {"torch", "numpy", "onnx", "rich", "PIL"}


@pytest.mark.parametrize(
    ("shell", "mark"), [("bash", "complete -o"), ("zsh", "#compdef"), ("fish", "complete --no-files")]
)
def test_script_is_printed_for_every_shell(shell: str, mark: str) -> None:
    outcome = call("completion", shell)
    assert (outcome.code, outcome.err) == (0, "")
    assert mark in outcome.out
    assert f"{COMPLETE}={shell}_complete" in outcome.out
    assert "convnext-deploy" in outcome.out


def test_unknown_shell_is_refused() -> None:
    outcome = call("completion", "tcsh")
    assert (outcome.code, outcome.out) == (2, "")
    assert "'tcsh' is not one of 'bash', 'zsh', 'fish'" in outcome.err


@pytest.mark.heavy
@pytest.mark.skipif(BASH is None, reason="there is no bash")
def test_script_completes_in_bash(place: Path, tmp_path: Path) -> None:
    program = tmp_path / "bin" / "convnext-deploy"
    program.parent.mkdir()
    program.write_text(f"#!{sys.executable}\nfrom convnext_deploy.cli import main\nmain()\n")
    program.chmod(0o755)
    script = """
        eval "$(convnext-deploy completion bash)"
        COMP_WORDS=(convnext-deploy run recipes/t); COMP_CWORD=2
        _convnext_deploy_completion convnext-deploy
        printf '%s\\n' "${COMPREPLY[@]}"
    """
    assert BASH is not None
    done = subprocess.run(
        [BASH, "--norc", "-c", script],
        capture_output=True,
        text=True,
        timeout=300,
        check=True,
        cwd=place,
        env=os.environ | {"PATH": f"{program.parent}{os.pathsep}{os.environ['PATH']}"},
    )
    assert (done.stdout, done.stderr) == ("recipes/two.toml\n", "")
