"""Codes by rows: the code of each row by itself, so any cut between rows gives the same codes."""

from __future__ import annotations

import pytest
import torch

from automagic_cameamp.storage import Affine8, Dynamic8, ErrorCorrected, Log8, RowBlocks, Softsign8
from automagic_cameamp.types import Layout

CODES = {
    "dynamic": Dynamic8(32),
    "softsign": Softsign8(64),
    "affine": Affine8(32),
    "log": Log8(32),
    "corrected 4": ErrorCorrected(Affine8(32), 4),
    "corrected 8": ErrorCorrected(Softsign8(32), 8),
}
SHAPES = [(5, 71), (7, 1), (3, 4, 33), (6, 2, 3, 3)]


def _value(shape: tuple[int, ...], name: str) -> torch.Tensor:
    x = torch.randn(2, *Layout.of(shape).view)
    return x.square() + 1e-6 if name == "log" else x


@pytest.mark.parametrize("name", list(CODES))
@pytest.mark.parametrize("shape", SHAPES)
def test_each_row_is_coded_by_itself(name, shape):
    code, x = RowBlocks(CODES[name]), _value(shape, name)
    decoded = code.decode(code.encode(x))
    rows = x.reshape(-1, 1, 1, x.shape[-1])
    alone = [CODES[name].decode(CODES[name].encode(row.unsqueeze(0))) for row in rows]
    assert torch.equal(decoded.reshape(rows.shape), torch.cat(alone))


@pytest.mark.parametrize("name", list(CODES))
@pytest.mark.parametrize("shape", SHAPES)
def test_planes_are_as_declared_and_cut_like_the_tensor(name, shape):
    code, x, layout = RowBlocks(CODES[name]), _value(shape, name), Layout.of(shape)
    coded = code.encode(x)
    for plane, part in zip(code.planes(layout), coded, strict=True):
        assert part.shape == (2, *plane.shape) and part.dtype == plane.dtype
        assert plane.own_shape[0] == shape[0]
    dim = 1 if len(shape) == 3 else 2
    for start, length in ((0, 2), (2, shape[0] - 2), (shape[0], 0)):
        again = code.encode(x.narrow(dim, start, length))
        assert all(torch.equal(a.narrow(dim, start, length), b) for a, b in zip(coded, again, strict=True))
        assert torch.equal(code.decode(again), code.decode(coded).narrow(dim, start, length))
