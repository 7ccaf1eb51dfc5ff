"""README's five commands, for who has a checkpoint and a folder, print what it says they do, on a checkpoint of timm made here."""

from __future__ import annotations

import re
import shlex
from itertools import pairwise
from pathlib import Path

import pytest

from tests.brought import write_photos, write_timm_checkpoint
from tests.cli.conftest import call
from tests.documentation.blocks import Block, read_blocks

_NUMBER = re.compile(r"\d+(?:[.,]\d+)*")
_BLOCKS = read_blocks("README.md")
PAIRS = [(block, shown) for block, shown in pairwise(_BLOCKS) if block.marks.get("command") == "folder"]


def is_shown(line: str, printed: str) -> bool:
    """Whether a line of a page was printed, whatever its numbers are and however wide its gaps."""
    words = (re.escape(_NUMBER.sub("#", word)).replace(r"\#", _NUMBER.pattern) for word in line.split())
    pattern = r"\s+".join(words)
    return re.search(pattern, printed) is not None


def test_there_are_five_commands_each_with_what_it_prints() -> None:
    assert [next(block.commands())[1] for block, _ in PAIRS] == ["validate", "quantize", "export", "predict", "bundle"]
    assert all(shown.language == "text" for _, shown in PAIRS)


@pytest.mark.parametrize(
    ("line", "printed", "expected"),
    [
        ("top-1  98.33 of x", "top-1   7.5 of x\n", True),
        ("cat 99.1 %, bee", "photos/0.png: cat 8 %, bee 3", True),
        ("next: verb a/b.pth", "next: verb a/c.pth", False),
    ],
)
def test_a_line_is_found_whatever_its_numbers(line: str, printed: str, expected: bool) -> None:
    assert is_shown(line, printed) is expected


@pytest.mark.heavy
def test_the_five_commands_do_and_print_what_they_say(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_timm_checkpoint(tmp_path / "best.pth", write_photos(tmp_path / "photos", train=10, validation=5))
    for block, shown in PAIRS:
        printed = _check(block, shown)
    (verify,) = re.findall(r"^next: convnext-deploy (.*)$", printed, re.MULTILINE)
    assert call(*shlex.split(verify)).code == 0


def _check(block: Block, shown: Block) -> str:
    """Run the command of a block, and return what it printed, with the lines that are shown in it."""
    (words,) = block.commands()
    outcome = call(*words[1:])
    assert outcome.code == 0, outcome.err
    printed = outcome.err + outcome.out
    missing = [line for line in shown.text.splitlines() if not is_shown(line, printed)]
    assert missing == [], printed
    return printed
