"""Commands of the engine: each takes the parsed arguments, prints text and figures, and raises `HeadraceError`.

The heavy imports are inside the functions, so that `--help` and usage errors need neither MLX nor mlx-lm.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import sys
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engine.errors import HeadraceError
from engine.knobs import GB, LOSSY, Knobs
from engine.measure.protocol import PREFILLED, RESTORED, Protocol
from engine.system.strict_json import to_json

from .arguments.opening import opened_tokenizer
from .arguments.options import eval_texts_of, knobs_given, knobs_of, model_of, refuse_ignored, setting_of
from .progress import progress

if TYPE_CHECKING:
    from engine.engine import Engine
    from engine.plan.chunk import Chunk
    from engine.quality.quality import Quality
    from engine.setting.promise import Compared
    from engine.setting.setting_file import Setting


def measure(args: argparse.Namespace) -> None:
    """Measure one pass over the evaluation texts; prints JSON.

    A setting of a study is measured as the study did: with its evaluation texts, its protocol and its limit of the disk. The
    study's figures stand beside the measured ones, in a table on standard error and in the JSON.
    """
    from engine.engine import load
    from engine.measure.context import longest_context
    from engine.measure.judge import Judge
    from engine.measure.read_source import read_note
    from engine.plan.footprint import footprint
    from engine.setting.promise import as_dict, compare
    from engine.system.page_cache import prepare_page_cache

    of_trace = [name for name in ("trace_ahead", "trace_widths") if getattr(args, name) is not None]
    if args.trace_out is None or of_trace == ["trace_widths"]:
        refuse_ignored("measure", of_trace, f"records no {'trace' if args.trace_out is None else 'predictions'}")
    if args.trace_out is not None and args.prefill == RESTORED:
        refuse_ignored("measure", ["prefill"], "computes every prompt for a trace")
    setting = setting_of(args)
    judge, knobs, model = Judge.load(eval_texts_of(args)), knobs_of(args, search=True), model_of(args)
    given = {name: getattr(args, name) for name in ("warm_up_tokens", "timed_tokens", "page_cache", "state", "prefill")}
    given = {name: value for name, value in given.items() if value is not None}
    protocol = Protocol.from_mapping({**(setting.protocol if setting is not None else {}), **given})
    if setting is not None and knobs.ssd_gbps is not None and knobs.ssd_gbps == setting.search_only.get("ssd_gbps"):
        print(f"note: reads are limited to {knobs.ssd_gbps:g} GB/s, as in the study's measurements", file=sys.stderr)
    tokenizer = opened_tokenizer(args, model)  # before the page cache, which may read all files
    how = prepare_page_cache(model, protocol.page_cache, knobs.io_mode)
    with load(model, knobs, trust_code=args.trust_code, tokenizer=tokenizer) as engine, _traced(engine, args):
        measurement = engine.measure(judge, protocol)
        files = engine.checkpoint.files
    limited = knobs.ssd_gbps is not None
    if note := read_note(knobs.io_mode, measurement.page_cache_share, limited=limited, files=files):
        print(f"note: {note}", file=sys.stderr)
    if args.by_layer:
        if rows := engine.decoded.by_layer():
            _print_rows("decoded tokens by layer", rows)
        else:
            print("nothing is streamed: no layer reads anything")
    _print_chunk(engine.chunk, knobs)
    predicted = footprint(model, knobs, longest_context(model, judge))
    figures = {
        **measurement.as_dict(), "predicted_peak_gb": predicted.predicted_peak_gb,
        "predicted_parts_gb": dataclasses.asdict(predicted.parts_gb), "protocol": protocol.as_dict(), "page_cache_by": how,
    }  # fmt: skip
    other_state = setting is not None and protocol.state != setting.protocol.get("state", PREFILLED)
    if setting is not None and setting.measured and other_state:
        print(f"note: the study's figures are of another state than {protocol.state}, so they are left out", file=sys.stderr)
    elif setting is not None and setting.measured:
        compared = compare(setting, measurement)
        _print_promise(setting, compared)
        figures["promised"] = as_dict(compared)
    print(to_json(figures, indent=1))


def _print_promise(setting: Setting, compared: Mapping[str, Compared]) -> None:
    """Print the study's figures beside the measured ones on stderr, because stdout is JSON."""
    from rich.console import Console
    from rich.table import Table

    from engine.setting.promise import summary, table

    shown = Table(title=setting.title, box=None)
    for number, name in enumerate(("", "study", "95 % interval", "here", "one run", "")):
        shown.add_column(name, justify="right" if 0 < number < 5 else "left", no_wrap=True)
    for row in table(compared):
        shown.add_row(*row)
    console = Console(stderr=True)
    console = console if console.is_terminal else Console(stderr=True, width=120)
    console.print(shown)
    console.print(summary(compared), markup=False, highlight=False, soft_wrap=True)


