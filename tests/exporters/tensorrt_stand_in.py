"""A stand-in for the TensorRT bindings of one release, made from its list of names: a name that the release lacks raises."""

from __future__ import annotations

import ctypes
import enum
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

GOLDEN = Path(__file__).parents[1] / "golden" / "tensorrt_api"
RELEASES = ("tensorrt-10.3.0", "tensorrt-10.16.1.11", "tensorrt-11.0.0.114", "tensorrt-11.4.0.106")
RTX_RELEASE = "tensorrt_rtx-1.7.1.116"

INPUT, OUTPUT = "images", "logits"
Methods = Mapping[str, Mapping[str, Any]]


@dataclass
class Script:
    """How a stand-in acts, and below `plan` what was done with it."""

    parses: bool = True
    parser_errors: tuple[str, ...] = ()
    inputs: int = 1
    profile_index: int = 0
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
    profiles: list[tuple[str, Sequence[int], Sequence[int], Sequence[int]]] = field(default_factory=list)
    capabilities: list[tuple[str, int]] = field(default_factory=list)
    batches: list[tuple[int, ...]] = field(default_factory=list)
    streams: list[int] = field(default_factory=list)


class _Enumeration(enum.Enum):
    """Like an enumeration of the bindings: converts to int, and has no arithmetic."""

    def __int__(self) -> int:
        return int(self.value)


class _Attribute:
    """A name of a class that the release has: what was assigned is recorded, reading needs a value in the stand-in."""

    def __init__(self, name: str, attribute: str, script: Script) -> None:
        self.name, self.attribute, self.script = name, attribute, script

    def __get__(self, instance: Any, owner: type) -> Any:
        if instance is None:
            return self
        if self.attribute not in instance._state:
            raise NotImplementedError(f"the stand-in does not imitate {self.name}.{self.attribute}")
        return instance._state[self.attribute]

    def __set__(self, instance: Any, value: Any) -> None:
        self.script.assigned[f"{self.name}.{self.attribute}"] = value
        instance._state[self.attribute] = value


def read_api(release: str) -> dict[str, Any]:
    """Return a golden file, such as that of `tensorrt-10.3.0`."""
    content: dict[str, Any] = json.loads((GOLDEN / f"{release}.json").read_text(encoding="utf-8"))
    return content


def create_stand_in(release: str, script: Script) -> ModuleType:
    """Return a module with the names of the release and no others.

    Args:
        release: the golden file's name without `.json`.
        script: how the module acts; it also takes down what was done with it.
    """
    api = read_api(release)
    classes: dict[str, Any] = {}

    def new(name: str, /, **state: Any) -> Any:
        instance = classes[name].__new__(classes[name])
        instance._state = state
        return instance

    methods = {**_building(script, new, classes), **_running(script, new, classes)}
    for name, content in api["classes"].items():
        if isinstance(content, dict):
            create: Any = _Enumeration
            classes[name] = create(name, content)
        else:
            classes[name] = _create_class(name, content, methods.get(name, {}), script)
    module = ModuleType(api["module"])

    def get(name: str) -> Any:
        script.names.append(name)
        if name in classes:
            return classes[name]
        if name in api["names"]:
            raise NotImplementedError(f"{release} has '{name}', but its golden file leaves it out; add it to CLASSES")
        raise AttributeError(f"{release} has no '{name}'")

    contents: Any = module
    contents.__version__, contents.__getattr__ = api["release"], get
    return module


def _create_class(name: str, attributes: Sequence[str], methods: Mapping[str, Any], script: Script) -> type:
    # With slots an instance has the attributes of its class and no others, for reading and for writing.
    namespace: dict[str, Any] = {"__slots__": ("_state",)}
    namespace |= {attribute: _Attribute(name, attribute, script) for attribute in attributes}
    namespace |= {key: method for key, method in methods.items() if key in attributes or key.startswith("__")}
    if name == "ILogger":
        members = ("INTERNAL_ERROR", "ERROR", "WARNING", "INFO", "VERBOSE")
        create: Any = _Enumeration
        namespace["Severity"] = create("Severity", {m: i for i, m in enumerate(members) if m in attributes})
    return type(name, (), namespace)


def _building(script: Script, new: Callable[..., Any], classes: Mapping[str, Any]) -> Methods:
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
        for level, messages in ((severity.WARNING, script.warnings), (severity.ERROR, script.errors)):
            for message in messages:
                self._state["logger"].log(level, message)
        return None if script.plan is None else new("IHostMemory", content=script.plan)

    def get_input(self: Any, index: int) -> Any:
        return new("ITensor", name=INPUT, shape=(-1, 3, 32, 32)) if index < script.inputs else None

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
        script.profiles.append((name, low, best, high))

    return {
        "ILogger": {"__init__": lambda self: None, "log": lambda self, severity, message: None},
        "Builder": {
            "__init__": create_builder,
            "create_network": create_network,
            "create_builder_config": lambda self: new("IBuilderConfig"),
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


def _running(script: Script, new: Callable[..., Any], classes: Mapping[str, Any]) -> Methods:
    """Return the behaviour of the classes that run an engine. Logit `c` of an image is the sum of its first row plus `c`."""
    tensors = (OUTPUT, INPUT)  # not in the order in which a network is read

    def create_runtime(self: Any, logger: Any) -> None:
        assert isinstance(logger, classes["ILogger"])
        script.built.append("Runtime")
        self._state = {"logger": logger}

    def deserialize_cuda_engine(self: Any, plan: bytes) -> Any:
        for message in script.errors:
            self._state["logger"].log(classes["ILogger"].Severity.ERROR, message)
        return new("ICudaEngine", num_io_tensors=len(tensors)) if script.loads and plan == script.plan else None

    def get_tensor_mode(self: Any, name: str) -> Any:
        return classes["TensorIOMode"].INPUT if name == INPUT else classes["TensorIOMode"].OUTPUT

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
        count, channels, height, width = self._state["shape"]
        item = channels * height * width
        images = (ctypes.c_float * (count * item)).from_address(self._state[INPUT])
        logits = (ctypes.c_float * (count * 3)).from_address(self._state[OUTPUT])
        for i in range(count):
            for c in range(3):
                logits[3 * i + c] = sum(images[i * item : i * item + width]) + c
        return True

    return {
        "Runtime": {"__init__": create_runtime, "deserialize_cuda_engine": deserialize_cuda_engine},
        "ICudaEngine": {
            "get_tensor_name": lambda self, index: tensors[index],
            "get_tensor_mode": get_tensor_mode,
            "create_execution_context": lambda self: new("IExecutionContext") if script.contexts else None,
        },
        "IExecutionContext": {
            "set_input_shape": set_input_shape,
            "set_tensor_address": set_tensor_address,
            "execute_async_v3": execute_async_v3,
        },
    }
