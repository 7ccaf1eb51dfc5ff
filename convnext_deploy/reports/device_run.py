"""What was measured on a device, as `choose_engine.py` of a bundle writes it."""

import datetime as dt
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from convnext_deploy.config.checks import require
from convnext_deploy.config.records import between, matching, read_record, shown
from convnext_deploy.documents import read_json, reason
from convnext_deploy.errors import ArtifactError, suggest

SCHEMA = 1
NOT_BUILT = "it was not built"  # as choose_engine.py says it
Fraction = Annotated[float, between(0.0, 1.0)]
Milliseconds = Annotated[float, between(1e-6, 1e9)]  # a GPU's clock is not as fine as the least of them
Count = Annotated[int, between(1, 10**15)]
Watts = Annotated[float, between(0.0, 1e6)]
_ROUNDING = 1e-6  # percentage points, by which interval and drop may pass each other, or 100


@dataclass(frozen=True)
class Device:
    """What a device said of itself; None is what it did not."""

    board: str | None
    gpu: str | None
    capability: str | None
    tensorrt: str | None
    driver: str | None
    power_mode: str | None
    machine: str
    system: str

    @property
    def title(self) -> str:
        """Its name, with the TensorRT that built the engines, and the power mode where it has one."""
        name = self.board or self.gpu or self.capability or self.machine
        version = None if self.tensorrt is None else f"TensorRT {self.tensorrt}"
        return ", ".join(text for text in (name, version, self.power_mode) if text)


@dataclass(frozen=True)
class DeviceLatency:
    """Milliseconds that the GPU computes for a batch, over `count` calls; `rounds_ms` are the medians of each round."""

    batch_size: Annotated[int, between(1, 10**6)]
    p50_ms: Milliseconds
    p90_ms: Milliseconds
    count: Count
    rounds_ms: tuple[Milliseconds, ...] = ()

    def __post_init__(self) -> None:
        require(self.p90_ms >= self.p50_ms, "p90_ms", self.p90_ms, f"at least p50_ms, {self.p50_ms:g}")


@dataclass(frozen=True)
class DeviceScore:
    """Top-1 of an engine, and against FP32 on the same images where that is known; the drop in percentage points."""

    file: str
    images: Count
    top1: Fraction
    worse: bool = False
    fp32_top1: Fraction | None = None
    drop_pp: float | None = None
    drop_interval_pp: tuple[float, float] | None = None
    agreement: Fraction | None = None

    def __post_init__(self) -> None:
        most = 100 + _ROUNDING
        if self.drop_pp is not None:
            require(abs(self.drop_pp) <= most, "drop_pp", self.drop_pp, "-100 to 100")
        if self.drop_interval_pp is not None:
            low, high = self.drop_interval_pp
            in_order = -most <= low <= high <= most
            require(in_order, "drop_interval_pp", self.drop_interval_pp, "its lower end first, -100 to 100")
            if self.drop_pp is not None:
                inside = low - _ROUNDING <= self.drop_pp <= high + _ROUNDING
                require(inside, "drop_pp", self.drop_pp, f"within drop_interval_pp, {low:g} to {high:g}")


@dataclass(frozen=True)
class DeviceEngine:
    """An engine that was built on a device of a `model` of the bundle, whose `artifact` has that hash.

    `answers`: whether it gave the golden ones, `passed`, `failed` or `not run`. `obstacle`: why it cannot be chosen. `power_w` is
    that of the whole board while it was timed, or of the GPU, `rails_w` that of each rail.
    """

    model: str
    precision: str
    answers: str
    artifact: str | None = None
    size_bytes: Annotated[int, between(0, 10**15)] | None = None
    obstacle: str | None = None
    latency: DeviceLatency | None = None
    power_w: Watts | None = None
    rails_w: Mapping[str, Watts] | None = None
    score: DeviceScore | None = None

    @property
    def built(self) -> bool:
        """Whether there was an engine that could be timed; earlier bundles told the times of one that was there before."""
        return self.obstacle != NOT_BUILT


@dataclass(frozen=True)
class DeviceRun:
    """All engines of a bundle on one device.

    `measured` is when, `sha256` that of the bundle's checksums, `chosen` the model to use, and `why`.
    """

    bundle: str
    sha256: str
    measured: Annotated[str, matching(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00", "a time in UTC")]
    device: Device
    engines: tuple[DeviceEngine, ...]
    chosen: str
    why: str

    def __post_init__(self) -> None:
        try:
            dt.datetime.fromisoformat(self.measured)
        except ValueError as error:
            raise ArtifactError(f"measured = {self.measured!r} is no time ({error}); expected one in UTC.") from None
        engines = {engine.model: engine for engine in self.engines}
        if len(engines) < len(self.engines):
            twice = Counter(engine.model for engine in self.engines).most_common(1)[0][0]
            raise ArtifactError(f"{shown(twice)} is there several times among the engines; expected each of them once.")
        if not engines:
            return  # then there is nothing to choose from, which is said better by whoever wants to know what was measured
        if self.chosen not in engines:
            nearest = suggest(self.chosen, engines)
            raise ArtifactError(f"chosen = {shown(self.chosen)} is none of the engines; expected one of them.{nearest}")
        found = engines[self.chosen]
        if found.obstacle is not None:
            raise ArtifactError(
                f"{shown(self.chosen)} was chosen, and cannot be ({shown(found.obstacle)}); expected one without an obstacle."
            )
        if found.answers != "passed":
            raise ArtifactError(
                f"{shown(self.chosen)} was chosen, and its answers are {shown(found.answers)}; expected one whose answers 'passed'."
            )

    @property
    def timed(self) -> Iterator[tuple[DeviceEngine, DeviceLatency]]:
        """The engines that were timed and could be chosen: what was found of others is of no use, or of an earlier build."""
        return (
            (engine, engine.latency)
            for engine in self.engines
            if engine.latency is not None and engine.obstacle is None
        )


def read_device_run(path: Path) -> DeviceRun:
    """Read `measured.json`. Raises: ArtifactError: if it is none, or another version of this tool wrote it."""
    try:
        content = dict(read_json(path))
        schema = content.pop("schema")
        if schema == SCHEMA:
            return read_record(DeviceRun, content, "measured")
    except FileNotFoundError:
        raise ArtifactError(
            f"{path} does not exist; expected measured.json, which build_on_device.sh --choose writes."
        ) from None
    except (KeyError, TypeError):
        raise ArtifactError(f"{path} is not what build_on_device.sh --choose writes (it does not begin so).") from None
    except (OSError, ValueError) as error:
        raise ArtifactError(
            f"{path} is not what build_on_device.sh --choose writes ({reason(error)}); take it from the device again."
        ) from None
    raise ArtifactError(
        f"{path} has the schema {str(schema)[:80]!r}, this version reads {SCHEMA}; make the bundle again."
    )
