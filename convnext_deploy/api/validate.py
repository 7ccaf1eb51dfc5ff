"""`validate`: score an artifact, and compare it with a baseline image by image."""

from contextlib import nullcontext
from pathlib import Path

from convnext_deploy.api import options
from convnext_deploy.api.open_inputs import open_artifacts, open_data_for, with_features
from convnext_deploy.api.options import DataOptions, EvaluationOptions, ExecutionOptions, refuse, verb
from convnext_deploy.api.run_stages import changes_of, create_execution, create_gate
from convnext_deploy.config.choices import CHANGE_LIMITS, GateOn
from convnext_deploy.data.agreement import check_classes, name_classes
from convnext_deploy.errors import DataError, RecipeError
from convnext_deploy.evaluation.limits import check_gate
from convnext_deploy.pipeline.assumptions import find_assumptions
from convnext_deploy.pipeline.comparable import check_comparable
from convnext_deploy.pipeline.final_score import score_test
from convnext_deploy.pipeline.ledger import open_ledger
from convnext_deploy.pipeline.run_folder import check_report, claim, list_unreadable
from convnext_deploy.reports.record import Report
from convnext_deploy.system.distributed import world
from convnext_deploy.system.shared_work import announce, receive


@verb
def validate(
    artifact: Path | str,
    *,
    baseline: Path | str | None = None,
    model: str | None = None,
    gate_on: GateOn = "point",
    out: Path | str | None = None,
    data: DataOptions = DataOptions(),
    evaluation: EvaluationOptions = EvaluationOptions(),
    execution: ExecutionOptions = ExecutionOptions(),
) -> Report:
    """Score an artifact on the validation images, and compare it with a baseline image by image.

    Of several processes all score.

    Args:
        artifact: folder or file, or the name of published weights.
        baseline: artifact to compare with, of any kind; a feature extractor is compared with what the baseline gives without its
            head. None: nothing is compared.
        model: variant that both must hold.
        gate_on: what must be within the limits of `evaluation`: changes as measured, or the upper ends of their 95 % intervals.
        out: folder for the report, not that of a run, which has its own; None: none is written.
        data: images; none named: the digits, for what was trained on them.
        evaluation: images per step, and how much may be lost.
        execution: how work is done.

    Raises: DeployError: if there are no images, an artifact cannot be run, a gate is given for a drop that is not measured, or
        another report would be replaced.
    """
    from convnext_deploy.evaluation.measure import BATCH_SIZE, measure_artifact

    asked = options.given(changes_of(evaluation))
    if baseline is None and asked:
        about = f"{CHANGE_LIMITS[asked[0]]} is about {'an increase' if 'increase' in asked[0] else 'a drop'}"
        raise RecipeError(f"{about}, and there is nothing to compare with; give --baseline ARTIFACT.")
    if gate_on == "upper" and not asked:
        raise RecipeError("--gate-on upper needs to know how much may be lost; give --max-drop.")
    if out is None:
        refuse(ExecutionOptions(restart=execution.restart), "validate without out", "no report is written")
    how = create_execution(execution, data.data)
    paths = {"baseline": baseline, "artifact": artifact}
    given = {name: path for name, path in paths.items() if path is not None}
    opened = dict(zip(given, open_artifacts(list(given.values()), model, data, how.progress), strict=True))
    output = opened["artifact"].model.output
    if "baseline" in opened and output != "logits":
        opened["baseline"] = with_features(opened["baseline"], output, str(baseline), how.progress)
    images = open_data_for(opened["artifact"], data, how, judges=True)
    if images is None:
        raise DataError("validation needs images: give the image folder with --data DIR.")
    folder = None if out is None else Path(out)
    brought = tuple(opened.values())
    for name, entry in opened.items():
        check_classes(str(paths[name]), entry, images)
        opened[name] = name_classes(entry, images)
    if "baseline" in opened:
        check_comparable(str(artifact), opened["artifact"], str(baseline), opened["baseline"])
    gate = create_gate(evaluation, None, gate_on)
    check_gate(gate, "validate", multi_label=images.multi_label)
    command = execution.command or "convnext_deploy.validate(…)  # called from Python"
    if not world().is_first:
        followed: Report = receive()
        return followed
    assumptions = find_assumptions(brought, images)
    for text in assumptions.texts:
        how.progress.say(text)
    batch_size = evaluation.batch_size or BATCH_SIZE
    with nullcontext() if folder is None else claim(folder):
        if folder is not None:
            rows = {name: entry.sha256 for name, entry in opened.items()}
            check_report(folder, "validate", rows, images, restart=execution.restart or False)
            list_unreadable(folder, images)
        ledger = open_ledger("validate", images, folder, seed=how.seed, command=command, assumptions=assumptions)
        for name, entry in opened.items():
            measured = measure_artifact(entry, images, how, name, batch_size)
            own_gate = gate if name == "artifact" else None
            ledger.record(name, entry, measured, own_gate, baseline=next(iter(opened)), is_kept=False)
        score_test(ledger, lambda name, entry, test: measure_artifact(entry, test, how, f"{name}, test", batch_size))
        ledger.change(complete=True, source_preprocess=data.preprocess)
    return announce(ledger.report)
