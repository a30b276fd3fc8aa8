"""The tables of docs/guide.md and its twin: the same numbers, headings in two languages."""

from __future__ import annotations

from automagic_cameamp.profiles import PROFILES
from benchmarks.ablation import RATES
from benchmarks.claims import (
    BALANCED,
    BASE,
    BASE8,
    CATS,
    CHAR,
    CONTEXT,
    CONTEXT8,
    EIGHT,
    IMPROVED,
    MEMORY,
    QUALITY,
)
from benchmarks.common import FAMILY, markdown, parse_candidate
from benchmarks.models import TRAININGS
from benchmarks.native_tables import CLASSES
from benchmarks.quality import spread
from benchmarks.rows import Rows, last, named

LORAS = [name for name in TRAININGS if "full" not in name]
FULL = [name for name in TRAININGS if "full" in name]
GIB = 2**30
LARGE = "charlm-small"

# English heading -> Traditional Chinese, as written in Taiwan.
WORDS = {
    "optimizer": "最佳化器",
    "state, MiB": "狀態，MiB",
    "weights + gradients, bf16": "權重＋梯度，bf16",
    "all, GiB": "總計，GiB",
    "of this state": "其中狀態",
    "lr (rates tried)": "學習率（試過幾個）",
    "demo LoRA": "示範 LoRA",
    "byte transformer": "位元組 Transformer",
    "loss": "損失",
    "GPU": "顯示卡",
    "profile": "設定檔",
    "none": "都放不下",
    "not run": "未執行",
    "times fused AdamW": "相對於 fused AdamW 的倍數",
    "ns a parameter": "每個參數的奈秒數",
    "held-out loss, mean (range), seeds": "保留資料損失，平均（範圍），種子數",
    "setting": "設定",
    "lr": "學習率",
}


def say(text: str, language: str) -> str:
    return WORDS[text] if language == "zh" else text


def name_of(candidate: str) -> str:
    """`Class` or `Class`, profile: the short names that the guide uses."""
    name, options = parse_candidate(candidate)
    rest = ", ".join(str(value) if key == "profile" else f"{key}={value}" for key, value in options.items())
    return f"`{name}`" + (f" {rest}" if rest else "")


def everyone() -> list[str]:
    return ["adamw", *FAMILY]


def state(rows: Rows, language: str) -> str:
    """MiB of optimizer state for LoRAs on real models."""
    body = []
    for candidate in everyone():
        sizes = [rows.state_bytes(candidate, training) for training in LORAS]
        if any(size is not None for size in sizes):
            body.append([name_of(candidate), *(None if s is None else f"{s / 2**20:,.0f}" for s in sizes)])
    header = [say("state, MiB", language), *LORAS]
    return markdown(header, body)


def budget(rows: Rows, language: str) -> str:
    """GiB of weights, gradients and state for whole models."""
    body = []
    weights = [4 * TRAININGS[training][1] / GIB for training in FULL]
    body.append([say("weights + gradients, bf16", language), *(f"{w:.1f}" for w in weights)])
    for candidate in everyone():
        sizes = [rows.state_bytes(candidate, training) for training in FULL]
        if all(size is None for size in sizes):
            continue
        cells = [
            None if s is None else f"{w + s / GIB:.1f} ({s / GIB:.1f})"
            for w, s in zip(weights, sizes, strict=True)
        ]
        body.append([name_of(candidate), *cells])
    title = f"{say('all, GiB', language)} ({say('of this state', language)})"
    return markdown([title, *FULL], body)


CARDS = (8, 12, 16, 24)
FREE = 0.25  # of a card, for activations and everything else
# What a configuration is chosen by: the first that fits is named.
PREFERRED = [
    BASE8,
    BALANCED,
    *(c for c in FAMILY if "profile=" in c and c not in (BALANCED, QUALITY)),
]
REPORTED = 0.98  # of the size on the box, about what CUDA reports


def profile_of(card: float) -> str:
    """The profile that the library itself recommends for a card of this size."""
    from automagic_cameamp import OptimizationProfiles
    from automagic_cameamp.monitor import get_adaptive_config

    config = get_adaptive_config(card * REPORTED)
    names = [n for n in PROFILES if getattr(OptimizationProfiles, n)() == config]
    assert len(names) == 1, names
    return names[0]


