"""What `automagic demo` trains: the nine cat faces, one LoRA for each optimizer, all else equal."""

from __future__ import annotations

from collections.abc import Sequence

from .gallery import Drawing
from .presets import DEMO_OPTIMIZERS, DEMO_STEPS, QUICK_OPTIMIZERS, QUICK_STEPS, filled
from .session import Session
from .settings import build

TITLE = "Nine cat faces: a LoRA before and after"


def demo_session(
    out: str,
    *,
    steps: int | None = None,
    optimizers: Sequence[str] | None = None,
    prompts: Sequence[str] = (),
    seed: int = 0,
    quick: bool = False,
    device: str = "auto",
) -> Session:
    """The demo's session; `quick` makes a small one that only shows that everything works."""
    names = optimizers or (QUICK_OPTIMIZERS if quick else DEMO_OPTIMIZERS)
    count = steps if steps is not None else (QUICK_STEPS if quick else DEMO_STEPS)
    shared = {"data": "cats", "out": out, "steps": count, "seed": seed, "device": device}
    if quick:
        shared |= {"batch": 4, "eval_every": 10}
    runs = [filled(build(shared | {"optimizer": name}, "automagic demo")) for name in names]
    return Session("demo", runs, list(prompts), Drawing(seed=seed, steps=8) if quick else Drawing(seed=seed))
