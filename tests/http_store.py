"""A server of files on this machine, with range requests, that breaks, refuses, dawdles and lies where a test says so."""

from __future__ import annotations

import contextlib
import email.utils
import hashlib
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

Fault = Callable[[str, str, int], object]
"""Method, path and how many times it was asked for → a status, one of `FAULTS`, an address to go to, or None."""
BREAK, TRUNCATE, SLOW, PAGE, NO_RANGES, NO_TAG, SHORT, SHIFT, TOTAL, NO_RANGE_TOLD, LENGTH = (
    "break",
    "truncate",
    "slow",
    "page",
    "no ranges",
    "no tag",
    "short",
    "other bytes than asked for, and said so",
    "the range of a file of another size",
    "a part without its range",
    "a length that is no number",
)
_PAGE = b"<!DOCTYPE html><html><body>Please log in</body></html>"


@dataclass
class Store:
    """A running server. `asked`: method and path → times; `sent`: bytes of files."""

    root: Path
    url: str = ""
    fault: Fault = lambda method, path, times: None
    asked: Counter[tuple[str, str]] = field(default_factory=Counter)
    sent: int = 0


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def shutdown_request(self, request: Any) -> None:
        request.close()  # without a farewell, so that one set not to linger is reset


@contextlib.contextmanager
def serve(root: Path) -> Iterator[Store]:
    """Serve a folder on 127.0.0.1 until the block ends."""
    store = Store(root)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
            pass

        def do_HEAD(self) -> None:
            _answer(self, store)

        def do_GET(self) -> None:
            _answer(self, store)

    server = _Server(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    store.url = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        yield store
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _answer(request: BaseHTTPRequestHandler, store: Store) -> None:
    store.asked[request.command, request.path] += 1
    fault = store.fault(request.command, request.path, store.asked[request.command, request.path])
    path = store.root / request.path.lstrip("/")
    if isinstance(fault, str) and fault.startswith("http"):
        return _send(request, 302, b"", {"Location": fault})
    if isinstance(fault, int):
        return _send(request, fault, b"")
    if fault == PAGE:
        return _send(request, 200, _PAGE, {"Content-Type": "text/html"})
    if path.is_dir():
        links = "".join(f'<a href="{each.name}{"/" * each.is_dir()}">x</a>' for each in path.iterdir())
        return _send(request, 200, links.encode(), {"Content-Type": "text/html"})
    if not path.is_file():
        return _send(request, 404, b"")
    content, status = path.read_bytes(), 200
    modified = email.utils.formatdate(path.stat().st_mtime, usegmt=True)
    tag = f'"{hashlib.sha256(content).hexdigest()[:16]}"'
    headers = {} if fault == NO_TAG else {"ETag": tag, "Last-Modified": modified}
    wanted = request.headers.get("Range")
    if wanted and fault != NO_RANGES:
        first, last = (int(part) for part in wanted.removeprefix("bytes=").split("-"))
        if fault == SHIFT:
            first, last, content = first + 512, last + 512, content + bytes(512)
        if fault != NO_RANGE_TOLD:
            headers["Content-Range"] = f"bytes {first}-{last}/{10**15 if fault == TOTAL else path.stat().st_size}"
        content, status = content[first : last + 1], 206
    if fault == LENGTH:
        headers["Content-Length"] = "abc"
    if fault == SHORT and request.command == "GET":
        content = content[: len(content) // 2]
    if request.command == "GET":
        store.sent += len(content)
    _send(request, status, content, headers, fault)


def _send(
    request: BaseHTTPRequestHandler,
    status: int,
    content: bytes,
    headers: dict[str, str] | None = None,
    fault: object = None,
) -> None:
    request.send_response(status)
    for name, value in {"Content-Length": str(len(content)), **(headers or {})}.items():
        request.send_header(name, value)
    request.end_headers()
    if request.command == "HEAD":
        return
    if fault == BREAK:  # a reset amid the answer
        request.wfile.write(content[: len(content) // 2])
        request.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        request.close_connection = True
    elif fault == TRUNCATE:  # an orderly end before all that was announced
        request.wfile.write(content[: len(content) // 2])
        request.close_connection = True
    elif fault == SLOW:
        for start in range(0, len(content), max(1, len(content) // 8)):
            request.wfile.write(content[start : start + max(1, len(content) // 8)])
            time.sleep(0.02)
    else:
        request.wfile.write(content)
