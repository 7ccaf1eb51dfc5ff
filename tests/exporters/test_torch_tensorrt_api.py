"""The parameters of Torch-TensorRT that the stand-in is made from, and how they are read from a wheel."""

from __future__ import annotations

import tomllib
import zipfile
from pathlib import Path

from packaging.requirements import Requirement

from convnext_deploy.exporters.tensorrt import torch_tensorrt
from tests.exporters.torch_tensorrt_stand_in import API
from tests.golden.dump_torch_tensorrt_api import dump

ROOT = Path(__file__).parents[2]


def test_golden_file_is_of_a_release_that_this_package_takes() -> None:
    assert "torch<2.15.0,>=2.14.0" in API["requires"]
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    (wanted,) = map(Requirement, extras["torch-tensorrt"])
    assert wanted.specifier.contains("2.14.0")


def test_logger_is_that_of_the_release() -> None:
    assert API["logger"] == torch_tensorrt._LOGGER


def test_dump_reads_parameters_from_a_wheel(tmp_path: Path) -> None:
    wheel = tmp_path / "torch_tensorrt-9.9.9.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("torch_tensorrt/_version.py", '__version__ = "9.9.9"\n')
        archive.writestr("torch_tensorrt/logging.py", 'logger = logging.getLogger("a logger")\n')
        archive.writestr("torch_tensorrt/dynamo/_compiler.py", "def compile(program, *, level=3, **kwargs): ...\n")
        archive.writestr(
            "torch_tensorrt/_compile.py", "def save(module, *, format=None): ...\ndef load(file_path=''): ...\n"
        )
        code = "def f(**kwargs):\n kwargs['shape']\n 'dtype' in kwargs\n kwargs.get('name')\n other['no']\n"
        archive.writestr("torch_tensorrt/_Input.py", code)
        archive.writestr(
            "torch_tensorrt-9.9.9.dist-info/METADATA", "Name: x\nRequires-Dist: torch<10\nRequires-Dist: y\n"
        )
    assert dump(wheel) == {
        "release": "9.9.9",
        "requires": ["torch<10"],
        "logger": "a logger",
        "functions": {
            "torch_tensorrt.dynamo.compile": {"positional": ["program"], "keyword_only": ["level"]},
            "torch_tensorrt.load": {"positional": ["file_path"], "keyword_only": []},
            "torch_tensorrt.save": {"positional": ["module"], "keyword_only": ["format"]},
        },
        "input": ["dtype", "name", "shape"],
    }
