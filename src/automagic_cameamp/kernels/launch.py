"""Starts the passes of a step, and counts them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from torch import Tensor

from . import apply, context, finish, first, lowrank, second
from .columns import ANY, BUCKETS, WIDTH

__all__ = ["ANY", "WIDTH", "Buffers", "Flags", "Launcher", "Watch", "observe", "passes"]

# Rows and columns of a tile of the banded passes, elements of a column chunk, of a flat tile, of a
# reduction over partial sums.
BAND = (16, 128)
CHUNK = 256
FLAT = 2048
SUMS = 256
# Short and long side of a piece of a projection; the short side is never longer (techniques.lowrank).
PIECE = (128, 32)
# Buckets per program of the sketch, most slices of it.
BUCKET = 512
SLICES = 64


def flat_tile(unit: int, doublings: int) -> int:
    """Elements of a flat tile: whole blocks, of up to ``unit << doublings`` elements."""
    return max(FLAT, unit << doublings)


class Flags(NamedTuple):
    """What some tensor of the model needs; compiled into the kernels. Fields as their parameters."""

    P_KIND: int
    G_KIND: int
    CODE: int
    ERROR: int
    LOG: bool
    SCALED: bool
    PICTURE: bool
    ROW_MASK: bool
    IMPROVED: bool
    MULTIPLIED: bool
    NS: int
    RANKED: bool
    RANDOM: bool
    HALF: bool
    SPD: bool
    HAS_FOUND: bool
    REST: bool
    UNIT: int
    DOUBLINGS: int

    def only(self, *names: str) -> dict[str, Any]:
        """Some of them, by name."""
        return {name: getattr(self, name) for name in names}


class Buffers(NamedTuple):
    """Device memory of a plan: tables, scratch, and what the step brings."""

    tab: Tensor
    hyper: Tensor
    dynamic: Tensor
    tiles: Tensor
    chunks: Tensor
    pieces: Tensor
    flat: Tensor
    kept: Tensor
    scales: Tensor
    weights: Tensor
    rows: Tensor
    cols: Tensor
    part: Tensor
    tile_sums: Tensor
    chunk_sums: Tensor
    numbers: Tensor
    means: Tensor
    ranks: Tensor
    piece_sums: Tensor
    mask_mean: Tensor
    new: Tensor
    lr: Tensor
    skipped: Tensor
    code_map: Tensor
    code_base: Tensor
    code_bound: Tensor
    mask_table: Tensor


class Watch(NamedTuple):
    """What the controller's passes read besides ``Buffers``; numbers as ``control.signals`` has them."""

    memory: Tensor
    slabs: Tensor
    signs: Tensor
    sketches: Tensor
    group: int
    window: int
    numbers: tuple[float, ...]


