"""The same networks and graphs as for the exporters."""

from __future__ import annotations

from tests.exporters.conftest import network, networks

__all__ = ["network", "networks"]
