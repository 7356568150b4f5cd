"""bench serve: the server against `generate` on the same engine, several clients, and the reads of a second turn.

Server and `generate` answer the same prompts in turns. The first figure is the rate between the first and the last token, so
that prefill does not count. The second is the processor time of the whole answer, all threads of the process, per token; it
changes less with other load on the machine. Every prompt is new, so that the prompt cache favours neither.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from engine.engine import Engine, load
from engine.errors import HeadraceError
from engine.knobs import Knobs
from engine.measure.judge import Judge
from engine.serve.options import ServeOptions
from engine.serve.server import serving

from ..contender import Contender, in_turns, ratios, spread
from .clients import Clients, clients_of, figures
from .soak import soak

CLIENTS = (1, 2, 4)
PROMPT_CHARACTERS = 80
FIRST_TURN, ANSWER, ROOM = 2000, 32, 200  # tokens: of the first turn, of its answer, and left of the context
FOLLOW_UP = "Say that again in one sentence."


def bench_serve(
    model: Path,
    knobs: Knobs,
    judge: Judge,
    *,
    rounds: int,
    tokens: int,
    parallel: int,
    minutes: float,
    trust_code: bool = False,
) -> dict[str, Any]:
    """Decode speed of server and `generate` with the ratio's quartiles, figures with 1, 2 and 4 clients, bytes read before
    the first token of a first and a second turn, and memory over `minutes` of random requests."""
    if tokens < 2:
        raise HeadraceError(f"--tokens {tokens} is below 2; a rate needs two tokens")
    options = ServeOptions(port=0, parallel=parallel, queue=max(CLIENTS))
    opened = load(model, knobs, trust_code=trust_code)
    with opened as engine, serving(engine, options) as server, clients_of(server.url) as clients:
        prompts = _prompts(judge)
        result: dict[str, Any] = {"bench": "serve", "mode": engine.mode, "parallel": parallel, "tokens": tokens}
        result |= _overhead(engine, clients, prompts, rounds, tokens)
        print(f"{'clients':<10}{'tok/s':>10}{'TTFT ms':>10}{'most':>10}")
        for count in CLIENTS:
            bodies = [[_body(next(prompts), tokens) for _ in range(max(1, rounds // 4))] for _ in range(count)]
            found = figures(clients.at_once(bodies))
            result.setdefault("clients", {})[str(count)] = found
            print(f"{count:<10}{found['tok_s']:>10.1f}{found['ttft_ms']:>10.1f}{found['ttft_ms_most']:>10.1f}")
        result["second_turn"] = _second_turn(engine, server.service.generator, clients, judge)
        if minutes:
            result["soak"] = soak(clients, server.service.generator, minutes, [next(prompts) for _ in range(64)], tokens)
        return {**result, "knobs": knobs.as_dict()}


def _overhead(engine: Engine, clients: Clients, prompts: Iterator[str], rounds: int, tokens: int) -> dict[str, Any]:
    """Rates of `generate` and of the server, in turns on the same prompts."""
    of_round: dict[int, str] = {}
    texts: dict[str, list[str]] = {"generate": [], "serve": []}
    cpu_ms: dict[str, list[float]] = {"generate": [], "serve": []}

    def prompt(number: int) -> str:
        return of_round.setdefault(number, next(prompts))

    def generate() -> float:
        times, pieces, begin = [], [], time.process_time()
        for piece in engine.generate(prompt(len(contenders[0].figures)), tokens):
            times.append(time.perf_counter())
            pieces.append(piece)
            if len(times) == tokens:
                break
        texts["generate"].append("".join(pieces))
        cpu_ms["generate"].append((time.process_time() - begin) * 1e3 / len(times))
        return _rate(len(times), times[-1] - times[0])

    def serve() -> float:
        begin = time.process_time()
        answer = clients.one(_body(prompt(len(contenders[1].figures)), tokens))
        texts["serve"].append(answer["text"])
        cpu_ms["serve"].append((time.process_time() - begin) * 1e3 / answer["tokens"])
        return _rate(answer["tokens"], answer["decode_s"])

    contenders = [Contender("generate", generate), Contender("serve", serve)]
    in_turns(contenders, 1)  # compilation and first use of memory
    for contender in contenders:
        contender.figures.clear()
    of_round.clear()
    for name in texts:
        texts[name].clear()
        cpu_ms[name].clear()
    in_turns(contenders, rounds)
    share, low, high = ratios(contenders[1], contenders[0])
    cpu = spread([a / b for a, b in zip(cpu_ms["serve"], cpu_ms["generate"], strict=True)])
    same = sum(a.startswith(b) or b.startswith(a) for a, b in zip(texts["generate"], texts["serve"], strict=True)) / rounds
    print(f"decode, {engine.mode}, {rounds} turns of {tokens} tokens, one client")
    for contender in contenders:
        lower, upper = contender.quartiles
        print(f"  {contender.name:<10}{contender.median:8.1f} tok/s  ({lower:.1f} .. {upper:.1f})")
    print(f"  share     {share:8.3f}        ({low:.3f} .. {high:.3f}), {same:.0%} of the texts equal")
    print(f"  processor {cpu[1]:8.3f}        ({cpu[0]:.3f} .. {cpu[2]:.3f}), time per token over that of generate")
    return {
        "generate_tok_s": contenders[0].median, "serve_tok_s": contenders[1].median, "share": share,
        "share_quartiles": [low, high], "cpu_share": cpu[1], "cpu_share_quartiles": [cpu[0], cpu[2]], "same_text": same,
    }  # fmt: skip


def _second_turn(engine: Engine, generator: Any, clients: Clients, judge: Judge) -> dict[str, Any]:
    """Bytes read before the first token of a conversation's first and second turn."""
    limit = generator.limit.tokens
    wanted = FIRST_TURN if limit is None else min(FIRST_TURN, limit - ROOM)
    words = itertools.cycle(" ".join(text.prompt + text.continuation for text in judge.texts).split())
    first = "Read this.\n"
    while len(engine.encode(first)) < wanted:
        first += " ".join(itertools.islice(words, 20)) + " "

    def reads(text: str, tokens: int = 1) -> tuple[int, dict[str, Any]]:
        before = engine.stats.bytes_read
        answer = clients.one(_body(text, tokens))
        return engine.stats.bytes_read - before, answer

    read_first, one = reads(first)
    _, rest = reads(first, ANSWER)
    read_second, two = reads(f"{first}{rest['text']}\n{FOLLOW_UP}\n")
    share = read_second / read_first if read_first else None
    result = {
        "first_turn_tokens": len(engine.encode(first)), "first_turn_bytes": read_first, "second_turn_bytes": read_second,
        "second_turn_cached_tokens": two["cached"], "share": share, "first_turn_ttft_ms": one["ttft_s"] * 1e3,
        "second_turn_ttft_ms": two["ttft_s"] * 1e3,
    }  # fmt: skip
    shown = "none" if share is None else f"{share:.3f}"
    read = f"{read_second / 1e6:.1f} of {read_first / 1e6:.1f} MB"
    print(f"second turn after {result['first_turn_tokens']} tokens: {read} before the first token ({shown})")
    return result


def _prompts(judge: Judge) -> Iterator[str]:
    """Prompts that all begin differently."""
    for number, text in enumerate(itertools.cycle(judge.texts)):
        yield f"{number} {text.prompt[:PROMPT_CHARACTERS]}"


def _body(prompt: str, tokens: int) -> dict[str, Any]:
    return {"prompt": prompt, "max_tokens": tokens, "temperature": 0}


def _rate(tokens: int, seconds: float) -> float:
    if tokens < 2:
        raise HeadraceError("the model ended a text after one token, which gives no rate; give other --eval-texts")
    return (tokens - 1) / seconds
