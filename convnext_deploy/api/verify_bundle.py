"""`verify-bundle`: what `verify.py` of a bundle does, by this package's own copy; no program in a bundle is executed."""

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from convnext_deploy.api.options import verb
from convnext_deploy.artifacts.places import check_place
from convnext_deploy.bundles.archive import unpacked
from convnext_deploy.bundles.device import verify
from convnext_deploy.config.choices import BundledKind
from convnext_deploy.errors import ArtifactError
from convnext_deploy.system.results import Result, plain


@dataclass(frozen=True, repr=False)
class Verification(Result):
    """What was checked; `unmet` are the kinds that were required and of which none could be run."""

    checks: tuple[verify.Check, ...]
    unmet: tuple[str, ...]

    @property
    def passed(self) -> bool:
        """Whether nothing disagreed, and what was required was run."""
        return not self.unmet and all(check.status != verify.FAILED for check in self.checks)

    def headline(self) -> str:
        """Say whether it passed, and how many checks there were."""
        return f"{'passed' if self.passed else 'FAILED'}, {len(self.checks)} checks"

    def to_rows(self) -> list[dict[str, Any]]:
        """Return a record for each check."""
        return [plain(check) for check in self.checks]

    def to_json(self) -> str:
        """Return the record as JSON."""
        return json.dumps({"passed": self.passed, **dataclasses.asdict(self)}, indent=1)


@verb
def verify_bundle(
    bundle: Path | str, *, require: Sequence[BundledKind] = (), built: Path | str | None = None
) -> Verification:
    """Check the files of a bundle, run every model and engine that this machine can run, and compare with the golden answers.

    Args:
        bundle: folder, or `.zip` of one.
        require: `onnx`, `engine`: kinds of which at least one must be run.
        built: folder with the engines that were built from it; None: `built/` in the bundle.

    Raises: ArtifactError: if it is not a bundle. For a damaged bundle, or other answers, `Verification.passed` is false.
    """
    bundle, built = Path(bundle), None if built is None else Path(built)
    check_place(bundle, "the folder of a bundle, or a .zip of it")
    try:
        if bundle.is_dir():
            checks = verify.verify(bundle, built)
        else:
            with unpacked(bundle) as folder:
                checks = verify.verify(folder, built)
    except verify.BundleError as error:
        raise ArtifactError(str(error)) from None
    return Verification(tuple(checks), tuple(verify.missing(checks, list(require))))
