"""Peak of memory of backward and step, with and without gradient release.

    python -m benchmarks.release_memory
    python -m benchmarks.release_memory --optimizers Automagic_CameAMP8bit --layers 64 --width 256

Bytes are counted from the tensors that ATen operators allocate, so nothing depends on the machine. Weights
and state are held before; what is measured is what backward and step add: gradients and temporaries.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.common import build, candidate_rows, label, markdown, model_parser
from benchmarks.meters import OpMeter, state_bytes

OPTIMIZERS = ["Automagic_CameAMP", "Automagic_CameAMP8bit", "Automagic_CameAMP_Improved_8Bit"]
MIB = 2**20


class Deep(nn.Module):
    """Many layers of one width: no tensor is more than a small part of the model."""

    def __init__(self, layers: int, width: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(width, width, bias=False) for _ in range(layers))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = x + 0.1 * torch.tanh(layer(x))
        return x.square().mean()


def measure(name: str, options: dict[str, Any], layers: int, width: int, release: bool) -> dict[str, Any]:
    """The third step of a run, counted in bytes."""
    torch.manual_seed(0)
    net = Deep(layers, width)
    optimizer: Any = build(name, net.parameters(), **{"lr": 1e-4, **options})
    handle = optimizer.release_gradients(net) if release else None
    added = 0
    for _ in range(3):
        loss = net(torch.randn(2, width))
        with OpMeter() as meter:
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        added = meter.peak
    weights = sum(p.numel() * p.element_size() for p in net.parameters())
    largest = max(p.numel() * p.element_size() for p in net.parameters())
    state = state_bytes(optimizer)
    if handle is not None:
        handle.remove()
    bound = weights + state + largest
    return {
        "weights": weights,
        "state": state,
        "largest_gradient": largest,
        "added": added,
        "over_bound": (weights + state + added) / bound - 1,
    }


def table(rows: list[dict]) -> str:
    body = [
        [
            label(r["optimizer"], r["options"]),
            "yes" if r["release"] else "no",
            *(f"{r[k] / MIB:.1f}" for k in ("weights", "state", "added")),
            f"{100 * r['over_bound']:+.1f}%",
        ]
        for r in rows
    ]
    header = [
        "optimizer",
        "release",
        "weights",
        "state",
        "added by backward and step",
        "over weights + state + largest gradient",
    ]
    return "Peak of backward and step, MiB\n\n" + markdown(header, body)


def main(argv: list[str] | None = None) -> list[dict]:
    arguments = model_parser(__doc__, OPTIMIZERS, 256, 128, "release_memory").parse_args(argv)
    layers, width = 16 if arguments.quick else arguments.layers, arguments.width

    def both(name: str, options: dict[str, Any]) -> Iterator[dict[str, Any]]:
        for release in (False, True):
            yield {"release": release, **measure(name, options, layers, width, release)}

    rows = candidate_rows(arguments, both, layers=layers, width=width)
    print(table(rows))
    return rows


if __name__ == "__main__":
    main()
