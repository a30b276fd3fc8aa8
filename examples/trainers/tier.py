"""Writes a recipe for a card: lines "#@12: ..." take the place of the line above on 12 GB and less.

    python examples/trainers/tier.py examples/trainers/sd-scripts/flux_lora.toml --gpu 12 > flux_lora_12.toml

Without it a recipe is meant for 24 GB. Of several such lines under one line the smallest not below the
card counts. A line "#@least 12: ..." says why smaller cards get none.
"""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path

MARK = re.compile(r"(\s*)#@(\d+): (.*)")
LEAST = re.compile(r"^#@least (\d+): (.*)$", re.M)


def tiers(text: str) -> set[int]:
    """The cards that a recipe has lines for."""
    return {int(found[2]) for line in text.splitlines() if (found := MARK.fullmatch(line))}


def refused(text: str, gpu: int) -> str | None:
    """Why there is none for a card of so many GB; None where there is one."""
    found = LEAST.search(text)
    if found is None or gpu >= int(found[1]):
        return None
    return f"not for {gpu} GB, {found[1]} are the least: {found[2]}"


def taken(text: str, gpu: int) -> str:
    """The recipe for a card of so many GB."""
    lines: list[str] = []
    chosen = 0  # card of the line that stands last in `lines`; 0: the recipe's own
    for line in text.splitlines():
        found = MARK.fullmatch(line)
        if found is None:
            lines.append(line)
            chosen = 0
        elif int(found[2]) >= gpu and (chosen == 0 or int(found[2]) < chosen):
            lines[-1] = found[1] + found[3]
            chosen = int(found[2])
    return "\n".join(lines) + "\n"


def main() -> None:
    """Print a recipe."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("recipe", type=Path)
    parser.add_argument("--gpu", type=int, required=True, metavar="GB")
    given = parser.parse_args()
    text = given.recipe.read_text("utf-8")
    if (why := refused(text, given.gpu)) is not None:
        sys.exit(f"{given.recipe}: {why}")
    print(taken(text, given.gpu), end="")


if __name__ == "__main__":
    main()
