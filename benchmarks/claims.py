"""Every number of the four documents as a claim in our words, with the rows that answer it.

    python -m benchmarks.claims        # prints the table of docs/evidence/claims.md

A verdict is computed, never written: rows that change, change it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from benchmarks import verdicts as V
from benchmarks.common import argument_parser, markdown
from benchmarks.convergence import steps_saved
from benchmarks.quality import mean
from benchmarks.rows import Rows, differences
from benchmarks.verdicts import Result

BASE, BASE8 = "Automagic_CameAMP", "Automagic_CameAMP8bit"
CONTEXT, CONTEXT8 = "Automagic_CameAMP_COptim", "Automagic_CameAMP_COptim8bit"
IMPROVED, EIGHT = "Automagic_CameAMP_Improved", "Automagic_CameAMP_8Bit"
MEMORY, BALANCED, QUALITY = (
    f"Automagic_CameAMP_Improved_8Bit:profile={name}"
    for name in ("memory_optimized", "balanced", "quality_optimized")
)
CASES = DENSE, WIDE, THIN = "dense 4096x4096", "LoRA r=64", "LoRA r=16"
CHAR, CATS = "charlm-tiny", "cat_lora"

MEMORY_RUN = "python -m benchmarks.memory"
ERROR_RUN = "python -m benchmarks.quant_update_error"
STATE_RUN = "python -m benchmarks.state_error"
CURVE_RUN = "python -m benchmarks.compare --evaluations 20"
QUALITY_RUN = "python -m benchmarks.compare"
STEP_RUN = "python -m benchmarks.step_cpu"
TRAINING_RUN = "python -m benchmarks.training_step"


class Claim(NamedTuple):
    """One number of a document."""

    document: str
    text: str
    source: str
    measure: Callable[[Rows], Result]


# --- memory -------------------------------------------------------------------------------------------


def share(candidate: str, limit: float, low: float | None = None) -> Callable[[Rows], Result]:
    """State as a share of Adam's, at most `limit` per cent for a dense matrix and for both LoRA ranks."""

    def measure(rows: Rows) -> Result:
        values = [rows.share_of_adam(candidate, case) for case in CASES]
        if None in values:
            return V.absent(MEMORY_RUN)
        text = "; ".join(
            f"{V.percent(v)} {case}" for v, case in zip(values, (DENSE, WIDE, THIN), strict=True)
        )
        worst = max(v for v in values if v is not None)
        if low is not None:
            return V.in_range(worst, low, limit, text, MEMORY_RUN)
        return V.at_most(worst, limit, text, MEMORY_RUN)

    return measure


def saving(candidates: list[str], low: float) -> Callable[[Rows], Result]:
    """Saved against Adam: at least `low` per cent, in the worst of three cases, for every candidate."""

    def measure(rows: Rows) -> Result:
        saved = []
        for name in candidates:
            values = [rows.share_of_adam(name, case) for case in CASES]
            if None in values:
                return V.absent(MEMORY_RUN)
            saved.append([100 - v for v in values if v is not None])
        text = "; ".join(
            f"{short(n)} {min(s):.0f} to {max(s):.0f}%" for n, s in zip(candidates, saved, strict=True)
        )
        good = [min(s) >= low for s in saved]
        return Result(text, V.HOLDS if all(good) else V.PART if any(good) else V.FAILS)

    return measure


def against_twin(candidate: str, twin: str, limit: float) -> Callable[[Rows], Result]:
    """State of the 8-bit class in per cent of the 32-bit class named."""

    def measure(rows: Rows) -> Result:
        pairs = [(rows.share_of_adam(candidate, c), rows.share_of_adam(twin, c)) for c in CASES]
        ratios = [100 * a / b for a, b in pairs if a is not None and b is not None]
        if len(ratios) < len(pairs):
            return V.absent(MEMORY_RUN)
        text = (
            f"{min(ratios):.0f} to {max(ratios):.0f}% of `{twin}`, which is {pairs[0][1]:.0f}% of Adam itself"
        )
        return V.at_most(max(ratios), limit, text, MEMORY_RUN)

    return measure


