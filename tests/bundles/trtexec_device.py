"""A machine with a bundle and a `trtexec`, and what that is to be called with."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from pathlib import Path

from tests.bundles.graphs import INT8
from tests.bundles.trtexec_stand_in import Trtexec

SYSTEM = "/usr/bin:/bin"


@dataclass(frozen=True)
class Device:
    """A bundle on a machine with a `trtexec` in its PATH, unless `trtexec` is None."""

    bundle: Path
    trtexec: Trtexec | None
    cwd: Path

    def run(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        path = SYSTEM if self.trtexec is None else f"{self.trtexec.path.parent}:{SYSTEM}"
        command = ["bash", str(self.bundle / "build_on_device.sh"), *arguments]
        return subprocess.run(
            command,
            capture_output=True,
            text=True,
            check=False,
            cwd=self.cwd,
            env={"PATH": path, "HOME": str(self.cwd), **environment},
        )

    def calls(self) -> list[list[str]]:
        assert self.trtexec is not None
        return self.trtexec.calls


def files_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def building(
    bundle: Path, name: str = INT8, *, shapes: tuple[int, int] | None = (1, 6), types: tuple[str, ...]
) -> list[str]:
    """Return the arguments that build an engine."""
    item = "x3x32x32"
    return [
        f"--onnx={bundle}/onnx/{name}.onnx",
        f"--saveEngine={bundle}/built/.{name}.plan.partial",
        *(
            []
            if shapes is None
            else [
                f"--minShapes=images:1{item}",
                f"--optShapes=images:{shapes[0]}{item}",
                f"--maxShapes=images:{shapes[1]}{item}",
            ]
        ),
        *types,
        "--memPoolSize=workspace:1024",
        "--builderOptimizationLevel=3",
        f"--timingCacheFile={bundle}/built/timing.cache",
        "--profilingVerbosity=detailed",
        f"--exportLayerInfo={bundle}/built/{name}.layers.json",
        "--skipInference",
    ]
