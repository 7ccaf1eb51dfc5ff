"""`doctor`: what this machine has, what is installed on it, and which features work here."""

import dataclasses
import json
import platform
from dataclasses import dataclass
from typing import Any

from convnext_deploy.api.options import verb
from convnext_deploy.config.checks import require
from convnext_deploy.diagnosis.features import Feature, list_features
from convnext_deploy.diagnosis.machine import Machine, examine_machine
from convnext_deploy.diagnosis.packages import DRIVER, OWN, Package, chains, find_problems, judge_packages
from convnext_deploy.diagnosis.probing import probe
from convnext_deploy.system.environment import installed_version
from convnext_deploy.system.results import Result, plain


@dataclass(frozen=True, repr=False)
class Diagnosis(Result):
    """What `doctor` found.

    `problems` are what is broken or does not fit together, a line each with what to do. `providers` are those of ONNX Runtime.
    """

    version: str | None
    python: str
    system: str
    machine: Machine
    packages: tuple[Package, ...]
    providers: tuple[str, ...]
    problems: tuple[str, ...]
    features: tuple[Feature, ...]

    @property
    def works(self) -> bool:
        """Whether the main path works: training, quantizing, exporting to ONNX and running that."""
        return all(feature.works for feature in self.features if feature.core)

    def headline(self) -> str:
        """Say whether the main path works, and how many problems there are."""
        return f"{'works' if self.works else 'does NOT work'}, {len(self.problems)} problems, on {self.system}"

    def to_rows(self) -> list[dict[str, Any]]:
        """Return a record for each feature."""
        return [plain(feature) for feature in self.features]

    def to_json(self) -> str:
        """Return everything as JSON."""
        record: dict[str, Any] = {"works": self.works, **dataclasses.asdict(self)}
        return json.dumps(record, indent=1)


_LONGEST = 86400  # seconds


@verb
def doctor(*, timeout_s: float = 60.0) -> Diagnosis:
    """Examine this machine and what is installed on it. Packages are imported in processes of their own, for a few seconds.

    Args:
        timeout_s: longest time for one of these processes, > 0; what is then still being imported counts as broken.

    Returns: the findings; whatever is broken is among them, and nothing of it raises.

    Raises: RecipeError: if the time is out of range.
    """
    require(0 < timeout_s <= _LONGEST, "timeout_s", timeout_s, f"above 0 and at most {_LONGEST}")
    probes = probe(chains(), timeout_s)
    driver = probes[DRIVER]
    machine = examine_machine(driver.facts if driver.works else {"error": f"no GPU known ({driver.error})"})
    packages = judge_packages(probes)
    return Diagnosis(
        version=installed_version(OWN),
        python=platform.python_version(),
        system=platform.platform(),
        machine=machine,
        packages=tuple(packages.values()),
        providers=tuple(probes["onnxruntime"].facts.get("providers", ())),
        problems=tuple(find_problems(packages, probes, machine)),
        features=list_features(packages, probes, machine),
    )
