"""What a training image costs that comes from a camera: CPU time of decoding and cropping, with and without reduced decoding.

    python benchmarks/photos.py [--size 224] [--repeats 20] [--out FILE]

Photographs of 4000x3000, 1600x1200 and 500x375 pixels are made (4:2:0, quality 90), and each is loaded as training loads it, with
the same boxes for both ways. The last column is how much the pixels of both differ on average, in levels of 255.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from convnext_deploy.data.crops import Draw, load_crop
from convnext_deploy.data.image_sets import FolderImages
from convnext_deploy.data.transforms import crop_image, sample_crops
from convnext_deploy.system.environment import describe_environment
from convnext_deploy.system.files import write_text


def make_photo(path: Path, width: int, height: int) -> None:
    """Write noise of all scales, as photographs have it: its amplitude falls with the frequency."""
    rng = np.random.default_rng(0)
    pixels = np.zeros((height, width, 3), np.float32)
    for scale in (1, 4, 16, 64, 256):
        noise = Image.fromarray(rng.integers(0, 256, (height // scale + 2, width // scale + 2, 3), np.uint8))
        smooth = noise.filter(ImageFilter.GaussianBlur(1)).resize((width, height), Image.Resampling.BICUBIC)
        pixels += (np.asarray(smooth, np.float32) - 127.5) * (0.25 * scale**0.4)
    Image.fromarray((pixels + 127.5).clip(0, 255).astype(np.uint8)).save(path, quality=90)


def main() -> None:
    """Print one line per size of photograph."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for width, height in ((4000, 3000), (1600, 1200), (500, 375)):
            path = Path(folder, "x.jpg")
            make_photo(path, width, height)
            images = FolderImages((path,), np.zeros(1, np.int64))
            boxes = sample_crops(np.random.default_rng(1), arguments.repeats, height, width, 0.08)
            spent, distances = {"full": 0.0, "reduced": 0.0}, []
            for box in boxes:  # in turns, so that a drifting machine is fair to both
                begun = time.process_time()
                full = crop_image(images.load(0), box, False, arguments.size)
                between = time.process_time()
                reduced = load_crop(images, 0, 3, _draw(box), arguments.size)
                spent["full"] += between - begun
                spent["reduced"] += time.process_time() - between
                distances.append(np.abs(full.astype(int) - reduced).mean())
            milliseconds = {name: 1e3 * seconds / len(boxes) for name, seconds in spent.items()}
            rows.append({"width": width, "height": height, "ms": milliseconds, "distance": float(np.mean(distances))})
            print(
                f"{width}x{height} ({path.stat().st_size / 1e3:.0f} kB): {milliseconds['full']:.1f} ms before, "
                f"{milliseconds['reduced']:.1f} ms now, {np.mean(distances):.2f} of 255",
                flush=True,
            )
    if arguments.out is not None:
        found = {"size": arguments.size, "rows": rows, "environment": describe_environment()}
        write_text(arguments.out, json.dumps(found, indent=1) + "\n")


def _draw(box: NDArray[np.float64]) -> Draw:
    return lambda height, width: (box, False)


if __name__ == "__main__":
    main()