def traffic(rows: Rows) -> Result:
    """Bytes a step must move: state twice, gradient once, parameter twice, all fp32."""
    pair = [rows.share_of_adam(name, DENSE) for name in (EIGHT, IMPROVED)]
    if None in pair:
        return V.absent(MEMORY_RUN)
    moved = [2 * 8 * v / 100 + 12 for v in pair if v is not None]
    ratio = 100 * moved[0] / moved[1]
    text = f"{ratio:.0f}%: {moved[0]:.1f} against {moved[1]:.1f} bytes a parameter, counted, not metered"
    return V.in_range(ratio, 60, 70, text, MEMORY_RUN)


def smaller_than_ours(rows: Rows) -> Result:
    """The class on bitsandbytes' code against the documents' own block code."""
    values = [rows.share_of_adam(name, DENSE) for name in (EIGHT, BALANCED, MEMORY)]
    if None in values:
        return V.absent(MEMORY_RUN)
    own, balanced, memory = (v for v in values if v is not None)
    less = [100 * (1 - v / own) for v in (balanced, memory)]
    text = f"balanced {less[0]:.0f}% less, memory_optimized {less[1]:.0f}% less"
    return V.at_least(less[0], 10, text, MEMORY_RUN)


# --- errors of the codes ------------------------------------------------------------------------------


def update_error(candidate: str, limit: float, reference: str | None = None) -> Callable[[Rows], Result]:
    """Relative error of one update after 500 steps, on even and on heavy-tailed gradients."""

    def measure(rows: Rows) -> Result:
        even, heavy = (rows.update_error(candidate, data, reference) for data in ("homogeneous", "heavy"))
        texts = f"{V.percent(even, 2)} even gradients", f"{V.percent(heavy, 2)} heavy-tailed"
        parts = [V.at_most(v, limit, text, ERROR_RUN) for v, text in zip((even, heavy), texts, strict=True)]
        return V.both(*parts)

    return measure


def one_shot(code: str, block: int, limit: float) -> Callable[[Rows], Result]:
    """Relative error of a momentum coded once."""

    def measure(rows: Rows) -> Result:
        even, heavy = (rows.state_error(code, block, data) for data in ("homogeneous", "heavy"))
        texts = f"{V.percent(even, 2)} even", f"{V.percent(heavy, 2)} heavy-tailed"
        parts = [V.at_most(v, limit, text, STATE_RUN) for v, text in zip((even, heavy), texts, strict=True)]
        return V.both(*parts)

    return measure


def smaller_blocks(rows: Rows) -> Result:
    """Precision and size by block size."""
    errors = [rows.state_error("affine", block, "heavy") for block in (128, 256, 512)]
    if None in errors:
        return V.absent(STATE_RUN)
    small, _, large = (e for e in errors if e is not None)
    text = f"error {small:.1f}% at 128, {large:.1f}% at 512 (heavy-tailed); scales cost 0.04 and 0.01 bytes"
    return Result(text, V.HOLDS if small < large else V.FAILS)


# --- training -----------------------------------------------------------------------------------------


def faster(candidate: str, low: float) -> Callable[[Rows], Result]:
    """Steps saved until AdamW's final held-out loss, per cent, at least `low` on both tasks."""

    def measure(rows: Rows) -> Result:
        parts = []
        for task in (CATS, CHAR):
            saved = steps_saved(rows, task, candidate)
            value = mean(saved) if saved else None
            text = f"{name_of(task)}: {V.spread(saved, 0)}" if saved else ""
            parts.append(V.at_least(value, low, text, CURVE_RUN))
        return V.both(*parts)

    return measure


def as_good(candidate: str, twin: str) -> Callable[[Rows], Result]:
    """Held-out loss not above the twin's by more than 1%, over the same seeds."""

    def measure(rows: Rows) -> Result:
        parts = []
        for task in (CATS, CHAR):
            reference = rows.by_seed(task, twin)
            deltas = differences(rows.by_seed(task, candidate), reference)
            base = mean(reference.values()) if reference else 1.0
            relative = [100 * d / base for d in deltas]
            text = f"{name_of(task)}: loss {mean(relative):+.1f}%" if relative else ""
            value = mean(relative) if relative else None
            parts.append(V.at_most(value, 1.0, text, QUALITY_RUN, better=0.0))
        return V.both(*parts)

    return measure


