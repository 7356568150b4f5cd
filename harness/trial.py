"""The child of one trial: load, measure, write the result. `harness.child` starts it and watches it.

    python -m harness.trial request.json result.json

It ends when its parent does: the parent holds the other end of its standard input. Only the engine is imported, so that
its high-water mark is the engine's and not the harness's.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import threading
from pathlib import Path
from typing import Any

from engine import HeadraceError, Judge, Knobs


def measure(request: dict[str, Any]) -> dict[str, Any]:
    """The result of a request: `figures`, or `error` (its class's name) and `reason` (one line)."""
    engine = importlib.import_module(request["engine"])
    try:
        loaded = engine.load(request["checkpoint"], Knobs.from_mapping(request["knobs"]))
        return {"figures": loaded.measure(Judge.load(request["judge"])).as_dict()}
    except (HeadraceError, MemoryError) as e:
        return {"error": type(e).__name__, "reason": str(e) or "out of memory"}


def _end_with_parent() -> None:
    os.read(0, 1)  # not sys.stdin, whose lock would be held when the interpreter shuts down
    os._exit(1)


def main(request_path: str, result_path: str) -> None:
    threading.Thread(target=_end_with_parent, daemon=True).start()
    result = json.dumps(measure(json.loads(Path(request_path).read_text())))
    tmp = Path(result_path).with_suffix(".tmp")
    tmp.write_text(result)
    os.replace(tmp, result_path)


if __name__ == "__main__":
    main(*sys.argv[1:])
