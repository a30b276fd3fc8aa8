"""Tens of thousands of steps of a small model under random faults: state finite and bounded, memory flat.

    python scripts/soak.py --steps 50000

Faults: gradients that are not finite or missing, jumps of the rate (to 0 and by 1e4), new groups, saving
and loading (into the same and into a new optimizer), closures. Twice a thousand steps the script looks at
every tensor; it ends with the step's number where something is wrong.
"""

from __future__ import annotations

import argparse
import gc
import io
import logging
import random
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "src")]

import torch  # noqa: E402
from benchmarks.common import RESULTS, append_row, environment  # noqa: E402
from benchmarks.meters import state_bytes, status_kib  # noqa: E402

import automagic_cameamp  # noqa: E402

CLASSES = ("Automagic_CameAMP8bit", "Automagic_CameAMP_COptim8bit", "Automagic_CameAMP_8Bit")
SHAPES = [(40, 32), (8,), (40, 32), (3, 5, 7), ()]
EXTRA = [(16, 24), (40, 32), (12,)]  # in groups that are added later
LIMIT = 1e6  # of a weight or a number of state; what the rates and clips allow is far below
FREE = ("step", "c_optim", "exp_avg_sq", "exp_avg_var", "gnorm")  # squares and counts have no such limit


class Soak:
    """A model, its optimizer, and a random generator that decides what goes wrong next.

    Args:
        name: class of the optimizer.
        steps: length of the whole run, for the times at which groups are added.
        seed: decides everything.
    """

    def __init__(self, name: str, steps: int, seed: int) -> None:
        self.rng, self.steps = random.Random(seed), steps
        self.cls: Any = getattr(automagic_cameamp, name)
        self.noise = torch.Generator().manual_seed(seed)
        self.params = [self._parameter(shape) for shape in SHAPES]
        self.groups: list[dict[str, Any]] = [{"params": self.params[:]}]
        self.optimizer = self._new()
        self.faults = dict.fromkeys(("bad", "missing", "rate", "group", "load", "new", "closure"), 0)

    def _parameter(self, shape: tuple[int, ...]) -> Any:
        return torch.nn.Parameter(torch.randn(shape, generator=self.noise).bfloat16())

    def _new(self) -> Any:
        return self.cls([dict(group) for group in self.groups], lr=1e-3, max_lr=1e-2, warmup_steps=200)

    def step(self, number: int) -> None:
        """One step, and what goes wrong with it."""
        rng = self.rng
        for p in self.params:
            chance = rng.random()
            if chance < 0.05:
                p.grad, self.faults["missing"] = None, self.faults["missing"] + 1
                continue
            # A pull to the origin, so that weights stay where they are, and noise.
            p.grad = p.detach() + torch.randn(p.shape, generator=self.noise).bfloat16()
            if chance < 0.07:
                wrong = rng.choice([float("nan"), float("inf"), -float("inf")])
                p.grad.view(-1)[rng.randrange(p.numel())] = wrong
                self.faults["bad"] += 1
            elif chance < 0.08:
                p.grad *= rng.choice([1e-20, 1e15, 0.0])
        if rng.random() < 0.01:
            for group in self.optimizer.param_groups:
                group["lr"] = 1e-3 * rng.choice([0.0, 1e-4, 0.1, 1.0, 1.0, 10.0])
            self.faults["rate"] += 1
        if len(self.groups) <= len(EXTRA) and number > len(self.groups) * self.steps // (2 * len(EXTRA)):
            self._grow()
        if rng.random() < 0.002:
            self._reload()
        if rng.random() < 0.1:
            self.faults["closure"] += 1
            self.optimizer.step(lambda: torch.tensor(rng.choice([1.0, 2.0, float("nan")])))
        else:
            self.optimizer.step(loss=1.0)

    def _grow(self) -> None:
        self.params.append(self._parameter(EXTRA[len(self.groups) - 1]))
        self.groups.append({"params": self.params[-1:], "lr": 5e-4})
        self.optimizer.add_param_group(dict(self.groups[-1]))
        self.faults["group"] += 1

    def _reload(self) -> None:
        buffer = io.BytesIO()
        torch.save(self.optimizer.state_dict(), buffer)
        buffer.seek(0)
        if self.rng.random() < 0.5:
            self.optimizer = self._new()
            self.faults["new"] += 1
        self.optimizer.load_state_dict(torch.load(buffer, weights_only=True))
        self.faults["load"] += 1

    def check(self, number: int) -> None:
        """Every weight and every number of state is finite and bounded."""
        for i, p in enumerate(self.params):
            held = {"weight": p.detach(), **self.optimizer.state.get(p, {})}
            for key, value in held.items():
                free = key.startswith(FREE) or not value.is_floating_point()
                limit, x = float("inf") if free else LIMIT, value.float()
                if not bool(x.isfinite().all()) or float(x.abs().max()) > limit:
                    raise SystemExit(f"step {number}: {key} of parameter {i} is not finite or too large")


def tensors() -> int:
    """Tensors alive in this process."""
    gc.collect()
    return sum(issubclass(type(thing), torch.Tensor) for thing in gc.get_objects())


def soak(name: str, steps: int, seed: int = 0) -> dict[str, Any]:
    """Run it; the numbers of the first look after all groups are there, and of the last."""
    run, looks, every = Soak(name, steps, seed), [], max(1, min(500, steps // 8))
    started = time.monotonic()
    for number in range(1, steps + 1):
        run.step(number)
        if number % every == 0:
            run.check(number)
            if len(run.groups) > len(EXTRA):
                alive = tensors()
                blocks = sys.getallocatedblocks()
                looks.append((alive, state_bytes(run.optimizer), blocks, status_kib("VmRSS")))
    # The first looks still fill caches; what comes after them has to stay.
    early, late = looks[len(looks) // 4], looks[-1]
    return {
        "optimizer": name,
        "steps": steps,
        "faults": run.faults,
        "largest_weight": max(float(p.detach().abs().max()) for p in run.params),
        "tensors": [early[0], late[0]],
        "state_bytes": [early[1], late[1]],
        "python_blocks": [early[2], late[2]],
        "rss_kib": [early[3], late[3]],
        "seconds": round(time.monotonic() - started),
    }


def main(argv: list[str] | None = None) -> list[dict[str, Any]]:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--steps", type=int, default=50_000)
    parser.add_argument("--classes", nargs="+", default=CLASSES)
    parser.add_argument("--out", type=Path, default=RESULTS / "soak.jsonl")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    logging.getLogger("automagic_cameamp").setLevel(logging.ERROR)
    rows = []
    for name in args.classes:
        rows.append({"bench": "soak", **soak(name, args.steps), **environment()})
        append_row(args.out, rows[-1])
        print(rows[-1], flush=True)
    return rows


if __name__ == "__main__":
    main()