def keeps_accuracy(candidate: str, twin: str, low: float) -> Callable[[Rows], Result]:
    """Held-out accuracy in per cent of the exact twin's, mean over seeds."""

    def measure(rows: Rows) -> Result:
        lr = 2e-3
        ours = rows.by_seed(CHAR, candidate, lr, "held_out_accuracy")
        exact = rows.by_seed(CHAR, twin, lr, "held_out_accuracy")
        seeds = sorted(set(ours or {}) & set(exact or {}))
        if not ours or not exact or not seeds:
            return V.absent(f"{QUALITY_RUN} --tasks {CHAR}")
        kept = [100 * ours[s] / exact[s] for s in seeds]
        text = f"{V.spread(kept)} of the exact twin's {100 * mean(exact[s] for s in seeds):.1f}%"
        return V.at_least(mean(kept), low, text, QUALITY_RUN)

    return measure


# --- time ---------------------------------------------------------------------------------------------


def step_time(candidate: str, twin: str, low: float, high: float) -> Callable[[Rows], Result]:
    """Late step of the 8-bit class against its 32-bit twin; extra time in per cent."""

    def measure(rows: Rows) -> Result:
        ratio = rows.step_ratio(candidate, twin)
        row = rows.step(candidate)
        if ratio is None or row is None:
            return V.absent(
                f"{STEP_RUN} --workload lora-sdxl --phases late --optimizers '{twin}' '{candidate}'"
            )
        extra = 100 * (ratio - 1)
        text = (
            f"{extra:+.0f}% on the CPU ({row['ns_per_param']:.1f} ns a parameter, {row['threads']} threads)"
        )
        return V.in_range(extra, low, high, text, STEP_RUN)

    return measure


def whole_training(candidate: str, low: float, high: float) -> Callable[[Rows], Result]:
    """Time of a whole training step of the demo against AdamW's, extra in per cent."""

    def measure(rows: Rows) -> Result:
        ours, theirs = (
            next((r for r in reversed(rows.training) if r["optimizer"] == name and not r["options"]), None)
            for name in (candidate, "adamw")
        )
        if ours is None or theirs is None:
            return V.absent(TRAINING_RUN)
        # The model's part is the same work: their mean, so that its noise does not decide.
        model = (ours["model_ms"] + theirs["model_ms"]) / 2
        extra = 100 * ((model + ours["step_ms"]) / (model + theirs["step_ms"]) - 1)
        text = f"{extra:+.1f}% over AdamW, the demo's model on the CPU ({ours['threads']} thread)"
        return V.in_range(extra, low, high, text, TRAINING_RUN)

    return measure


# --- words --------------------------------------------------------------------------------------------


def name_of(task: str) -> str:
    return {CATS: "demo LoRA", CHAR: "byte transformer"}[task]


def short(candidate: str) -> str:
    """`profile=x` for a profile, the class without its common beginning else."""
    _, _, profile = candidate.partition("profile=")
    return profile or candidate.removeprefix("Automagic_CameAMP_")


def table(rows: Rows) -> str:
    from benchmarks.claim_list import CLAIMS  # it imports this module

    body = []
    for number, claim in enumerate(CLAIMS, start=1):
        result = claim.measure(rows)
        verdict = f"**{result.verdict}**" if ":" not in result.verdict else bold_head(result.verdict)
        body.append([number, claim.document, claim.text, claim.source, result.measured, verdict])
    header = ["#", "document", "claim", "script and rows", "measured", "verdict"]
    return markdown(header, body)


def summary(rows: Rows) -> str:
    """How many claims came to which verdict."""
    from benchmarks.claim_list import CLAIMS

    found = [claim.measure(rows).verdict.partition(":")[0] for claim in CLAIMS]
    counts = [[verdict, found.count(verdict)] for verdict in V.VERDICTS if verdict in found]
    return markdown(["verdict", "claims"], counts)


def bold_head(verdict: str) -> str:
    head, _, why = verdict.partition(":")
    return f"**{head}**:{why}"


def main(argv: list[str] | None = None) -> str:
    argument_parser(__doc__).parse_args(argv)
    text = table(Rows())
    print(text)
    return text


if __name__ == "__main__":
    main()
