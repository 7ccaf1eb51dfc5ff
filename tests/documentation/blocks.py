"""The fenced blocks of the project's Markdown files, and the commands in those of a shell.

A block may have comments right above it: `<!-- needs: WHAT -->` says why it is not run here, `<!-- file: NAME -->` that a reader
is to save it under that name.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
DOCUMENTS = tuple(
    str(path.relative_to(ROOT))
    for path in (
        *sorted(ROOT.glob("*.md")),
        ROOT / "recipes" / "README.md",
        *sorted((ROOT / "recipes" / "how-to").glob("*.md")),
        ROOT / "benchmarks" / "README.md",
    )
)
NEEDS = ("gpu", "network", "hours", "minutes", "compiler")
"""`minutes` is run by a slow test, `compiler` where there is one; of the others the options are checked and nothing is run."""

_FENCE = re.compile(r"^```(\w*)$")
_COMMENT = re.compile(r"^<!-- (\w+): ([\w./-]+) -->$")
_ASSIGNMENT = re.compile(r"[A-Z_]+=")
_SYNTAX = re.compile(r"\$\(|\s[|<>]\s")


@dataclass(frozen=True)
class Block:
    """A fenced block: `line` is that of its fence, counted from 1, `marks` the comments above it."""

    document: str
    line: int
    language: str
    text: str
    marks: dict[str, str]

    @property
    def needs(self) -> str | None:
        """What it needs that is not here."""
        return self.marks.get("needs")

    @property
    def place(self) -> str:
        """Where a reader finds it."""
        return f"{self.document}:{self.line}"

    @property
    def is_script(self) -> bool:
        """Whether it has more of a shell than commands."""
        return self.language == "sh" and _SYNTAX.search(self.text) is not None

    def commands(self) -> Iterator[list[str]]:
        """Yield the words of each command, without comments and settings of the environment."""
        for line in self.text.replace("\\\n", " ").splitlines():
            words: list[str] = []
            for word in [*shlex.split(line, comments=True), "&&"]:
                if word != "&&":
                    words += [] if not words and _ASSIGNMENT.match(word) else [word]
                elif words:
                    yield words
                    words = []


def read_blocks(document: str) -> list[Block]:
    """Return the blocks of a file, in order. Raises: ValueError: if one does not end."""
    lines = (ROOT / document).read_text(encoding="utf-8").splitlines()
    blocks, start = [], None
    for number, line in enumerate(lines):
        fence = _FENCE.match(line)
        if fence is None:
            continue
        if start is None:
            start = number
            continue
        language = _FENCE.match(lines[start])
        assert language is not None
        above, marks = start - 1, {}
        while above >= 0 and (found := _COMMENT.match(lines[above])):
            marks[found[1]] = found[2]
            above -= 1
        blocks.append(Block(document, start + 1, language[1], "\n".join(lines[start + 1 : number]), marks))
        start = None
    if start is not None:
        raise ValueError(f"{document}:{start + 1} does not end")
    return blocks
