"""What a step costs in launches, without a device: loops that Inductor writes, and eager operations.

    python -m benchmarks.launches

One stack of four matrices in the late phase. Inductor's C++ back end stands in for Triton: both write one
kernel per fused group; the count is that of the generated code. Eager operations are those of the dispatcher,
views left out, with the choices made on the device as on a GPU.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from automagic_cameamp.executors import compiled
from automagic_cameamp.state import counts
from automagic_cameamp.techniques import _reduce
from benchmarks.common import RESULTS, append_row, argument_parser, build, environment, label, markdown
from benchmarks.rows import Rows

SHAPE, STACK = (64, 96), 4
CANDIDATES: list[tuple[str, dict[str, Any]]] = [
    ("Automagic_CameAMP", {}),
    ("Automagic_CameAMP8bit", {}),
    ("Automagic_CameAMP_COptim8bit", {}),
    ("Automagic_CameAMP_Improved", {}),
    ("Automagic_CameAMP_8Bit", {}),
    ("Automagic_CameAMP_Improved_8Bit", {"profile": "balanced"}),
    ("Automagic_CameAMP_Improved_8Bit", {"profile": "memory_optimized"}),
]
VIEWS = frozenset(
    (
        "view unbind reshape _unsafe_view expand unsqueeze squeeze slice select t transpose as_strided "
        "detach alias permute unflatten flatten lift_fresh _record_function_enter_new _record_function_exit"
    ).split()
)


class Operations(TorchDispatchMode):
    """Counts what torch is asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func.overloadpacket.__name__ not in VIEWS
        return func(*args, **(kwargs or {}))


def made(
    name: str, options: dict[str, Any], engine: str, stack: int = STACK
) -> tuple[Any, Callable[[], None]]:
    """An optimizer, and a way to give its parameters gradients."""
    torch.manual_seed(0)
    params = [torch.nn.Parameter(torch.randn(SHAPE)) for _ in range(stack)]

    def give() -> None:
        for p in params:
            p.grad = torch.randn(SHAPE)

    optimizer = build(name, params, lr=1e-3, warmup_steps=2, engine=engine, full_finetune=True, **options)
    return optimizer, give


def eager(name: str, options: dict[str, Any]) -> int:
    """Operations that a further stack adds to a late eager step."""
    counted = []
    waits, split = counts.waits, _reduce._SPLIT
    counts.waits = lambda device: True  # as on a device, where looking at a flag would wait,
    _reduce._SPLIT = 1 << 40  # and where a sum is one launch
    try:
        for stacks in (1, 2):
            torch.manual_seed(0)
            shapes = [SHAPE, (SHAPE[1], SHAPE[0])][:stacks]
            params = [torch.nn.Parameter(torch.randn(shape)) for shape in shapes for _ in range(STACK)]
            optimizer = build(
                name, params, lr=1e-3, warmup_steps=2, engine="reference", full_finetune=True, **options
            )
            for _ in range(6):
                for p in params:
                    p.grad = torch.randn(p.shape)
                with Operations() as operations:
                    optimizer.step()
            counted.append(operations.count)
    finally:
        counts.waits, _reduce._SPLIT = waits, split
    return counted[1] - counted[0]


def generated(name: str, options: dict[str, Any]) -> tuple[int, int, float]:
    """Kernels in the code that Inductor writes for the late stack, graphs, and seconds until it ran."""
    from torch._inductor import metrics

    compiled.COMPILED = compiled.Compiled()
    optimizer, give = made(name, options, "compiled")
    reference, give_first = made(name, options, "reference")
    for _ in range(5):
        give_first()
        reference.step()
    optimizer.load_state_dict(reference.state_dict())
    give()
    metrics.reset()
    began = time.perf_counter()
    with torch._inductor.config.patch(force_disable_caches=True):
        optimizer.step()
    seconds = time.perf_counter() - began
    if compiled.COMPILED.broken:
        raise RuntimeError(next(iter(compiled.COMPILED.broken.values())))
    return metrics.generated_kernel_count, len(compiled.COMPILED.graphs), seconds


def table(rows: Rows, language: str) -> str:
    """The newest row of each candidate."""
    found: dict[str, dict[str, Any]] = {}
    for row in rows.all("launches"):
        found[row["label"]] = {**found.get(row["label"], {}), **row}
    lines = [[f"`{name}`", r["kernels"], r["eager"], f"{r['compile_s']:.0f} s"] for name, r in found.items()]
    return markdown(["class", "kernels in generated code", "eager operations", "first step, compiled"], lines)


def main() -> None:
    """Count, print, and write rows."""
    parser = argument_parser(__doc__)
    parser.add_argument("--eager", action="store_true", help="only the eager operations, in a second each")
    options = parser.parse_args()
    torch.set_num_threads(1)
    for name, given in CANDIDATES:
        row: dict[str, Any] = {"bench": "launches", "label": label(name, given), "shape": list(SHAPE)}
        row |= {"stack": STACK, "eager": eager(name, given)}
        if not options.eager:
            kernels, graphs, seconds = generated(name, given)
            row |= {"kernels": kernels, "graphs": graphs, "compile_s": round(seconds, 1)}
        append_row(RESULTS / "launches.jsonl", {**row, **environment()})
        print(row, flush=True)


if __name__ == "__main__":
    main()
