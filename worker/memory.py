"""How much memory a process may take, and whether the system has ended one because it ran out."""

import contextlib
from pathlib import Path

LIMIT_FILES = {"memory.events": "memory.max", "memory.oom_control": "memory.limit_in_bytes"}
KIB = 1024

CGROUP_FILES = (
    # Version 2, and version 1. Both count the processes that were killed in the group.
    ("/sys/fs/cgroup", "", "memory.events"),
    ("/sys/fs/cgroup/memory", "memory", "memory.oom_control"),
)


def oom_kills(root: Path = Path("/")) -> int | None:
    """How many processes the kernel has killed for want of memory: of our control group, else of the host.

    Returns:
        the count so far; None where none can be read.
    """
    for path in (*_cgroup_files(root), root / "proc/vmstat"):
        with contextlib.suppress(OSError, ValueError):
            for line in path.read_text().splitlines():
                name, _, value = line.partition(" ")
                if name == "oom_kill":
                    return int(value)
    return None


def memory_limit(root: Path = Path("/")) -> int | None:
    """The bytes of memory that the processes here may take: the host's, or fewer by a control group.

    Returns:
        None where the host's cannot be read.
    """
    total = None
    with contextlib.suppress(OSError, ValueError, IndexError):
        line = next(iter((root / "proc/meminfo").read_text().splitlines()))
        total = int(line.split()[1]) * KIB
    limits = [total] if total is not None else []
    for path in _cgroup_files(root):
        with contextlib.suppress(OSError, ValueError):  # "max": no limit of its own
            limits.append(int((path.parent / LIMIT_FILES[path.name]).read_text()))
    return min(limits, default=None)


def killed_for_memory(before: int | None, signal: int | None) -> bool:
    """Whether a process that ended by `signal` was killed for memory since `before` was counted."""
    now = oom_kills()
    return signal == 9 and before is not None and now is not None and now > before


def _cgroup_files(root: Path) -> list[Path]:
    """The counts of the group this process is in, and of that which a container shows as the top one."""
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return []
    files = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        for mount, controller, name in CGROUP_FILES:
            if controller in controllers.split(","):
                top = root / mount.lstrip("/")
                files += [top / path.lstrip("/") / name, top / name]
    return files
