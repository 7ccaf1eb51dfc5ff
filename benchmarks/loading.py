"""What loading a checkpoint costs: time and memory beyond importing torch, in a fresh process per row.

    python benchmarks/loading.py [--out benchmarks/results/loading.json]

Files are made first, with random weights: safetensors and torch.save, in timm's names, base (88.6M parameters) and v2 huge (660M,
on the meta device and then from the file). Each row opens the file as every verb does (recognise it, hash it, infer the variant),
builds the network without memory and loads it, then runs one image so that every weight is really read. For comparison, timm's
`create_model(..., checkpoint_path=FILE)` does the same in the same run.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

MEASURE = """
import json, resource, sys, threading, time
import torch
{imports}
torch.set_num_threads(2)

def resident():
    # anonymous memory and pages of mapped files; shared libraries were there before and are subtracted
    with open("/proc/self/smaps_rollup") as lines:
        return next(int(line.split()[1]) for line in lines if line.startswith("Rss:")) * 1024

peak, done = 0, False
def watch():
    global peak
    while not done:
        peak = max(peak, resident())
        time.sleep(0.002)

path = sys.argv[1]
before = resident()
thread = threading.Thread(target=watch)
thread.start()
start = time.perf_counter()
{load}
loaded = time.perf_counter() - start
done = True
thread.join()
size = sum(p.numel() * p.element_size() for p in model.parameters())
model.eval()
with torch.inference_mode():
    logits = model(torch.zeros(1, 3, 64, 64))
assert logits.shape == (1, 1000) and bool(logits.isfinite().all())
print(json.dumps({{"seconds": loaded, "copies": (peak - before) / size, "copies_after_use": (resident() - before) / size}}))
"""
OURS = {
    "imports": "from pathlib import Path\nfrom convnext_deploy.models.checkpoints import hub, hub_config\n"
    "from convnext_deploy.models.checkpoints.load_network import load_network\n"
    "from convnext_deploy.pipeline.open_artifact import open_input",
    "load": "model = load_network(open_input(Path(path)))",
}
TIMM = {"imports": "import timm", "load": "model = timm.create_model(sys.argv[2], checkpoint_path=path)"}


def make_files(folder: Path, variants: list[str]) -> dict[str, list[Path]]:
    """Write random weights of each variant in timm's names."""
    import timm
    import torch
    from safetensors.torch import save_file

    files: dict[str, list[Path]] = {}
    for variant in variants:
        with torch.device("meta"):
            empty = timm.create_model(variant).state_dict()
        generator = torch.Generator().manual_seed(0)
        state = {key: 0.02 * torch.randn(value.shape, generator=generator) for key, value in empty.items()}
        files[variant] = [folder / f"{variant}.safetensors", folder / f"{variant}.pth"]
        save_file(state, files[variant][0])
        torch.save(state, files[variant][1])
    return files


def measure(code: dict[str, str], *arguments: str) -> dict[str, float]:
    """Run one loading in a fresh process."""
    command = [sys.executable, "-c", MEASURE.format(**code), *arguments]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    found: dict[str, float] = json.loads(output.splitlines()[-1])
    return found


def main() -> None:
    """Print one line per file and library: the median of five fresh processes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    rows: list[dict[str, object]] = []
    with tempfile.TemporaryDirectory() as folder:
        files = make_files(Path(folder), ["convnext_base", "convnextv2_huge"])
        for variant, paths in files.items():
            for path in paths:
                found: dict[str, list[dict[str, float]]] = {"convnext_deploy": [], "timm": []}
                for _ in range(arguments.repeats):  # interleaved, so that a drifting machine is fair to both
                    found["convnext_deploy"].append(measure(OURS, str(path)))
                    found["timm"].append(measure(TIMM, str(path), variant))
                for library, runs in found.items():
                    middle = {key: sorted(run[key] for run in runs)[len(runs) // 2] for key in runs[0]}
                    rows.append({"file": path.name, "library": library, **middle})
                    print(
                        f"{path.name:28} {library:16} {middle['seconds']:6.2f} s, peak {middle['copies']:.2f} copies of the "
                        f"weights while loading, {middle['copies_after_use']:.2f} after one image",
                        flush=True,
                    )
    if arguments.out is not None:
        from convnext_deploy.system.environment import describe_environment

        environment: dict[str, Any] = describe_environment()
        environment["versions"]["timm"] = importlib.metadata.version("timm")
        arguments.out.write_text(json.dumps({"environment": environment, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
