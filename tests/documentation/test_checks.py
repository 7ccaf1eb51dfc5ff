"""The checks themselves: what is wrong in a page is found."""

from __future__ import annotations

from pathlib import Path

import click
import pytest

from tests.documentation import blocks
from tests.documentation.blocks import Block, read_blocks
from tests.documentation.flags import check_command
from tests.documentation.shortened import shorten, shorten_text

WRONG = (
    "convnext-deploy quantise best.pth",
    "convnext-deploy run recipes/quickstart.toml --epoch 1",
    "convnext-deploy export runs/x --format onx",
    "convnext-deploy export",
    "convnext-deploy bench runs/x --rounds 0",
    "convnext-deploy convert best.pth --to timm",  # --out is missing
    "torchrun --nproc-per-node 8 -m convnext_deploy train --modle tiny",
    "torchrun --processes 8 -m convnext_deploy train --model tiny",
    "python benchmarks/eager.py --modell tiny",
    "python benchmarks/none.py",
    "bash build_on_device.sh --al",
    "python3 verify.py --needs engine",
    'pip install ".[gpu]"',
    "rm -rf runs",
)


def _block(text: str, **marks: str) -> Block:
    return Block("page.md", 1, "sh", text, marks)


@pytest.mark.parametrize("text", WRONG)
def test_wrong_command_is_found(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    (words,) = _block(text).commands()
    with pytest.raises((AssertionError, click.UsageError, SystemExit)):
        check_command(words)


def test_commands_are_read_as_a_shell_reads_them() -> None:
    text = 'A=1 convnext-deploy run "a b.toml" \\\n  --json   # why\n# nothing\ncd x && bash y.sh\n'
    assert list(_block(text).commands()) == [
        ["convnext-deploy", "run", "a b.toml", "--json"],
        ["cd", "x"],
        ["bash", "y.sh"],
    ]


@pytest.mark.parametrize(
    ("text", "is_script"), [("a --out b", False), ("a $(b)", True), ("a | b", True), ("a < b", True), ("a b|c", False)]
)
def test_scripts_are_told_from_commands(text: str, is_script: bool) -> None:
    assert _block(text).is_script is is_script


def test_comments_above_a_block_are_its_marks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocks, "ROOT", tmp_path)
    page = "<!-- needs: gpu -->\n\n<!-- file: a.sh -->\n<!-- needs: hours -->\n```sh\nx\ny\n```\n```python\nz\n```\n"
    (tmp_path / "page.md").write_text(page)
    first, second = read_blocks("page.md")
    assert (first.text, first.marks, first.line) == ("x\ny", {"needs": "hours", "file": "a.sh"}, 5)
    assert (second.language, second.needs) == ("python", None)
    (tmp_path / "page.md").write_text("```sh\nx\n")
    with pytest.raises(ValueError, match=r"page.md:1 does not end"):
        read_blocks("page.md")


def test_only_what_the_tables_name_is_written_otherwise() -> None:
    words = ["export", "runs/x", "--format", "onnx", "--output", "top-k", "--out", "runs/y"]
    added = ["--workers", "0", "--device", "cpu"]
    assert shorten(words) == [*words, *added]
    halves = [*words, "--precision", "fp16"]
    assert shorten(halves) == [*halves, *added, "--range-images", "4"]
    assert shorten(["quantize", "x", "--method", "ptq"])[4:] == [
        *added,
        "--calibration-images",
        "12",
        "--selection-images",
        "12",
    ]
    assert shorten(["models", "--json"]) == ["models", "--json"]
    assert shorten(["train", "--model", "nano", "--epochs", "300"])[:5] == [
        "train",
        "--model",
        "test_convnext",
        "--epochs",
        "1",
    ]
    assert shorten_text('name = "student"\nepochs = 100\n') == 'name = "student"\nepochs = 1\n'
