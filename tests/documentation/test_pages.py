"""What the pages say of the project is so: files, links, verbs, options, keys of recipes."""

from __future__ import annotations

import importlib.util
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest

from convnext_deploy.cli import COMMANDS
from tests.documentation import keys
from tests.documentation.blocks import DOCUMENTS, ROOT
from tests.documentation.flags import known_options

PACKAGE = ROOT / "convnext_deploy"
VERBS = "recipes/how-to/verbs.md"
_LINK = re.compile(r"\]\(([^)\s]+)\)")
_HEADING = re.compile(r"^#+ (.*)$", re.MULTILINE)
_FENCED = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
_NAMED = re.compile(r"`([\w.-]+(?:/[\w.-]+)+/?|\w+\.py|[a-z_]+(?:\.\w+)+)`")
_SUFFIXES = ("json", "toml", "md", "html", "py")
_SOURCE_PATH = re.compile(r"`((?:tests|benchmarks|recipes|convnext_deploy)/[\w./-]+)`")
_MENTIONED = re.compile(r"(?<![\w-])--[a-z][a-z0-9-]+")
# of pip, torchrun and Triton
_FOREIGN = {"--nproc-per-node", "--nnodes", "--rdzv-backend", "--rdzv-endpoint", "--rdzv-id", "--nodes"}
_FOREIGN |= {"--ntasks-per-node", "--gpus-per-node", "--model-repository"}


def _text(document: str) -> str:
    return (ROOT / document).read_text(encoding="utf-8")


def _table_after(document: str, heading: str) -> list[str]:
    """Return the first cells of the table under a heading of a page."""
    section = _text(document).split(f"\n## {heading}\n")[1].split("\n## ")[0]
    rows = [line for line in section.splitlines() if line.startswith("| ")][1:]
    return [row.replace(r"\|", "/").split("|")[1].strip() for row in rows]


def _mapped() -> list[list[str]]:
    """Return the rooms in each row of the map; `errors.py` is one."""
    cells = _table_after("ARCHITECTURE.md", "The map")
    return [[name.removesuffix(".py") for name in re.findall(r"`([\w/.]+?)/?`", cell)] for cell in cells]


def _anchor(heading: str) -> str:
    """Return the anchor that GitHub gives a heading."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def test_map_is_that_of_the_contracts() -> None:
    settings = tomllib.loads(_text("pyproject.toml"))["tool"]["importlinter"]
    (layers,) = (contract["layers"] for contract in settings["contracts"] if contract["type"] == "layers")
    rooms = [set(layer.split(" | ")) for layer in reversed(layers) if layer != "__main__"]
    rows = [{name.partition("/")[0] for name in row} for row in _mapped()]
    places = [next(place for place, layer in enumerate(rooms) if row <= layer) for row in rows]
    assert places == sorted(places)  # those of one layer may have several rows, one after the other
    assert [set().union(*(r for r, p in zip(rows, places, strict=True) if p == i)) for i in range(len(rooms))] == rooms


def test_map_names_every_room() -> None:
    rooms = {path.parent.relative_to(PACKAGE) for path in PACKAGE.rglob("*.py") if path.name != "__init__.py"}
    rows = [line for line in _text("ARCHITECTURE.md").splitlines() if line.startswith("| `")]
    named = {name for row in rows for name in re.findall(r"`([\w/]+)/`", row.split("|")[1])}
    assert {str(room) for room in rooms} - {"."} <= named


@pytest.mark.parametrize("document", DOCUMENTS)
def test_paths_and_modules_that_are_named_exist(document: str) -> None:
    names = [name for name in _NAMED.findall(_FENCED.sub("", _text(document))) if "NAME" not in name]
    wrong = [name for name in names if not (_is_path(name) if "/" in name or name.endswith(".py") else _resolves(name))]
    assert wrong == [], document


@pytest.mark.parametrize("folder", ["convnext_deploy", "tests", "benchmarks"])
def test_paths_that_sources_name_exist(folder: str) -> None:
    texts = {path: path.read_text(encoding="utf-8") for path in (ROOT / folder).rglob("*.py")}
    named = {(path.name, name) for path, text in texts.items() for name in _SOURCE_PATH.findall(text)}
    assert {(file, name) for file, name in named if not any(ROOT.glob(name))} == set()


def _is_path(name: str) -> bool:
    """Whether a file, or a path below the root, the package or the recipes, exists; paths of runs and bundles are not ours."""
    top, _, inside = name.partition("/")
    if not inside:
        return any(found for folder in (PACKAGE, ROOT / "tests", ROOT / "benchmarks") for found in folder.rglob(name))
    roots = [root for root in (ROOT, PACKAGE, ROOT / "recipes") if (root / top).is_dir()]
    return top == "runs" or not roots or any((root / name).exists() for root in roots)


def _resolves(name: str) -> bool:
    """Whether `room.file`, with what is in it, exists; what does not begin with a room is not ours."""
    first, *rest = name.removeprefix("convnext_deploy.").split(".")
    if not (PACKAGE / first).is_dir() or rest[-1] in _SUFFIXES:
        return True
    found: Any = importlib.import_module(f"convnext_deploy.{first}")
    for word in rest:
        if hasattr(found, "__path__") and importlib.util.find_spec(f"{found.__name__}.{word}"):
            found = importlib.import_module(f"{found.__name__}.{word}")
        elif not hasattr(found, word):
            return False
        else:
            found = getattr(found, word)
    return True


def test_every_verb_has_its_row() -> None:
    assert sorted(re.findall(r"[\w-]+", cell)[0] for cell in _table_after(VERBS, "All of them")) == sorted(COMMANDS)


def test_readme_is_short_enough_to_be_read() -> None:
    lines = _text("README.md").splitlines()
    assert len(lines) < 150
    assert [line for line in lines if len(line) > 120] == []


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
    assert re.findall(r"^\|.*\| +\|$", text, re.MULTILINE) == [], "a key without a meaning"


def test_a_new_key_would_be_missed(tmp_path: Path) -> None:
    text = _text("recipes/README.md").replace("| `min_speedup` | number | none |\n", "")
    assert keys.fill(text) != text
