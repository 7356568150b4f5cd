"""Starts of a soak test: a reproducible plan of events and faults, and a study file that the command finds."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path

import yaml

from engine import Knobs
from harness.bench.soak import faulty
from harness.bench.soak.starts import Soak, disk


def test_each_event_and_each_status_occurs_often_enough(tmp_path: Path) -> None:
    one = Soak(tmp_path, 300, random.Random(0), False)
    events = Counter(one.events())
    assert events["kill -9"] >= 20 and events["full disk"] == 20 and events["SIGTERM"] == events["Ctrl-C twice"] == 3
    statuses = Counter(faulty.FATES[str(faulty.fault(Knobs.from_mapping(values)))] for values in one.anchors())
    assert min(statuses.values()) >= 20 and set(statuses) == set(faulty.FATES.values())
    assert Soak(tmp_path, 300, random.Random(0), False).events() == Soak(tmp_path, 300, random.Random(0), False).events()


def test_the_study_is_where_the_command_finds_it(tmp_path: Path) -> None:
    one = Soak(tmp_path, 12, random.Random(0), False)
    one.study()
    folder = Path(one.command[one.command.index("--config-dir") + 1])
    config = yaml.safe_load((folder / "study" / "soak.yaml").read_text())
    assert config["budget"]["trials"] == 12 and config["engine"]["module"] == faulty.__name__
    assert (folder / "search_space" / "soak.yaml").exists() and one.runs() == 0


def test_the_disk_is_a_folder_at_least(tmp_path: Path) -> None:
    with disk(tmp_path / "disk") as mounted:
        assert (tmp_path / "disk").is_dir() and isinstance(mounted, bool)
