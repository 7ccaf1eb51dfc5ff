"""Files on other machines, through fsspec: listed, described and read in parts, again where a connection breaks."""

from __future__ import annotations

import random
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from convnext_deploy.errors import DataError, RemoteError, first_line, printable

Result = TypeVar("Result")

READ_DELAYS_S: tuple[float, ...] = (0.5, 1, 2, 4, 8, 16, 32)
"""Between attempts to read a part of a file: a minute in all, and a training that ends then goes on where it was."""
OPEN_DELAYS_S: tuple[float, ...] = (0.5, 1, 2)
"""Between attempts to list or describe files, when an address may be wrong."""
STALLED_S = 60.0
"""How long a server may send nothing; a slow one may take its time."""

_URL = re.compile(r"[a-z][a-z0-9+.-]+://", re.IGNORECASE)
_COUNTS = re.compile(r"received (\d+) of (\d+) bytes")
_HASHES = ("ETag", "etag", "md5Hash", "Content-MD5", "Digest", "blob_id")
_TIMES = ("Last-Modified", "LastModified", "last_modified", "mtime", "updated")
_PASSING = (408, 425, 429)  # answers below 500 that another attempt may change
_WORDS = {
    401: "it wants credentials (401)",
    403: "the server forbids it (403)",
    404: "it does not exist (404)",
    429: "the server asks for fewer requests (429)",
}
_ADVICE = "check the address, and the credentials if it needs some"


@dataclass(frozen=True)
class RemoteFile:
    """A file as its server described it. `identity`: its ETag or time of change, what there is; empty: neither."""

    url: str
    size: int
    identity: str


def is_remote(name: str) -> bool:
    """Whether a name is a URL."""
    return _URL.match(name) is not None


def list_folder(url: str) -> tuple[list[str], list[str]]:
    """Return the URLs of the files and of the folders in a folder, sorted. Raises: RemoteError."""
    scheme = url.partition("://")[0]

    def look() -> list[dict[str, Any]]:
        system = _file_system(url)
        system.invalidate_cache()
        found: list[dict[str, Any]] = system.ls(url.rstrip("/") + "/", detail=True)
        # a store may have several schemes, such as gs and gcs, of which the first stands in what is listed
        places = [system.unstrip_protocol(each["name"]).partition("://")[2] for each in found]
        return [{**each, "url": f"{scheme}://{place}"} for each, place in zip(found, places, strict=True)]

    entries = _repeated(url, look, OPEN_DELAYS_S)
    own = url.rstrip("/")
    found: tuple[list[str], list[str]] = [], []
    for entry in entries:
        each = str(entry["url"]).rstrip("/")
        if each != own and each.startswith(own + "/") and "/" not in each[len(own) + 1 :]:
            found[entry.get("type") == "directory"].append(each)
    return sorted(found[0]), sorted(found[1])


def describe_file(url: str) -> RemoteFile:
    """Ask for the size of a file and for what tells when it has changed.

    Raises: RemoteError: if there is no such file, the server does not answer, or does not tell the size.
    """
    info = _repeated(url, lambda: _file_system(url).info(url), OPEN_DELAYS_S)
    size = info.get("size")
    if not isinstance(size, int) or info.get("type") == "directory":
        found = "is a folder" if info.get("type") == "directory" else "has no size that the server tells"
        raise RemoteError(f"{printable(url)} {found}; expected a file that can be read in parts.")
    return RemoteFile(url, size, next((str(info[name]) for name in (*_HASHES, *_TIMES) if info.get(name)), ""))


def exists(url: str) -> bool:
    """Whether there is such a file. Raises: RemoteError: if the server does not say."""
    try:
        describe_file(url)
    except _MissingError:
        return False
    return True


def read_part(file: RemoteFile, start: int, size: int) -> bytes:
    """Read bytes of a file; all of it where the server answers so, because it cannot send parts.

    Raises: RemoteError: if that fails in spite of all attempts, or the server sends other bytes, or more or less than it said.
    """

    async def check(answer: Any) -> None:
        told = answer.headers.get("Content-Range") if answer.status == 206 else None
        asked = f"{start}-{start + size - 1}"
        expected = [["bytes", f"{asked}/{total}"] for total in (file.size, "*")]
        if told is not None and told.lower().replace("=", " ").split() not in expected:
            raise _WrongBytesError(
                f"the server answers with '{told[:80]}' where bytes {asked} of {file.size} were asked for"
            )

    # aiohttp calls it for each answer, before it reads the bytes; fsspec's classes for other stores do not take it
    options = {"raise_for_status": check} if _is_http(file.url) else {}

    def read() -> bytes:
        system = _file_system(file.url)
        content: bytes = system.cat_file(file.url, start=start, end=start + size, **options)
        if len(content) not in (size, file.size):
            raise _WrongBytesError(f"{len(content):,} bytes came where {size:,} of {file.size:,} were asked for")
        return content

    return _repeated(file.url, read, READ_DELAYS_S)


