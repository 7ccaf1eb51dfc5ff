"""What is printed does nothing to a terminal, whatever names it holds, and a broken standard output is no traceback."""

from __future__ import annotations

import ast
import dataclasses
import errno
import io
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import convnext_deploy.cli
from convnext_deploy.api.predictions import Guess, Prediction
from convnext_deploy.cli import main
from convnext_deploy.cli.report_table import show_report
from convnext_deploy.errors import DeployError, printable
from convnext_deploy.reports.escaping import clean, code, fenced, markdown
from convnext_deploy.reports.html.report_page import render_html
from convnext_deploy.reports.markdown import render_markdown
from convnext_deploy.reports.model_card import render_model_card
from convnext_deploy.system.progress_bars import BarProgress, PlainProgress
from tests.cli.conftest import call
from tests.reports.conftest import BASELINE_ROW, INT8_ROW, create_report

HOSTILE = "a\x1b]0;owned\x07\x1b[2J\n\r\tb\x00\u202e\u2066c\u200b\ufeff\u2028\u0085\udcff\u3164:dog:[bold]d"
SHOWN = r"a\x1b]0;owned\x07\x1b[2J\n\r\tb\x00\u202e\u2066c\u200b\ufeff\u2028\x85\udcff\u3164:dog:[bold]d"


def assert_harmless(text: str) -> None:
    """Check that a text has line ends, spaces and what can be seen, and nothing else."""
    assert all(c.isprintable() or c in "\n\t" for c in text), ascii([c for c in text if not c.isprintable()][:5])
    text.encode("utf-8")


def test_what_is_not_to_be_seen_is_written_as_escapes() -> None:
    assert printable(HOSTILE) == SHOWN
    assert printable("Größe 猫 é – ×") == "Größe 猫 é – ×"
    assert str(DeployError(f"{HOSTILE} is wrong.")) == f"{SHOWN} is wrong."


def test_predictions_stand_on_one_line_each(monkeypatch: pytest.MonkeyPatch) -> None:
    found = [
        Prediction(Path(HOSTILE), (Guess(HOSTILE, 0, 0.75),)),
        Prediction(Path("b.png"), (), f"{HOSTILE} cannot be read."),
    ]
    monkeypatch.setattr("convnext_deploy.api.predict.predict", lambda *args, **values: iter(found))
    outcome = call("predict", "artifact", "image")
    assert (outcome.code, outcome.out) == (1, f"{SHOWN}: {SHOWN} 75.0 %\n")
    assert outcome.err.splitlines()[0] == f"{SHOWN} cannot be read."
    record = json.loads(call("predict", "artifact", "image", "--json").out)
    assert record[0]["predictions"][0]["class"] == HOSTILE
    assert call("predict", "artifact", "image", "--json").out.isascii()


def test_names_in_foreign_graphs_are_shown(tmp_path: Path) -> None:
    name = HOSTILE.replace("\udcff", "")  # which protobuf refuses
    weight = numpy_helper.from_array(np.eye(3, dtype=np.float32), f"w{name}")
    images, scores = (helper.make_tensor_value_info(f"{end}{name}", TensorProto.FLOAT, [1, 3]) for end in "io")
    node = helper.make_node("MatMul", [f"i{name}", f"w{name}"], [f"o{name}"], name=f"n{name}")
    graph = helper.make_graph([node], "g", [images], [scores], [weight])
    model = helper.make_model(
        graph, producer_name=f"p{name}", opset_imports=[helper.make_opsetid("", 20)], ir_version=9
    )
    metadata = {"class_names": [f"c{name}", "d"], "license": f"l{name}", "precision": f"q{name}"}
    helper.set_model_props(model, {"convnext_deploy": json.dumps(metadata)})
    path = tmp_path / f"{HOSTILE.replace('/', '').replace(chr(0), '')}.onnx"
    onnx.save(model, path)
    outcome = call("inspect", path)
    assert outcome.code == 0
    assert_harmless(outcome.out)
    shown = "".join(outcome.out.replace("│", "").split())  # a table breaks what is long
    for kind in "iopcl":
        assert kind + SHOWN.replace(r"\udcff", "") in shown
    assert call("inspect", path, "--json").out.isascii()
    said = call("validate", path, "--data", tmp_path / "none").err
    assert_harmless(said)
    assert said.count("\n") == 1


def hostile_report() -> Any:
    student = dataclasses.replace(
        BASELINE_ROW,
        identity=dataclasses.replace(BASELINE_ROW.identity, name=HOSTILE, artifact=HOSTILE, variant=HOSTILE),
        notes=(HOSTILE,),
        warnings=(HOSTILE,),
        not_run=HOSTILE,
    )
    report = create_report(student, INT8_ROW)
    return dataclasses.replace(
        report,
        recipe=HOSTILE,
        data=HOSTILE,
        command=f"convnext-deploy run {HOSTILE} ``` #",
        source=HOSTILE,
        class_names=(HOSTILE, "|`<b>*"),
        assumptions=(HOSTILE,),
        leaks=(HOSTILE,),
    )


