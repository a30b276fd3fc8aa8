"""How state is held. Math never knows: it sees fp32."""

from __future__ import annotations

from typing import NamedTuple

from ..types import Layout
from .affine8 import Affine8
from .codec import Codec, Log8, Plane, Softsign8
from .constant import fill
from .dynamic8 import Dynamic8, dynamic_map
from .residual import ErrorCorrected
from .rows import RowBlocks
from .small import Half16, Log16, Unit4
from .softsign4 import Softsign4
from .spec import CORRECTION, StateSpec

__all__ = [
    "CORRECTION",
    "MIN_QUANTIZED",
    "SIGNED_CODES",
    "THIN_SIDE",
    "Affine8",
    "Half16",
    "Codec",
    "Dynamic8",
    "ErrorCorrected",
    "Log16",
    "Log8",
    "Plane",
    "Policy",
    "RowBlocks",
    "Softsign4",
    "Softsign8",
    "StateSpec",
    "Unit4",
    "choose",
    "dynamic_map",
    "fill",
]

# Codes cost a scale and a launch; below this many elements they save nothing worth having.
MIN_QUANTIZED = 1024
SIGNED_CODES = {"affine": Affine8, "dynamic": Dynamic8, "softsign": Softsign8}
# A row or column statistic costs 4 / side bytes per parameter; only thin matrices feel it.
THIN_SIDE = 64


class Policy(NamedTuple):
    """How the state of one parameter is held.

    Args:
        code: code of running means: 'fp32' (nothing is quantised), 'dynamic', 'softsign', 'affine',
            'softsign4'.
        block_size: elements per scale.
        error_bits: bits of error correction, 0, 4 or 8 (with 'affine' and 'softsign').
        min_size: tensors with fewer elements are not quantised.
        vectors: 'fp32', 'log16', or 'thin': log16 where the matrix has a side of at most 64.
        force: quantise vectors (biases, norms) too.
    """

    code: str = "fp32"
    block_size: int = 256
    error_bits: int = 0
    min_size: int = MIN_QUANTIZED
    vectors: str = "fp32"
    force: bool = False


def choose(spec: StateSpec, layout: Layout, policy: Policy, by_rows: bool = False) -> Codec | None:
    """Codec of a field, or None where it is held as it is.

    Vectors (biases, norms) and tiny tensors stay in fp32: they are a rounding error of the
    memory and the most sensitive weights of a model.

    Args:
        spec: the field.
        layout: view of the whole parameter.
        policy: how its state is held.
        by_rows: the parameter may be cut between any two rows: no block crosses them, and
            statistics whose scale would be that of all rows are held as they are.
    """
    if by_rows:
        if policy.code == "softsign4":  # two elements share a byte, which a cut could part
            policy = policy._replace(code="dynamic")
        blocked = layout.matrix and spec.domain in ("signed", "positive")
        code = choose(spec, layout, policy) if blocked else None
        return None if code is None else RowBlocks(code)
    wanted = layout.matrix or policy.force
    quantized = policy.code != "fp32" and wanted and layout.numel >= policy.min_size
    if spec.domain == "plain" or not quantized:
        return None
    if spec.domain == "vector":
        thin = min(layout.rows, layout.cols) <= THIN_SIDE
        short = policy.vectors == "log16" or (policy.vectors == "thin" and thin)
        return Log16(spec, layout) if short else None
    if spec.domain == "unit":
        return Unit4(layout)
    block = policy.block_size
    if spec.domain == "positive":
        return Log8(block)
    if policy.code == "softsign4":
        return Softsign4(layout, block)
    code = SIGNED_CODES[policy.code](block)
    if policy.error_bits and not isinstance(code, Dynamic8):
        return ErrorCorrected(code, policy.error_bits)
    return code
