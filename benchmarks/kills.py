"""A training killed with SIGKILL at random moments and started again each time, against one that was left alone.

    python benchmarks/kills.py [--kills 20] [--seed 0] [--out FILE.json]

The training is `convnext-deploy run` on the built-in digits: two networks with stochastic depth, an average of weights and
Mixup, the second distilled from the first with a teacher cache. Each kill comes a random time after the start of the process,
so that it hits imports, steps, validation and the writing of states alike. It is passed when the final weights are the same
bytes.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from convnext_deploy.artifacts.artifact import read_artifact
from convnext_deploy.system.environment import describe_environment

STAGES = ("teacher", "student")
FIT = """image_size = 32
[stages.fit]
epochs = 24
batch_size = 64
base_learning_rate = 0.064
warmup_epochs = 1
crop_scale_min = 0.7
flip_probability = 0.0
drop_path_rate = 0.2
mixup_alpha = 0.2
ema_decay = 0.9
"""
RECIPE = f"""
name = "kills"
data = "digits"
[[stages]]
kind = "train"
name = "teacher"
[stages.model]
name = "test_convnext"
{FIT}
[[stages]]
kind = "distill"
name = "student"
teacher = "teacher"
teacher_cache = true
[stages.model]
name = "test_convnext"
{FIT}"""


def main() -> None:
    """Print how often it was killed, where it stood then, and whether the weights are the same."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    moments = random.Random(arguments.seed)
    with tempfile.TemporaryDirectory() as folder:
        recipe = Path(folder) / "kills.toml"
        recipe.write_text(RECIPE)

        def start(out: str) -> subprocess.Popen[str]:
            command = [sys.executable, "-m", "convnext_deploy", "run", str(recipe), "--out", f"{folder}/{out}"]
            return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)

        started = time.monotonic()
        with start("whole") as process:
            assert process.wait() == 0, process.communicate()[1]
        seconds = time.monotonic() - started
        print(f"left alone: {seconds:.0f} s", flush=True)
        kills: list[float] = []
        starts = 0
        while True:
            starts += 1
            with start("killed") as process:
                if len(kills) < arguments.kills:
                    delay = moments.uniform(0.0, max(12.0, seconds / 4))
                    try:
                        process.wait(timeout=delay)
                    except subprocess.TimeoutExpired:
                        process.kill()
                        kills.append(delay)
                        where = [path.name for path in (Path(folder) / "killed" / "stages").glob("[!.]*")]
                        print(
                            f"kill {len(kills)} after {delay:.1f} s; finished: {', '.join(where) or 'nothing'}",
                            flush=True,
                        )
                        continue
                assert process.wait() == 0, process.communicate()[1]
            if len(kills) == arguments.kills:
                break
            # it came to its end before it was killed often enough: from the start again, in the same folder
            subprocess.run(["rm", "-rf", f"{folder}/killed/stages", f"{folder}/killed/checkpoints"], check=True)
        same = {}
        for stage in STAGES:
            files = [read_artifact(Path(folder) / out / "stages" / stage).files for out in ("whole", "killed")]
            same[stage] = files[0] == files[1]
            print(f"{stage}: {'the same bytes' if same[stage] else 'OTHER BYTES'} after {len(kills)} kills")
    if arguments.out is not None:
        record = {
            "kills_after_s": kills,
            "starts": starts,
            "uninterrupted_s": seconds,
            "same_bytes": same,
            "environment": describe_environment(),
        }
        arguments.out.write_text(json.dumps(record, indent=1) + "\n")
    sys.exit(not all(same.values()))


if __name__ == "__main__":
    main()
