"""bench restored: speed and misses after restored prompts beside those after computed ones, setting by setting, in turns.

Without prefetch and windows the misses must be equal to the last unit. With them, what is cached also depends on when reads
end, so two runs that compute their prompts differ as well; that difference is shown beside.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from engine.cli.arguments.opening import add_trust_code, opened_tokenizer
from engine.cli.arguments.options import add_eval_texts, add_model, model_of, positive
from engine.errors import HeadraceError
from engine.knobs import GB, Knobs
from engine.measure.protocol import REAL, RESTORED, Protocol
from engine.system.strict_json import to_json

if TYPE_CHECKING:
    from engine.measure.judge import Judge
    from engine.measure.measurement import Measurement

BY_TIME = (
    {"prefetch": "stale_gate"}, {"sync_window": 0}, {"prefetch": "stale_gate", "prefetch_depth": 2}, {"sync_window": 4},
)  # fmt: skip
# 97.5 % quantiles of Student's distribution for 1, 2 ... degrees of freedom
T975 = (12.71, 4.30, 3.18, 2.78, 2.57, 2.45, 2.36, 2.31, 2.26, 2.23, 2.20, 2.18, 2.16, 2.14, 2.13, 2.12, 2.11, 2.10, 2.09)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the command."""
    add_model(parser)
    add_trust_code(parser)
    add_eval_texts(parser)
    for option, default, text in (("rounds", 3, "turns of each contender"), ("settings", 20, "settings"),
                                  ("tokens", 64, "timed tokens of a turn")):  # fmt: skip
        parser.add_argument(f"--{option}", type=positive, default=default, metavar="N", help=f"{text} (default: {default})")
    parser.add_argument("--by-time", action="store_true", help="only settings with prefetch or windows")
    text = "warm-up tokens, one summary for each (default: 8)"
    parser.add_argument("--warm-up-tokens", type=int, nargs="+", default=[8], metavar="N", help=text)


def run(args: argparse.Namespace) -> None:
    """Compare speed and misses after restored prompts with computed ones."""
    from engine.measure.judge import Judge

    model = model_of(args)
    opened_tokenizer(args, model)
    given = settings(model, args.settings, by_time=args.by_time)
    result = bench_restored(
        model, Judge.load(args.eval_texts), given, rounds=args.rounds, tokens=args.tokens, warm_up=args.warm_up_tokens,
        trust_code=args.trust_code,
    )  # fmt: skip
    print(to_json(result))


