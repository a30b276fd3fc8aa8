"""Which functions of ours one ``step()`` passes through, by executor: `python scripts/hops.py [--lines]`.

The fourth step of an optimizer over eight small matrices is watched. Files and functions are counted once, in
the order in which they are first entered: not of torch, no properties, not the mathematics that all but the
kernels end in.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import torch

import automagic_cameamp

ROOT = Path(automagic_cameamp.__file__).parent
MATHEMATICS = ("techniques", "storage", "recipes", "types.py", "schedule.py")


def hops(engine: str) -> list[str]:
    """ "file: function" of a step, in order."""
    torch.manual_seed(0)
    params = [torch.nn.Parameter(torch.randn(16, 24)) for _ in range(8)]
    optimizer = automagic_cameamp.Automagic_CameAMP8bit(params, lr=1e-3, warmup_steps=2, engine=engine)
    found: dict[str, None] = {}

    def watch(frame: Any, event: str, _: Any) -> None:
        path = Path(frame.f_code.co_filename)
        if event == "call" and path.is_relative_to(ROOT):
            name = path.relative_to(ROOT).as_posix()
            owner = type(frame.f_locals.get("self"))
            shown = isinstance(getattr(owner, frame.f_code.co_name, None), property)
            if not (shown or name.startswith(MATHEMATICS) or frame.f_code.co_name.startswith("<")):
                found.setdefault(f"{name}: {frame.f_code.co_qualname}")

    for number in range(4):
        for p in params:
            p.grad = torch.randn_like(p)
        if number == 3:
            sys.setprofile(watch)
        try:
            optimizer.step()
        finally:
            sys.setprofile(None)
    return list(found)


ROOMS = {
    "techniques, recipes, storage, schedule, control": "techniques recipes storage schedule.py control",
    "state, executors, step, checkpoints, training, reading, optimizer": (
        "state executors step.py checkpoints training reading optimizer.py engine"
    ),
    "kernels": "kernels",
    "tools: monitor, kohya, fit, integrations, doctor": "monitor kohya fit integrations doctor",
}


def sources() -> None:
    """Print lines of Python and C++ by rooms of the package; ``engine`` is where some of them were once."""
    files = [path for kind in ("*.py", "*.h", "*.cpp") for path in ROOT.rglob(kind)]
    lines = {path.relative_to(ROOT): path.read_text("utf-8").count("\n") for path in files}
    print("| source lines | |\n| --- | ---: |")
    for title, names in ROOMS.items():
        total = sum(count for path, count in lines.items() if path.parts[0] in names.split())
        print(f"| {title} | {total:,} |")
    print(f"| all | {sum(lines.values()):,} |")


def main() -> None:
    """Print a table, or every hop."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--lines", action="store_true", help="every function in place of their number")
    parser.add_argument("--sources", action="store_true", help="lines of source in place of hops")
    options = parser.parse_args()
    if options.sources:
        return sources()
    print("| executor | files | functions |\n| --- | ---: | ---: |")
    for engine in ("native", "reference", "compiled"):
        found = hops(engine)
        print(f"| {engine} | {len({line.partition(':')[0] for line in found})} | {len(found)} |")
        if options.lines:
            print("\n".join(f"  {line}" for line in found))


if __name__ == "__main__":
    main()
