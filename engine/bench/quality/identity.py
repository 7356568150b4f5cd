"""bench identity: logits of the streamed model beside those of the resident one, for a prompt and for single tokens.

On the CPU backend both are equal to the last bit. A GPU's kernels depend on the number of tokens of a pass, and a streamed
prompt is computed with some of its tokens at a time where its experts do not fit. Two controls show how large differences of
this kind are without streaming: the resident model again, and the resident model with the prompt in halves. The tokens are
random, and those that are decoded do not follow the prompt, so that no difference of the prompt reaches them.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from engine.checkpoint.checkpoint import Checkpoint
from engine.cli.arguments.opening import add_trust_code
from engine.cli.arguments.options import add_knobs, add_model, knobs_given, model_of, positive
from engine.errors import HeadraceError, first_line
from engine.knobs import LOSSY, Knobs
from engine.plan.footprint import weights_of
from engine.system.strict_json import to_json

if TYPE_CHECKING:
    from engine.engine import Engine

TRIED: tuple[dict[str, Any], ...] = ({}, {"sync_window": 0}, {"prefetch": "stale_gate"})
OWN = ("cache_gb", "sync_window", *(name for name in Knobs.names() if name.startswith("prefetch")), *LOSSY)
Logits = tuple[np.ndarray, np.ndarray]  # [tokens, vocabulary] of the prompt and of the single tokens


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the command."""
    add_model(parser, positional=True)
    add_trust_code(parser)
    text = "shares of the experts that are cached (default: 0.25 0.75)"
    parser.add_argument("--cached", type=float, nargs="+", default=[0.25, 0.75], metavar="SHARE", help=text)
    parser.add_argument(
        "--prompt", type=positive, default=96, metavar="N", help="tokens of the prompt (default: %(default)s)"
    )
    text = "single tokens (default: %(default)s)"
    parser.add_argument("--tokens", type=positive, default=32, metavar="N", help=text)
    add_knobs(parser, [name for name in Knobs.names() if name not in OWN])


def run(args: argparse.Namespace) -> None:
    """Compare the logits of the streamed model with the resident one's."""
    print(
        to_json(
            bench_identity(
                model_of(args), knobs_given(args), args.cached, prompt=args.prompt, tokens=args.tokens,
                trust_code=args.trust_code,
            )
        )
    )  # fmt: skip


def bench_identity(
    model: Path, given: dict[str, Any], cached: list[float], *, prompt: int, tokens: int, trust_code: bool = False
) -> dict[str, Any]:
    """Print and return the largest difference of the logits of each setting, and of the controls, from the resident model.
    `scale` is the largest logit. A setting that the model refuses has `refused`, and no figures."""
    from engine.engine import load

    source = Checkpoint.open(model, trust_code=trust_code)
    rng = np.random.default_rng(0)
    ids = rng.integers(0, source.built.vocabulary, prompt + tokens).tolist()
    with load(model, trust_code=trust_code) as engine:
        mode, expected = engine.mode, _logits(engine, ids, prompt)
        again = _differences(_logits(engine, ids, prompt), expected)
        halves = _differences(_logits(engine, ids, prompt, parts=2), expected)
    scale = float(max(np.abs(part).max() for part in expected))
    print(f"{source.name}, {mode}: prompt of {prompt} tokens, {tokens} single tokens; the largest logit is {scale:.3g}")
    print("largest difference of a logit from the resident model:")
    print(f"{'':48}{'prompt':>12}{'single tokens':>16}")
    rows: list[dict[str, Any]] = []
    for name, found in (("control: resident again", again), ("control: resident, the prompt in halves", halves)):
        rows.append({"setting": name, "cached": None, "prompt": found[0], "single": found[1], "refused": None})
        _print(rows[-1])
    whole = weights_of(source, Knobs())
    for share in cached:
        for setting in TRIED:
            gb = max(whole.one_token_gb, share * whole.all_experts_gb)
            knobs = Knobs.from_mapping({**given, **setting, "cache_gb": gb})
            shown = knobs.shown("prefetch" if "prefetch" in setting else "sync_window")
            row: dict[str, Any] = {"setting": shown, "cached": share, "refused": None}
            try:
                with load(model, knobs, trust_code=trust_code) as engine:
                    row["prompt"], row["single"] = _differences(_logits(engine, ids, prompt), expected)
            except HeadraceError as e:
                row["refused"] = first_line(e)
            rows.append(row)
            _print(row)
    return {
        "bench": "identity", "model": source.name, "mode": mode, "prompt_tokens": prompt, "single_tokens": tokens,
        "scale": scale, "knobs": given, "rows": rows,
    }  # fmt: skip


def _logits(engine: Engine, ids: list[int], prompt: int, parts: int = 1) -> Logits:
    """The logits of the prompt, the first of `ids`, in so many parts, and of the other tokens one by one from an empty
    context."""
    from mlx_lm.models.cache import make_prompt_cache

    cache, size = make_prompt_cache(engine.model), -(-prompt // parts)
    found = [
        part for at in range(0, prompt, size) for part in engine.forward.prefill(ids[at : min(at + size, prompt)], cache)
    ]
    cache = make_prompt_cache(engine.model)
    single = [engine.forward.logits([token], cache) for token in ids[prompt:]]
    return np.concatenate([np.array(part) for part in found]), np.concatenate([np.array(part) for part in single])


def _differences(found: Logits, expected: Logits) -> tuple[float, float]:
    prompt, single = (float(np.abs(a - b).max()) for a, b in zip(found, expected, strict=True))
    return prompt, single


def _print(row: dict[str, Any]) -> None:
    name = row["setting"] if row["cached"] is None else f"{row['cached']:.1%} cached, {row['setting']}"
    print(f"{name:48}" + (row["refused"] or f"{row['prompt']:>12.3g}{row['single']:>16.3g}"), flush=True)
