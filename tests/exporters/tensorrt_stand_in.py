"""A stand-in for the TensorRT bindings of one release, made from its list of names: a name that the release lacks raises."""

from __future__ import annotations

import enum
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from tests.exporters.tensorrt_behavior import Script as Script
from tests.exporters.tensorrt_behavior import building, caching, running

GOLDEN = Path(__file__).parents[1] / "golden" / "tensorrt_api"
RELEASES = ("tensorrt-10.3.0", "tensorrt-10.16.1.11", "tensorrt-11.0.0.114", "tensorrt-11.4.0.106")
RTX_RELEASE = "tensorrt_rtx-1.7.1.116"


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

    methods = {**building(script, new, classes), **caching(script, new, classes), **running(script, new, classes)}
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
