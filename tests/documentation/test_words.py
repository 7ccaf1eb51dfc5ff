"""Pages, recipes and sources use the words of the glossary, and none of those that they stand for."""

from __future__ import annotations

import re

import pytest

from tests.documentation.blocks import DOCUMENTS, ROOT

INSTEAD = {
    r"\brungs?\b|\bladders?\b": "step, fallback sequence",
    r"\bcensus\b": "precision report",
    r"\btraps?\b|\bcures?\b": "rule, fix",
    r"\brivals?\b|\bfloat forms?\b": "float baseline",
    r"recentred": "zero-point shift",
    r"in turn,? in fresh processes|fresh processes,? in turn": "interleaved, isolated processes",
    r"is no artifact folder": "is not an artifact folder",
    r"\bnotes \d": "a paper, a library, or this project's choice",
}
FOLDERS = {"convnext_deploy": ("*.py", "*.html", "*.js"), "recipes": ("*.toml",), "benchmarks": ("*.py",)}
FILES = [
    path for folder, patterns in FOLDERS.items() for pattern in patterns for path in (ROOT / folder).rglob(pattern)
]


@pytest.mark.parametrize("old", INSTEAD)
def test_words_are_those_of_the_glossary(old: str) -> None:
    pages = [ROOT / document for document in DOCUMENTS if document != "CHANGELOG.md"]  # which says what was renamed
    pattern = re.compile(old, re.IGNORECASE)
    texts = {path.relative_to(ROOT): path.read_text(encoding="utf-8") for path in (*pages, *FILES)}
    found = [
        f"{path}: {text[: hit.start()].count(chr(10)) + 1}"
        for path, text in texts.items()
        for hit in pattern.finditer(text)
    ]
    assert found == [], f"say: {INSTEAD[old]}"
