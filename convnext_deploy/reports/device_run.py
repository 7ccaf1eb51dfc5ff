"""What was measured on a device, as `choose_engine.py` of a bundle writes it."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from convnext_deploy.config.records import between, matching, read_record
from convnext_deploy.documents import read_json, reason
from convnext_deploy.errors import ArtifactError

SCHEMA = 1
Fraction = Annotated[float, between(0.0, 1.0)]
Milliseconds = Annotated[float, between(0.0, 1e9)]
Count = Annotated[int, between(0, 10**15)]
Watts = Annotated[float, between(0.0, 1e6)]


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
    size_bytes: Count | None = None
    obstacle: str | None = None
    latency: DeviceLatency | None = None
    power_w: Watts | None = None
    rails_w: Mapping[str, Watts] | None = None
    score: DeviceScore | None = None


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

    @property
    def timed(self) -> Iterator[tuple[DeviceEngine, DeviceLatency]]:
        """The engines that were timed."""
        return ((engine, engine.latency) for engine in self.engines if engine.latency is not None)


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
        raise ArtifactError(f"{path} is not what build_on_device.sh --choose writes ({reason(error)}).") from None
    raise ArtifactError(
        f"{path} has the schema {str(schema)[:80]!r}, this version reads {SCHEMA}; make the bundle again."
    )
