"""bench trace: decoding with a trace being taken against decoding without, in one process."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Any

from engine.knobs import Knobs
from engine.measure.judge import Judge

from . import Arm, in_turns, ratios

TURNS = 80  # of each arm in a round: they are short, so that both meet the same noise


def bench_trace(model: Path, knobs: Knobs, judge: Judge, *, rounds: int) -> dict[str, Any]:
    """Tokens a second, traced over plain, each turn on as many tokens as are read back together, so that every traced turn
    has its bulk read inside. Without knobs everything is resident: the fastest path, of which a trace costs the most."""
    from engine.engine import load, make_prompt_cache
    from engine.routing.record import BULK_TOKENS

    with load(model, knobs) as engine, tempfile.TemporaryDirectory() as folder:
        ids = [i for text in judge.texts for i in engine.encode(text.prompt + text.continuation)]
        pieces = [ids[at : at + BULK_TOKENS] for at in range(0, len(ids) - BULK_TOKENS + 1, BULK_TOKENS)] or [ids]

        def decode(number: int) -> float:
            piece, cache = pieces[number % len(pieces)], make_prompt_cache(engine.model)
            engine.forward.decode(piece[0], cache)  # finds the processor's caches as the turn before left them
            begin = time.perf_counter()
            for token in piece:
                engine.forward.decode(token, cache)
            return len(piece) / (time.perf_counter() - begin)

        def traced(number: int) -> float:
            with engine.trace(Path(folder) / "trace.parquet"):
                return decode(number)

        decode(0)  # compiles and touches what the first tokens would
        arms: list[Arm] = []
        arms.append(Arm("plain", lambda: decode(len(arms[0].figures))))
        arms.append(Arm("traced", lambda: traced(len(arms[1].figures))))
        in_turns(arms, rounds * TURNS)
        share, low, high = ratios(arms[1], arms[0])
        print(f"decode, {engine.mode}, {rounds * TURNS} turns of {len(pieces[0])} tokens")
        for arm in arms:
            print(f"  {arm.name:<8}{arm.median:8.1f} tok/s  ({arm.quartiles[0]:.1f} .. {arm.quartiles[1]:.1f})")
        print(f"  share   {share:8.3f}        ({low:.3f} .. {high:.3f})")
        return {
            "bench": "trace", "mode": engine.mode, "turns": rounds * TURNS, "plain_tok_s": arms[0].median,
            "traced_tok_s": arms[1].median, "share": share, "share_quartiles": [low, high], "knobs": knobs.as_dict(),
        }  # fmt: skip
