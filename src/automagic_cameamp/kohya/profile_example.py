"""Shows what the profiles of ``Automagic_CameAMP_Improved_8Bit`` choose, and what each of them holds.

Run it with ``python -m automagic_cameamp.kohya.profile_example``.
"""

from __future__ import annotations

from dataclasses import fields

import torch

from automagic_cameamp import (
    Automagic_CameAMP_Improved_8Bit,
    Improved8BitOptimizerConfig,
    OptimizationProfiles,
    create_improved_8bit_optimizer,
)
from automagic_cameamp.presets import PROFILES


def train_a_little(profile: str, steps: int = 5) -> Automagic_CameAMP_Improved_8Bit:
    """A LoRA-shaped pair of matrices, a few steps."""
    torch.manual_seed(0)
    down = torch.nn.Parameter(torch.randn(16, 512) / 16)
    up = torch.nn.Parameter(torch.zeros(512, 16))
    optimizer = create_improved_8bit_optimizer([down, up], lr=1e-4, profile=profile, verbose=False)
    for _ in range(steps):
        x = torch.randn(8, 512)
        (x @ down.T @ up.T - x).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    return optimizer


def main() -> None:
    """Print the options, the profiles side by side, and the memory of each."""
    plain = Improved8BitOptimizerConfig()
    print("Options of Automagic_CameAMP_Improved_8Bit, with their defaults:")
    for f in fields(plain):
        print(f"  {f.name} = {getattr(plain, f.name)!r}: {f.metadata['doc']}")
    configs = {name: getattr(OptimizationProfiles, name)() for name in PROFILES}
    changed = [f.name for f in fields(plain) if len({repr(getattr(c, f.name)) for c in configs.values()}) > 1]
    print("\nWhere the profiles differ:")
    print(f"  {'':28}" + "".join(f"{name:>20}" for name in PROFILES))
    for name in changed:
        print(f"  {name:28}" + "".join(f"{getattr(c, name)!r:>20}" for c in configs.values()))
    print("\nState held for a LoRA of rank 16 on a 512 x 512 matrix:")
    for name in PROFILES:
        optimizer = train_a_little(name)
        stats, report = optimizer.get_memory_stats(), optimizer.get_memory_efficiency_report()
        held, share = stats["bytes_per_parameter"], report["compression_ratio"]
        print(f"  {name:28}{held:.2f} bytes per parameter (Adam: 8), {share:.0%} in 8 bits")


if __name__ == "__main__":
    main()
