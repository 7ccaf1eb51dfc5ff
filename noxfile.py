"""The tests with the oldest and the newest of all that this package needs, and the wheel alone: `nox -l` lists the sessions.

`nox` and `uv` are tools of whoever runs this (`pip install nox uv`), and no dependencies. What follows `--` goes to pytest:
`nox -s lowest -- tests/training`.
"""

import platform
import shlex
import shutil
import sys
from pathlib import Path

import nox

nox.needs_version = ">=2025.5"
nox.options.default_venv_backend = "uv"

HERE = Path(__file__).parent
PYTHONS = ("3.11", "3.12", "3.13", "3.14")
REPORTED = ("torch", "torchvision", "numpy", "onnx", "onnx-ir", "onnxscript", "onnxruntime", "tensorrt-rtx", "pillow")


@nox.session(python=PYTHONS[0])
def lowest(session: nox.Session) -> None:
    """Run the tests with the lowest version of each package that `pyproject.toml` names."""
    session.install("-e", ".[test]", "--resolution", "lowest-direct")
    _test(session)


@nox.session(python=PYTHONS)
def highest(session: nox.Session) -> None:
    """Run the tests with the newest versions that there are."""
    session.install("-e", ".[test]", "--resolution", "highest", "--upgrade")
    _test(session)


@nox.session(python=PYTHONS)
def wheel(session: nox.Session) -> None:
    """Build sdist and wheel, install the wheel alone, and run README's quickstart far from the sources."""
    built = Path(session.create_tmp(), "dist")
    shutil.rmtree(built, ignore_errors=True)
    # the wheel is built of the sdist, which so has all that it needs
    session.run("uv", "build", "--quiet", "--out-dir", str(built), external=True)
    (file,) = built.glob("*.whl")
    session.install(str(file))
    _report(session)
    folder = Path(session.create_tmp(), "quickstart")
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(HERE / "recipes", folder / "recipes")
    session.chdir(folder)
    code = "import convnext_deploy, pathlib; print(pathlib.Path(convnext_deploy.__file__).parent)"
    place = session.run("python", "-c", code, silent=True, env={"PYTHONPATH": None})
    assert place is not None, "nothing was printed"
    session.log(f"installed at {place.strip()}")
    if Path(place.strip()).is_relative_to(HERE / "convnext_deploy"):
        session.error("the checkout was imported, and not the wheel")
    session.run(*_quickstart(), env={"PYTHONPATH": None})


def _quickstart() -> list[str]:
    """Return the last command of the line under README's mark, which comes after making and filling the environment."""
    lines = (HERE / "README.md").read_text(encoding="utf-8").split("<!-- command: quickstart -->\n")[1].splitlines()
    program, *arguments = shlex.split(lines[1].rpartition("&&")[2])
    if (sys.platform, platform.machine()) != ("linux", "x86_64"):  # where TensorRT-RTX is an extra
        arguments = [word.replace("quickstart.toml", "quickstart-onnx.toml") for word in arguments]
    return [Path(program).name, *arguments]


def _report(session: nox.Session) -> None:
    """Log the versions and the size of what was installed."""
    listed = session.run("uv", "pip", "list", "--format", "freeze", silent=True, external=True) or ""
    found = [line for line in listed.splitlines() if line.partition("==")[0].lower() in REPORTED]
    size = sum(path.lstat().st_size for path in Path(session.virtualenv.location).rglob("*") if path.is_file())
    session.log(f"Python {session.python}, {', '.join(found)}; {size / 1e6:,.0f} MB in the environment")


def _test(session: nox.Session) -> None:
    _report(session)
    session.run("python", "-m", "pytest", *session.posargs)
