"""The command ``automagic doctor``."""

from __future__ import annotations

import argparse
import json
import math
import textwrap
from collections.abc import Iterator
from typing import Any

EPILOG = """examples:
  automagic doctor                  a page to read, and to paste into a bug report
  automagic doctor --json > doctor.json
  automagic doctor --full           also what compiles for minutes

Nothing is written or sent. No path, host or user name is in the output. The exit code is 1 where an executor
steps otherwise than the reference.
"""
WIDTH = 110


def add_parser(commands: Any) -> None:
    """The subcommand's options."""
    p = commands.add_parser(
        "doctor",
        help="what is installed, what runs, whether it is right and how fast",
        description="One page on this environment: versions, executors and why, a self-test, speed.",
        epilog=EPILOG,
    )
    p.add_argument("--json", action="store_true", help="the same as JSON")
    p.add_argument("--device", metavar="NAME", help="cpu, cuda, xpu or mps (default: the best that is there)")
    p.add_argument("--full", action="store_true", help="also test what compiles for long")
    p.add_argument("--speed", action=argparse.BooleanOptionalAction, help="time steps (default on)")


def examine(device: str | None = None, full: bool = False, timed: bool = True) -> dict[str, Any]:
    """The report as plain values.

    Args:
        device: type of the device to test; None: the accelerator, else the CPU.
        full: also what compiles for long.
        timed: whether steps are timed.
    """
    from . import environment, selftest

    facts = environment.environment()
    kinds = [str(found["type"]) for found in facts["devices"]]
    device = device or kinds[-1]
    if device not in kinds:
        raise ValueError(f"--device {device!r} is not here: {', '.join(dict.fromkeys(kinds))}")
    facts["device"] = device
    facts["engines"] = selftest.engines(device)
    # The CPU's kernels are at work beside an accelerator too: with offload="cpu".
    facts["self_test"] = [
        row for kind in dict.fromkeys(("cpu", device)) for row in selftest.self_test(kind, full)
    ]
    facts["timed_parameters"] = sum(math.prod(shape) for shape in selftest.SPEED)
    facts["speed"] = selftest.speed(device) if timed else []
    for row in [*facts["engines"], *facts["self_test"]]:
        row["why"] = row["why"] and environment.neutral(row["why"])
    return facts


def wrong(facts: dict[str, Any]) -> bool:
    """Whether an executor does not what the reference does."""
    return any(row["verdict"] == "DIFFERS" for row in facts["self_test"])


def text(facts: dict[str, Any]) -> str:
    """The page."""
    return "\n".join(_lines(facts))


def _lines(facts: dict[str, Any]) -> Iterator[str]:
    for title, words in _facts(facts):
        yield textwrap.fill(words, WIDTH, initial_indent=f"{title:<14}", subsequent_indent=" " * 14)
    yield f"\nexecutors on {facts['device']}, by default"
    told: dict[tuple[str, str], list[str]] = {}
    for row in facts["engines"]:
        whole = "" if row["share"] > 0.999 else f" ({row['share']:.0%})"
        told.setdefault((row["engine"], row["why"]), []).append(row["optimizer"] + whole)
    for (engine, why), names in told.items():
        yield textwrap.fill(f"{engine}: {why}", WIDTH, initial_indent="  ", subsequent_indent="    ")
        yield textwrap.fill(", ".join(names), WIDTH, initial_indent="    ", subsequent_indent="    ")
    yield "\nself-test: one step beside plain torch, difference in units of the largest move"
    for row in facts["self_test"]:
        found = "" if row["difference"] is None else f"{row['difference']:.0e}"
        line = f"  {row['verdict']:<10}{row['engine']:<10}{row['device']:<6}{row['optimizer']:<34}{found:<7}"
        yield (line + (row["why"] or "")).rstrip()
    if facts["speed"]:
        many = f"{facts['timed_parameters']:,} parameters"
        yield f"\nmilliseconds of a step on {facts['device']}, {many}, and times AdamW's"
    for row in facts["speed"]:
        yield f"  {row['optimizer']:<34}{row['milliseconds']:>8.2f}{row['of_adamw']:>8.2f}"


def _facts(facts: dict[str, Any]) -> Iterator[tuple[str, str]]:
    def listed(found: dict[str, str | None]) -> str:
        there = [name if v == "there" else f"{name} {v}" for name, v in found.items() if v]
        missing = [name for name, v in found.items() if not v]
        return ", ".join(there or ["none"]) + (f"; not here: {', '.join(missing)}" if missing else "")

    yield "automagic", f"automagic-cameamp {facts['automagic_cameamp']}, {facts['python']}, {facts['system']}"
    yield "torch", f"{facts['torch']}, built for {facts['torch_built_for']}, {facts['threads']} threads"
    yield "devices", "; ".join(" ".join(f"{k} {v}" for k, v in found.items()) for found in facts["devices"])
    kernels, compiler = facts["kernels"], facts["compiler"]
    yield "CPU kernels", kernels["flavour"] or f"NONE: {kernels['why_not']}"
    yield "compiler", compiler["version"] or f"NONE: {compiler['why_not']}"
    yield "packages", listed(facts["packages"])
    yield "trainers", listed(facts["trainers"])
    hooked = facts["hook"]["trainers"]
    running = "" if not hooked or facts["hook"]["watched_modules"] else "; NOT RUNNING in this process"
    words = f"registers with {', '.join(hooked)}" if hooked else "not installed (automagic integrate)"
    yield "hook", words + running
    if facts["variables"]:
        yield "variables", ", ".join(f"{k}={v}" for k, v in facts["variables"].items())


def run(options: dict[str, Any]) -> int:
    """The subcommand."""
    import sys

    try:
        facts = examine(options.get("device"), options.get("full", False), options.get("speed", True))
    except ValueError as error:
        print(f"automagic doctor: {error}", file=sys.stderr)
        return 2
    print(json.dumps(facts, indent=1) if options.get("json") else text(facts))
    return 1 if wrong(facts) else 0
