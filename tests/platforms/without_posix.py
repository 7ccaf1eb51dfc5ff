"""Take from Python what Windows lacks of POSIX, as `sitecustomize` of a process and of all that it starts.

The name of the system stays, which the standard library's own choices depend on.
"""

import os
import shutil
import signal
import subprocess
import sys
import types
from typing import Any

MISSING = (
    *(
        "fork",
        "forkpty",
        "getgid",
        "getegid",
        "geteuid",
        "getuid",
        "getloadavg",
        "getpgid",
        "killpg",
        "posix_fallocate",
    ),
    *("pread", "pwrite", "sched_getaffinity", "setsid", "statvfs", "sysconf", "O_CLOEXEC", "O_NONBLOCK"),
)
SIGNALS = ("SIGALRM", "SIGBUS", "SIGHUP", "SIGKILL", "pthread_sigmask", "setitimer")
MODULES = ("fcntl", "resource")
_FOLDERS = ("/proc/", "/sys/")


def take_away() -> None:
    """Let this process lack them; `msvcrt` of Windows is there, and locks nothing."""
    usage = shutil.disk_usage("/")
    for module, names in ((os, MISSING), (signal, SIGNALS)):
        for name in names:
            vars(module).pop(name, None)
    sys.modules |= dict.fromkeys(MODULES)  # type: ignore[arg-type]  # None: there is no such module
    windows: Any = types.ModuleType("msvcrt")
    windows.LK_NBLCK, windows.locking = 2, lambda descriptor, mode, size: None
    sys.modules["msvcrt"] = windows
    shutil._use_fd_functions = False  # type: ignore[attr-defined]  # `rmtree` goes by names, as on Windows
    shutil.disk_usage = lambda path: usage  # Windows has its own way to find that out
    replaced: Any = subprocess.Popen
    replaced.kill = lambda process: process.send_signal(9)  # as on Windows, without a signal's name
    sys.addaudithook(_refuse)
    stat = os.stat

    def other_stat(path: Any, *arguments: Any, **more: Any) -> os.stat_result:
        _refuse("open", (path,))
        return stat(path, *arguments, **more)

    vars(os)["stat"] = other_stat


def _refuse(event: str, arguments: tuple[Any, ...]) -> None:
    """Let no file be found in the folders that only Linux has."""
    if event == "open" and isinstance(arguments[0], str | os.PathLike) and str(arguments[0]).startswith(_FOLDERS):
        raise FileNotFoundError(2, os.strerror(2), str(arguments[0]))


if __name__ == "sitecustomize":
    take_away()
