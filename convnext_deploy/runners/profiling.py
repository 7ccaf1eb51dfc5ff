"""Read the time of each kernel from the profiler of a runtime."""

import json
import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from convnext_deploy.errors import ArtifactError

_EVENT = "_kernel_time"  # after the name of a node in ONNX Runtime's profile


@dataclass(frozen=True)
class Kernel:
    """One kernel of an opened artifact: its name, what it computes, and the median of its time in a call in milliseconds.

    Runtimes name a kernel after one of the nodes that it was made from, or after none. `nodes`: all of them, where it is known.
    """

    name: str
    operator: str
    ms: float
    nodes: tuple[str, ...] = ()


def read_onnxruntime_profile(text: str) -> tuple[Kernel, ...]:
    """Return the kernels of a profile that ONNX Runtime wrote, in the order of a call.

    Raises: ArtifactError: if it is none.
    """
    try:
        events = [event for event in json.loads(text) if event.get("cat") == "Node" and event["name"].endswith(_EVENT)]
        found = [(e["name"].removesuffix(_EVENT), str(e["args"].get("op_name", "")), e["dur"] / 1000) for e in events]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ArtifactError(f"ONNX Runtime's profile cannot be read ({error!r}).") from None
    return median_kernels(found)


def single_times(means: Sequence[Mapping[tuple[str, str], float]]) -> Iterator[tuple[str, str, float]]:
    """Yield name, operator and milliseconds of each time that a kernel ran, from its means over all calls so far.

    OpenVINO tells such means, in which a single call that was interrupted stays for long.

    Args:
        means: after each call, (name, operator) → mean in milliseconds.
    """
    before: Mapping[tuple[str, str], float] = {}
    for count, after in enumerate(means):
        for key, mean in after.items():
            yield *key, max(0.0, (count + 1) * mean - count * before.get(key, 0.0))
        before = after


def median_kernels(
    times: Iterable[tuple[str, str, float]], nodes: Mapping[str, Sequence[str]] | None = None
) -> tuple[Kernel, ...]:
    """Return the kernels in the order of their first time.

    Args:
        times: name, operator and milliseconds of each time that a kernel ran, over all calls.
        nodes: kernel → nodes that it was made from.
    """
    found: dict[tuple[str, str], list[float]] = {}
    for name, operator, ms in times:
        found.setdefault((name, operator), []).append(ms)
    known = nodes or {}
    return tuple(
        Kernel(name, operator, statistics.median(ms), tuple(known.get(name, ())))
        for (name, operator), ms in found.items()
    )
