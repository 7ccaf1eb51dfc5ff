"""The layers of the package: who may import whom, and what imports without its optional packages."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import convnext_deploy
from convnext_deploy.cli import COMMANDS

PACKAGE = "convnext_deploy"
ROOT = Path(convnext_deploy.__file__).parent
LAYERS = (
    (
        "errors",
        "statistics",
        "distributed",
        "fit_config",
        "stage_config",
        "recipe",
        "recipe_file",
        "spec",
        "artifact",
        "progress",
        "cuda_driver",
        "code_version",
    ),
    ("models", "data", "training", "quantization", "exporters", "inspection"),
    ("network",),
    ("stages", "runners"),
    ("validation",),
    ("inputs", "pipeline", "execution", "reporting", "rivals", "speed_check"),
    (
        "options",
        "opening",
        "stage_runs",
        "api",
        "exporting",
        "bundling",
        "start_recipe",
        "catalog",
        "conversion",
        "prediction",
        "diagnosis",
        "benchmarking",
    ),
    ("cli", "__main__", "__init__"),
)
BUILDING_BLOCKS = (*LAYERS[1], *LAYERS[2])
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
)
HEAVY = ("torch", "torchvision", "numpy", "onnx", "onnxruntime", "PIL", "sklearn", "rich")
VAGUE_NAMES = ("util", "helper", "common", "misc", "manager")

FILES = sorted(ROOT.rglob("*.py"))


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join((PACKAGE, *(parts[:-1] if parts[-1] == "__init__" else parts)))


MODULES = {module_name(path): path for path in FILES}


def part_of(module: str) -> str:
    """Return the folder or file directly under the package that a module belongs to."""
    return module.split(".")[1] if "." in module else "__init__"


def layer_of(module: str) -> int:
    return next(rank for rank, parts in enumerate(LAYERS) if part_of(module) in parts)


def parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def imported_names(tree: ast.AST) -> Iterator[str]:
    """Yield the full name of everything imported anywhere in the tree, by statement or by `import_module`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Call) and called_name(node) in ("import_module", "__import__", "find_spec"):
            for argument in (*node.args, *(keyword.value for keyword in node.keywords)):
                for part in ast.walk(argument):
                    if isinstance(part, ast.Constant) and isinstance(part.value, str):
                        yield part.value


def called_name(call: ast.Call) -> str:
    function = call.func
    return function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")


def own_imports(module: str) -> set[str]:
    """Return the modules of the package that a module imports; a name inside a module counts as the module."""
    found = set()
    for name in imported_names(parse(MODULES[module])):
        if name == PACKAGE or name.startswith(f"{PACKAGE}."):
            found.add(name if name in MODULES else name.rpartition(".")[0])
    return found


def top_level_imports(module: str) -> set[str]:
    return {name.split(".")[0] for name in imported_names(parse(MODULES[module]))}


def test_imported_names_finds_imports_everywhere() -> None:
    text = """
if TYPE_CHECKING:
    import a.b
def f():
    from c import d
    importlib.import_module("e" if x else "g")
"""
    assert set(imported_names(ast.parse(text))) == {"a.b", "c.d", "e", "g"}


@pytest.mark.parametrize("module", MODULES)
def test_module_belongs_to_one_layer(module: str) -> None:
    assert sum(part_of(module) in parts for parts in LAYERS) == 1, f"assign {module} to a layer in LAYERS"


@pytest.mark.parametrize("module", MODULES)
def test_module_imports_no_higher_layer(module: str) -> None:
    higher = {name for name in own_imports(module) if layer_of(name) > layer_of(module)}
    assert not higher


@pytest.mark.parametrize("module", MODULES)
def test_module_has_no_relative_import(module: str) -> None:
    levels = [node.level for node in ast.walk(parse(MODULES[module])) if isinstance(node, ast.ImportFrom)]
    assert not any(levels), "code_version and the layer rules read full names only"


@pytest.mark.parametrize(
    ("part", "forbidden"),
    [
        ("stages", {"runners", "validation"}),
        ("runners", {"stages"}),
        ("quantization", {"models"}),
        *((part, {"recipe", "recipe_file"}) for part in BUILDING_BLOCKS),
    ],
)
def test_part_does_not_import(part: str, forbidden: set[str]) -> None:
    modules = [module for module in MODULES if part_of(module) == part]
    assert modules
    found = {(module, name) for module in modules for name in own_imports(module) if part_of(name) in forbidden}
    assert not found


def test_reporting_imports_no_torch() -> None:
    found = {module for module in MODULES if part_of(module) == "reporting" and "torch" in top_level_imports(module)}
    assert not found


@pytest.mark.parametrize("package", OPTIONAL)
def test_optional_package_is_imported_in_at_most_one_file(package: str) -> None:
    files = [module for module in MODULES if package in top_level_imports(module)]
    assert len(files) <= 1


@pytest.mark.parametrize("module", MODULES)
def test_optional_packages_are_imported_inside_functions(module: str) -> None:
    def outside_functions(node: ast.AST) -> Iterator[ast.AST]:
        for child in ast.iter_child_nodes(node):
            if not isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
                yield child
                yield from outside_functions(child)

    statements = [
        node
        for node in outside_functions(parse(MODULES[module]))
        if isinstance(node, ast.Import | ast.ImportFrom | ast.Call)
    ]
    found = {name.split(".")[0] for node in statements for name in imported_names(node)} & set(OPTIONAL)
    assert not found


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_file_is_short_and_named_after_what_it_does(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 300
    for name in path.relative_to(ROOT).with_suffix("").parts:
        assert not any(vague in name for vague in VAGUE_NAMES)


def run_python(code: str) -> str:
    """Run code in a fresh interpreter and return what it printed."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


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
for module in {[name for name in MODULES if not name.endswith("__main__")]!r}:
    importlib.import_module(module)
assert not [name for name in sys.modules if name.split(".")[0] in blocked]
print("all imported")
"""
    assert run_python(code).endswith("all imported\n")
