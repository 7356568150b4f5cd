"""Control group: the memory that the process's group and the groups above it allow, on Linux.

A limit may be set on any group between the process's own and the root: `systemd-run -p MemoryMax=`, Slurm, and containers
set one below the root. The tightest one counts. Version 2 has memory.max, which ends processes, and memory.high, which slows
them down; version 1 has memory.limit_in_bytes.

Interface: https://docs.kernel.org/admin-guide/cgroup-v2.html, cgroup-v1/memory.html.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

Names = tuple[str, ...]
V2: Names = ("memory.max", "memory.high")
V1: Names = ("memory.limit_in_bytes",)
CURRENT = {V2: "memory.current", V1: "memory.usage_in_bytes"}
FILE_CACHE = {V2: ("active_file", "inactive_file"), V1: ("total_active_file", "total_inactive_file")}


def memory_limit(root: Path = Path("/")) -> int | None:
    """The tightest memory limit of the process's groups, bytes; None without one. `root` is the folder of /proc and /sys."""
    return min((limit for _, _, limit in _limits(root)), default=None)


def memory_available(root: Path = Path("/")) -> int | None:
    """The memory that the process's groups leave, bytes, counting file caches as free; None without a limit."""
    free = []
    for group, names, limit in _limits(root):
        used = _number(group / CURRENT[names])
        stat = dict(re.findall(r"^(\w+) (\d+)$", _text(group / "memory.stat"), re.MULTILINE))
        if used is not None:
            free.append(max(0, limit - used + sum(int(stat.get(name, 0)) for name in FILE_CACHE[names])))
    return min(free, default=None)


def _limits(root: Path) -> Iterator[tuple[Path, Names, int]]:
    """Each group with a limit: its folder, the names of its version, and the tightest of its limits."""
    for group, names in _groups(root):
        found = [limit for name in names if (limit := _number(group / name)) is not None]
        if found:
            yield group, names, min(found)


def _groups(root: Path) -> Iterator[tuple[Path, Names]]:
    """The folders of the process's group and of those above it, up to where the hierarchy is mounted."""
    own: dict[Names, str] = {}
    for line in _text(root / "proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        if not controllers or "memory" in controllers.split(","):
            own[V1 if controllers else V2] = path
    for names, base, mounted in _mounts(root):
        path = own.get(names, "/")
        inside = path[len(base) :] if base != "/" and path.startswith(base) else path if base == "/" else "/"
        group = mounted / inside.lstrip("/") if ".." not in inside else mounted
        while True:
            yield group, names
            if group in (mounted, group.parent):
                break
            group = group.parent


def _mounts(root: Path) -> Iterator[tuple[Names, str, Path]]:
    """Where the hierarchies are mounted: names of the version, the group that is mounted there, and the folder."""
    seen = set()
    for line in _text(root / "proc/self/mountinfo").splitlines():
        before, _, after = line.partition(" - ")
        base, point = (_unescaped(field) for field in before.split()[3:5])
        kind, _, options = after.partition(" ")
        if kind == "cgroup2" or (kind == "cgroup" and "memory" in re.split(r"[\s,]", options)):
            seen.add((V2 if kind == "cgroup2" else V1, base, root / point.lstrip("/")))
    usual = root / "sys/fs/cgroup"
    yield from sorted({*seen, (V2, "/", usual), (V1, "/", usual / "memory")}, key=str)


def _unescaped(field: str) -> str:
    return re.sub(r"\\([0-7]{3})", lambda m: chr(int(m[1], 8)), field)


def _text(file: Path) -> str:
    try:
        return file.read_text(errors="replace")
    except OSError:
        return ""


def _number(file: Path) -> int | None:
    """A file's number; None for `max`, and for the number by which version 1 says that there is no limit."""
    text = _text(file).strip()
    return int(text) if text.isdigit() and int(text) < 1 << 62 else None
