"""Learning rates and sizes that the demo starts from."""

from __future__ import annotations

# Best of {5e-4, 1e-3, 2e-3, 4e-3} on the cat LoRA (held-out loss after 150 steps).
# The rows are in benchmarks/results; benchmarks/ tells how to repeat them.
LEARNING_RATES = {
    "adamw": 2e-3,
    "bitsandbytes.adamw8bit": 2e-3,
    "automagic_cameamp": 1e-3,
    "automagic_cameamp8bit": 1e-3,
}
DEFAULT_LR = 1e-3

DEMO_OPTIMIZERS = ("AdamW", "Automagic_CameAMP", "Automagic_CameAMP8bit")
DEMO_STEPS = 150
QUICK_OPTIMIZERS = ("AdamW", "Automagic_CameAMP8bit")
QUICK_STEPS = 20


def learning_rate(optimizer: str) -> float:
    """The rate used when the user names none."""
    return LEARNING_RATES.get(optimizer.lower(), DEFAULT_LR)
