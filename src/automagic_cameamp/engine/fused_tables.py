"""Tables of a fused step: addresses, sizes and places in the scratch memory of all its tensors."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..recipes import _fused
from ..storage import CORRECTION, Affine8, Dynamic8, ErrorCorrected, Log8, Softsign4, Softsign8, Unit4
from ..storage.blocks import block_of
from ..storage.dynamic8 import _tables as dynamic_tables
from .buckets import Chunk
from .execute import Field
from .rounding import parameter_key

KINDS = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
CODES = {Dynamic8: 1, Softsign8: 2, Affine8: 3, Softsign4: 4}
# Rows of a band: enough bands to fill a device, few enough that their partial sums stay small.
LEAST_ROWS, MOST_ROWS, WANTED_BANDS = 64, 512, 512
VECTOR_ROW = 1024  # a vector is seen as rows of this length
# Elements that share a scale: a flat tile holds them all. USUAL: rows of a tile where no block matters.
LEAST_BLOCK, USUAL_BLOCK, MOST_BLOCK = 32, 256, 4096

# Address column of a field and of its scale; the name of a field -> (value, scale, salt).
PLACES = {
    "exp_avg_sq": ("V", "V_SCALE", None),
    "exp_avg_sq_row": ("R", "R_SCALE", "SALT_R"),
    "exp_avg_sq_col": ("C", "C_SCALE", "SALT_C"),
    "exp_avg_res": ("S", "S_SCALE", None),
    "exp_avg_res_row": ("SR", "SR_SCALE", "SALT_SR"),
    "exp_avg_res_col": ("SC", "SC_SCALE", "SALT_SC"),
    "s": ("TORQUE", None, None),
    "step": ("STEP", None, None),
    "avg_lr": ("AVG", None, None),
    "lr_mask": ("MASK", None, None),
    "lr_mask_sum": ("MASK_SUM", None, None),
    "last_polarity": ("SIGNS", None, None),
    "edge_history": ("EDGE", None, "SALT_EDGE"),
    "spatial_variance": ("SPACE", "SPACE_SCALE", "SALT_SPACE"),
    "lowrank_basis": ("BASIS", None, None),
    "lowrank_tail": ("BASIS", None, None),
    "lowrank_rate": ("OWED", None, None),
    CORRECTION.name: ("REST", None, None),
}


class Member(NamedTuple):
    """One tensor of a fused step."""

    p: Tensor
    state: dict[str, Any]
    index: int
    chunk: Chunk
    fields: list[Field]
    hp: Any
    group: int


class Code(NamedTuple):
    """Code of the momentum: number (0: not coded), bits of error correction."""

    number: int
    error: int


def code_of(fields: list[Field]) -> tuple[Code, int] | None:
    """Code of a parameter's momentum and elements per scale, or None where no kernel knows a codec."""
    found = Code(0, 0), 0
    for spec, codec in fields:
        inner, error = (codec.code, codec.bits) if isinstance(codec, ErrorCorrected) else (codec, 0)
        if spec.name == "exp_avg" and codec is not None:
            number = CODES.get(type(inner))
            if number is None:
                return None
            found = Code(number, error), inner.block_size  # type: ignore[union-attr]
        elif spec.name not in (*PLACES, "exp_avg") and not spec.name.startswith("momentum_scale_"):
            return None
    return found


def span(block: int, numel: int) -> int | None:
    """Elements of a tensor under one scale, up to a power of two; None: more or less than a tile can hold."""
    if block >= numel:
        block = max(LEAST_BLOCK, 1 << (numel - 1).bit_length())
    return block if LEAST_BLOCK <= block <= MOST_BLOCK and block & (block - 1) == 0 else None