def quality(args: argparse.Namespace) -> None:
    """Measure perplexity, KL divergence, top-1 flips and valid JSON.

    The values of the reference stand beside them. Its logits are computed once and stored in the user's cache folder. The
    last line is JSON.
    """
    from engine.checkpoint.checkpoint import Checkpoint
    from engine.engine import load
    from engine.measure.judge import Judge
    from engine.plan.banks import plan_banks
    from engine.quality.json_prompts import JsonPrompts
    from engine.quality.quality import quality
    from engine.quality.reference import reference_file, reference_for

    model = model_of(args)
    knobs, judge, source = (
        knobs_of(args),
        Judge.load(eval_texts_of(args)),
        Checkpoint.open(model, trust_code=args.trust_code),
    )
    tokenizer = opened_tokenizer(args, model)
    prompts = None if args.json_prompts == "none" else JsonPrompts.load(args.json_prompts)
    if knobs.streams:
        plan_banks(source, knobs)  # refuses knobs that do not fit before the reference is computed
    source = Checkpoint.open(args.reference, trust_code=args.trust_code) if args.reference else source
    if not reference_file(source, judge, prompts).exists():
        print(f"computing the reference {source.path} once", file=sys.stderr)
    reference = reference_for(source, judge, prompts)
    with load(model, knobs, trust_code=args.trust_code, tokenizer=tokenizer) as engine:
        result = quality(engine, judge, reference, prompts)
    _print_quality(result)
    print(f"reference: {result.reference_mode}, {reference.origin}, {reference.nbytes / 1e6:.3g} MB in memory")
    print(to_json({"quality": str(model), "knobs": knobs.as_dict(), **result.as_dict()}))


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
        ("  upper bound", f"{result.kl_at_most:.3g}", ""),
        ("  99th percentile", f"{result.kl_p99:.3g}", ""),
        ("top-1 flips", f"{result.top1_flips:.2%}", ""),
        ("valid JSON", valid(result.json_valid), valid(result.reference_json_valid)),
    ):
        table.add_row(*row)
    Console().print(table)


def inspect(args: argparse.Namespace) -> None:
    """Print a checkpoint's sizes under the knobs, and its predicted peak memory by parts, as JSON.

    The sizes come from the headers of its files and from the model's structure; no weight is read.
    """
    from engine.plan.chunk import Chunk
    from engine.plan.footprint import footprint

    if args.context < 1:
        raise HeadraceError(f"--context {args.context} is below 1; give the tokens of the longest text")
    found = footprint(model_of(args), knobs_of(args), args.context)
    _print_chunk(Chunk(found.prefill_chunk, found.prefill_chunk_reason), knobs_of(args))
    print(to_json(dataclasses.asdict(found), indent=1))


def _print_chunk(chunk: Chunk, knobs: Knobs) -> None:
    """Say on stderr what `prefill_chunk=auto` stands for, because stdout is JSON."""
    if not knobs.prefill_chunk:
        print(f"note: {knobs.shown('prefill_chunk')} is {chunk}", file=sys.stderr)


def pack(args: argparse.Namespace) -> None:
    """Pack a checkpoint's experts into a store.

    A store has one record for each expert, with several precisions in it. The same command resumes a packing that was
    interrupted.
    """
    from engine.packing.pack import pack_store
    from engine.packing.verify import verify_store

    source, store = _pack_paths(args)
    if store is not None and source is not None:
        with progress("packing") as update:
            done = pack_store(source, store, args.levels, workers=args.workers, progress=update)
        of_which = f", {done.kept} of them finished before" if done.kept else ""
        sizes = f"{done.source_bytes / GB:.4g} GB -> {done.store_bytes / GB:.4g} GB"
        print(f"{store}: {done.layers} layers{of_which}, {sizes}")
        for bits, error in zip(done.levels, done.relative_rmse, strict=True):
            print(f"{bits} bits: relative RMSE {error:.4f}")
        print(f"exact at {done.levels[-1]} bits: {done.exact} of {done.projections} projections")
    if args.verify:
        with progress("verifying") as update:
            bad = verify_store(store, update)
        for line in bad:
            print(line)
        if bad:
            raise HeadraceError(f"{store}: damaged parts: {len(bad)}; copy their files again, or pack the model again")
        print(f"{store}: all records match their checksums")


