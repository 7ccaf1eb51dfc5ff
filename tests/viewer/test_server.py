"""The server answers GET to this machine alone, escapes every name, and serves nothing but the runs' pages."""

from __future__ import annotations

import http.client
import json
import socket
from pathlib import Path

import pytest

from convnext_deploy.errors import OutputError
from convnext_deploy.viewer import library
from convnext_deploy.viewer import server as serving
from convnext_deploy.viewer.library import Library
from convnext_deploy.viewer.server import RunServer
from tests.viewer.conftest import HOSTILE

QUOTED = "%3Cimg%20src%3Dx%20onerror%3Dalert%281%29%3E"


def ask(
    server: RunServer, path: str, method: str = "GET", host: str | None = "127.0.0.1"
) -> tuple[int, http.client.HTTPMessage, str]:
    connection = http.client.HTTPConnection("127.0.0.1", server.server_address[1], timeout=10)
    connection.putrequest(method, path, skip_host=True)
    if host is not None:
        connection.putheader("Host", host)
    connection.endheaders()
    answer = connection.getresponse()
    body = answer.read().decode()
    connection.close()
    return answer.status, answer.headers, body


def test_pages_show_the_runs(server: RunServer) -> None:
    status, headers, page = ask(server, "/")
    assert status == 200
    assert headers["Content-Security-Policy"].startswith("default-src 'none'; style-src 'self'; script-src 'self'")
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert all(
        text in page for text in ("photos/good", "1 of 1 gates passed", "gates failed: onnx-INT8", "cannot be read")
    )
    assert "student: epoch 3, top-1 83.33 %" in page
    status, _, page = ask(server, "/run/photos%2Fgood/")
    assert status == 200
    assert "3.8" in page
    status, headers, page = ask(server, "/run/bad/report.html")
    assert (status, page) == (200, "<title>small</title>")
    assert headers["Content-Security-Policy"].startswith("sandbox allow-scripts; default-src 'none'")
    for path, kind in (("/style.css", "text/css"), ("/view.js", "text/javascript")):
        status, headers, text = ask(server, path)
        assert (status, headers.get_content_type()) == (200, kind)
        assert "http" not in text.replace("http://www.w3.org/2000/svg", ""), "nothing is fetched from elsewhere"


def test_figures_of_a_training_come_as_json(server: RunServer) -> None:
    status, headers, text = ask(server, f"/run/{QUOTED}/live.json")
    assert (status, headers.get_content_type()) == (200, "application/json")
    found = json.loads(text)
    assert found["going"] is True
    top1, loss = found["plots"]
    assert (top1["stage"], top1["measure"]) == ("student", "top-1 %")
    assert top1["lines"][0]["points"][-1] == [3, pytest.approx(100 * (1 - 0.5 / 3))]
    assert [line["name"] for line in loss["lines"]] == ["training loss", "validation loss"]
    assert json.loads(ask(server, "/runs.json")[2])["parts"]["runs"].count("<tr>") == 4


def test_a_list_that_is_not_whole_says_so(server: RunServer, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "no run in the others" not in ask(server, "/")[2]
    monkeypatch.setattr(library, "MOST_FOLDERS", 3)
    assert "no run in the others is shown" in ask(server, "/")[2]


def test_names_are_escaped_everywhere(server: RunServer) -> None:
    for path in ("/", f"/run/{QUOTED}/", "/runs.json", f"/run/{QUOTED}/live.json"):
        status, _, page = ask(server, path)
        assert status == 200
        assert HOSTILE not in page, path
        assert "<img" not in page


def test_runs_are_compared(server: RunServer) -> None:
    status, headers, page = ask(server, "/compare?run=bad&run=photos%2Fgood&run=none")
    assert status == 200
    assert "bad and photos/good: comparison" in page
    assert headers["Content-Security-Policy"].startswith("sandbox allow-scripts")
    for query in ("", "?run=bad", "?run=bad&run=bad", f"?run=bad&run={QUOTED}"):
        status, _, page = ask(server, f"/compare{query}")
        assert (status, "Choose at least two runs" in page) == (400, True)


@pytest.mark.parametrize(
    "path",
    [
        "/secret.txt",
        "/run/../secret.txt",
        "/run/bad/../../secret.txt",
        "/run/bad/..%2f..%2fsecret.txt",
        "/run/..%2fruns%2fbad/",
        "/run/%2e%2e/report.html",
        "/run/bad/report.json",
        "/run/bad/.lock",
        "/run/bad%00/",
        "/run/bad",
        "/run/notes/",
        "/run/damaged/report.html",
        "/static/view.js",
        "//etc/passwd",
        "/%ff",
    ],
)
def test_nothing_else_is_served(server: RunServer, path: str) -> None:
    status, _, page = ask(server, path)
    assert status == 404
    assert "secret" not in page


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("127.0.0.1", 200),
        ("127.0.0.1:9000", 200),
        ("LOCALHOST:80", 200),
        ("evil.example", 403),
        ("127.0.0.1.evil.example", 403),
        ("localhost:80:evil.example", 403),
        ("192.168.0.2", 403),
        ("", 403),
        (None, 403),
    ],
)
def test_other_names_of_this_machine_are_refused(server: RunServer, host: str | None, status: int) -> None:
    assert ask(server, "/", host=host)[0] == status


@pytest.mark.parametrize("method", ["HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH", "TRACE", "FOO"])
def test_get_is_the_only_method(server: RunServer, method: str) -> None:
    status, headers, _ = ask(server, "/", method)
    assert (status, headers["Allow"]) == (405, "GET")


def test_it_listens_on_this_machine_alone(server: RunServer) -> None:
    assert server.server_address[0] == "127.0.0.1"


def test_a_port_in_use_is_one_line_or_the_next_one_is_taken(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    library = Library(runs)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(OutputError, match=rf"^port {port} of 127\.0\.0\.1 cannot be used \(.*\); .* --port\.$"):
            RunServer(library, port)
        monkeypatch.setattr(serving, "PORT", port)
        found = RunServer(library, None)
        assert port < found.server_address[1] < port + 20
        found.server_close()
        monkeypatch.setattr(serving, "_TRIED", 1)
        with pytest.raises(OutputError, match=rf"^the ports {port} to {port} of 127\.0\.0\.1 are in use; give another"):
            RunServer(library, None)
