"""Meaning: what the results say about streaming on this machine, and the document for a report."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from engine.system.strict_json import to_json
from harness.schema import DeviceConfig

from .check import FAILS, NO_VALUE, WORKS, Check, Result

FORMAT = 1
ENOUGH_DISK = 0.9  # share of the bytes from the disk from which a bandwidth is the disk's


def figures(results: Sequence[Result], group: str, name: str) -> dict[str, Any]:
    """The figures of one check; empty if it has none."""
    return next((r.figures for r in results if (r.group, r.name) == (group, name)), {})


def meaning(results: Sequence[Result]) -> list[str]:
    """Sentences on the disk, the cost of checking each layer, and the memory that a study may use."""
    return [*_disk(results), *_sync(results), *_memory(results)]


def consequences(results: Sequence[Result], checks: Sequence[Check]) -> list[tuple[Result, str]]:
    """The checks that failed or gave no value, with what that means for the user."""
    without = {(check.group, check.name): check.without for check in checks}
    found = [(r, without[r.group, r.name]) for r in results]
    return [(r, text) for r, text in found if r.state == FAILS or (r.state == NO_VALUE and text)]


def document(results: Sequence[Result]) -> dict[str, Any]:
    """The results as a document to paste into a report: no names of users, hosts or folders."""
    return {
        "headrace_doctor": FORMAT,
        "meaning": meaning(results),
        "checks": [
            {"group": r.group, "name": r.name, "state": r.state}
            | {k: v for k, v in (("reason", r.reason), ("figures", _rounded(r.figures))) if v}
            | {"seconds": r.seconds}
            for r in results
        ],
    }


def document_text(results: Sequence[Result]) -> str:
    """The document as JSON, with one line for each check."""
    whole = document(results)
    lines = [to_json(check) for check in whole.pop("checks")]
    head = to_json(whole)[:-1]
    return head + ', "checks": [\n' + ",\n".join(lines) + "\n]}"


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.5g}")
    if isinstance(value, dict):
        return {k: _rounded(v) for k, v in value.items()}
    return [_rounded(v) for v in value] if isinstance(value, list) else value


def _disk(results: Sequence[Result]) -> list[str]:
    reads = [r.figures for r in results if r.group == "disk" and r.state == WORKS and "gbps" in r.figures]
    said = []
    for io_mode in ("direct", "buffered"):
        own = [f for f in reads if f["io_mode"] == io_mode]
        real = [f for f in own if f["disk_share"] is None or f["disk_share"] >= ENOUGH_DISK]
        if real:
            best = max(real, key=lambda f: f["gbps"])
            known = "" if best["disk_share"] is not None else ", if they came from the disk, which is not known here"
            said.append(f"Streaming: about {best['gbps']:.2g} GB/s {io_mode}, in blocks of {best['block_kib']} KiB{known}.")
        elif own:
            least = min(f["disk_share"] for f in own)
            said.append(
                f"Streaming {io_mode}: not known. Only {least:.0%} or more of the bytes came from the disk; another cache "
                "lies between it and this process."
            )
        else:
            said.append(f"Streaming {io_mode}: not possible on this disk, or not measured; see above.")
    if any(f.get("was_direct") is False for f in reads):
        said.append("Direct reads went through the page cache: io_mode=direct changes nothing on this disk.")
    return said


def _sync(results: Sequence[Result]) -> list[str]:
    sync, copy = figures(results, "compute", "host sync"), figures(results, "compute", "copies into slots")
    if not sync:
        return ["Checking each layer: its cost is not known, because MLX does not compute here."]
    ms = sync["sync_ms"]
    said = [f"Checking each layer costs {ms:.2g} ms a layer: {48 * ms:.2g} ms a token of a model with 48 layers."]
    if copy:
        said.append(f"Bytes in memory come into slots at {copy['copy_gbps']:.2g} GB/s.")
    return said


def _memory(results: Sequence[Result]) -> list[str]:
    memory = figures(results, "limits", "memory").get("memory_limit_gb")
    if memory is None:
        return ["Memory: not known; give device.memory_gb to a study."]
    share = DeviceConfig().usable_share
    usable, why = share * memory, f"{share:.0%} of {memory:.3g} GB"
    device = figures(results, "compute", "device of MLX").get("device_info", {})
    working_set = device.get("max_recommended_working_set_size")
    if working_set and working_set / 1e9 < usable:
        usable, why = working_set / 1e9, "the GPU's recommended working set"
    said = [f"Memory: {usable:.3g} GB may be used by a study ({why})."]
    available = figures(results, "limits", "available memory").get("available_gb")
    if available is not None and available < usable:
        said.append(f"Only {available:.3g} GB of it are available now; end other programs before a study.")
    return said
