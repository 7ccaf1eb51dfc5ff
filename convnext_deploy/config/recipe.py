"""A recipe: an ordered list of stages, as frozen records that check their own values."""

from dataclasses import dataclass, field
from pathlib import PurePath

from convnext_deploy.config.checks import LARGEST_SEED, check_fields, require
from convnext_deploy.config.choices import CHANGE_LIMITS, FeatureOutput, GateOn
from convnext_deploy.config.preprocess import PreprocessSettings
from convnext_deploy.config.stage import StageConfig
from convnext_deploy.errors import RecipeError, suggest

SOURCE = "source"  # the name under which stages refer to the artifact that the user brought
WEIGHTS_PREFIX = "weights:"  # before the place of a stage's initial weights
TEACHER_PREFIX = "teacher:"  # before the place of a teacher that no stage makes
BASELINE = "baseline"  # the name of its FP32 ancestor in the report


@dataclass(frozen=True)
class Gate:
    """What a stage must reach. None: not judged. `max_top1_drop_pp` in percentage points, `min_top1` a fraction.

    `max_ece_increase_pp`: how much the expected calibration error may rise, `max_class_drop_pp`: how much top-1 of the class that
    loses most may drop, both in percentage points against the baseline. Of multi-label data what is said of top-1 is about mAP,
    of a class about the average precision of a label; there is no calibration error.

    `on` says what of drops and rises must stay within the gate: the `point` that was measured, or the `upper` end of its 95 %
    interval, which a small validation set does not let pass.

    `against`: whose answers drops and rises are measured against, `source` or an earlier stage; None: those of the nearest FP32
    ancestor. A network that was pruned and trained again is such an ancestor of what is made of it, and not what it replaces.

    `min_speedup`: how many times as fast as its float baseline an INT8 graph or engine must be, on the runtime that it is for, 0.1
    to 100; None: not slower. The median of the rounds counts, see `evaluation.timing.speedup`.
    """

    max_top1_drop_pp: float | None = None
    min_top1: float | None = None
    on: GateOn = "point"
    min_speedup: float | None = None
    max_ece_increase_pp: float | None = None
    max_class_drop_pp: float | None = None
    against: str | None = None

    @property
    def judges_change(self) -> bool:
        """Whether anything is compared with the baseline's answers."""
        return any(getattr(self, name) is not None for name in CHANGE_LIMITS)

    def __post_init__(self) -> None:
        check_fields(self)
        if self.on == "upper" and not self.judges_change:
            raise RecipeError("on = 'upper' is about the drop, and no max_top1_drop_pp is given; give both.")
        for name in CHANGE_LIMITS:
            limit = getattr(self, name)
            require(limit is None or 0 <= limit <= 100, name, limit, "0 to 100")
        if self.min_top1 is not None:
            require(0 <= self.min_top1 <= 1, "min_top1", self.min_top1, "a fraction, 0 to 1")
        if self.min_speedup is not None:
            require(0.1 <= self.min_speedup <= 100, "min_speedup", self.min_speedup, "a factor, 0.1 to 100")


@dataclass(frozen=True)
class LatencyGoal:
    """How fast the artifact of a `stage` must be beside that of the stage `against`, whose network it replaces.

    All goals of a recipe are timed at its end, in interleaved, isolated processes on their runtimes. `max_ratio`: its
    time as a share of the other's, 0.001 to 100; `max_ms`: its time for a batch in milliseconds; None: not judged. The medians
    count. `predicted_ratio`: what was expected, for the report.
    """

    stage: str
    against: str
    max_ratio: float | None = None
    max_ms: float | None = None
    predicted_ratio: float | None = None

    def __post_init__(self) -> None:
        for name, least, most in (("max_ratio", 1e-3, 100.0), ("max_ms", 1e-6, 1e6), ("predicted_ratio", 0.0, 100.0)):
            value = getattr(self, name)
            require(value is None or least <= value <= most, name, value, f"{least:g} to {most:g}")


@dataclass(frozen=True)
class StageEntry:
    """A stage in a recipe. `source` names an earlier stage or `source`; None only where a stage starts from nothing."""

    name: str
    config: StageConfig
    source: str | None
    gate: Gate = field(default_factory=Gate)

    @property
    def inputs(self) -> dict[str, str]:
        """Names of the artifacts that the stage reads, by role."""
        named = (TEACHER_PREFIX + name if is_place(name) else name for name in self.config.teachers)
        numbered = enumerate(named, 1)
        teaching = {f"teacher{number if number > 1 else ''}": name for number, name in numbered}
        roles = {"source": self.source, **teaching, "weights": self.weights}
        return {role: name for role, name in roles.items() if name is not None}

    @property
    def weights(self) -> str | None:
        """Where the initial weights of a training stage lie, if not in its source, with a prefix that no stage name has."""
        weights = self.config.initial_weights
        return None if weights is None else WEIGHTS_PREFIX + weights


