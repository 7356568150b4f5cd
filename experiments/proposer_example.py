"""Example of an external proposer: the front's fastest point, with one knob moved at a time.

    python -m harness.search study=demo proposer.command="python experiments/proposer_example.py"

It reads the study so far as JSON on its input and answers as JSON on its output (see docs/own-proposer.md). It uses only
Python's standard library; a script in any language works.
"""

import json
import sys

SETTINGS = 4


def neighbours(entry: dict, value) -> list:
    """The values next to `value` in an entry of the search space."""
    if "values" in entry:
        values = entry["values"]
        i = values.index(value)
        return values[max(i - 1, 0) : i] + values[i + 1 : i + 2]
    low, high = entry["low"], entry["high"]
    if entry["type"] == "int":
        return [v for v in (value - 1, value + 1) if low <= v <= high]
    near = (value / 1.25, value * 1.25) if entry.get("log") else (value - (high - low) / 8, value + (high - low) / 8)
    return [v for v in near if low <= v <= high]


def main() -> None:
    state = json.load(sys.stdin)
    rows = [r for r in state["rows"] if r["trial"] in state["front"] and r["metrics"].get("decode_tok_s") is not None]
    moving = {name: entry for name, entry in state["space"].items() if isinstance(entry, dict)}
    if not rows:
        json.dump({"note": "no front yet"}, sys.stdout)
        return
    best = max(rows, key=lambda r: r["metrics"]["decode_tok_s"])
    knobs = {name: value for name, value in best["knobs"].items() if name in moving}
    tried = [r["knobs"] for r in state["rows"]]
    steps = [{**knobs, name: value} for name in knobs for value in neighbours(moving[name], knobs[name])]
    settings = [s for s in steps if s not in tried][:SETTINGS]
    json.dump({"settings": settings, "note": f"one step from trial {best['trial']}, the fastest of the front"}, sys.stdout)


if __name__ == "__main__":
    main()
