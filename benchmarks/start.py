"""How long an image folder takes to open, the first time and then.

python benchmarks/start.py [--files 60000] [--rounds 3] [--folder DIR | --images DIR] [--out FILE]

Written are hard links of a thousand small images in a thousand classes.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

from convnext_deploy.system.environment import describe_environment
from convnext_deploy.system.files import write_text

CLASSES, DIFFERENT = 1000, 1000
CHILD = """
import json, resource, sys, time
from pathlib import Path
from convnext_deploy.data.datasets import open_data
begun, used = time.perf_counter(), time.process_time()
data = open_data(sys.argv[1], cache_dir=Path(sys.argv[2]))
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000
seconds, cpu_seconds = time.perf_counter() - begun, time.process_time() - used
print(json.dumps({"files": len(data.train) + len(data.validation), "s": seconds, "cpu_s": cpu_seconds, "peak_mb": peak}))
"""


def write_folder(root: Path, files: int) -> Path:
    """Write an image folder of a thousand classes, of which most files are hard links of a thousand different small images."""
    rng, ends = np.random.default_rng(0), ("png", "jpg")
    (root / "different").mkdir()
    for number in range(DIFFERENT):
        image = Image.fromarray(rng.integers(0, 256, (32, 32, 3), np.uint8))
        image.save(root / "different" / f"{number:04}.{ends[number % 2]}")
    images = sorted((root / "different").iterdir())
    judging = files // 25
    classes = min(CLASSES, judging)
    for split, count, some in (("train", files - judging, images[:900]), ("val", judging, images[900:])):
        for place in range(classes):
            folder = root / "images" / split / f"n{place:08}"
            folder.mkdir(parents=True)
            for number in range(place, count, classes):
                source = some[number * 7 % len(some)]
                os.link(source, folder / f"n{place:08}_{number:07}{source.suffix}")
    return root / "images"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--files", type=int, default=60_000)
    parser.add_argument(
        "--rounds", type=int, default=3, help="how often it is opened, the first of which finds no index"
    )
    parser.add_argument("--folder", type=Path, help="where to write the files; must be able to hold that many")
    parser.add_argument("--images", type=Path, help="an image folder to open instead")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    rows = []
    root = Path(tempfile.mkdtemp(dir=arguments.folder))
    try:
        images = arguments.images or write_folder(root, arguments.files)
        for _ in range(arguments.rounds):
            words = [sys.executable, "-c", CHILD, str(images), str(root / "cache")]
            rows.append(json.loads(subprocess.run(words, check=True, stdout=subprocess.PIPE).stdout))
            text = "{files:,} files: {s:.2f} s, {cpu_s:.2f} s of CPU, {peak_mb:.0f} MB at most"
            print(text.format(**rows[-1]), flush=True)
    finally:
        shutil.rmtree(root)
    if arguments.out is not None:
        write_text(arguments.out, json.dumps({"rows": rows, "environment": describe_environment()}, indent=1) + "\n")


if __name__ == "__main__":
    main()
