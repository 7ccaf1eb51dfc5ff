"""What the contracts of import-linter in `pyproject.toml` cannot say of the package's structure."""

from __future__ import annotations

import ast
import importlib
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest

import convnext_deploy
from convnext_deploy.cli import COMMANDS

ROOT = Path(convnext_deploy.__file__).parent
FILES = sorted(ROOT.rglob("*.py"))
OPTIONAL = (
    "tensorrt",
    "tensorrt_rtx",
    "torch_tensorrt",
    "openvino",
    "timm",
    "webdataset",
    "transformers",
    "huggingface_hub",
    "tensorboard",
    "pynvml",
    "pandas",
    "IPython",
    "mlflow",
)
HEAVY = ("torch", "torchvision", "numpy", "onnx", "onnxruntime", "PIL", "sklearn", "rich")
VAGUE_NAMES = ("util", "helper", "common", "misc", "manager")
MOST_ROOMS, MOST_LINES = 29, 300


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def rooms() -> set[Path]:
    """Return the folders of the package that have files of their own."""
    return {path.parent for path in FILES if path.name != "__init__.py"} - {ROOT}


def imported_names(tree: ast.AST) -> Iterator[str]:
    """Yield the full name of everything that is imported anywhere, by statement or, as text, by `import_module`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module or ""
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith(("import_module", "__import__")):
            yield from (c.value for c in ast.walk(node) if isinstance(c, ast.Constant) and isinstance(c.value, str))


def test_imported_names_finds_imports_everywhere() -> None:
    text = 'if X:\n    import a.b\ndef f():\n    from c import d\n    importlib.import_module("e" if x else "g")\n'
    assert set(imported_names(ast.parse(text))) == {"a.b", "c", "e", "g"}


def test_rooms_are_few_and_say_what_lives_there() -> None:
    assert len(rooms()) <= MOST_ROOMS
    assert {path.name for path in ROOT.glob("*.py")} == {"__init__.py", "__main__.py", "documents.py", "errors.py"}
    folders = {folder for room in rooms() for folder in (room, *room.parents) if ROOT in folder.parents}
    silent = [folder for folder in folders if not (importlib.import_module(module_name(folder)).__doc__ or "").strip()]
    assert silent == []


def test_files_are_short_and_named_after_what_they_do() -> None:
    long = {str(path) for path in FILES if len(path.read_text(encoding="utf-8").splitlines()) > MOST_LINES}
    vague = {str(path) for path in FILES if any(word in str(path.relative_to(ROOT)) for word in VAGUE_NAMES)}
    assert long | vague == set()


def test_optional_package_is_imported_in_at_most_one_file() -> None:
    found = defaultdict(set)
    for path in FILES:
        for name in imported_names(ast.parse(path.read_text(encoding="utf-8"))):
            found[name.partition(".")[0]].add(module_name(path))
    assert {name: found[name] for name in OPTIONAL if len(found[name]) > 1} == {}


def run_python(code: str) -> str:
    """Run code in a fresh interpreter and return what it printed."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.heavy
def test_import_and_every_help_import_nothing_heavy() -> None:
    code = f"""
import contextlib, io, sys
def loaded():
    return [name for name in {HEAVY!r} if name in sys.modules]
import convnext_deploy
print("import", loaded())
import convnext_deploy.cli
print("cli", loaded())
for verb in ((), *((verb,) for verb in convnext_deploy.cli.COMMANDS)):
    sys.argv = ["convnext-deploy", *verb, "--help"]
    with contextlib.redirect_stdout(io.StringIO()) as text:
        try:
            convnext_deploy.cli.main()
        except SystemExit:
            pass
    assert "Usage:" in text.getvalue()
    print(*verb, "--help", loaded())
"""
    lines = run_python(code).splitlines()
    assert len(lines) == 3 + len(COMMANDS)
    assert [line for line in lines if not line.endswith(" []")] == []


@pytest.mark.heavy
def test_every_module_imports_without_the_packages_it_can_do_without() -> None:
    code = f"""
import importlib, sys
blocked = {(*OPTIONAL, "onnxruntime")!r}
class Hiding:
    def __init__(self, finder):
        self.finder = finder
    def __getattr__(self, name):
        return getattr(self.finder, name)
    def find_spec(self, name, path=None, target=None):
        return None if name.split(".")[0] in blocked else self.finder.find_spec(name, path, target)
sys.meta_path[:] = [Hiding(finder) for finder in sys.meta_path]
for module in {[module_name(path) for path in FILES if path.name != "__main__.py"]!r}:
    importlib.import_module(module)
assert not [name for name in sys.modules if name.split(".")[0] in blocked]
print("all imported")
"""
    assert run_python(code).endswith("all imported\n")
