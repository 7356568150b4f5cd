"""Meaning: sentences and document follow from the results, also where much is missing."""

from __future__ import annotations

import json
from typing import Any

from harness.doctor.check import FAILS, NO_VALUE, WORKS, Check, Result
from harness.doctor.meaning import consequences, document_text, meaning


def made(group: str, name: str, figures: dict[str, Any], state: str = WORKS, reason: str = "") -> Result:
    return Result(group, name, state, "", reason, 0.1, figures)


def read(io_mode: str, block_kib: int, gbps: float, share: float | None, **more: Any) -> Result:
    figures = {"io_mode": io_mode, "block_kib": block_kib, "gbps": gbps, "disk_share": share, **more}
    return made("disk", f"{io_mode} {block_kib}", figures)


REST = [
    made("limits", "memory", {"memory_gb": 25.0, "memory_limit_gb": 20.0}),
    made("limits", "available memory", {"available_gb": 12.0}),
    made("compute", "host sync", {"sync_ms": 0.5}),
    made("compute", "copies into slots", {"copy_gbps": 11.26}),
]


def test_a_machine_where_all_works() -> None:
    reads = [
        read("buffered", 1024, 1.2, 1.0),
        read("direct", 64, 0.9, 1.0),
        read("direct", 8192, 1.7, None, was_direct=None),
    ]
    assert meaning([*REST, *reads]) == [
        "Streaming: about 1.7 GB/s direct, in blocks of 8192 KiB, if they came from the disk, which is not known here.",
        "Streaming: about 1.2 GB/s buffered, in blocks of 1024 KiB.",
        "Checking each layer costs 0.5 ms a layer: 24 ms a token of a model with 48 layers.",
        "Bytes in memory come into slots at 11 GB/s.",
        "Memory: 18 GB may be used by a study (90% of 20 GB).",
        "Only 12 GB of it are available now; end other programs before a study.",
    ]


def test_the_gpus_working_set_limits_a_study() -> None:
    device = made("compute", "device of MLX", {"device_info": {"max_recommended_working_set_size": 15 * 10**9}})
    assert "Memory: 15 GB may be used by a study (the GPU's recommended working set)." in meaning([*REST, device])


def test_reads_from_a_cache_are_said() -> None:
    said = meaning([read("buffered", 64, 9.0, 0.1), read("direct", 64, 9.0, 0.1, was_direct=False)])
    assert said[0].startswith("Streaming direct: not known.") and said[1].startswith("Streaming buffered: not known.")
    assert "io_mode=direct changes nothing" in said[2]


def test_nothing_works() -> None:
    said = meaning([])
    assert [s.partition(":")[0] for s in said] == ["Streaming direct", "Streaming buffered", "Checking each layer", "Memory"]


def test_consequences_of_what_is_missing() -> None:
    checks = [Check("meters", name, lambda place: None, text) for name, text in (("a", "A."), ("b", ""), ("c", "C."))]
    results = [made("meters", "a", {}, NO_VALUE), made("meters", "b", {}, NO_VALUE), made("meters", "c", {}, FAILS, "gone")]
    assert [(r.name, text) for r, text in consequences(results, checks)] == [("a", "A."), ("c", "C.")]


def test_the_document_is_json_with_a_line_for_each_check() -> None:
    text = document_text([*REST, made("meters", "c", {}, FAILS, "gone")])
    document = json.loads(text)
    assert document["headrace_doctor"] == 1 and document["meaning"] and len(document["checks"]) == 5
    assert document["checks"][3]["figures"] == {"copy_gbps": 11.26}
    assert document["checks"][4]["reason"] == "gone" and "figures" not in document["checks"][4]
    assert text.count("\n") == 6