@dataclass(frozen=True)
class Recipe:
    """Stages in order. `data` is `digits` or an image folder; `source` the path of an artifact, checkpoint or ONNX file.

    `speed_check`: time every INT8 graph and engine against its float baseline; see `Gate.min_speedup`. `source_preprocess`: how
    images are made ready for the source, where its file does not tell that or something else is wanted. `source_output`: take the
    source without its head, for what that would see; None: as it is. `unlabelled`: folder of images that only teachers label, for
    the stages that distill; see their `unlabelled_share`. `latency_goals`: what is to be faster than what, see `LatencyGoal`.
    """

    name: str
    stages: tuple[StageEntry, ...]
    data: str | None = None
    source: str | None = None
    seed: int = 0
    speed_check: bool = True
    source_preprocess: PreprocessSettings = field(default_factory=PreprocessSettings)
    source_output: FeatureOutput | None = None
    unlabelled: str | None = None
    latency_goals: tuple[LatencyGoal, ...] = ()

    def __post_init__(self) -> None:
        _check_name("the recipe's name", self.name)
        for name, asked in (("preprocess", self.source_preprocess.asked()), ("output", self.source_output)):
            if self.source is None and asked:
                raise RecipeError(f"recipe '{self.name}' has source_{name} and no source; name the source too.")
        require(0 <= self.seed <= LARGEST_SEED, "seed", self.seed, f"0 to {LARGEST_SEED}")
        known = {SOURCE} if self.source else set()
        if not self.stages:
            raise RecipeError(f"recipe '{self.name}' has no stages; add at least one [[stages]] table.")
        if self.unlabelled is not None and not any(stage.config.reads_unlabelled for stage in self.stages):
            raise RecipeError(
                f"recipe '{self.name}' names unlabelled images, and none of its stages has a teacher that could label them; add a "
                "distill stage, or leave unlabelled out."
            )
        for stage in self.stages:
            if not stage.name or not set(stage.name) <= _NAME_CHARACTERS or stage.name[0] in ".-":
                raise RecipeError(
                    f"stage name {stage.name!r} is not usable; expected letters, digits, '-', '_' and '.'."
                )
            _check_name("the stage name", stage.name)
            if stage.name in {*known, SOURCE, BASELINE}:
                raise RecipeError(
                    f"the stage name '{stage.name}' is taken; names must differ, and '{SOURCE}' and '{BASELINE}' are reserved."
                )
            for role, name in stage.inputs.items():
                if role != "weights" and not name.startswith(TEACHER_PREFIX) and name not in known:
                    raise RecipeError(
                        f"stage '{stage.name}': {role} = '{name}' is not an earlier stage."
                        f"{suggest(name, known)} Known here: {', '.join(sorted(known)) or 'none'}."
                    )
            if stage.source is not None and stage.weights is not None:
                raise RecipeError(
                    f"stage '{stage.name}' has both a source and weights to start from; give one of them."
                )
            if stage.source is None and stage.config.needs_source:
                raise RecipeError(f"stage '{stage.name}' ({stage.config.kind}) has nothing to work on; set its source.")
            if stage.gate.against is not None and stage.gate.against not in known:
                raise RecipeError(
                    f"stage '{stage.name}': gate: against = '{stage.gate.against}' is not an earlier stage."
                    f"{suggest(stage.gate.against, known)} Known here: {', '.join(sorted(known)) or 'none'}."
                )
            known.add(stage.name)
        for goal in self.latency_goals:
            for role, name in (("stage", goal.stage), ("against", goal.against)):
                if name not in known - {SOURCE}:
                    raise RecipeError(
                        f"latency_goals: {role} = '{name}' is no stage.{suggest(name, known)} "
                        f"Known: {', '.join(sorted(known - {SOURCE}))}."
                    )

    @property
    def only_starts(self) -> bool:
        """Whether the source is nothing but a teacher, or the start of training stages, which may give it another head."""
        uses = [(role, stage) for stage in self.stages for role, name in stage.inputs.items() if name == SOURCE]
        return all(role.startswith("teacher") or (role == "source" and not s.config.needs_source) for role, s in uses)


def report_name(name: str) -> str:
    """Return how the report calls a teacher: one that no stage makes as the last part of its place."""
    return PurePath(name.removeprefix(TEACHER_PREFIX)).name if name.startswith(TEACHER_PREFIX) else name


def is_place(name: str) -> bool:
    """Whether the name of a teacher is that of a file or folder, or of a network of another library, and none of a stage."""
    return not set(name) <= _NAME_CHARACTERS or name.lower().endswith(TEACHER_SUFFIXES)


def _check_name(what: str, name: str) -> None:
    """Check a name that a folder will have. Raises: RecipeError: if a folder cannot have it, or it leads out of its place."""
    fits = 0 < len(name.encode("utf-8", "replace")) <= _LONGEST_NAME
    if not fits or not name.isprintable() or name[0] in ". " or name[-1] in ". " or not {*"/\\"}.isdisjoint(name):
        raise RecipeError(
            f"{what} {name[:_LONGEST_NAME]!r} cannot be that of a folder; expected 1 to {_LONGEST_NAME} bytes of text on one "
            "line, without / and \\, that neither begin nor end with a dot or space."
        )
    if name.split(".", 1)[0].upper() in _RESERVED:
        raise RecipeError(f"{what} {name!r} is reserved on Windows, where no folder can have it; choose another.")


TEACHER_SUFFIXES = (".onnx", ".pt2", ".safetensors", ".parquet", ".pth", ".pt", ".bin", ".ckpt")
_NAME_CHARACTERS = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_.")
_LONGEST_NAME = 200  # a file system takes 255, and files in the making have something added
_RESERVED = {"CON", "PRN", "AUX", "NUL", *(f"{port}{number}" for port in ("COM", "LPT") for number in range(1, 10))}
