"""Facts of the page in words: what was asked and found, savings, memory against its prediction, and how to repeat it."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from engine.system.shipped import home
from harness.analysis.failures import FAILED, cause
from harness.best.commands import cannot_run, commands_of, confirm_more
from harness.decisions.recommend import compared, speed_of
from harness.results.metrics import SHORT
from harness.show.lines import confirmation, savings
from harness.show.text import duration, number, with_interval

from .summary import Summary

HOME = re.compile(r"(?:(?:\.\./)+|/)(?:(?:home|Users)/[^/\s'\"\\]+|root)(?=[/\s'\"\\]|$)")
URL = re.compile(r"(?<=[\s='\"])\w+(?:\+\w+)?://[^\s'\"]+")
WORDS = {"decode_tok_s": "decoding speed", "prefill_tok_s": "prefill speed", "ttft_ms": "time to first token",
         "peak_memory_gb": "memory", "perplexity": "perplexity", "kl": "KL divergence",
         "bytes_per_token": "bytes read per token"}  # fmt: skip
VERSIONS = {"headrace_version": "headrace", "mlx": "MLX", "mlx_lm": "mlx-lm", "optuna": "Optuna", "python": "Python",
            "commit": "commit"}  # fmt: skip


class Command(NamedTuple):
    """A command for a shell, and what it is for."""

    what: str
    text: str


def sentences(summary: Summary) -> list[str]:
    """Three sentences: what was asked, what was found, and how certain it is."""
    return [_asked(summary), _found(summary), _certain(summary)]


def _asked(summary: Summary) -> str:
    config, objectives = summary.config, _listed([WORDS[n] for n in summary.objectives])
    space = config.get("search_space")
    knobs = f"{len(space)} knobs" if isinstance(space, dict) and space else "the knobs"
    limits = config.get("constraints")
    under = f" with {_listed([str(c) for c in limits])}" if isinstance(limits, list) and limits else ""
    took = summary.df["wall_s"].astype(float).sum()
    ran = f"{summary.counts.trials} trial{'' if summary.counts.trials == 1 else 's'} ran in {duration(took)}"
    of = f" of {summary.title}," if summary.title else ""
    return f"The search varied {knobs}{of} for the best {objectives}{under}; {ran}."


def _found(summary: Summary) -> str:
    points = {name: point for name, point, _ in summary.named if point is not None}
    if not len(summary.df):
        return "No trial has run yet."
    if not len(summary.front):
        return f"No trial on the front yet; the last error was: {summary.last_error}."
    name = next((n for n in ("fastest", "fastest_lossless", "least_memory") if n in points), None)
    if name is None:
        return "No measured setting meets the rule of a recommended setting."
    point, default, speed = points[name], points.get("default"), speed_of(summary.objectives)
    what = f"The setting {name} is trial {point['trial']} with {with_interval(point, speed)} {SHORT[speed]}"
    if default is None:
        return f"{what}; the default was not measured."
    if point["trial"] == default["trial"]:
        return f"{what}; it is the default itself, which no trial beats within the rule."
    return f"{what}: {compared(summary.found, point, default)}."


def _certain(summary: Summary) -> str:
    counts, best = summary.counts, summary.front
    failed = sum(n for status, n in counts.fates.items() if status in FAILED)
    more = [f"{failed} trial{'' if failed == 1 else 's'} failed"] if failed else []
    if len(best):
        undecided = int((summary.standings["standing"] == "undecided").sum())
        more = [f"{undecided} more {'is' if undecided == 1 else 'are'} undecided"] * (undecided > 0) + more
        sure = {c.name: c for c in summary.choices if c.trial is not None}
        lacking = [n for n, c in sure.items() if not c.confirmed]
        state = f"not confirmed: {_listed(lacking)}" if lacking else "every recommended setting is confirmed"
        front = f"{len(best)} setting{'' if len(best) == 1 else 's'}, {int(best['confirmed'].sum())} of them confirmed"
        return f"The front has {front}; {'; '.join([*more, state])}."
    return f"Nothing is confirmed{'; ' if more else ''}{'; '.join(more)}."


def commands(summary: Summary) -> list[tuple[str, dict[str, str]]]:
    """(names and trial, commands by verb) of each recommended trial; the reason in brackets if none can use it."""
    found = []
    for trial, names in summary.used.items():
        row = summary.df[summary.df["trial"] == trial].iloc[0]
        point = {**row, **summary.standings.loc[trial]}
        choice = next(c for c in summary.choices if c.name == names[0])
        given = commands_of(summary.folder, choice, point) or {"": f"({cannot_run(point)})"}
        found.append((f"{', '.join(names)} (trial {trial})", given))
    return found


def rules(summary: Summary) -> list[tuple[str, str, str]]:
    """(name, rule, outcome) of each recommended setting."""
    lines = []
    default = next((point for name, point, _ in summary.named if name == "default"), None)
    for name, point, choice in summary.named:
        if choice is None:
            continue
        if point is None:
            lines.append((name, choice.rule, f"not met: {choice.reason}"))
            continue
        than = "the default was not measured" if default is None else compared(summary.found, point, default)
        sure = confirmation(choice, int(point["fresh_runs"]), summary.found.runs)
        lines.append((name, choice.rule, f"trial {choice.trial}: {than}; {sure}"))
    return lines


def repeat(summary: Summary) -> list[Command]:
    """The commands that repeat the study, confirm more of it, and draw this page again."""
    found = []
    if command := summary.manifest.get("command"):
        found.append(Command("run the study, or resume it", str(command)))
    lacking = any(not c.confirmed for c in summary.choices if c.trial is not None)
    if lacking and (command := confirm_more(summary.folder)):
        found.append(Command("confirm the settings that are not confirmed", command))
    return [*found, Command("draw this page again", f"python -m harness.report {summary.name}")]


def identity(summary: Summary) -> list[tuple[str, str]]:
    """(name, value) of what a repetition needs: machine, model, versions, texts and protocol."""
    df, config = summary.df, summary.config
    one = lambda name: ", ".join(dict.fromkeys(number(v, 4) for v in df[name].dropna())) if name in df else ""  # noqa: E731
    protocol = config.get("protocol")
    machine = [one("device"), one("cpu"), f"{one('cores')} cores" if one("cores") else "", one("os")]
    memory = f"{one('machine_memory_gb')} GB" if one("machine_memory_gb") else ""
    versions = [f"{label} {one(name)}" for name, label in VERSIONS.items() if one(name)]
    dirty = df["dirty"].eq(True).any() if len(df) else False
    facts = [
        ("machine", ", ".join(dict.fromkeys(w for w in (*machine, memory) if w))),
        ("backend", one("backend")),
        ("memory limit", f"{one('limit_gb')} GB" if one("limit_gb") else ""),
        ("limits of", f"{one('device_profile')}, which is not this machine" if one("device_profile") else ""),
        ("read limit", f"{one('ssd_gbps')} GB/s (simulated disk)" if one("ssd_gbps") else ""),
        ("model", one("model")),
        ("architecture", one("architecture")),
        ("model fingerprint", one("model_fingerprint")),
        ("engine", one("engine")),
        ("evaluation texts", " ".join(w for w in (one("eval_texts"), f"({one('eval_fingerprint')})") if w != "()")),
        ("versions", ", ".join(versions) + (" with local changes" if dirty else "")),
        ("objectives", ", ".join(summary.objectives)),
        ("protocol", ", ".join(f"{k}={v}" for k, v in protocol.items()) if isinstance(protocol, dict) else ""),
        ("sampler", ", ".join(w for w in (one("sampler"), f"seed {one('seed')}" if one("seed") else "") if w)),
        ("search space", one("space")),
    ]
    return [(name, value) for name, value in facts if value]


def saved_rows(summary: Summary) -> list[tuple[str, str, int]]:
    """(reason, time saved, runs) of everything that was not measured because its result was known."""
    return [(reason, duration(seconds), runs) for reason, seconds, runs in savings(summary.df)]


def failures(df: pd.DataFrame) -> list[tuple[str, int, int]]:
    """(cause, runs, newest trial) of the failed runs, the most frequent first."""
    some = df[df["status"].isin(FAILED)]
    if not len(some):
        return []
    causes = [(cause(row), int(row["trial"])) for row in some[["status", "status_reason", "trial"]].to_dict("records")]
    newest = dict(causes)
    return [(what, n, newest[what]) for what, n in Counter(what for what, _ in causes).most_common()]


def memory_forecast(summary: Summary) -> str:
    """The measured peak against the memory predicted before the run; empty without both."""
    pairs = forecast_pairs(summary)
    if not len(pairs):
        return ""
    apart = pairs["peak_memory_gb"].astype(float) - pairs["predicted_peak_gb"].astype(float)
    span = f"{number(apart.min(), 3)} to {number(apart.max(), 3)} GB"
    return (
        f"Over {len(pairs)} trials the measured peak is {number(float(apart.median()), 3)} GB above the prediction in the "
        f"median ({span}). The prediction counts weights only: no activations, no KV cache, no Python."
    )


def forecast_pairs(summary: Summary) -> pd.DataFrame:
    """The trials with predicted and measured memory."""
    every = summary.found.estimates if len(summary.df) else summary.df
    return every[every["predicted_peak_gb"].notna() & every["peak_memory_gb"].notna()] if len(every) else every


def scrubbed(text: str) -> str:
    """A text to publish: home folders are `~`, and addresses of servers are left out."""
    own = home()
    text = text.replace(str(own), "~") if own not in (None, Path("/")) else text
    return URL.sub("URL", HOME.sub("~", text))


def _listed(words: list[Any]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}" if words else ""
