"""The rates that were really applied, for loggers: TensorBoard, Weights & Biases, CSV files."""

from __future__ import annotations

from typing import Any

from .. import CameAMPOptimizer


def ours(optimizer: Any) -> CameAMPOptimizer | None:
    """The optimizer of ours inside of wrappers (accelerate's, Lightning's); None where there is none."""
    for _ in range(8):
        if isinstance(optimizer, CameAMPOptimizer):
            return optimizer
        optimizer = getattr(optimizer, "optimizer", None)
    return None


def applied_rates(optimizer: Any, prefix: str = "lr") -> dict[str, float]:
    """Scalars for a logger: the scheduler's rate and the applied one, of each group where there are several.

    It waits for the device once, so call it where you log, not in every step.

    Args:
        optimizer: one of ours, wrapped or not.
        prefix: what the keys begin with.

    Returns:
        ``{"lr/scheduled": 1e-4, "lr/applied": 2.1e-4}``, and ``"lr/applied/0"``, ... by name or number of the
        group; empty for an optimizer that is not ours.

    Example:
        >>> p = torch.nn.Parameter(torch.zeros(4, 4))
        >>> sorted(applied_rates(automagic_cameamp.Automagic_CameAMP([p], lr=1e-4)))
        ['lr/applied', 'lr/scheduled']
    """
    found = ours(optimizer)
    if found is None:
        return {}
    groups, rates = found.param_groups, found.get_learning_rates()
    sizes = [sum(p.numel() for p in group["params"]) for group in groups]
    total = max(1, sum(sizes))
    mean = sum(rate * size for rate, size in zip(rates, sizes, strict=True)) / total
    scheduled = sum(float(group["lr"]) * size for group, size in zip(groups, sizes, strict=True)) / total
    told = {f"{prefix}/scheduled": scheduled, f"{prefix}/applied": mean}
    if len(groups) > 1:
        for i, (group, rate) in enumerate(zip(groups, rates, strict=True)):
            told[f"{prefix}/applied/{group.get('name', i)}"] = rate
    return told