class _MissingError(RemoteError):
    """There is no such file."""


class _WrongBytesError(OSError):
    """A server sent other bytes than it was asked for, or another number of them."""


def _is_http(url: str) -> bool:
    return url.partition("://")[0].lower() in ("http", "https")


def _file_system(url: str) -> Any:
    """Return fsspec's access to a server; it has one for each process, so that forked ones do not share a connection.

    Raises: RemoteError: if a package is missing, or nothing is known of such addresses.
    """
    scheme = url.partition("://")[0].lower()
    try:
        import fsspec

        if not _is_http(url):
            return fsspec.filesystem(scheme)
        import aiohttp

        timeout = aiohttp.ClientTimeout(total=None, sock_connect=STALLED_S / 2, sock_read=STALLED_S)
        # compressed answers would have other lengths
        headers = {"Accept-Encoding": "identity"}
        return fsspec.filesystem(scheme, client_kwargs={"trust_env": True}, timeout=timeout, headers=headers)
    except ImportError as error:
        raise RemoteError(
            f"{printable(url)} lies on another machine, and what reads it cannot be loaded ({printable(first_line(error))}); "
            "pip install 'convnext_deploy[remote]'."
        ) from None
    except ValueError:
        raise RemoteError(
            f"{printable(url)} begins with {scheme}://, which is not known; expected s3://, gs://, https:// or hf://."
        ) from None


def _repeated(url: str, call: Callable[[], Result], delays: tuple[float, ...]) -> Result:
    """Return what a call returns, which is repeated after ever longer times while it fails for reasons that may pass."""
    for delay in (*delays, None):
        try:
            return call()
        except (MemoryError, DataError):
            raise
        except Exception as error:
            reason, passes = _explain(error)
            if not passes:
                kind = _MissingError if _status(error) == 404 else RemoteError
                raise kind(f"{printable(url)} cannot be read: {reason}; {_ADVICE}.") from None
            if delay is None:
                tries = f"{len(delays) + 1} attempts"
                raise RemoteError(
                    f"{printable(url)} cannot be read: {reason}, in each of {tries}; check the connection: the same command goes "
                    "on from what is saved."
                ) from None
            time.sleep(delay * random.uniform(0.5, 1.5))  # so that many processes do not come back at once
    raise AssertionError("unreachable")


def _behind(error: Exception) -> BaseException:
    """Return what stands behind an error: fsspec calls whatever goes wrong when it describes a file one that is not found."""
    return error.__cause__ if isinstance(error, FileNotFoundError) and error.__cause__ is not None else error


def _status(error: Exception) -> int | None:
    """Return the status of the HTTP answer that an error stands for; None: there was no answer, or no status of an error."""
    behind = _behind(error)
    if isinstance(behind, FileNotFoundError):
        return 404
    if _damage(behind) is not None:
        return None  # aiohttp gives an answer that it cannot read a 400 of its own
    for name in ("status",) if hasattr(behind, "status") else ("code", "status_code"):  # of aiohttp, and of others
        value = getattr(behind, name, None) or getattr(getattr(behind, "response", None), name, None)
        if isinstance(value, int | str) and str(value).isdigit() and 300 <= int(value) < 600:
            return int(value)
    return None


def _damage(error: BaseException) -> str | None:
    """Return what aiohttp found wrong with the form of an answer; None: the error is another one."""
    cause = error.__cause__
    if type(cause).__module__ != "aiohttp.http_exceptions":
        return None
    return (str(getattr(cause, "message", "")).splitlines() or [type(cause).__name__])[0]


def _explain(error: Exception) -> tuple[str, bool]:
    """Return why a request failed, and whether another attempt may do better."""
    status, behind = _status(error), _behind(error)
    if status is not None:
        return _WORDS.get(status, f"the server answers {status}"), status >= 500 or status in _PASSING
    damage = _damage(behind)
    if damage is not None:
        if "Not enough data" in damage:
            found = _COUNTS.search(damage)  # which not every version of aiohttp tells
            counts = "" if found is None else f" ({int(found[1]):,} of {int(found[2]):,})"
            return f"the connection ends before all the bytes that the server announced have come{counts}", True
        return f"the server's answer is no valid HTTP ({printable(damage)})", True
    if type(behind).__name__ == "TooManyRedirects":
        return "the server sends from address to address without end", False
    if isinstance(behind, PermissionError):
        return f"the server forbids it ({printable(first_line(behind))})", False
    if isinstance(behind, TimeoutError) or not str(behind):
        return f"the connection broke, or nothing came for {STALLED_S:.0f} s ({type(behind).__name__})", True
    # whatever has to do with connections is of these kinds, and what has to do with arguments and credentials is not
    passes = isinstance(behind, OSError | EOFError) or type(behind).__module__.startswith("aiohttp")
    return printable(first_line(behind)), passes
