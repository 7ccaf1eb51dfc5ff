"""What every kind of stage tells of itself, so that nobody else needs to know which kinds there are."""

from dataclasses import dataclass
from typing import ClassVar

from convnext_deploy.config.checks import check_fields


@dataclass(frozen=True)
class StageConfig:
    """Base of the settings of a kind of stage, which are the fields of the subclass.

    Attributes:
        kind: its name in recipes and in `STAGE_KINDS`.
        done: what it did to a network, as a model card says it: "quantized after training".
        result_version: raised when the same settings, inputs, data and seed give another artifact than before, so that artifacts
            of an earlier version are made again. Another wording of a message is no reason.
        implementation: module with `run(config, source, context)`, and `check(config)` if names among the settings can be looked
            up before any work; None: the module of the subclass.
        trains: where there are several processes all of them take part, and the state of the training is kept.
        needs_source: False: it can start from nothing, a source gives initial weights alone, and only one that is named counts.
        follows_source: what it makes is to answer as its source does: its drop is measured against that one's baseline, also
            where it is in FP32.
        needs_baseline: it reads the FP32 ancestor of a quantized source, where there still is one and nothing else teaches.
        references: settings, with dots between tables, that only say where something lies or which stage makes it. What that is
            counts for the result, and not how it is called. Also those that say what else is to be done.
        takes_less_memory: what a user can do when it runs out of memory.
    """

    kind: ClassVar[str]
    done: ClassVar[str]
    result_version: ClassVar[int] = 1
    implementation: ClassVar[str | None] = None
    trains: ClassVar[bool] = False
    needs_source: ClassVar[bool] = True
    follows_source: ClassVar[bool] = False
    needs_baseline: ClassVar[bool] = False
    references: ClassVar[tuple[str, ...]] = ()
    takes_less_memory: ClassVar[str] = "close other programs, or use a machine with more memory"

    def __post_init__(self) -> None:
        check_fields(self)

    @property
    def reads_images(self) -> bool:
        """Whether the result depends on the training images."""
        return True

    @property
    def reads_unlabelled(self) -> bool:
        """Whether the result depends on the images without labels, where there are some."""
        return False

    @property
    def teachers(self) -> tuple[str, ...]:
        """Names of the stages, or `source`, whose artifacts it learns from."""
        return ()

    @property
    def alone(self) -> "StageConfig | None":
        """The same work without its teachers, which shows what these are worth; None: there is no such thing."""
        return None

    @property
    def shows_alone(self) -> bool:
        """Whether `alone` is to be done too."""
        return False

    @property
    def initial_weights(self) -> str | None:
        """A file, an artifact folder or a name such as `timm/convnext_tiny.fb_in1k`, for a stage that has no source."""
        return None
