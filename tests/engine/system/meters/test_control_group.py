"""Control groups: the tightest limit from the process's own group up, in both versions and as containers mount them."""

from __future__ import annotations

from pathlib import Path

import pytest

from engine.system.meters.control_group import memory_available, memory_limit

V2_MOUNT = "30 20 0:26 {base} /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n"
V1_MOUNT = "31 20 0:27 {base} /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory\n"


class Machine:
    """/proc and /sys of a machine, in a folder."""

    def __init__(self, root: Path, own: str, mounts: str = "") -> None:
        self.root = root
        self.write("proc/self/cgroup", own)
        self.write("proc/self/mountinfo", mounts)

    def write(self, name: str, text: str) -> None:
        file = self.root / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)

    def group(self, path: str, **values: object) -> None:
        for name, value in values.items():
            self.write(f"sys/fs/cgroup/{path}/memory.{name}", f"{value}\n")


def test_no_groups_at_all(tmp_path: Path) -> None:
    assert memory_limit(tmp_path) is memory_available(tmp_path) is None


@pytest.mark.parametrize("mounts", ["", V2_MOUNT.format(base="/")])
def test_the_tightest_limit_of_all_levels(tmp_path: Path, mounts: str) -> None:
    machine = Machine(tmp_path, "0::/user.slice/a.scope/deep\n", mounts)
    machine.group("user.slice", max=4000, current=1000, stat="active_file 10\ninactive_file 20")
    machine.group("user.slice/a.scope", max=2000, current=900, stat="anon 5")
    machine.group("user.slice/a.scope/deep", max="max", high=3000, current=100, stat="active_file 7")
    machine.group("user.slice/other", max=1)
    assert memory_limit(tmp_path) == 2000
    assert memory_available(tmp_path) == 1100
    machine.group("user.slice", current=3500)
    assert memory_available(tmp_path) == 4000 - 3500 + 30
    machine.group("user.slice/a.scope/deep", high=500)
    assert memory_limit(tmp_path) == 500


@pytest.mark.parametrize(
    ("own", "base"),
    [
        ("0::/\n", "/"),  # a container with a namespace of its own
        ("0::/docker/1234\n", "/docker/1234"),  # without one: the container's group is mounted as the root
        ("0::/../../other\n", "/"),  # a process that was moved out of the namespace
    ],
)
def test_a_container(tmp_path: Path, own: str, base: str) -> None:
    machine = Machine(tmp_path, own, V2_MOUNT.format(base=base))
    machine.group("", max=1500, current=500)
    assert (memory_limit(tmp_path), memory_available(tmp_path)) == (1500, 1000)


@pytest.mark.parametrize("mounts", ["", V1_MOUNT.format(base="/")])
def test_version_1_and_hybrid(tmp_path: Path, mounts: str) -> None:
    machine = Machine(tmp_path, "9:cpu,cpuacct:/x\n4:memory:/slurm/job_1\n0::/init.scope\n", mounts)
    machine.group("memory/slurm", limit_in_bytes=9223372036854771712)
    stat = "active_file 3\ntotal_active_file 40\ntotal_inactive_file 60"
    machine.group("memory/slurm/job_1", limit_in_bytes=2000, usage_in_bytes=700, stat=stat)
    assert (memory_limit(tmp_path), memory_available(tmp_path)) == (2000, 1400)


def test_files_that_say_nothing(tmp_path: Path) -> None:
    machine = Machine(tmp_path, "0::/a\n")
    machine.group("a", max="max", high="", current="?")
    assert memory_limit(tmp_path) is memory_available(tmp_path) is None
    machine.group("a", max=100)
    assert memory_limit(tmp_path) == 100 and memory_available(tmp_path) is None
