"""A student trained alone against the same student distilled, over several seeds, on an image folder such as CIFAR-10.

    python benchmarks/distillation.py --data DIR [--seeds 0 1 2] [--work DIR] [--out FILE.json]

One teacher is trained once. Then, for every seed, the student is trained twice for the same number of epochs with the same
settings, from the same initial weights and with the same crops in the same order: on the labels alone, and on labels and
teacher. Both are scored on all validation images. Temperature and weight are those of Tian et al. 2020 for CIFAR (arXiv
1910.10699, section 4). The figures are the differences seed by seed, their mean, and the 95 % interval of that mean after
Student's t. What was finished in `--work` is not done again.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from convnext_deploy import run
from convnext_deploy.api.options import DataOptions, ExecutionOptions
from convnext_deploy.config.distill import DistillConfig
from convnext_deploy.config.fit import FitConfig
from convnext_deploy.config.recipe import Recipe, StageEntry
from convnext_deploy.config.train import ModelConfig, TrainConfig
from convnext_deploy.system.progress_bars import create_progress


def main() -> None:
    """Train, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--data", required=True)
    parser.add_argument("--image-size", type=int, default=32)
    parser.add_argument("--teacher", default="atto")
    parser.add_argument("--teacher-patch-size", type=int, default=2)
    parser.add_argument("--teacher-epochs", type=int, default=12)
    parser.add_argument("--student", default="zepto_rms")
    parser.add_argument("--student-patch-size", type=int, default=4)
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--temperature", type=float, default=4.0)
    parser.add_argument("--distill-loss-weight", type=float, default=0.9)
    parser.add_argument("--base-learning-rate", type=float, default=0.096)
    parser.add_argument("--autocast", default="auto")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--work", type=Path, default=Path("runs/distillation"))
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    if len(arguments.seeds) < 2:
        parser.error("an interval needs at least two seeds")

    def fit(epochs: int) -> FitConfig:
        return FitConfig(
            epochs=epochs,
            batch_size=128,
            base_learning_rate=arguments.base_learning_rate,
            warmup_epochs=1.0,
            drop_path_rate=0.0,
            crop_scale_min=0.4,
            autocast=arguments.autocast,
        )

    def execute(name: str, recipe: Recipe) -> Any:
        how = ExecutionOptions(progress=create_progress())
        result = run(recipe, out=arguments.work / name, data=DataOptions(arguments.data), execution=how)
        return {row.name: row for row in result.report.rows}, result.report

    model = ModelConfig(arguments.teacher, arguments.image_size, arguments.teacher_patch_size)
    recipe = Recipe("teacher", (StageEntry("teacher", TrainConfig(model, fit(arguments.teacher_epochs)), None),))
    rows, report = execute("teacher", recipe)
    teacher = rows["teacher"].top1
    student = ModelConfig(arguments.student, arguments.image_size, arguments.student_patch_size)
    learn = fit(arguments.epochs)
    distill = DistillConfig(
        student, "source", learn, temperature=arguments.temperature, distill_loss_weight=arguments.distill_loss_weight
    )
    results = []
    for seed in arguments.seeds:
        stages = (StageEntry("alone", TrainConfig(student, learn), None), StageEntry("distilled", distill, None))
        source = str(arguments.work / "teacher" / "stages" / "teacher")
        rows, _ = execute(f"seed-{seed}", Recipe(f"seed-{seed}", stages, source=source, seed=seed))
        results.append({"seed": seed, "alone": rows["alone"].top1, "distilled": rows["distilled"].top1})
    gains = np.array([100.0 * (row["distilled"] - row["alone"]) for row in results])
    reach = stats.t.ppf(0.975, len(gains) - 1) * gains.std(ddof=1) / np.sqrt(len(gains))
    print("| seed | alone % | distilled % | gain pp |\n|---|---|---|---|")
    for row, gain in zip(results, gains, strict=True):
        print(f"| {row['seed']} | {100 * row['alone']:.2f} | {100 * row['distilled']:.2f} | {gain:+.2f} |")
    print(
        f"mean gain {gains.mean():+.2f} pp [{gains.mean() - reach:+.2f}, {gains.mean() + reach:+.2f}], "
        f"teacher {100 * teacher:.2f} %"
    )
    if arguments.out is not None:
        record = {
            "command": " ".join(["python", "benchmarks/distillation.py", *sys.argv[1:]]),
            "teacher_top1": teacher,
            "validation_images": report.validation_images,
            "results": results,
            "mean_gain_pp": gains.mean(),
            "gain_interval_pp": [gains.mean() - reach, gains.mean() + reach],
            "environment": report.environment,
        }
        arguments.out.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
