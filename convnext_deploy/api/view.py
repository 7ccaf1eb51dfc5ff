"""`view`: runs in a browser on this machine."""

import os
import sys
import threading
import webbrowser
from pathlib import Path
from typing import Any

from convnext_deploy.api.options import verb
from convnext_deploy.config.checks import require
from convnext_deploy.system.results import Result
from convnext_deploy.viewer.library import Library, best_artifact
from convnext_deploy.viewer.server import PORT, RunServer


class Viewer(Result):
    """Pages that are being served at `url`, in a thread of this process, until `stop` or its end."""

    def __init__(self, server: RunServer) -> None:
        self._server = server
        self.url = server.url
        self.folder = server.library.root
        self._thread = threading.Thread(target=server.serve_forever, name="view", daemon=True)
        self._thread.start()

    @property
    def port(self) -> int:
        """The port on 127.0.0.1."""
        return int(self._server.server_address[1])

    def wait(self) -> None:
        """Return when the pages are served no more."""
        while self._thread.is_alive():
            self._thread.join(0.5)  # in parts, so that a signal is answered

    def stop(self) -> None:
        """Serve no more."""
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def headline(self) -> str:
        """Say where the pages are, and of what."""
        return f"{self.url} shows {self.folder}"

    def to_rows(self) -> list[dict[str, Any]]:
        """Return a record for each run: its state, whether its gates held, and what to ship."""
        rows = []
        for run in self._server.library.runs():
            best = None if run.report is None else best_artifact(run.report)
            passed = None if run.report is None else run.report.passed
            rows.append({"run": run.name, "state": run.state, "passed": passed, "best": best and best.name})
        return rows

    def to_dict(self) -> dict[str, Any]:
        """Return where the pages are, and the rows."""
        return {"url": self.url, "folder": str(self.folder), "runs": self.to_rows()}


@verb
def view(runs: Path | str = "runs", *, port: int | None = None, browser: bool = True) -> Viewer:
    """Serve pages of runs on 127.0.0.1: a list, the curves of those that train, comparisons, reports. Nothing is written.

    Args:
        runs: folder of a run, or of several.
        port: to listen at; None: 8765, or the next that is free.
        browser: open the page, where there is a screen.

    Returns: what serves them, in a thread; `Viewer.stop` ends it.

    Raises:
        RecipeError: if the port is out of range.
        ArtifactError: if there is no such folder.
        OutputError: if the port cannot be used.
    """
    require(port is None or 0 <= port <= 65535, "port", port, "0 to 65535, where 0 is any that is free")
    viewer = Viewer(RunServer(Library(Path(runs)), port))
    if browser and _has_screen():
        webbrowser.open(viewer.url)
    return viewer


def usual_port_is_taken(viewer: Viewer, asked: int | None) -> bool:
    """Whether the pages are elsewhere than somebody would look for them."""
    return asked is None and viewer.port != PORT


def _has_screen() -> bool:
    """Whether a browser that is opened here can be seen: not one in text, and not at the other end of a connection."""
    if "SSH_CONNECTION" in os.environ:
        return False
    return sys.platform in ("darwin", "win32") or any(os.environ.get(name) for name in ("DISPLAY", "WAYLAND_DISPLAY"))
