"""The kernel's counts of what it killed for want of memory, as its files spell them."""

from pathlib import Path

import pytest

from worker.memory import killed_for_memory, memory_limit, oom_kills

COUNTS = "low 0\nhigh 0\nmax 9\noom 3\noom_kill 2\n"


@pytest.mark.parametrize(
    ("cgroup", "file"),
    [
        ("0::/lathe\n", "sys/fs/cgroup/lathe/memory.events"),
        ("0::/host/path\n", "sys/fs/cgroup/memory.events"),  # as seen from within a container
        ("9:cpu:/\n4:memory:/lathe\n0::/\n", "sys/fs/cgroup/memory/lathe/memory.oom_control"),
        ("", "proc/vmstat"),
    ],
)
def test_are_found_wherever_the_system_keeps_them(tmp_path: Path, cgroup: str, file: str) -> None:
    assert oom_kills(tmp_path) is None
    for name, content in (("proc/self/cgroup", cgroup), (file, COUNTS)):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(content)
    assert oom_kills(tmp_path) == 2


def test_a_kill_by_hand_is_none_for_memory() -> None:
    assert not killed_for_memory(oom_kills(), 9)
    assert not killed_for_memory(None, 9)
    assert killed_for_memory(-1, 9) == (oom_kills() is not None)
    assert not killed_for_memory(-1, 15)


def test_the_limit_is_the_hosts_or_that_of_a_group_that_holds_the_process(tmp_path: Path) -> None:
    def write(name: str, content: str) -> None:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(content)

    assert memory_limit(tmp_path) is None
    write("proc/meminfo", "MemTotal:       1000 kB\nMemFree:         10 kB\n")
    assert memory_limit(tmp_path) == 1_024_000
    write("proc/self/cgroup", "0::/lathe\n")
    write("sys/fs/cgroup/lathe/memory.max", "max\n")
    assert memory_limit(tmp_path) == 1_024_000
    write("sys/fs/cgroup/lathe/memory.max", "4096\n")
    assert memory_limit(tmp_path) == 4096
    assert (memory_limit() or 0) > 2**28
