"""How much memory this process may use: of the machine, and of its container where there is one."""

from pathlib import Path

# limit, and what is used of it
_CGROUPS = (
    ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current", "/sys/fs/cgroup/memory.stat", "inactive_file"),
    (
        "/sys/fs/cgroup/memory/memory.limit_in_bytes",
        "/sys/fs/cgroup/memory/memory.usage_in_bytes",
        "/sys/fs/cgroup/memory/memory.stat",
        "total_inactive_file",
    ),
)


def available_memory() -> int | None:
    """Return the bytes that are free for this process; None where that is not known."""
    return memory_sizes()[1]


def memory_sizes() -> tuple[int | None, int | None]:
    """Return the memory in bytes, and how much of it is free."""
    info = dict(line.split(":", 1) for line in _read("/proc/meminfo").splitlines() if ":" in line)
    total, available = (
        int(info[name].split()[0]) * 1024 if name in info else None for name in ("MemTotal", "MemAvailable")
    )
    for limit_file, used_file, statistics, cached in _CGROUPS:
        limit, used = _read(limit_file).strip(), _read(used_file).strip()
        if total is None or not limit.isdigit() or int(limit) >= total:
            continue
        total = int(limit)
        if available is not None:
            words = _read(statistics).split()
            # files that were read count as used, and are dropped when memory is needed
            kept = int(words[words.index(cached) + 1]) if cached in words else 0
            free = total - (int(used) - kept if used.isdigit() else 0)
            available = max(0, min(available, free))
    return total, available


def _read(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
