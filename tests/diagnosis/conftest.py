"""Planted packages: folders of modules that do what broken packages do."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

Plant = Callable[..., Path]


@pytest.fixture
def plant(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Plant:
    """Write packages with these contents, `name="text"`, to where they are found first; `version` adds metadata of it."""
    folder = tmp_path / "planted"
    folder.mkdir()
    monkeypatch.setattr(sys, "path", [str(folder), *sys.path])
    monkeypatch.setenv("PYTHONPATH", str(folder))

    def write(
        version: str | None = None, requires: tuple[str, ...] = (), extras: tuple[str, ...] = (), **packages: str
    ) -> Path:
        for name, text in packages.items():
            (folder / name).mkdir(exist_ok=True)
            (folder / name / "__init__.py").write_text(text)
            if version is not None:
                info = folder / f"{name}-{version}.dist-info"
                info.mkdir()
                lines = ["Metadata-Version: 2.1", f"Name: {name}", f"Version: {version}"]
                lines += [f"Provides-Extra: {extra}" for extra in extras]
                (info / "METADATA").write_text("\n".join(lines + [f"Requires-Dist: {line}" for line in requires]))
        return folder

    return write
