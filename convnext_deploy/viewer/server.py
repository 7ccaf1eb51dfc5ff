"""The server: GET only, on 127.0.0.1 only, for pages of this machine's names only; nothing in a request becomes a path."""

from __future__ import annotations

import errno
import os
import sys
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from convnext_deploy.errors import DeployError, OutputError
from convnext_deploy.reports.comparison import Run as ComparedRun
from convnext_deploy.reports.comparison import compare_runs
from convnext_deploy.viewer import pages
from convnext_deploy.viewer.library import Library, Run

ADDRESS, PORT = "127.0.0.1", 8765
_TRIED = 20  # ports after the usual one
_NAMES = frozenset({ADDRESS, "localhost"})
_SLOW_S = 20.0  # a client that sends or takes nothing for so long
_MOST_COMPARED = 12
_HTML, _JSON = "text/html; charset=utf-8", "application/json; charset=utf-8"
# our pages run our script alone
_OWN_POLICY = (
    "default-src 'none'; style-src 'self'; script-src 'self'; connect-src 'self'; img-src data:; base-uri 'none'; "
    "form-action 'self'; frame-ancestors 'none'"
)
# A report is a file of whoever made the run: it may run its script, in an origin of its own that can ask for nothing.
_FOREIGN_POLICY = (
    "sandbox allow-scripts; default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-store",
}


class RunServer(ThreadingHTTPServer):
    """Serves a library of runs.

    Args:
        library: the runs.
        port: to listen at; None: the usual one, or the next that is free.

    Raises: OutputError: if the port is taken, or none of those tried is free.
    """

    daemon_threads = True
    allow_reuse_address = os.name != "nt"  # there it would share a port with whoever has it

    def __init__(self, library: Library, port: int | None) -> None:
        self.library = library
        tried = range(PORT, PORT + _TRIED) if port is None else (port,)
        for number in tried:
            try:
                super().__init__((ADDRESS, number), _Handler)
                return
            except OSError as error:
                if port is not None or error.errno != errno.EADDRINUSE:
                    raise OutputError(
                        f"port {number} of {ADDRESS} cannot be used ({error.strerror}); give another one with --port."
                    ) from None
        raise OutputError(f"the ports {tried[0]} to {tried[-1]} of {ADDRESS} are in use; give another one with --port.")

    @property
    def url(self) -> str:
        """Where the pages are."""
        return f"http://{ADDRESS}:{self.server_address[1]}/"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing of clients that went away, and of an error of ours one line."""
        error = sys.exc_info()[1]
        if not isinstance(error, ConnectionError | TimeoutError):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    server: RunServer
    server_version, sys_version = "convnext_deploy", ""
    timeout = _SLOW_S

    def do_GET(self) -> None:
        """Answer a request."""
        if not self._is_for_this_machine():
            self._send(HTTPStatus.FORBIDDEN, "text/plain", "This server answers to 127.0.0.1 and localhost only.\n")
            return
        try:
            self._answer()
        except (DeployError, OSError) as error:  # a run that is being written, or was removed meanwhile
            self._fail(HTTPStatus.INTERNAL_SERVER_ERROR, "That could not be read", str(error))

    def _is_for_this_machine(self) -> bool:
        """Whether the client asked for a name of this machine: pages of others can point a name of their own at 127.0.0.1."""
        hosts = self.headers.get_all("Host", [])
        return len(hosts) == 1 and hosts[0].strip().lower().rpartition(":")[0 if ":" in hosts[0] else 2] in _NAMES

    def _answer(self) -> None:
        parts = urlsplit(self.path)
        library = self.server.library
        place = [unquote(part, errors="surrogateescape") for part in parts.path.split("/")[1:]]
        match place:
            case [""]:
                runs = library.runs()
                self._send(HTTPStatus.OK, _HTML, pages.render_list(runs, library.root, is_whole=library.is_whole))
            case ["style.css"]:
                self._send(HTTPStatus.OK, "text/css; charset=utf-8", pages.style())
            case ["view.js"]:
                self._send(HTTPStatus.OK, "text/javascript; charset=utf-8", pages.script())
            case ["runs.json"]:
                self._send(HTTPStatus.OK, _JSON, pages.live_list(library.runs()))
            case ["compare"]:
                self._compare(parse_qs(parts.query, errors="surrogateescape").get("run", []))
            case ["run", name, file] if (run := library.run(name)) is not None:
                self._answer_run(run, file)
            case _:
                self._fail(HTTPStatus.NOT_FOUND, "Not found", "There is no such page; the list has all runs.")

    def _answer_run(self, run: Run, file: str) -> None:
        if file == "":
            self._send(HTTPStatus.OK, _HTML, pages.render_run(run))
        elif file == "live.json":
            self._send(HTTPStatus.OK, _JSON, pages.live_run(run))
        elif file == "report.html" and (content := self.server.library.file(run, "report.html")) is not None:
            self._send(HTTPStatus.OK, _HTML, content, _FOREIGN_POLICY)
        else:
            self._fail(HTTPStatus.NOT_FOUND, "Not found", "The run has no such page, or not yet.")

    def _compare(self, names: list[str]) -> None:
        from convnext_deploy.reports.html.comparison_page import render_comparison

        chosen = [self.server.library.run(name) for name in dict.fromkeys(names[:_MOST_COMPARED])]
        runs = tuple(ComparedRun(r.name, r.folder, r.report) for r in chosen if r is not None and r.report is not None)
        if len(runs) < 2:
            self._fail(HTTPStatus.BAD_REQUEST, "Nothing to compare", "Choose at least two runs that have a report.")
            return
        self._send(HTTPStatus.OK, _HTML, render_comparison(compare_runs(runs)), _FOREIGN_POLICY)

    def _fail(self, status: HTTPStatus, title: str, text: str) -> None:
        self._send(status, _HTML, pages.render_error(title, text))

    def _send(self, status: HTTPStatus, kind: str, content: str | bytes, policy: str = _OWN_POLICY) -> None:
        body = content if isinstance(content, bytes) else content.encode("utf-8", "replace")
        self.send_response(status)
        for name, value in {**_HEADERS, "Content-Type": kind, "Content-Security-Policy": policy}.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def parse_request(self) -> bool:
        """Read the head of a request; whatever is not GET is refused here."""
        if not super().parse_request():
            return False
        if self.command != "GET":
            self._refuse()
            return False
        return True

    def _refuse(self) -> None:
        self.close_connection = True
        self.send_response(HTTPStatus.METHOD_NOT_ALLOWED)
        self.send_header("Allow", "GET")
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002  (its name in the base class)
        """Say nothing of each request."""
