"""The engine's command line.

    python -m engine generate --prompt "The query planner" --cache-gb 0.02
    python -m engine measure --cache-gb 0.02 --judge experiments/prompts/headrace_v1.yaml
    python -m engine quality experiments/kimi_mini/checkpoint --expert-bits 2
    python -m engine inspect --model ~/models/Kimi-K2.5

Every knob is an option. Without `--model` the embedded kimi_mini is used.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

from engine.bench.command import add_bench_options, bench
from engine.cli.options import add_knobs, knobs_given, knobs_of, refuse_ignored
from engine.errors import HeadraceError
from engine.knobs import GB, LOSSY, Knobs
from engine.measure.protocol import Protocol

if TYPE_CHECKING:
    from engine.engine import Engine
    from engine.quality.quality import Quality
    from engine.stats import Stats

ROOT = Path(__file__).resolve().parent.parent
KIMI_MINI = ROOT / "experiments" / "kimi_mini" / "checkpoint"
LOG_SECONDS = 30  # between lines of progress where there is no terminal
JUDGE = ROOT / "experiments" / "prompts" / "headrace_v1.yaml"
JSON_PROMPTS = ROOT / "experiments" / "prompts" / "json_v1.yaml"


def main(argv: list[str] | None = None) -> int:
    """Run one command; 0, or 2 after a user's error, which is one line on stderr."""
    try:
        args = _parser().parse_args(argv)
        args.command(args)
    except HeadraceError as e:
        print(f"error: {e}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    return 0


def generate(args: argparse.Namespace) -> None:
    """Print text as it comes, then what it took."""
    from engine.engine import load
    from engine.system.memory import peak_memory_bytes

    with load(args.model, knobs_of(args)) as engine, _traced(engine, args.trace_out):
        stats = engine.stats
        begin = decoding = time.perf_counter()
        prompt_tokens = None
        for text in engine.generate(args.prompt, args.max_tokens, temperature=args.temperature, seed=args.seed):
            if prompt_tokens is None:
                prompt_tokens, decoding = stats.tokens, time.perf_counter()
            print(text, end="", flush=True)
        end = time.perf_counter()
        prompt_tokens = prompt_tokens or stats.tokens
        decoded = stats.tokens - prompt_tokens
        hit_rate = "all resident" if stats.hit_rate is None else f"{stats.hit_rate:.3f}"
        print(f"\n\nprompt:      {prompt_tokens} tokens, {prompt_tokens / (decoding - begin):.1f} tok/s")
        print(f"decode:      {decoded} tokens, {decoded / (end - decoding):.1f} tok/s")
        print(f"hit rate:    {hit_rate}")
        print(f"read:        {stats.bytes_read / GB:.4f} GB in {stats.reads} reads, {stats.io_ms:.0f} ms waited")
        print(f"peak memory: {peak_memory_bytes() / GB:.3f} GB")
        print(f"mode:        {engine.mode}")


def measure(args: argparse.Namespace) -> None:
    """One pass over the judge's texts; the measurement as JSON."""
    from engine.engine import load
    from engine.measure.judge import Judge
    from engine.system.page_cache import prepare_page_cache

    judge, knobs = Judge.load(args.judge), knobs_of(args)
    protocol = Protocol(args.warm_up_tokens, args.timed_tokens, args.page_cache)
    how = prepare_page_cache(args.model, protocol.page_cache, knobs.io_mode)
    with load(args.model, knobs) as engine, _traced(engine, args.trace_out):
        measurement = engine.measure(judge, protocol)
    if args.by_layer:
        _print_layers(engine.decoded)
    print(json.dumps({**measurement.as_dict(), "protocol": protocol.as_dict(), "page_cache_by": how}, indent=1))


def quality(args: argparse.Namespace) -> None:
    """Perplexity, divergence from the reference, top-1 flips, and JSON that parses; the last line is JSON."""
    from engine.checkpoint.checkpoint import Checkpoint
    from engine.engine import load
    from engine.measure.judge import Judge
    from engine.plan.banks import plan_banks
    from engine.quality.json_prompts import JsonPrompts
    from engine.quality.quality import quality
    from engine.quality.reference import reference_file, reference_for

    knobs, judge, source = knobs_of(args), Judge.load(args.text), Checkpoint.open(args.path)
    prompts = None if args.json_prompts == "none" else JsonPrompts.load(args.json_prompts)
    if knobs.streams:
        plan_banks(source, knobs)  # refuses knobs that do not fit before the reference is computed
    source = Checkpoint.open(args.reference) if args.reference else source
    if not reference_file(source, judge, prompts).exists():
        print(f"the reference, {source.path}, is computed once", file=sys.stderr)
    reference = reference_for(source, judge, prompts)
    with load(args.path, knobs) as engine:
        result = quality(engine, judge, reference, prompts)
    _print_quality(result)
    print(f"reference: {result.reference_mode}, {reference.origin}, {reference.nbytes / 1e6:.3g} MB in memory")
    print(json.dumps({"quality": str(args.path), "knobs": knobs.as_dict(), **result.as_dict()}))


def _print_quality(result: Quality) -> None:
    from rich.console import Console
    from rich.table import Table

    def valid(share: float | None) -> str:
        return "-" if share is None else f"{round(share * result.json_prompts)} of {result.json_prompts}"

    table = Table(title=f"{result.scored_tokens} tokens, {result.mode}", box=None)
    for name in ("", "these knobs", "reference"):
        table.add_column(name, justify="right" if name else "left")
    for row in (
        ("perplexity", f"{result.perplexity:.4f} ± {result.perplexity_se:.2f}", f"{result.reference_perplexity:.4f}"),
        ("nll, nats a token", f"{result.nll:.5f}", f"{math.log(result.reference_perplexity):.5f}"),
        ("KL, nats a token", f"{result.kl:.3g} ± {result.kl_se:.2g}", ""),
        ("  at most", f"{result.kl_at_most:.3g}", ""),
        ("  99th percentile", f"{result.kl_p99:.3g}", ""),
        ("top-1 flips", f"{result.top1_flips:.2%}", ""),
        ("JSON that parses", valid(result.json_valid), valid(result.reference_json_valid)),
    ):
        table.add_row(*row)
    Console().print(table)


def _traced(engine: Engine, path: Path | None) -> AbstractContextManager[None]:
    return nullcontext() if path is None else engine.trace(path)


def _print_layers(stats: Stats) -> None:
    from rich.console import Console
    from rich.table import Table

    rows = stats.by_layer()
    if not rows:
        print("nothing is streamed: no layer reads anything")
        return
    table = Table(title="decoded tokens by layer", box=None)
    for name in rows[0]:
        table.add_column(name, justify="right")
    for row in rows:
        table.add_row(*("-" if v is None else f"{v:.3f}" if isinstance(v, float) else str(v) for v in row.values()))
    Console().print(table)


def inspect(args: argparse.Namespace) -> None:
    """Sizes of a checkpoint under the knobs, from its headers, as JSON."""
    from engine.plan.footprint import footprint

    print(json.dumps(dataclasses.asdict(footprint(args.model, knobs_of(args))), indent=1))


def pack(args: argparse.Namespace) -> None:
    """Pack a checkpoint's experts into a store: one record an expert, with several precisions in it."""
    from engine.packing.pack import pack_store
    from engine.packing.verify import verify_store

    if args.store is None and not args.verify:
        raise HeadraceError(
            f"pack {args.checkpoint}: name the folder of the store to make; or --verify a store that is there"
        )
    if args.store is not None:
        with _progress("packing") as progress:
            done = pack_store(args.checkpoint, args.store, args.levels, workers=args.workers, progress=progress)
        of_which = f", {done.kept} of them finished before" if done.kept else ""
        sizes = f"{done.source_bytes / GB:.4g} GB -> {done.store_bytes / GB:.4g} GB"
        print(f"{args.store}: {done.layers} layers{of_which}, {sizes}")
        for bits, error in zip(done.levels, done.relative_rmse, strict=True):
            print(f"{bits} bits: relative RMSE {error:.4f}")
        print(f"exact at {done.levels[-1]} bits: {done.exact} of {done.projections} projections")
    if args.verify:
        path = args.store or args.checkpoint
        with _progress("verifying") as progress:
            bad = verify_store(path, progress)
        for line in bad:
            print(line)
        if bad:
            raise HeadraceError(f"{path}: damaged parts: {len(bad)}; copy their files again, or pack the model again")
        print(f"{path}: everything is as it was packed")


@contextmanager
def _progress(what: str) -> Iterator[Callable[[int, int], None]]:
    """From the first bytes on: a bar with speed and time left on a terminal, else, for a log, a line now and then."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    console = Console(stderr=True)
    if not console.is_terminal:
        yield _lines(what)
        return
    columns = TextColumn(what), BarColumn(None), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn(compact=True)
    bar = Progress(*columns, console=console, expand=True)
    task = bar.add_task(what, total=None)

    def update(done: int, of: int) -> None:
        bar.update(task, completed=done, total=of)
        bar.start()

    try:
        yield update
    finally:
        bar.stop()


def _lines(what: str) -> Callable[[int, int], None]:
    begun = told = 0.0
    first = -1

    def update(done: int, of: int) -> None:
        nonlocal begun, told, first
        now = time.monotonic()
        if first < 0:
            begun, told, first = now, now, done
        if now - told >= LOG_SECONDS and done > first:
            speed, told = (done - first) / (now - begun), now
            figures = f"{done / GB:.1f} of {of / GB:.1f} GB, {speed / 1e6:.0f} MB/s, {(of - done) / speed / 60:.0f} min left"
            print(f"{what}: {figures}", file=sys.stderr, flush=True)

    return update


def replay(args: argparse.Namespace) -> None:
    """Hit rates of a recorded routing trace under eviction's half-lives, beside Belady's optimum."""
    from rich.console import Console
    from rich.table import Table

    from engine.cache.replay import replay_table
    from engine.routing.read import overlap, read_trace

    trace = read_trace(args.trace)
    experts = args.experts or int(trace.experts.max()) + 1
    rows = replay_table(trace, experts, args.slots or [experts // 8, experts // 4, experts // 2], args.half_life)
    table = Table(title=f"hit rate by slots a layer, of {experts} experts ({trace.shape})", box=None)
    for name in rows[0]:
        table.add_column(name, justify="left" if name == "policy" else "right")
    for row in rows:
        table.add_row(*(v if isinstance(v, str) else f"{v:.3f}" for v in row.values()))
    Console().print(table)
    print(f"the token before had chosen {overlap(trace):.3f} of the experts")
    print(json.dumps({"replay": str(trace.path), "experts": experts, "overlap": overlap(trace), "rows": rows}))


def plan(args: argparse.Namespace) -> None:
    """Say what every expert gets in bits, layer by layer; write it to a file, draw it."""
    from rich.console import Console
    from rich.table import Table

    from engine.checkpoint.checkpoint import Checkpoint
    from engine.plan.banks import needs_profile, plan_bits
    from engine.plan.bits import hot_share_for
    from engine.plan.bits_file import save_plan
    from engine.plan.bits_plot import layer_rows, plot_plan
    from engine.plan.footprint import experts_gb
    from engine.routing.profile import Profile, routing_profile

    checkpoint, given = Checkpoint.open(args.path), knobs_given(args)
    refuse_ignored("plan", sorted(given.keys() - set(LOSSY)), "is about bits alone")
    wanted = Knobs(**given)
    if args.average_bits is not None:
        refuse_ignored(
            "plan --average-bits", [name for name in ("hot_share", "bits_plan") if name in given], "says the budget"
        )
        wanted = dataclasses.replace(wanted, hot_share=hot_share_for(checkpoint, wanted, args.average_bits))
    bits = plan_bits(checkpoint, wanted)  # what is wrong with the knobs shows before a profile is taken
    profile = None
    if args.trace is not None or needs_profile(wanted):
        profile = routing_profile(checkpoint) if args.trace is None else Profile.of_trace(args.trace, checkpoint)
        bits = plan_bits(checkpoint, wanted, profile)
    if args.out is not None:
        save_plan(args.out, bits, checkpoint, wanted, None if profile is None else profile.fingerprint)
    if args.plot is not None:
        plot_plan(bits, checkpoint, args.plot)
    rows = layer_rows(bits, checkpoint, profile)
    table = Table(title=f"bits of the routed experts of {checkpoint.name}", box=None)
    for name in rows[0]:
        table.add_column(name, justify="right")
    for row in rows:
        table.add_row(*("-" if v is None else f"{v:.3f}" if isinstance(v, float) else str(v) for v in row.values()))
    Console().print(table)
    size = experts_gb(checkpoint, bits)
    print(f"{bits.average_bits:.4g} bits on average, {size:.4g} GB for all experts, plan {bits.fingerprint or 'uniform'}")
    result = {"average_bits": bits.average_bits, "all_experts_gb": size, "plan_fingerprint": bits.fingerprint}
    print(json.dumps({"plan": str(checkpoint.path), **result, "knobs": {name: getattr(wanted, name) for name in LOSSY}}))


def knobs(args: argparse.Namespace) -> None:
    """Print the table of all knobs, as docs/knobs.md has it."""
    print(Knobs.table())


def profile(args: argparse.Namespace) -> None:
    """Take the routing profile that cold_bits and pinned_share need; prints its path."""
    from engine.checkpoint.checkpoint import Checkpoint
    from engine.cli.offline import take_profile

    print(take_profile(Checkpoint.open(args.model)))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m engine", description="Stream Mixture-of-Experts models from the SSD.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for command in (generate, measure, quality, inspect, plan, pack, profile, knobs, bench, replay):
        text = (command.__doc__ or "").splitlines()[0]
        sub = commands.add_parser(command.__name__, help=text, description=text)
        sub.set_defaults(command=command)
        if command not in (knobs, replay, pack, plan, quality):
            sub.add_argument("--model", type=Path, default=KIMI_MINI, help="checkpoint folder (default: kimi_mini)")
        if command in (generate, measure, quality, inspect, plan, bench):
            add_knobs(sub)
        if command is plan:
            sub.add_argument("path", type=Path, nargs="?", default=KIMI_MINI, help="checkpoint folder (default: kimi_mini)")
            sub.add_argument("--average-bits", type=float, metavar="X", help="the budget as average bits, not as hot_share")
            sub.add_argument("--trace", type=Path, help="routing to go by (Parquet; default: on the calibration text)")
            sub.add_argument("--out", type=Path, metavar="FILE", help="write the plan to this Parquet file, for bits_plan")
            sub.add_argument("--plot", type=Path, metavar="FILE", help="draw a heat map into this PNG file")
        if command is generate:
            sub.add_argument("--prompt", required=True)
            sub.add_argument("--max-tokens", type=int, default=64)
            sub.add_argument("--temperature", type=float, default=0.0, help="0: always the likeliest token")
            sub.add_argument("--seed", type=int, default=0)
        if command is quality:
            sub.add_argument("path", type=Path, nargs="?", default=KIMI_MINI, help="checkpoint folder (default: kimi_mini)")
            sub.add_argument("--text", type=Path, default=JUDGE, help="texts to score: YAML, or any text file")
            sub.add_argument("--reference", type=Path, metavar="PATH", help="compare with this checkpoint (default: PATH)")
            sub.add_argument("--json-prompts", default=JSON_PROMPTS, metavar="FILE", help="YAML, or none to leave them out")
        if command is bench:
            add_bench_options(sub)
        if command is pack:
            sub.add_argument("checkpoint", type=Path, help="checkpoint folder; or with --verify alone a store")
            sub.add_argument("store", type=Path, nargs="?", help="folder to make; if packing was cut off: to go on with")
            sub.add_argument(
                "--levels",
                type=_levels,
                metavar="N,N",
                help="bits, each twice the last (default: to keep the source's)",
            )
            sub.add_argument("--workers", type=_positive, help="threads that pack (default: as many as cores)")
            sub.add_argument("--verify", action="store_true", help="read all records and compare their checksums")
        if command is replay:
            sub.add_argument("trace", type=Path, help="routing trace (Parquet)")
            sub.add_argument("--slots", type=int, nargs="+", help="slots a layer (default: an eighth, a quarter, half)")
            sub.add_argument("--experts", type=int, help="experts a layer (default: as many as occur)")
            sub.add_argument("--half-life", type=float, nargs="+", default=[0.0, 4.0, 16.0, 64.0, math.inf], help="tokens")
        if command in (generate, measure):
            sub.add_argument("--trace-out", type=Path, metavar="FILE", help="write the run's routing to this Parquet file")
        if command is measure:
            sub.add_argument("--by-layer", action="store_true", help="first print hits, reads and bytes of each layer")
            sub.add_argument(
                "--warm-up-tokens", type=int, default=Protocol.warm_up_tokens, metavar="N",
                help="decoded before the clock (default: %(default)s)",
            )  # fmt: skip
            sub.add_argument(
                "--timed-tokens", type=int, metavar="N", help="decoded against the clock (default: all there are)"
            )
            sub.add_argument(
                "--page-cache",
                default=Protocol.page_cache,
                metavar="STATE",
                help="before loading: cold (drop the checkpoint's files), warm (read them through) or as_is (default)",
            )
        if command in (measure, bench):
            sub.add_argument("--judge", type=Path, default=JUDGE, help="texts to measure on: YAML, or any text file")
    return parser


def _levels(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(","))


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number} is below 1")
    return number


if __name__ == "__main__":
    sys.exit(main())