def settings(model: Path, count: int, seed: int = 0, *, by_time: bool = False) -> list[Knobs]:
    """Return `count` random lossless settings; every fourth has prefetch or windows, or all of them if `by_time`."""
    from engine.plan.footprint import footprint

    rng, found, sizes = np.random.default_rng(seed), list[Knobs](), footprint(model)
    spare = sizes.all_experts_gb - sizes.one_token_gb
    while len(found) < count:
        knobs: dict[str, Any] = {"cache_gb": sizes.one_token_gb + spare * float(rng.uniform(0.05, 0.7))}
        for name, values in (
            ("evict_half_life", (4.0, 16.0, 256.0)), ("pinned_share", (0.0, 0.3)), ("cache_layer_shape", (0.0, 0.4)),
            ("prefill_chunk", (0, 48)), ("read_block_kib", (16, 1024)),
        ):  # fmt: skip
            knobs[name] = type(values[0])(rng.choice(values))
        if by_time or len(found) % 4 == 3:
            knobs |= BY_TIME[len(found) // (1 if by_time else 4) % len(BY_TIME)]
        found.append(Knobs.from_mapping(knobs))
    return found


def bench_restored(
    model: Path, judge: Judge, given: Sequence[Knobs], *, rounds: int, tokens: int, warm_up: Sequence[int] = (8,),
    trust_code: bool = False,
) -> dict[str, Any]:  # fmt: skip
    """Measure each setting `rounds` times with computed and with restored prompts, in turns, for each number of `warm_up`
    tokens. Raises `HeadraceError` if prompts cannot be kept."""
    from engine.engine import load
    from engine.prompt_cache.kept import Keeping

    rows = []
    with tempfile.TemporaryDirectory() as folder:
        keeping = Keeping(folder=Path(folder), say=lambda line: None)

        def measured(knobs: Knobs, prefill: str, warmed: int) -> Measurement:
            protocol = Protocol(warm_up_tokens=warmed, timed_tokens=tokens, score=False, prefill=prefill)
            with load(model, knobs, trust_code=trust_code) as engine:
                return engine.measure(judge, protocol, keeping=keeping)

        for warmed in warm_up:
            for knobs in given:
                measured(knobs, RESTORED, warmed)  # keeps the prompts, and reads the files into the page cache
                both: dict[str, list[Measurement]] = {REAL: [], RESTORED: []}
                for number in range(rounds):
                    for prefill in (REAL, RESTORED) if number % 2 == 0 else (RESTORED, REAL):
                        both[prefill].append(measured(knobs, prefill, warmed))
                rows.append(_row(knobs, warmed, both))
                _print(rows[-1])
    return {"bench": "restored", "rounds": rounds, "tokens": tokens, "summary": _summary(rows), "rows": rows}


def _row(knobs: Knobs, warmed: int, both: dict[str, list[Measurement]]) -> dict[str, Any]:
    if any(one.prefill != RESTORED for one in both[RESTORED]):
        raise HeadraceError(
            f"bench restored: no prompt is kept with cache_gb={knobs.cache_gb:.4g}; see python -m engine measure"
        )
    misses = {name: [one.misses for one in runs] for name, runs in both.items()}
    speeds = {name: [one.decode_tok_s for one in runs] for name, runs in both.items()}
    ratio = statistics.mean(np.log(np.divide(speeds[RESTORED], speeds[REAL])))
    return {
        "knobs": {name: getattr(knobs, name) for name in knobs.set_names()}, "warm_up_tokens": warmed,
        "exact": knobs.prefetch == "off" and knobs.sync_window == 1,
        "misses": misses, "tok_s": speeds, "log_ratio": float(ratio),
        "filled_gb": statistics.median((one.fill_bytes or 0) / GB for one in both[RESTORED]),
    }  # fmt: skip


def _summary(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """For each number of warm-up tokens: how many settings miss the same, how far misses differ, and the ratio of speeds
    with its 95 % interval over the settings."""
    found = []
    for warmed in dict.fromkeys(row["warm_up_tokens"] for row in rows):
        own = [row for row in rows if row["warm_up_tokens"] == warmed]
        exact = [row for row in own if row["exact"]]
        timed = [row for row in own if not row["exact"]]
        logs = np.array([row["log_ratio"] for row in own])
        alone = len(logs) < 2  # no interval
        half = 0.0 if alone else T975[min(len(logs) - 1, len(T975)) - 1] * float(logs.std(ddof=1)) / len(logs) ** 0.5
        found.append({
            "warm_up_tokens": warmed, "exact": len(exact), "equal": sum(_equal(row) for row in exact),
            "by_time": len(timed), "misses_restored_over_real": _mean([_over(row) for row in timed]),
            "misses_real_over_real": _mean([_spread(row) for row in timed]),
            "speed_ratio": [float(np.exp(logs.mean() + sign * half)) for sign in (-1, 0, 1)],
        })  # fmt: skip
    for one in found:
        low, middle, high = one["speed_ratio"]
        print(f"{one['warm_up_tokens']} warm-up tokens: speed restored over real {middle:.3f} ({low:.3f} .. {high:.3f})")
        print(f"  misses equal in {one['equal']} of {one['exact']} settings without prefetch and windows")
        if one["by_time"]:
            print(
                f"  in {one['by_time']} with them, misses differ by {one['misses_restored_over_real']:+.2%} on average; "
                f"runs with computed prompts differ among themselves by {one['misses_real_over_real']:.2%}"
            )
    return found


def _equal(row: dict[str, Any]) -> bool:
    return len({*row["misses"][REAL], *row["misses"][RESTORED]}) == 1


def _over(row: dict[str, Any]) -> float:
    """The relative difference of the misses' means."""
    real, restored = (statistics.mean(row["misses"][name]) for name in (REAL, RESTORED))
    return restored / real - 1 if real else float(restored)


def _spread(row: dict[str, Any]) -> float:
    """The relative range of the misses of runs whose prompts were computed."""
    real = row["misses"][REAL]
    return (max(real) - min(real)) / statistics.mean(real) if any(real) else 0.0


def _mean(values: Sequence[float]) -> float | None:
    return statistics.mean(values) if values else None


def _print(row: dict[str, Any]) -> None:
    shown = ", ".join(f"{k}={v:.4g}" if isinstance(v, float) else f"{k}={v}" for k, v in row["knobs"].items())
    middle = {name: statistics.median(values) for name, values in row["tok_s"].items()}
    misses = {name: "/".join(map(str, sorted(set(values)))) for name, values in row["misses"].items()}
    print(
        f"{middle[REAL]:8.1f} tok/s real {middle[RESTORED]:8.1f} restored  misses {misses[REAL]} and {misses[RESTORED]}  "
        f"filled {row['filled_gb'] * 1e3:.1f} MB  {shown}"
    )
