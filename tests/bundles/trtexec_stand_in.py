"""Programs that refuse what `trtexec` of a release of TensorRT refuses, say what they were given, and write what it would write."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path

# Of each release the options that matter here; from the sources of trtexec and the notes on moving from 10 to 11.
_ALL = (
    "onnx", "saveEngine", "loadEngine", "minShapes", "optShapes", "maxShapes", "shapes", "memPoolSize", "timingCacheFile",
    "builderOptimizationLevel", "profilingVerbosity", "exportLayerInfo", "skipInference", "stronglyTyped", "stripWeights",
    "versionCompatible", "getPlanVersionOnly", "useCudaGraph", "useSpinWait", "noDataTransfers", "warmUp", "duration",
    "exportTimes", "dumpProfile", "exportProfile", "separateProfileRun", "help",
)  # fmt: skip
_TEN = ("fp16", "int8", "fp8", "best", "calib", "layerPrecisions", "layerOutputTypes", "precisionConstraints")
_ELEVEN = ("tilingOptimizationLevel", "refitFromOnnx", "noCudaGraph", "noSpinWait", "includeDataTransfers")
OPTIONS = {
    "10.3.0": [*_ALL, *_TEN],
    "10.16.1": [*_ALL, *_TEN, "tilingOptimizationLevel", "refitFromOnnx"],
    "11.0.0": [*_ALL, *_ELEVEN],
    "11.4.0": [*_ALL, *_ELEVEN],
}
RELEASES = tuple(OPTIONS)

_PROGRAM = """#!{python}
import json, pathlib, re, sys
folder = pathlib.Path(__file__).parent
given = dict(text.lstrip("-").partition("=")[::2] for text in sys.argv[1:])
test = "TensorRT.trtexec [TensorRT {banner}] [b1]"
print("&&&& RUNNING", test, "#", *sys.argv)
if "help" in given:
    print("=== Model Options ===")
    sys.exit(0)
with (folder / "calls.jsonl").open("a") as log:
    print(json.dumps(sys.argv[1:]), file=log)
def fail(text):
    print("[E]", text, file=sys.stderr)
    print("&&&& FAILED", test)
    sys.exit(1)
unknown = [name for name in given if name not in {options!r}]
if unknown:
    fail("Unknown option: --" + unknown[0])
if {fails!r}:
    fail("Error Code 10: could not find any implementation for node MatMul_7")
shapes = [given[name] for name in ("minShapes", "optShapes", "maxShapes", "shapes") if name in given]
if not all(re.fullmatch(r"\\w+:\\d+(x\\d+)+", shape) for shape in shapes):
    fail("Invalid shape")
if "onnx" in given:
    content = pathlib.Path(given["onnx"]).read_bytes()
    if (b"batch" in content) != bool(shapes):
        fail("Static model does not take explicit shapes" if shapes else "Dynamic dimensions required")
    if not re.fullmatch(r"workspace:\\d+", given["memPoolSize"]):
        fail("Invalid memory pool")
if "saveEngine" in given and {writes!r}:
    pathlib.Path(given["saveEngine"]).write_bytes(b"an engine of " + test.encode())
    pathlib.Path(given["timingCacheFile"]).write_bytes(b"timings")
    pathlib.Path(given["exportLayerInfo"]).write_text("{{}}")
if "loadEngine" in given:
    pathlib.Path(given["loadEngine"]).read_bytes()
    if "exportTimes" in given:
        times = [{{"computeMs": 2.0 + place / 100, "latencyMs": 2.5}} for place in range(40)]
        pathlib.Path(given["exportTimes"]).write_text(json.dumps(times))
    print("[I] Throughput: 123.4 qps")
    print("[I] GPU Compute Time: min = 1 ms, median = 2 ms")
print("&&&& PASSED", test)
"""


@dataclass(frozen=True)
class Trtexec:
    """A stand-in and what it was called with."""

    path: Path

    @property
    def calls(self) -> list[list[str]]:
        """Return the arguments of every call but those for help."""
        log = self.path.parent / "calls.jsonl"
        return [json.loads(line) for line in log.read_text().splitlines()] if log.is_file() else []


def write_trtexec(
    folder: Path, release: str, *, banner: str | None = None, fails: bool = False, writes: bool = True
) -> Trtexec:
    """Write the stand-in of a release into a folder.

    Args:
        folder: new or empty.
        release: key of `OPTIONS`.
        banner: what it calls its version; None: as the real one does, such as `v101601`.
        fails: refuse every build.
        writes: write the engine that was asked for.
    """
    major, minor, patch = map(int, release.split("."))
    said = f"v{10000 * major + 100 * minor + patch}" if banner is None else banner
    text = _PROGRAM.format(python=sys.executable, banner=said, options=OPTIONS[release], fails=fails, writes=writes)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "trtexec"
    path.write_text(text)
    path.chmod(0o755)
    return Trtexec(path)