def tiling(members: list[Member]) -> tuple[int, int]:
    """Elements in a row of a flat tile, and how often they double up to the largest block of all members."""
    cut, spans = [], []
    for member in members:
        code, numel = code_of(member.fields), member.chunk.layout.numel
        if code is not None and code[0].number:
            spans.append(span(code[1], numel) or MOST_BLOCK)
            cut += [code[1]] if code[1] < numel else []
    unit = min(cut, default=USUAL_BLOCK)
    return unit, max(0, (max([unit, *spans]) // unit).bit_length() - 1)


class Tables:
    """Host side of the tables; ``device`` memory is made from them once per plan.

    Args:
        members: the tensors, in the order of the table.
        recipe: the recipe of all of them.
        column: number of a column by name ('T_P' and so on), and other constants of the kernels.
        band: rows and columns of a tile of the banded passes.
        chunk: elements of a column chunk.
        flat: elements of a flat tile.
        unit: elements in a row of it.
        piece: length of a piece of a projection.
    """

    def __init__(
        self,
        members: list[Member],
        recipe: Any,
        seed: int,
        column: dict[str, int],
        band: tuple[int, int],
        chunk: int,
        flat: int,
        unit: int,
        piece: int,
    ) -> None:
        self.tab = np.zeros((len(members), column["WIDTH"]), np.int64)
        self.tiles: list[tuple[int, int, int, int]] = []
        self.chunks: list[tuple[int, int, int, int]] = []
        self.flat: list[tuple[int, int]] = []
        self.scales: list[int] = []
        self.pieces: list[tuple[int, int, int, int]] = []
        self.rows = self.cols = self.part = self.matrices = self.ranks = 0
        self.half = self.log = self.rest = False
        self.unit = unit
        total = sum(member.chunk.layout.numel for member in members)
        for t, member in enumerate(members):
            self._addresses(t, member, column, seed)
            self._sizes(t, member, recipe, column, total, band[0], chunk)
            self._projection(t, member, column, piece)
            first, count = len(self.flat), -(-member.chunk.layout.numel // flat)
            self.flat += [(t, i * (flat // unit)) for i in range(count)]
            self.tab[t, column["T_FLAT"]], self.tab[t, column["T_FLATS"]] = first, count

    def _addresses(self, t: int, member: Member, column: dict[str, int], seed: int) -> None:
        row, state, layout = self.tab[t], member.state, member.chunk.layout
        row[column["T_P"]] = member.p.data_ptr()
        row[column["T_P_KIND"]] = KINDS[member.p.dtype]
        row[column["T_G_KIND"]] = KINDS[member.p.grad.dtype]  # type: ignore[union-attr]
        row[column["T_INDEX"]], row[column["T_GROUP"]] = member.index, member.group
        row[column["T_KEY"]] = parameter_key(seed, member.index)
        row[column["T_BLOCK"]] = row[column["T_SHARE"]] = 1
        row[column["T_SCALE_AT"]] = len(self.scales)
        for number, (spec, codec) in enumerate(member.fields):
            if spec.name == "exp_avg" or spec.name.startswith("momentum_scale_"):
                planes = [spec.name + s for s in ("", "_q", "_q_scale", "_q_zero", "_q_residual")]
                held = [state[name].data_ptr() if name in state else 0 for name in planes]
                value, scale = held[1] or held[0], held[2]
                if spec.name != "exp_avg":
                    self.scales += [value, scale, number + 1]  # salts as in execute._scatter
                    continue
                row[column["T_SALT_M"]] = number + 1
                for name, address in zip(
                    ("M", "M_SCALE", "M_ZERO", "M_ERROR"), (value, *held[2:]), strict=True
                ):
                    row[column[f"T_{name}"]] = address
                if codec is not None:
                    inner = codec.code if isinstance(codec, ErrorCorrected) else codec
                    row[column["T_CODED"]] = 1
                    block = inner.block_size  # type: ignore[union-attr]
                    row[column["T_BLOCK"]] = block_of(layout, block)
                    row[column["T_SHARE"]] = max(1, (span(block, layout.numel) or 0) // self.unit)
                continue
            value, scale, salt = PLACES[spec.name]
            coded = f"{spec.name}_q"
            row[column[f"T_{value}"]] = state[coded if coded in state else spec.name].data_ptr()
            if scale is not None and codec is not None:
                row[column[f"T_{scale}"]] = state[f"{spec.name}_q_scale"].data_ptr()
                self.log |= isinstance(codec, Log8)
                self.half |= not isinstance(codec, Log8)
            if salt is not None:
                row[column[f"T_{salt}"]] = number + 1
            self.rest |= spec.name == CORRECTION.name
            assert codec is None or isinstance(codec, Unit4) or scale is not None

    def _sizes(
        self, t: int, member: Member, recipe: Any, column: dict[str, int], total: int, least: int, chunk: int
    ) -> None:
        row, layout = self.tab[t], member.chunk.layout
        factored = layout.matrix and member.hp.factored
        batch, m, n = layout.view
        if not layout.matrix:
            n = min(layout.numel, VECTOR_ROW)
            batch, m = 1, -(-layout.numel // n)
        height, width = _fused.picture_size(recipe, member.hp, layout)
        per_band = total // (WANTED_BANDS * n) // least * least
        per_band = min(max(per_band, LEAST_ROWS, least), MOST_ROWS)
        bands = -(-m // per_band)
        pieces = -(-n // chunk) if factored else 0
        side = 0
        if any(spec.name == "spatial_variance" for spec, _ in member.fields):
            side = 1 if m <= n else 2
        values = {
            "BATCH": batch,
            "ROWS": m,
            "COLS": n,
            "NUMEL": layout.numel,
            "FACTORED": factored,
            "MATRIX": layout.matrix,
            "TILE": len(self.tiles),
            "TILES": bands,
            "CHUNK": len(self.chunks),
            "CHUNKS": pieces,
            "ROW_AT": self.rows,
            "COL_AT": self.cols,
            "PART_AT": self.part,
            "MEANS": self.matrices,
            "HEIGHT": height,
            "WIDTH": width,
            "SIDE": side,
        }
        for name, value in values.items():
            row[column[f"T_{name}"]] = value
        for k in range(batch):
            self.tiles += [(t, k, i * per_band, min(m, (i + 1) * per_band)) for i in range(bands)]
            self.chunks += [(t, k, i * chunk, self.matrices + k) for i in range(pieces)]
        self.rows += batch * m * column["ROW_PLANES"]
        if factored:
            self.cols += batch * n * column["COL_PLANES"]
            self.part += batch * bands * n * column["PARTIALS"]
        self.matrices += batch

    def _projection(self, t: int, member: Member, column: dict[str, int], piece: int) -> None:
        """Pieces of the long side of a matrix with a basis, and place for its coefficients."""
        names = ("lowrank_basis", "lowrank_tail")
        basis = next((spec for spec, _ in member.fields if spec.name in names), None)
        if basis is None or member.hp.low_rank_emphasis == 1:
            return
        rank, tail = basis.count, basis.name == names[1]
        batch, m, n = member.chunk.layout.view
        count = -(-max(m, n) // piece)
        values = {
            "RANK": rank,
            "RANK_AT": self.ranks,
            "WIDE": m <= n,
            "TAIL": tail,
            "PIECE": len(self.pieces),
            "PIECES": count,
        }
        for name, value in values.items():
            self.tab[t, column[f"T_{name}"]] = value
        self.pieces += [(t, k, i * piece, 0) for k in range(batch) for i in range(count)]
        self.ranks += batch * rank * max(m, n)


def slabs_of(members: list[Member], width: int, period: int) -> list[tuple[int, int, int, int]]:
    """Pieces of up to ``width`` elements: tensor, first element, first bucket, place in the table of signs.

    A tensor without a gradient keeps its place in the sketch of its chunk, as in ``collect``.
    """
    result = []
    for t, member in enumerate(members):
        group, number = member.chunk.key
        numel = member.chunk.layout.numel
        before = next(i for i, q in enumerate(member.chunk.params) if q is member.p) * min(numel, width)
        turn = (40_503 * group + 24_593 * number + before) % period
        result += [(t, start, before % width, turn) for start in range(0, numel, width)]
    return result


def code_tables(device: torch.device, code: int) -> tuple[Tensor, Tensor, Tensor]:
    """Value of each code and the encoder's two tables; single numbers where no code needs them."""
    if code == CODES[Dynamic8]:
        return dynamic_tables(device)
    one = torch.zeros(1, device=device)
    return one, one, one
