"""What the stand-in for the TensorRT bindings does: it builds, keeps timings and runs as its script says, and takes down how."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

INPUT, OUTPUT = "images", "logits"
WIDTH = 3  # of every output
Methods = Mapping[str, Mapping[str, Any]]


@dataclass
class Script:
    """How a stand-in acts, and below `plan` what was done with it."""

    parses: bool = True
    parser_errors: tuple[str, ...] = ()
    inputs: int = 1
    input_shape: tuple[int, ...] = (-1, 3, 32, 32)
    input_type: str = "FLOAT"
    outputs: Mapping[str, str] = field(default_factory=lambda: {OUTPUT: "FLOAT"})
    profile_index: int = 0
    phases: tuple[tuple[str, str | None, int], ...] = ()
    cache_of_others: bytes | None = None
    engine_batches: tuple[int, int, int] = (1, 1, 4)
    diagnostics: int = 0
    layers: str = "{}"
    kernels: Mapping[str, float] = field(default_factory=dict)
    errors: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    loads: bool = True
    contexts: bool = True
    shapes_fit: bool = True
    runs: bool = True
    plan: bytes | None = b"a plan"

    names: list[str] = field(default_factory=list)
    built: list[str] = field(default_factory=list)
    assigned: dict[str, Any] = field(default_factory=dict)
    network_flags: list[int] = field(default_factory=list)
    builder_flags: list[Any] = field(default_factory=list)
    pools: dict[str, int] = field(default_factory=dict)
    caches: list[bytes] = field(default_factory=list)
    profiles: list[tuple[str, tuple[int, ...], tuple[int, ...], tuple[int, ...]]] = field(default_factory=list)
    capabilities: list[tuple[str, int]] = field(default_factory=list)
    batches: list[tuple[int, ...]] = field(default_factory=list)
    streams: list[int] = field(default_factory=list)


def building(script: Script, new: Callable[..., Any], classes: Mapping[str, Any]) -> Methods:
    """Return the behaviour of the classes that build an engine."""

    def create_builder(self: Any, logger: Any) -> None:
        assert isinstance(logger, classes["ILogger"])
        script.built.append("Builder")
        self._state = {"logger": logger}

    def create_network(self: Any, flags: int) -> Any:
        script.network_flags.append(flags)
        return new("INetworkDefinition", num_layers=7, num_inputs=script.inputs)

    def build_serialized_network(self: Any, network: Any, config: Any) -> Any:
        assert isinstance(network, classes["INetworkDefinition"])
        assert isinstance(config, classes["IBuilderConfig"])
        severity = classes["ILogger"].Severity
        if not _report(script.phases, config._state["progress_monitor"]):
            self._state["logger"].log(severity.ERROR, "BuildCanceled")
            return None
        for level, messages in ((severity.WARNING, script.warnings), (severity.ERROR, script.errors)):
            for message in messages:
                self._state["logger"].log(level, message)
        return None if script.plan is None else new("IHostMemory", content=script.plan)

    def get_input(self: Any, index: int) -> Any:
        dtype = classes["DataType"][script.input_type]
        return new("ITensor", name=INPUT, shape=script.input_shape, dtype=dtype) if index < script.inputs else None

    def create_parser(self: Any, network: Any, logger: Any) -> None:
        assert isinstance(network, classes["INetworkDefinition"])
        self._state = {"num_errors": len(script.parser_errors)}

    def set_memory_pool_limit(self: Any, pool: Any, size: int) -> None:
        script.pools[pool.name] = size

    def add_optimization_profile(self: Any, profile: Any) -> int:
        assert isinstance(profile, classes["IOptimizationProfile"])
        return script.profile_index

    def set_compute_capability(self: Any, capability: Any, index: int) -> None:
        script.capabilities.append((capability.name, index))

    def set_shape(self: Any, name: str, low: Sequence[int], best: Sequence[int], high: Sequence[int]) -> None:
        script.profiles.append((name, tuple(low), tuple(best), tuple(high)))

    return {
        "ILogger": {"__init__": lambda self: None, "log": lambda self, severity, message: None},
        "IProgressMonitor": {"__init__": lambda self: None},
        "Builder": {
            "__init__": create_builder,
            "create_network": create_network,
            "create_builder_config": lambda self: new("IBuilderConfig", logger=self._state["logger"]),
            "create_optimization_profile": lambda self: new("IOptimizationProfile"),
            "build_serialized_network": build_serialized_network,
        },
        "INetworkDefinition": {"get_input": get_input},
        "OnnxParser": {
            "__init__": create_parser,
            "parse_from_file": lambda self, path: script.parses,
            "get_error": lambda self, index: new("ParserError", text=script.parser_errors[index]),
        },
        "ParserError": {"desc": lambda self: self._state["text"]},
        "IBuilderConfig": {
            "set_memory_pool_limit": set_memory_pool_limit,
            "add_optimization_profile": add_optimization_profile,
            "set_compute_capability": set_compute_capability,
            "set_flag": lambda self, flag: script.builder_flags.append(flag),
            "clear_flag": lambda self, flag: script.builder_flags.append(flag),
        },
        "IOptimizationProfile": {"set_shape": set_shape},
        "IHostMemory": {"__bytes__": lambda self: self._state["content"]},
    }


def _report(phases: Sequence[tuple[str, str | None, int]], monitor: Any) -> bool:
    """Run through the phases, the later ones inside the step under way of those before; False if the monitor cancels."""
    for name, parent, steps in phases:
        monitor.phase_start(name, parent, steps)
    for name, _, steps in reversed(phases):
        for step in range(steps):
            if not monitor.step_complete(name, step):
                return False
        monitor.phase_finish(name)
    return True


def caching(script: Script, new: Callable[..., Any], classes: Mapping[str, Any]) -> Methods:
    """Return the behaviour of the timing cache, whose content is the names of what was timed, each in a line after `cache`."""

    def create_timing_cache(self: Any, content: bytes) -> Any:
        if content and not content.startswith(b"cache\n"):
            warning = "Failed to deserialize timing cache. Returning an empty timing cache."
            self._state["logger"].log(classes["ILogger"].Severity.WARNING, warning)
            content = b""
        return new("ITimingCache", lines=set(content.splitlines()[1:]))

    def set_timing_cache(self: Any, cache: Any, ignore_mismatch: bool) -> bool:
        assert not ignore_mismatch
        script.caches.append(_serialize(cache))
        self._state["cache"] = cache
        return bool(cache._state["lines"] != {script.cache_of_others})

    def get_timing_cache(self: Any) -> Any:
        self._state["cache"]._state["lines"].add(b"this build")
        return self._state["cache"]

    def combine(self: Any, other: Any, ignore_mismatch: bool) -> bool:
        assert not ignore_mismatch
        self._state["lines"] |= other._state["lines"]
        return bool(other._state["lines"] != {script.cache_of_others})

    def _serialize(cache: Any) -> bytes:
        return b"\n".join([b"cache", *sorted(cache._state["lines"])])

    config = {
        "create_timing_cache": create_timing_cache,
        "set_timing_cache": set_timing_cache,
        "get_timing_cache": get_timing_cache,
    }
    cache = {"combine": combine, "serialize": lambda self: new("IHostMemory", content=_serialize(self))}
    return {"ITimingCache": cache, "IBuilderConfig": {**building(script, new, classes)["IBuilderConfig"], **config}}


def running(script: Script, new: Callable[..., Any], classes: Mapping[str, Any]) -> Methods:
    """Return the behaviour of the classes that run an engine. Logit `c` of an image is the sum of its first row plus `c`."""
    tensors = (*script.outputs, INPUT)  # not in the order in which a network is read

    def create_runtime(self: Any, logger: Any) -> None:
        assert isinstance(logger, classes["ILogger"])
        script.built.append("Runtime")
        self._state = {"logger": logger, "engine_header_size": 4}

    def get_engine_validity(self: Any, header: bytes) -> tuple[Any, int]:
        validity = classes["EngineValidity"]
        assert len(header) <= 4
        return (validity.INVALID if script.diagnostics else validity.VALID), script.diagnostics

    def deserialize_cuda_engine(self: Any, plan: bytes) -> Any:
        for message in script.errors:
            self._state["logger"].log(classes["ILogger"].Severity.ERROR, message)
        return new("ICudaEngine", num_io_tensors=len(tensors)) if script.loads and plan == script.plan else None

    def get_tensor_mode(self: Any, name: str) -> Any:
        return classes["TensorIOMode"].INPUT if name == INPUT else classes["TensorIOMode"].OUTPUT

    def get_tensor_dtype(self: Any, name: str) -> Any:
        return classes["DataType"][script.input_type if name == INPUT else script.outputs[name]]

    def get_profile(self: Any, name: str, index: int) -> list[tuple[int, ...]]:
        assert (name, index) == (INPUT, 0)
        return [(size, *script.input_shape[1:]) for size in script.engine_batches]

    def set_input_shape(self: Any, name: str, shape: Sequence[int]) -> bool:
        assert name == INPUT
        if not script.shapes_fit:
            return False  # as in TensorRT, the shape of the last call stays
        self._state["shape"] = tuple(shape)
        script.batches.append(tuple(shape))
        return True

    def set_tensor_address(self: Any, name: str, address: int) -> bool:
        assert name in tensors
        self._state[name] = address
        return True

    def execute_async_v3(self: Any, stream_handle: int) -> bool:
        script.streams.append(stream_handle)
        if not script.runs:
            return False
        if "profiler" in self._state:
            assert isinstance(self._state["profiler"], classes["IProfiler"])
            for name, ms in script.kernels.items():
                self._state["profiler"].report_layer_time(name, ms)
        shape = self._state["shape"]
        images = _at(self._state[INPUT], shape, script.input_type).astype(np.float32)
        logits = images[:, 0, 0].sum(axis=1)[:, None] + np.arange(WIDTH)
        for name, kind in script.outputs.items():
            # what an output is called tells what it is: `classes` are in descending order of the logits
            values = (
                np.argsort(-logits, axis=1) if name == "classes" else -np.sort(-logits) if name == "scores" else logits
            )
            _at(self._state[name], (shape[0], WIDTH), kind)[:] = values
        return True

    def get_engine_information(self: Any, layout: Any) -> str:
        assert layout == classes["LayerInformationFormat"].JSON
        assert "shape" in self._state["execution_context"]._state, "types of an open batch are known for a shape only"
        return script.layers

    return {
        "Runtime": {
            "__init__": create_runtime,
            "deserialize_cuda_engine": deserialize_cuda_engine,
            "get_engine_validity": get_engine_validity,
        },
        "ICudaEngine": {
            "get_tensor_name": lambda self, index: tensors[index],
            "get_tensor_mode": get_tensor_mode,
            "get_tensor_dtype": get_tensor_dtype,
            "get_tensor_shape": lambda self, name: script.input_shape,
            "get_tensor_profile_shape": get_profile,
            "create_execution_context": lambda self: new("IExecutionContext") if script.contexts else None,
            "create_engine_inspector": lambda self: new("EngineInspector"),
        },
        "EngineInspector": {"get_engine_information": get_engine_information},
        "IProfiler": {"__init__": lambda self: None},
        "IExecutionContext": {
            "set_input_shape": set_input_shape,
            "get_tensor_shape": lambda self, name: (self._state["shape"][0], WIDTH),
            "set_tensor_address": set_tensor_address,
            "execute_async_v3": execute_async_v3,
        },
    }


def _at(address: int, shape: Sequence[int], kind: str) -> NDArray[Any]:
    """Return the memory at an address as an array."""
    dtype = np.dtype({"FLOAT": "f4", "HALF": "f2", "UINT8": "u1", "INT64": "i8", "INT32": "i4"}[kind])
    size = int(np.prod(shape)) * dtype.itemsize
    memory = memoryview((ctypes.c_char * size).from_address(address)).cast("B")
    array: NDArray[Any] = np.frombuffer(memory, dtype).reshape(tuple(shape))
    return array
