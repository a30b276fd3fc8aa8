"""A step on the host while backward goes on: its time against the longer of the two.

    python -m benchmarks.host_overlap
    python -m benchmarks.host_overlap --optimizers Automagic_CameAMP_COptim8bit --layers 24 --width 512

The device is emulated: its backward sleeps, its copies take bytes / bandwidth, and neither takes time of the
processor (what a copy brings was there from the first steps). The host's step is real. Three times are taken
in turn, and the shortest of each counts, for a machine has neighbours: backward alone; the step of the same
parameters alone, in one call of the kernels; both together, through the ring. The ideal of the third is the
larger of the first two. With --ns the kernels sleep too, so many ns a parameter: what is seen then is the
order of things, on a machine whose cores others use.
"""

from __future__ import annotations

import os
import queue
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from automagic_cameamp.executors.native.call import Table
from automagic_cameamp.executors.work import Folded
from automagic_cameamp.kernels import layout
from automagic_cameamp.training import offload
from benchmarks.common import build, candidate_rows, label, markdown, model_parser
from benchmarks.meters import Neighbours

OPTIMIZERS = ["Automagic_CameAMP8bit", "Automagic_CameAMP_COptim8bit", "Automagic_CameAMP_Improved_8Bit"]
SHARES = (0.25, 0.5, 1.0, 2.0)  # backward's time, in host steps


class Lane:
    """Copies in one direction, one after the other."""

    def __init__(self, bandwidth: float) -> None:
        self.bandwidth, self.real = bandwidth, True
        self.asked: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        threading.Thread(target=self._run, daemon=True).start()

    @torch.no_grad()
    def _run(self) -> None:
        while True:
            self.asked.get()()

    def copy(self, source: Tensor, target: Tensor) -> None:
        def run() -> None:
            if self.real:
                target.copy_(source)
            time.sleep(source.nbytes / self.bandwidth)

        self.asked.put(run)

    def moment(self) -> threading.Event:
        reached = threading.Event()
        self.asked.put(reached.set)
        return reached


class Emulated(offload.Clones):
    """A device behind a bus of this many bytes per second."""

    def __init__(self, bandwidth: float) -> None:
        self.here, self.there = Lane(bandwidth), Lane(bandwidth)

    def fetch(self, source: Tensor, target: Tensor) -> None:
        self.here.copy(source, target)

    def mark(self) -> offload.Ticket:
        return self.here.moment()

    def reach(self, ticket: offload.Ticket) -> None:
        if isinstance(ticket, threading.Event):
            ticket.wait()

    def put(self, source: Tensor, target: Tensor) -> offload.Ticket:
        self.there.copy(source, target)
        return self.there.moment()

    def join(self) -> None:
        self.there.moment().wait()


class Layer(torch.autograd.Function):
    """Passes one number through; its backward takes a given time."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, grad: Tensor, net: Net) -> Tensor:
        ctx.grad, ctx.net = grad, net
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:  # type: ignore[override]
        time.sleep(ctx.net.seconds)
        return grads[0], ctx.grad.clone() if ctx.net.real else torch.empty_like(ctx.grad), None, None


class Net(nn.Module):
    """Layers whose passes sleep."""

    def __init__(self, layers: int, width: int, dtype: torch.dtype) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        draw = [torch.randn(width, width, generator=generator).to(dtype) for _ in range(2)]
        self.weights = nn.ParameterList(nn.Parameter(0.02 * draw[0]) for _ in range(layers))
        self.grad = draw[1]
        self.seconds, self.real = 0.0, True

    def forward(self) -> Tensor:
        x = torch.ones((), requires_grad=True)
        for weight in self.weights:
            x = Layer.apply(x, weight, self.grad, self)  # type: ignore[assignment]
        return x


def asleep(ns: float) -> Callable[[Table, Any], Folded]:
    """In place of the kernels: a call of the same length for as many parameters, without Python's lock."""

    def run(table: Table, tasks: Any) -> Folded:
        time.sleep(1e-9 * ns * float((tasks["batch"] * tasks["rows"] * tasks["cols"]).sum()))
        tasks["ok"] = 1
        return Folded(torch.zeros(layout.SKETCH if table.signals else 0, dtype=torch.float64), 1.0, 0)

    return run


