"""The mutants of `mutants.py`: 31 errors that a tired person could make, at least one in every room of the package."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Mutant:
    """One error put into the source.

    `error` says what goes wrong for a user. `before` stands once in the whole package, whatever the file is called, and becomes
    `after`; spaces and line breaks may differ. `tests` are the files, anywhere below `tests/`, that should notice it; those
    that a tree lacks do not count. `earlier` is the same error where version 0.1 has another line, so that it can be tried too.
    """

    name: str
    error: str
    before: str
    after: str
    tests: tuple[str, ...]
    earlier: tuple[str, str] | None = None


MUTANTS = (
    Mutant(
        "interval-ends",
        "the 95 % interval of a drop is mirrored: its margins are swapped",
        "return p1 - p2 - below, p1 - p2 + above",
        "return p1 - p2 - above, p1 - p2 + below",
        ("test_statistics.py",),
    ),
    Mutant(
        "gate-sign",
        "an artifact that is more accurate than its gate asks for fails, and one below it passes",
        "if gate.min_top1 is not None and score.value < gate.min_top1:",
        "if gate.min_top1 is not None and score.value > gate.min_top1:",
        ("test_gate.py",),
    ),
    Mutant(
        "speedup-inverted",
        "INT8 of half the speed is reported as twice as fast",
        "ratio = relate(in_float, int8)",
        "ratio = relate(int8, in_float)",
        ("test_speed.py",),
    ),
    Mutant(
        "distillation-direction",
        "KL(student || teacher) is minimized, not KL(teacher || student)",
        "return _divergence(teacher, student).mean() * temperature**2",
        "return _divergence(student, teacher).mean() * temperature**2",
        ("test_losses.py",),
    ),
    Mutant(
        "average-without-warm-up",
        "the average of a short training is still that of its first weights",
        "1.0 - min(self.decay, least)",
        "1.0 - max(self.decay, least)",
        ("test_fit_options.py",),
        ("min(self.decay, (1 + step) / (10 + step))", "max(self.decay, (1 + step) / (10 + step))"),
    ),
    Mutant(
        "scale-gradient",
        "the gradient of a scale counts the values beyond the grid as if they were on it",
        ".sub_(zero).sub_(ratio.mul_(inside))",
        ".sub_(zero).sub_(ratio)",
        ("test_fake_quantize.py",),
    ),
    Mutant(
        "bias-correction-sign",
        "bias correction doubles the error that it is to remove",
        "(wanted.pop(0) - found)",
        "(found - wanted.pop(0))",
        ("test_blockwise.py",),
    ),
    Mutant(
        "fold-shift",
        "the bias of a LayerNorm is folded into the next layer with the wrong sign",
        "bias += weight.reshape(*weight.shape[:2], -1).sum(-1) @ shift.flatten()",
        "bias -= weight.reshape(*weight.shape[:2], -1).sum(-1) @ shift.flatten()",
        ("test_fold.py",),
    ),
    Mutant(
        "grn-keys",
        "weight and bias of timm's GRN, which have one shape, are loaded as each other",
        '("grn.gamma", "mlp.grn.weight", None, "grn.weight"), ("grn.beta", "mlp.grn.bias", None, "grn.bias"),',
        '("grn.gamma", "mlp.grn.bias", None, "grn.weight"), ("grn.beta", "mlp.grn.weight", None, "grn.bias"),',
        ("test_dialects.py", "test_parity.py"),
    ),
    Mutant(
        "cost-of-blocks",
        "one of the two linear layers of every block is left out of the GMACs",
        "(kernel**2 * dim + 2 * hidden * dim) * side**2",
        "(kernel**2 * dim + hidden * dim) * side**2",
        ("test_complexity.py",),
    ),
    Mutant(
        "split-leak",
        "an image that lies in two classes is held out, so that validation has a label that training contradicts",
        "if len(labels) == 1: alike[labels.pop()].append(group)",
        "if len(labels) >= 1: alike[labels.pop()].append(group)",
        ("test_split.py",),
    ),
    Mutant(
        "orientation",
        "photographs taken upright with a telephone are turned the wrong way",
        "6: _WAYS.ROTATE_270,",
        "6: _WAYS.ROTATE_90,",
        ("test_orientation.py",),
    ),
    Mutant(
        "qdq-output-scale",
        "weights of layers whose output has a scale per channel are multiplied by it, not divided",
        "scale = np.asarray(site.weight_scale / site.output_steps, np.float32)",
        "scale = np.asarray(site.weight_scale * site.output_steps, np.float32)",
        ("test_targets.py",),
    ),
    Mutant(
        "fp16-island",
        "activations up to the very largest FP16 number are computed in FP16, so that other images overflow",
        "LARGEST = float(np.finfo(np.float16).max) / 4",
        "LARGEST = float(np.finfo(np.float16).max) * 4",
        ("test_half.py", "test_fp16.py"),
    ),
    Mutant(
        "engine-profile",
        "an engine is tuned for its largest batch, and the batch it should be tuned for is its largest",
        "sizes = (profile.minimum, profile.optimal, profile.maximum)",
        "sizes = (profile.minimum, profile.maximum, profile.optimal)",
        ("test_build_options.py", "test_tensorrt_engine.py"),
    ),
    Mutant(
        "float-fallback",
        "a layer of an engine that runs partly in float counts as INT8",
        "next((k for k in seen if k not in EIGHT_BITS), seen[0]) if seen else UNKNOWN",
        "next((k for k in seen if k in EIGHT_BITS), seen[0]) if seen else UNKNOWN",
        ("test_engine_precisions.py",),
    ),
    Mutant(
        "scale-of-zero",
        "a scale of zero, which TensorRT refuses, is found in order",
        "if not (np.isfinite(values) & (values > 0)).all():",
        "if not (np.isfinite(values) & (values >= 0)).all():",
        ("test_traps.py", "test_rules.py"),
    ),
    Mutant(
        "truncated-file",
        "a file that a full disk cut short is opened as if it were whole",
        "if found != file.size_bytes:",
        "if found is None:",
        ("test_artifact.py",),
    ),
    Mutant(
        "pixels-for-uint8",
        "graphs that take pixels get them with mean and standard deviation swapped",
        "(images * std[:, None, None] + mean[:, None, None])",
        "(images * mean[:, None, None] + std[:, None, None])",
        ("test_graph_ends.py", "test_pre_post_processing.py", "test_pixel_files.py"),
    ),
    Mutant(
        "risk-sign",
        "what is uncertain of a drop is taken off its risk, so that weaker steps pass",
        "stringer_bound(own, level / 2) + surcharge",
        "stringer_bound(own, level / 2) - surcharge",
        ("test_judging.py", "test_selection.py", "test_drop_bound.py"),
        (
            "(cost + _Z95_ONE_SIDED * math.sqrt(changed / JUDGED_ON))",
            "(cost - _Z95_ONE_SIDED * math.sqrt(changed / JUDGED_ON))",
        ),
    ),
    Mutant(
        "baseline",
        "the drop of an exported INT8 network is measured against the INT8 network, not against FP32",
        "baseline = self.baselines.get(parent)",
        "baseline = parent",
        ("test_verdicts.py", "test_small_run.py"),
        (
            "baselines[name] = name if artifact.is_baseline or parent not in baselines else baselines[parent]",
            "baselines[name] = name if artifact.is_baseline or parent not in baselines else parent",
        ),
    ),
    Mutant(
        "slow-but-passed",
        "an INT8 artifact that fails the gate of accuracy passes when it is fast",
        "passed=on_speed.passed and own.passed is not False",
        "passed=on_speed.passed or own.passed is not False",
        ("test_rows.py", "test_speed_check.py"),
        ("passed=verdict.passed and row.passed is not False", "passed=verdict.passed or row.passed is not False"),
    ),
    Mutant(
        "pareto-front",
        "a report draws slower artifacts of less accuracy as the ones that no other beats",
        "if not front or point.score_percent > front[-1].score_percent:",
        "if not front or point.score_percent < front[-1].score_percent:",
        ("test_accuracy_plot.py",),
    ),
    Mutant(
        "bundle-tolerance",
        "bundles of networks that are sensitive to rounding fail on every device",
        "max(floor, _HEADROOM * max(errors))",
        "min(floor, _HEADROOM * max(errors))",
        ("test_golden.py",),
    ),
    Mutant(
        "view-shows-all",
        "`view` shows files outside of a run through links in its folder",
        "if not path.is_relative_to(run.folder) or not stat.S_ISREG(path.stat().st_mode):",
        "if not stat.S_ISREG(path.stat().st_mode):",
        ("test_library.py",),
    ),
    Mutant(
        "golden-answers",
        "a model on a device whose answers are wrong passes the check of its bundle",
        "return worst <= tolerance, text def first_classes(",
        "return worst >= 0.0, text\n\n\ndef first_classes(",
        ("test_golden.py", "test_verification.py"),
    ),
    Mutant(
        "probabilities",
        "`predict` lists the least probable classes first",
        "np.argsort(-probabilities, axis=1",
        "np.argsort(probabilities, axis=1",
        ("test_predict.py", "test_prediction.py"),
    ),
    Mutant(
        "exit-code",
        "a failed gate ends with exit code 0, so that a pipeline ships the artifact",
        "EXIT_ERROR, EXIT_GATE_FAILED, EXIT_UNREAD = 1, 3, 141",
        "EXIT_ERROR, EXIT_GATE_FAILED, EXIT_UNREAD = 1, 0, 141",
        ("test_results.py", "test_usage.py", "test_quantize.py"),
    ),
    Mutant(
        "rank",
        "on a second machine, every first process takes itself for the one that writes",
        "World(rank, size, local) if size > 1",
        "World(local, size, rank) if size > 1",
        ("test_world.py",),
    ),
    Mutant(
        "previous-stage",
        "a stage without a source works on the first stage of a recipe, not on the one before it",
        "stages[-1].name if stages else None",
        "stages[0].name if stages else None",
        ("test_strict_loader.py", "test_files.py"),
    ),
    Mutant(
        "old-gpu",
        "`doctor` says that TensorRT does not work on the GPUs that it works on",
        "if gpus[0].number < _TENSORRT_FROM:",
        "if gpus[0].number > _TENSORRT_FROM:",
        ("test_checkup.py",),
    ),
    Mutant(
        "pruned-inputs",
        "the inputs that stay do not take over what those that are removed did",
        "weight = weight[:, stays] - weight[:, gone] @ shares",
        "weight = weight[:, stays]",
        ("test_elimination.py",),
    ),
    Mutant(
        "fixed-time",
        "the search of widths forgets the time of all but the blocks, and promises what no network keeps",
        "choose(budget_ms - self._times.fixed_ms)",
        "choose(budget_ms)",
        ("test_search.py",),
    ),
)
