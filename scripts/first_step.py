"""What an installed package has to do: step once, right. Run where only torch and numpy are beside it.

    python scripts/first_step.py [native|reference]

With a word, the step on the CPU has to be taken by that engine. Prints one line; any failure is an exception.
"""

from __future__ import annotations

import sys
import warnings
from importlib import metadata

import torch

import automagic_cameamp as ac


def step(cls: type[torch.optim.Optimizer]) -> tuple[float, set[str]]:
    """Loss after over loss before ten steps, and who stepped."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(32, 64), torch.nn.GELU(), torch.nn.Linear(64, 8))
    optimizer = cls(model.parameters(), lr=3e-3)  # type: ignore[call-arg]
    x, y = torch.randn(64, 32), torch.randn(64, 8)
    losses = []
    for _ in range(10):
        loss = torch.nn.functional.mse_loss(model(x), y)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    rows = optimizer.engine_report().rows  # type: ignore[attr-defined]
    return losses[-1] / losses[0], {row.engine for row in rows}


def main() -> None:
    wanted = sys.argv[1] if len(sys.argv) > 1 else None
    engines: set[str] = set()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of missing kernels, which are this program's subject
        for name, cls in ac.OPTIMIZERS.items():
            ratio, found = step(cls)
            assert ratio < 1.0, f"{name}: the loss went from 1 to {ratio}"
            engines |= found
    assert wanted is None or engines == {wanted}, f"stepped by {engines}, not by {wanted}"
    version = metadata.version("automagic-cameamp")
    print(f"automagic-cameamp {version}, torch {torch.__version__}: {len(ac.OPTIMIZERS)} classes, {engines}")


if __name__ == "__main__":
    main()