def seconds(run: Callable[[], None]) -> float:
    """Of one call."""
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def measure(
    name: str, options: dict[str, Any], layers: int, width: int, repeats: int, bandwidth: float
) -> Iterator[dict[str, Any]]:
    """One row per time of backward."""
    net = Net(layers, width, torch.bfloat16)
    near: Any = build(name, net.parameters(), **{"lr": 1e-4, **options})
    device = Emulated(bandwidth)
    far: Any = build(name, net.parameters(), **{"lr": 1e-4, "offload": "cpu", **options})

    def step() -> None:
        for p in net.parameters():
            p.grad = net.grad
        near.step()
        near.zero_grad()

    def backward() -> None:
        net().backward()
        net.zero_grad()

    def both() -> None:
        with far.release_gradients(net, unscaled=True):  # a new handle would look for scalers every time
            net().backward()
            far.step()

    usual = offload.transfer_for
    offload.transfer_for = lambda _: device  # type: ignore[assignment]
    for _ in range(3):
        both()
        host = seconds(step)
    offload.transfer_for = usual  # the ring has asked
    net.real = device.here.real = device.there.real = False
    for share in SHARES:
        neighbours = Neighbours()
        net.seconds = share * host / layers
        found = [[seconds(run) for run in (backward, step, both)] for _ in range(repeats)]
        alone, host, together = map(min, zip(*found, strict=True))
        yield {
            "share": share,
            "backward": alone,
            "host": host,
            "together": together,
            "over": together / max(alone, host) - 1,
            "ns_per_parameter": 1e9 * host / (layers * width * width),
            "others_cores": neighbours.cores(),
        }


def table(rows: list[dict]) -> str:
    body = [
        [
            label(r["optimizer"], r["options"]),
            *(f"{1000 * r[k]:.0f}" for k in ("backward", "host", "together")),
            f"{100 * r['over']:+.0f}%",
            f"{r['ns_per_parameter']:.2f}" + (" (asleep)" if r["ns"] else ""),
            f"{r['others_cores']:.1f}",
        ]
        for r in rows
    ]
    header = [
        "optimizer",
        "backward",
        "host step",
        "together",
        "over the longer",
        "ns/param",
        "cores of others",
    ]
    return "Steps on the host during backward, ms\n\n" + markdown(header, body)


def main(argv: list[str] | None = None) -> list[dict]:
    parser = model_parser(__doc__, OPTIMIZERS, 24, 2048, "host_overlap")
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--bandwidth", type=float, default=12.0, help="of the bus, GB/s each way")
    parser.add_argument(
        "--ns", type=float, default=0.0, help="of a parameter in emulated kernels; 0: real ones"
    )
    arguments = parser.parse_args(argv)
    layers, width, repeats = arguments.layers, arguments.width, arguments.repeats
    if arguments.quick:
        layers, width, repeats = 4, 64, 1
    kernels = Table._run
    if arguments.ns:
        setattr(Table, "_run", asleep(arguments.ns))  # noqa: B010

    def shares(name: str, options: dict[str, Any]) -> Iterator[dict[str, Any]]:
        for found in measure(name, options, layers, width, repeats, 1e9 * arguments.bandwidth):
            yield {"load": os.getloadavg()[0] if hasattr(os, "getloadavg") else None, **found}

    rows = candidate_rows(
        arguments,
        shares,
        layers=layers,
        width=width,
        bandwidth=arguments.bandwidth,
        ns=arguments.ns,
        threads=torch.get_num_threads(),
    )
    setattr(Table, "_run", kernels)  # noqa: B010
    print(table(rows))
    return rows


if __name__ == "__main__":
    main()