class Launcher:
    """Runs kernels on the current stream; ``count`` says how many were started."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self, kernel: Any, grid: int, *args: Any, **options: Any) -> None:
        """Start ``grid`` programs of a kernel; nothing for an empty grid."""
        if grid:
            self.count += 1
            # Without contraction to fused multiply-adds every GPU rounds as the reference does.
            kernel[(grid,)](*args, **options, enable_fp_fusion=False)


def passes(
    launch: Callable[..., None],
    b: Buffers,
    f: Flags,
    tensors: int,
    elements: float,
    scale: Tensor,
    found: Tensor,
    factor: Tensor,
    watch: Watch | None,
) -> None:
    """All passes of a step over the tensors of a plan.

    Args:
        launch: what starts a kernel.
        b: memory of the plan.
        f: what to compile.
        tensors: number of tensors.
        elements: elements behind the mask sums that are kept.
        scale: factor of a gradient scaler, one fp32.
        found: its flag, one fp32.
        factor: multiplier of a controller, one fp32.
        watch: what that controller looks at, or None.
    """
    rows, cols = BAND
    bands = {"BR": rows, "BC": cols}
    flat = {"NB": flat_tile(f.UNIT, f.DOUBLINGS) // f.UNIT, "QB": f.UNIT}
    tiles, chunks = len(b.tiles), len(b.chunks)
    common = f.only("G_KIND", "CODE", "ERROR", "LOG", "SCALED", "PICTURE", "ROW_MASK")
    launch(
        first.moments,
        tiles,
        *(b.tab, b.hyper, b.dynamic, b.tiles, b.code_map, b.rows, b.part, b.tile_sums, scale),
        **common,
        **f.only("P_KIND", "REST"),
        **bands,
    )
    launch(
        first.columns,
        chunks,
        *(b.tab, b.hyper, b.chunks, b.part, b.cols, b.tile_sums, b.chunk_sums, b.means),
        N=CHUNK,
    )
    launch(
        first.torque_and_clip,
        tensors + 1,
        *(b.tab, b.hyper, b.tile_sums, b.chunk_sums, b.numbers, b.kept, len(b.kept), elements),
        *(b.mask_mean, found, tensors),
        **f.only("HAS_FOUND"),
        N=SUMS,
    )
    if f.RANKED:
        launch(
            lowrank.project,
            len(b.pieces),
            *(b.tab, b.hyper, b.dynamic, b.pieces, b.code_map, b.rows, b.cols, b.numbers, b.means, scale),
            *(b.ranks, b.piece_sums),
            **f.only("G_KIND", "CODE", "ERROR", "SCALED", "PICTURE"),
            SHORT=PIECE[0],
            LONG=PIECE[1],
        )
        launch(lowrank.emphasis, tensors, b.tab, b.hyper, b.piece_sums, b.numbers, N=SUMS)
    launch(
        second.surprise,
        tiles,
        *(b.tab, b.hyper, b.dynamic, b.tiles, b.code_map, b.mask_table, b.rows, b.cols, b.part),
        *(b.tile_sums, b.numbers, b.means, b.mask_mean, factor, b.lr, scale, b.scales, b.weights, b.ranks),
        **common,
        **f.only("IMPROVED", "MULTIPLIED", "NS", "RANKED"),
        **bands,
    )
    launch(
        second.confidence_columns,
        chunks,
        *(b.tab, b.hyper, b.chunks, b.part, b.cols, b.tile_sums, b.chunk_sums, b.numbers, b.means),
        N=CHUNK,
    )
    launch(
        finish.small_state,
        tensors,
        *(b.tab, b.hyper, b.rows, b.cols, b.tile_sums, b.chunk_sums, b.numbers, b.means, b.mask_mean),
        *(b.lr, b.skipped),
        **f.only("IMPROVED", "HALF", "ROW_MASK"),
        N=SUMS,
    )
    planes = (b.mask_table, b.rows, b.cols, b.numbers, b.means, b.mask_mean, factor, b.lr, scale)
    planes = (*planes, b.scales, b.weights, b.ranks)
    each = {**common, **f.only("P_KIND", "IMPROVED", "MULTIPLIED", "NS", "RANKED", "REST"), **flat}
    head = (b.tab, b.hyper, b.dynamic, b.flat, b.code_map)
    if f.SPD:
        launch(apply.lengths, len(b.flat), *head, *planes, b.new, **each)
        launch(apply.pull, tensors, b.tab, b.hyper, b.new, b.numbers, N=SUMS)
    if watch is not None:  # before the second moments of vectors are written
        slices, slabs = len(watch.sketches), len(watch.slabs)
        launch(
            context.sketch,
            slices * (BUCKETS.value // BUCKET),
            *(b.tab, b.hyper, b.dynamic, watch.slabs, watch.signs, b.rows, b.cols, b.numbers, b.means, scale),
            *(watch.sketches, slabs, -(-slabs // slices)),
            **f.only("G_KIND", "SCALED", "LOG"),
            N=BUCKET,
        )
    codes = (b.code_base, b.code_bound)
    launch(apply.write, len(b.flat), *head, *codes, *planes, **each, **f.only("RANDOM", "DOUBLINGS"))


def observe(
    launch: Callable[..., None],
    b: Buffers,
    w: Watch,
    tensors: int,
    loss: Tensor | None,
) -> None:
    """The controller's move after a step; ``loss`` is [2] as ``share`` has it, or None."""
    slices = len(w.sketches)
    launch(
        context.observe,
        1,
        *(w.memory, w.sketches, slices, b.numbers, tensors, b.lr, w.group),
        *(b.mask_mean if loss is None else loss, w.window, *w.numbers),
        HAS_LOSS=loss is not None,
        W=1 << max(4, (w.window - 1).bit_length()),
        N=SUMS,
    )