def test_names_in_reports_are_shown_in_every_view(capsys: pytest.CaptureFixture[str]) -> None:
    report = hostile_report()
    with pytest.raises(BaseException, match="3"):  # a gate failed
        show_report(report, as_json=False)
    for text in (capsys.readouterr().out, *(view(report) for view in (render_markdown, render_model_card))):
        assert_harmless(text)
        assert r"\x1b" in text
        assert r"\u202e" in text
    table = [line for line in render_markdown(report).splitlines() if line.startswith("|")]
    assert all(line.endswith("|") for line in table)
    page = render_html(report)
    assert_harmless(page)
    assert "<script" not in page
    assert "\u202e" not in page
    assert "\x1b" not in page


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a|b`c*d", r"a\|b\`c\*d"),
        ("<script>", "&lt;script>"),
        ("[x](http://y)", r"[x\](http://y)"),
        ("test_convnext2 [0.1, 0.2]", "test_convnext2 [0.1, 0.2]"),
        ("_x_ &lt; a & b", r"\_x\_ &amp;lt; a & b"),
        ("\u202ea\nb", r"\\u202ea\\nb"),
    ],
)
def test_markdown_shows_a_text_as_it_is(text: str, expected: str) -> None:
    assert markdown(text) == expected


def test_code_in_markdown_ends_where_it_should() -> None:
    assert code("a") == "`a`"
    assert code("a`b") == "`` a`b ``"
    assert fenced("a\n```\nb", "sh") == "````sh\na\n```\nb\n````"
    assert clean("a\u00a0b\u202e\n") == "a\u00a0b\\u202e\n"


def test_progress_shows_names(capsys: pytest.CaptureFixture[str]) -> None:
    for progress in (PlainProgress(), BarProgress()):
        with progress.task(HOSTILE, 2, "images") as task:
            task.advance(2, HOSTILE)
        progress.say(HOSTILE)
    said = capsys.readouterr().err
    assert_harmless(said)
    assert said.count(SHOWN) >= 3


class Broken(io.TextIOWrapper):
    """A standard output that cannot be written."""

    def __init__(self, number: int) -> None:
        super().__init__(io.BytesIO(), encoding="utf-8")
        self.number, self.written = number, False

    def write(self, text: str) -> int:
        self.written = True
        return len(text)

    def flush(self) -> None:
        if self.written:
            raise OSError(self.number, "what the system says")

    def close(self) -> None:
        self.written = False  # Python 3.13 tells of what a destructor raises
        super().close()


@pytest.fixture
def streams(monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """Run the command line with other streams; returns the exit code."""

    def run(*arguments: str, out: Any, err: Any) -> int:
        with monkeypatch.context() as patch:
            patch.setattr(sys, "argv", ["convnext-deploy", *arguments])
            patch.setattr(sys, "stdout", out)
            patch.setattr(sys, "stderr", err)
            with pytest.raises(SystemExit) as ended:
                main()
        return int(ended.value.code or 0)

    return run


@pytest.mark.parametrize("arguments", [("models",), ("models", "--json"), ("models", "atto"), ("--help",)], ids=str)
def test_output_that_nobody_reads_or_that_is_full(streams: Callable[..., int], arguments: tuple[str, ...]) -> None:
    err = io.StringIO()
    assert streams(*arguments, out=Broken(errno.EPIPE), err=err) == (1 if "--help" in arguments else 141)
    assert err.getvalue() == ""
    assert streams(*arguments, out=Broken(errno.ENOSPC), err=err) == 1
    assert err.getvalue().splitlines()[1:] == []
    assert "what the system says" in err.getvalue()


def test_closed_streams_swallow_what_is_printed(streams: Callable[..., int], tmp_path: Path) -> None:
    assert streams("models", out=None, err=None) == 0
    assert streams("report", str(tmp_path), out=None, err=None) == 1
    assert streams("report", str(tmp_path), out=io.StringIO(), err=Broken(errno.ENOSPC)) == 1


def test_output_in_ascii_has_substitutes(streams: Callable[..., int], tmp_path: Path) -> None:
    raw, err = io.BytesIO(), io.TextIOWrapper(io.BytesIO(), encoding="ascii", write_through=True)
    out = io.TextIOWrapper(raw, encoding="ascii", write_through=True)
    assert streams("models", out=out, err=err) == 0
    text = raw.getvalue().decode("ascii")
    assert "top-1: on ImageNet-1k" in text
    assert ". -: nobody has published weights." in text
    assert streams("report", f"{tmp_path}/Größe 猫", out=out, err=err) == 1
    assert rb"Gr\xf6\xdfe \u732b is not a finished run" in err.buffer.getvalue()


def test_command_line_prints_by_one_way() -> None:
    """Another way out would print names as they are."""
    folder = Path(convnext_deploy.cli.__file__).parent
    for path in sorted(folder.glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Call):
                continue
            name = ast.unparse(node.func)
            assert name not in ("print", "click.echo", "click.secho"), f"{path.name}:{node.lineno}: use cli.console"
            if name in ("Console", "Text", "Text.from_markup"):
                assert path.name in ("tables.py", "progress_bars.py"), f"{path.name}:{node.lineno}: use cli.tables"