def fitting(rows: Rows, training: str, card: float) -> str | None:
    """The first of PREFERRED with which weights, gradients and state leave a quarter of the card free."""
    for candidate in PREFERRED:
        held = rows.state_bytes(candidate, training)
        if held is not None and 4 * TRAININGS[training][1] + held <= (1 - FREE) * card * GIB:
            return name_of(candidate)
    return None


def cards(rows: Rows, language: str) -> str:
    """By GPU memory: the recommended profile, and what a whole model could be trained with."""
    trainings = [name for name in FULL if "FLUX" not in name]
    body = [
        [
            f"{card} GB",
            f"`{profile_of(card)}`",
            *(fitting(rows, t, card) or say("none", language) for t in trainings),
        ]
        for card in CARDS
    ]
    return markdown([say("GPU", language), say("profile", language), *trainings], body)


QUALITY_OF = [
    "adamw",
    BASE,
    BASE8,
    CONTEXT,
    CONTEXT8,
    IMPROVED,
    EIGHT,
    QUALITY,
    BALANCED,
    MEMORY,
]


def quality(rows: Rows, language: str) -> str:
    """Held-out loss of each optimizer at the best of the rates that it ran with."""
    body = []
    for candidate in QUALITY_OF:
        cells: list[str | None] = []
        for task in (CATS, CHAR):
            losses, lr = rows.by_seed(task, candidate), rows.best_lr(task, candidate)
            tried = sorted({r["lr"] for r in rows.runs(task, candidate)})
            cells += [None, None] if losses is None else [f"{lr:g} ({len(tried)})", spread(losses.values())]
        if any(cells):
            body.append([name_of(candidate), *cells])
    header = [say("optimizer", language)]
    for task in ("demo LoRA", "byte transformer"):
        name = say(task, language)
        header += [f"{name}, {say('lr (rates tried)', language)}", f"{name}, {say('loss', language)}"]
    return markdown(header, body)


def larger(rows: Rows, language: str) -> str:
    """The larger byte-level transformer, at every rate that was run."""
    body = []
    for candidate in ("adamw", BASE, BASE8):
        for lr in sorted({r["lr"] for r in rows.runs(LARGE, candidate)}):
            losses = rows.by_seed(LARGE, candidate, lr)
            if losses:
                body.append([name_of(candidate), f"{lr:g}", spread(losses.values())])
    if not body:
        return say("not run", language)
    columns = ("optimizer", "lr", "held-out loss, mean (range), seeds")
    return markdown([say(c, language) for c in columns], body)


# Settings that readers get wrong: what they cost at lr 4e-3 (demo) and 2e-3 (transformer).
MISTAKES = [BASE, f"{BASE}:max_lr=0.001", f"{BASE}:warmup_steps=500", f"{BASE}:warmup_steps=0"]


def settings(rows: Rows, language: str) -> str:
    body = []
    for candidate in MISTAKES:
        cells = [rows.by_seed(task, candidate, rate) for task, rate in RATES.items()]
        if any(cells):
            body.append([name_of(candidate), *(spread(c.values()) if c else None for c in cells)])
    header = [f"{say(task, language)}, {say('loss', language)}" for task in ("demo LoRA", "byte transformer")]
    return markdown([say("setting", language), *header], body)


def time(rows: Rows, language: str) -> str:
    """Step time on the CPU, two threads, newest rows."""
    body = []
    for candidate in ("adamw-fused", "bnb-adamw8bit", *CLASSES):
        phase = "late" if candidate in CLASSES else None
        wanted = {"workload": "lora-sdxl", "phase": phase, "chunk": None, "threads": 2, **named(candidate)}
        row = last(rows.steps, wanted)
        if row:
            body.append([name_of(candidate), f"{row['ns_per_param']:.1f}", f"{row['ratio']:.2f}"])
    columns = ("optimizer", "ns a parameter", "times fused AdamW")
    return markdown([say(c, language) for c in columns], body)