def _pack_paths(args: argparse.Namespace) -> tuple[Path | None, Path]:
    """The checkpoint, None for `--verify` alone, and the store. The form CHECKPOINT STORE is that of earlier versions."""
    folders: list[Path] = args.folders
    if len(folders) > 2 or (args.model and len(folders) > 1):
        raise HeadraceError(f"pack takes one store, not {' and '.join(map(str, folders))}; write --model CHECKPOINT STORE")
    if len(folders) == 2:
        return folders[0], folders[1]
    if not folders or (args.model is None and not args.verify):
        given = args.model or (folders[0] if folders else "CHECKPOINT")
        raise HeadraceError(
            f"pack needs a checkpoint and the folder of the store: --model {given} STORE; or a store with --verify"
        )
    return args.model, folders[0]


def plan(args: argparse.Namespace) -> None:
    """Print each layer's bits; save or draw the plan."""
    from engine.checkpoint.checkpoint import Checkpoint
    from engine.plan.banks import needs_profile, plan_bits
    from engine.plan.bits import hot_share_for
    from engine.plan.bits_file import save_plan
    from engine.plan.bits_plot import layer_rows, plot_plan
    from engine.plan.footprint import experts_gb
    from engine.routing.profile import Profile, routing_profile

    checkpoint, given = Checkpoint.open(model_of(args), trust_code=args.trust_code), knobs_given(args)
    wanted = Knobs(**given)
    if args.average_bits is not None:
        fixed = [name for name in ("hot_share", "bits_plan") if name in given]
        refuse_ignored("plan --average-bits", fixed, "sets the budget")
        wanted = dataclasses.replace(wanted, hot_share=hot_share_for(checkpoint, wanted, args.average_bits))
    bits = plan_bits(checkpoint, wanted)  # refuses wrong knobs before a profile is taken
    profile = None
    if args.trace is not None or needs_profile(wanted):
        profile = routing_profile(checkpoint) if args.trace is None else Profile.of_trace(args.trace, checkpoint)
        bits = plan_bits(checkpoint, wanted, profile)
    if args.out is not None:
        save_plan(args.out, bits, checkpoint, wanted, None if profile is None else profile.fingerprint)
    if args.plot is not None:
        plot_plan(bits, checkpoint, args.plot)
    _print_rows(f"bits of the routed experts of {checkpoint.name}", layer_rows(bits, checkpoint, profile))
    size = experts_gb(checkpoint, bits)
    print(f"{bits.average_bits:.4g} bits on average, {size:.4g} GB for all experts, plan {bits.fingerprint or 'uniform'}")
    result = {"average_bits": bits.average_bits, "all_experts_gb": size, "plan_fingerprint": bits.fingerprint}
    print(to_json({"plan": str(checkpoint.path), **result, "knobs": {name: getattr(wanted, name) for name in LOSSY}}))


def knobs(args: argparse.Namespace) -> None:
    """Print the table of all knobs, as docs/knobs.md has it."""
    print(Knobs.table())


def shapes(args: argparse.Namespace) -> None:
    """List the shapes of published models, or describe one as JSON.

    Bits and GB are those of the published weights, without multi-token prediction and vision. The numbers follow from the
    modules that mlx-lm builds, which takes ten seconds for all of them.
    """
    from rich.console import Console
    from rich.table import Table

    from engine.shapes import library
    from engine.shapes.listing import COLUMNS, describe, row

    if args.shape is not None:
        print(to_json(describe(library.shape(args.shape)), indent=1))
        return
    table = Table(box=None)
    for name in COLUMNS:
        table.add_column(name, justify="left" if name in ("shape", "source") else "right", no_wrap=name != "source")
    for shape in library.shapes():
        table.add_row(*(f"{v:.4g}" if isinstance(v, float) else str(v) for v in row(shape)))
    Console().print(table)


def profile(args: argparse.Namespace) -> None:
    """Take the routing profile of a model; prints its path.

    cold_bits and pinned_share need the profile, and take it themselves if it is missing.
    """
    from engine.checkpoint.checkpoint import Checkpoint
    from engine.cli.offline import take_profile

    print(take_profile(Checkpoint.open(model_of(args), trust_code=args.trust_code)))


def _traced(engine: Engine, args: argparse.Namespace) -> AbstractContextManager[None]:
    from engine.routing.traces.ahead import ahead_for

    if args.trace_out is None:
        return nullcontext()
    ahead = None
    if args.trace_ahead is not None:
        ahead = ahead_for(args.trace_ahead, args.trace_widths or [1.0], engine.checkpoint.top_k)
    return engine.trace(args.trace_out, ahead)


def _print_rows(title: str, rows: Sequence[Mapping[str, Any]]) -> None:
    """Print a table of numbers: three decimals for a float, `-` for None."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title, box=None)
    for name in rows[0]:
        table.add_column(name, justify="right")
    for row in rows:
        table.add_row(*("-" if v is None else f"{v:.3f}" if isinstance(v, float) else str(v) for v in row.values()))
    Console().print(table)
