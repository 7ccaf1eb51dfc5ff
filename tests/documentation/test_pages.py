"""What the pages say of the project is so: files, links, verbs, options, keys of recipes."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from convnext_deploy.cli import COMMANDS
from tests.documentation import keys
from tests.documentation.blocks import DOCUMENTS, ROOT
from tests.documentation.flags import known_options

PACKAGE = ROOT / "convnext_deploy"
_LINK = re.compile(r"\]\(([^)\s]+)\)")
_HEADING = re.compile(r"^#+ (.*)$", re.MULTILINE)
_FENCED = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
_MENTIONED = re.compile(r"(?<![\w-])--[a-z][a-z0-9-]+")
# of pip, torchrun and Triton
_FOREIGN = {"--nproc-per-node", "--nnodes", "--rdzv-backend", "--rdzv-endpoint", "--rdzv-id", "--nodes"}
_FOREIGN |= {"--ntasks-per-node", "--gpus-per-node", "--model-repository"}


def _text(document: str) -> str:
    return (ROOT / document).read_text(encoding="utf-8")


def _table_after(heading: str) -> list[str]:
    """Return the first cells of the table under a heading of the README."""
    section = _text("README.md").split(f"\n## {heading}\n")[1].split("\n## ")[0]
    rows = [line for line in section.splitlines() if line.startswith("| ")][1:]
    return [row.replace(r"\|", "/").split("|")[1].strip() for row in rows]


def _mapped() -> list[str]:
    """Return the paths of the file map; a name without a folder lies in that of the one before it."""
    paths = []
    for cell in _table_after("What is where"):
        folder = ""
        for name in re.findall(r"`([^`]+)`", cell):
            if name.count("/") and not name.startswith("convnext_deploy/"):
                bare = name if (ROOT / name).exists() else folder + name
            else:
                bare = name if name.count("/") else folder + name
            folder = folder or (name.rpartition("/")[0] + "/" if name.endswith(".py") else "")
            paths.append(bare)
    return paths


def _anchor(heading: str) -> str:
    """Return the anchor that GitHub gives a heading."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def test_map_names_only_what_exists() -> None:
    assert [path for path in _mapped() if not (ROOT / path).exists()] == []


def test_map_names_every_file_and_folder_of_the_package() -> None:
    modules = {f"convnext_deploy/{p.name}" for p in PACKAGE.glob("*.py") if not p.name.startswith("__")}
    folders = {f"convnext_deploy/{p.parent.name}/" for p in PACKAGE.glob("*/__init__.py")}
    assert (modules | folders) - set(_mapped()) == set()


def test_every_verb_has_its_row() -> None:
    assert sorted(re.findall(r"[\w-]+", cell)[0] for cell in _table_after("Verbs")) == sorted(COMMANDS)


@pytest.mark.parametrize("document", DOCUMENTS)
def test_links_lead_somewhere(document: str) -> None:
    for target in _LINK.findall(_FENCED.sub("", _text(document))):
        if target.startswith("https://"):
            continue
        path, _, anchor = target.partition("#")
        file = (ROOT / document).parent / path if path else ROOT / document
        assert file.exists(), f"{document}: {target}"
        if anchor:
            headings = _HEADING.findall(_FENCED.sub("", file.read_text(encoding="utf-8")))
            assert anchor in map(_anchor, headings), f"{document}: {target}"


@pytest.mark.parametrize("document", DOCUMENTS)
def test_every_option_that_is_mentioned_exists(document: str) -> None:
    assert set(_MENTIONED.findall(_text(document))) - known_options() - _FOREIGN == set()


def test_every_how_to_is_linked_from_the_readme() -> None:
    linked = set(_LINK.findall(_text("README.md")))
    assert {document for document in DOCUMENTS if "how-to" in document} <= linked


@pytest.mark.parametrize("name", ["quickstart", "test"])
def test_marked_command_is_the_third_line(name: str) -> None:
    mark, fence, command, end = _text("README.md").split(f"<!-- command: {name} -->")[1].split("\n")[:4]
    assert (mark, fence, end) == ("", "```sh", "```")
    assert command.startswith("python3 -m venv .venv && .venv/bin/pip install ")


def test_keys_of_recipes_are_those_of_the_records() -> None:
    text = _text("recipes/README.md")
    assert keys.fill(text) == text, "run: python -m tests.documentation.keys"
    assert set(re.findall(r"<!-- keys: ([\w-]+) -->", text)) == set(keys.RECORDS)


def test_a_new_key_would_be_missed(tmp_path: Path) -> None:
    text = _text("recipes/README.md").replace("| `min_speedup` | number | none |\n", "")
    assert keys.fill(text) != text
