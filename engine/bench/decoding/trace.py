"""bench trace: decoding with a trace being recorded against decoding without, in one process."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Any

from engine.knobs import Knobs
from engine.measure.judge import Judge

from ..contender import Contender, in_turns, ratios

TURNS = 80  # per contender and round; they are short, so that the same noise affects both


def bench_trace(model: Path, knobs: Knobs, judge: Judge, *, rounds: int, trust_code: bool = False) -> dict[str, Any]:
    """Tokens per second, traced over plain. Each turn has the number of tokens that a trace reads back together, so that
    every traced turn includes one bulk read. Without knobs everything is resident, the fastest path, where a trace costs the
    largest share."""
    from mlx_lm.models.cache import make_prompt_cache

    from engine.engine import load
    from engine.routing.record import BULK_TOKENS

    with load(model, knobs, trust_code=trust_code) as engine, tempfile.TemporaryDirectory() as folder:
        ids = [i for text in judge.texts for i in engine.encode(text.prompt + text.continuation)]
        pieces = [ids[at : at + BULK_TOKENS] for at in range(0, len(ids) - BULK_TOKENS + 1, BULK_TOKENS)] or [ids]

        def decode(number: int) -> float:
            piece, cache = pieces[number % len(pieces)], make_prompt_cache(engine.model)
            engine.forward.decode(piece[0], cache)  # warm-up: removes the effect of the turn before
            begin = time.perf_counter()
            for token in piece:
                engine.forward.decode(token, cache)
            return len(piece) / (time.perf_counter() - begin)

        def traced(number: int) -> float:
            with engine.trace(Path(folder) / "trace.parquet"):
                return decode(number)

        decode(0)  # compilation and first use of memory
        contenders: list[Contender] = []
        contenders.append(Contender("plain", lambda: decode(len(contenders[0].figures))))
        contenders.append(Contender("traced", lambda: traced(len(contenders[1].figures))))
        in_turns(contenders, rounds * TURNS)
        share, low, high = ratios(contenders[1], contenders[0])
        print(f"decode, {engine.mode}, {rounds * TURNS} turns of {len(pieces[0])} tokens")
        for contender in contenders:
            lower, upper = contender.quartiles
            print(f"  {contender.name:<8}{contender.median:8.1f} tok/s  ({lower:.1f} .. {upper:.1f})")
        print(f"  share   {share:8.3f}        ({low:.3f} .. {high:.3f})")
        return {
            "bench": "trace", "mode": engine.mode, "turns": rounds * TURNS, "plain_tok_s": contenders[0].median,
            "traced_tok_s": contenders[1].median, "share": share, "share_quartiles": [low, high], "knobs": knobs.as_dict(),
        }  # fmt: skip
