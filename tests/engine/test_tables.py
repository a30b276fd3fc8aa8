"""Rows that never had a gradient keep every bit, where weights do not decay: all classes and engines."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from automagic_cameamp import OPTIMIZERS, Automagic_CameAMP_Improved, mark_lora
from automagic_cameamp import techniques as T
from automagic_cameamp.profiles import PROFILES
from automagic_cameamp.types import Layout
from native import lockstep

LARGE = "Automagic_CameAMP_Improved_8Bit"
KINDS: dict[str, tuple[str, dict[str, Any]]] = {name: (name, {}) for name in OPTIMIZERS} | {
    profile: (LARGE, {"profile": profile, "verbose": False, "min_8bit_size": 32}) for profile in PROFILES
}
# A table, one with short rows, a stack of matrices, kernels; each with more than one block of codes.
SHAPES = [(40, 24), (90, 5), (3, 11, 20), (12, 4, 3, 3)]
ENGINES = ["auto", "reference"]


def bits(x: torch.Tensor) -> torch.Tensor:
    return x.detach().contiguous().view(torch.int16 if x.element_size() == 2 else torch.int32)


def rows_of(x: torch.Tensor) -> torch.Tensor:
    """[rows, rest]: the rows that a lookup or a filter would take."""
    return x.reshape(-1, x.shape[-1]) if x.dim() < 4 else x.reshape(len(x), -1)


def tables(dtype: torch.dtype, seed: int, shapes: Any = SHAPES) -> list[nn.Parameter]:
    draw = torch.Generator().manual_seed(seed)
    params = [nn.Parameter((torch.randn(s, generator=draw) * 0.05).to(dtype)) for s in shapes]
    for p in params:
        p.data.view(-1)[::7] = -0.0  # a sign is a bit too
    return params


def untouched(params: list[nn.Parameter], optimizer: Any, steps: int, seed: int, share: float) -> float:
    """Train some rows, others in some steps only; the largest change of the others, in bits."""
    draw = torch.Generator().manual_seed(seed + 1)
    used = [torch.rand(len(rows_of(p)), generator=draw) < share for p in params]
    for rows in used:
        rows[0] = True  # of this row a neighbour is known to be unused
        rows[1] = False
    before = [p.detach().clone() for p in params]
    for _ in range(steps):
        for p, rows in zip(params, used, strict=True):
            g = torch.randn(p.shape, generator=draw) * 0.01 + 0.02
            now = rows & (torch.rand(len(rows), generator=draw) < 0.8)
            sign = torch.where(torch.rand(len(rows), 1, generator=draw) < 0.5, -0.0, 0.0)
            p.grad = torch.where(now[:, None], rows_of(g), sign).reshape(p.shape).to(p.dtype)
        optimizer.step()
    worst = 0
    for p, old, rows in zip(params, before, used, strict=True):
        assert not torch.equal(p, old)  # the others were trained
        worst += int((bits(rows_of(p)) != bits(rows_of(old)))[~rows].sum())
    return worst


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("kind", KINDS)
def test_rows_without_a_gradient_keep_every_bit(kind: str, engine: str) -> None:
    """Through all phases of the warm-up and beyond it."""
    name, options = KINDS[kind]
    params = tables(torch.float32, 0)
    optimizer = OPTIMIZERS[name](params, lr=1e-3, weight_decay=0.0, warmup_steps=24, engine=engine, **options)
    assert untouched(params, optimizer, 36, 0, 0.3) == 0
    assert (optimizer.stepper.plans.current is not None) is (engine == "auto")


@settings(deadline=None, max_examples=30)
@given(
    kind=st.sampled_from(sorted(KINDS)),
    engine=st.sampled_from(ENGINES),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
    shape=st.sampled_from(
        [(2, 3), (30, 16), (64, 64), (33, 130), (300, 17), (2, 9, 16), (700, 40), (5, 3, 2, 2)]
    ),
    share=st.sampled_from([0.0, 0.1, 0.5, 0.95]),
    seed=st.integers(0, 10_000),
    more=st.sampled_from(
        [
            {},
            {"lr_mask_granularity": "row"},
            {"lr_level": "distance"},
            {"lr_level": "vote"},
            {"use_agr": True},
            {"master_weight_bits": 24},
            {"came": False},
            {"factored": False},
            {"stochastic_rounding": False},
            {"warmup_steps": 0},
        ]
    ),
)
def test_any_set_of_rows(
    kind: str,
    engine: str,
    dtype: torch.dtype,
    shape: tuple[int, ...],
    share: float,
    seed: int,
    more: dict[str, Any],
) -> None:
    name, options = KINDS[kind]
    params = tables(dtype, seed, [shape])
    given_ = {"lr": 1e-3, "weight_decay": 0.0, "warmup_steps": 12, **options, **more}
    assert untouched(params, OPTIMIZERS[name](params, engine=engine, **given_), 20, seed, share) == 0


@pytest.mark.parametrize("engine", ENGINES)
def test_the_neighbour_of_a_trained_token(engine: str) -> None:
    """Textual inversion: one row of a table of a text encoder, by a mask on its gradient."""
    table = nn.Embedding(301, 96)
    before = table.weight.detach().clone()
    optimizer = OPTIMIZERS[LARGE](
        table.parameters(), lr=5e-4, weight_decay=0.0, profile="balanced", verbose=False, engine=engine
    )
    for _ in range(200):
        table.weight.grad = torch.zeros_like(table.weight)
        table.weight.grad[300] = torch.randn(96) + 1
        optimizer.step()
    assert torch.equal(table.weight[:300], before[:300]) and not torch.equal(table.weight[300], before[300])


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("how", ["mark", "name"])
def test_rows_of_an_embedding_are_no_neighbours_where_all_have_a_gradient(how: str, engine: str) -> None:
    """A gradient that a filter over rows would damp most: its rows change their sign."""
    moved = {}
    for embedding in (True, False):
        p = nn.Parameter(torch.zeros(8, 8))
        if embedding and how == "mark":
            p._is_embedding = True  # type: ignore[attr-defined]
        name = "model.embed_tokens.weight" if embedding and how == "name" else "model.fc.weight"
        options = {"frequency_penalty": 1.0, "warmup_steps": 0, "edge_suppression": False, "engine": engine}
        optimizer = Automagic_CameAMP_Improved([(name, p)], lr=1e-3, weight_decay=0.0, **options)
        signs = 1 - 2.0 * (torch.arange(8) % 2)
        p.grad = signs[:, None].expand(8, 8).clone()
        optimizer.step()
        moved[embedding] = optimizer.state[p]["exp_avg_sq_row"].clone()
        assert bool(optimizer.lora_report().tables) is embedding
    square = 1e-2  # (1 - beta) g^2
    torch.testing.assert_close(moved[True], torch.full_like(moved[True], square), rtol=1e-4, atol=0)
    assert float(moved[False][1:-1].max()) < 1e-6


@pytest.mark.parametrize("engine", ENGINES)
def test_tokens_of_an_embeddings_lora_are_columns(engine: str) -> None:
    p = nn.Parameter(torch.randn(4, 50) * 0.1)
    before = p.detach().clone()
    name = "embed.lora_embedding_A.default"
    optimizer = Automagic_CameAMP_Improved([(name, p)], lr=1e-3, weight_decay=0.0, engine=engine)
    seen = torch.arange(50) % 5 == 0
    for _ in range(30):
        p.grad = torch.where(seen, torch.randn(4, 50), 0.0)
        optimizer.step()
    assert torch.equal(p[:, ~seen], before[:, ~seen])


def test_what_moves_rows_without_a_gradient_by_its_nature() -> None:
    """Documented exceptions: orthograd, and the tail of a LoRA beyond the kept rank."""
    for options, shape, lora in (
        ({"use_orthograd": True}, (12, 20), False),
        ({"rank_keep": 2, "rank_penalty_strength": 1.0}, (12, 20), True),
    ):
        p = nn.Parameter(torch.randn(shape))
        p._is_lora_layer = lora  # type: ignore[attr-defined]
        before = p.detach().clone()
        optimizer = Automagic_CameAMP_Improved([p], lr=1e-3, weight_decay=0.0, **options)
        for _ in range(3):
            p.grad = torch.zeros_like(p)
            p.grad[0] = 1.0
            optimizer.step()
        assert not torch.equal(p[1:], before[1:])


# ------------------------------------------------------------------------------------------ the two engines


def gaps(shape: tuple[int, ...], which: str, draw: torch.Generator) -> torch.Tensor:
    g = torch.randn(shape, generator=draw) * 0.01
    if "row" in which:
        g[..., torch.rand(shape[-2], generator=draw) < 0.4, :] = 0
    if "column" in which:
        g[..., torch.rand(shape[-1], generator=draw) < 0.4] = -0.0
    if which == "last":  # found at the very end only
        g[..., -1, :] = 0
    return g


@pytest.mark.parametrize("isa", ["", "base", "avx2"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("which", ["rows", "columns", "rows and columns", "last", "none"])
def test_tables_in_lockstep(
    which: str, dtype: torch.dtype, isa: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AUTOMAGIC_CAMEAMP_ISA", isa)
    shapes = [(16, 640), (640, 16), (50, 33), (13, 600), (3, 17, 19), (9, 8), (41, 200), (700, 130), (50, 1)]
    options: dict[str, Any] = {"warmup_steps": 6, "frequency_penalty": 0.5}
    runs = lockstep.twin("Automagic_CameAMP_Improved", shapes, dtype, 2, **options)
    old = [p.detach().clone() for p in runs[0][1]]
    for optimizer, params in runs:
        draw = torch.Generator().manual_seed(5)
        for p in params:
            p.grad = gaps(tuple(p.shape), which, draw).to(p.dtype)
        optimizer.step()
    assert runs[1][0].stepper.plans.current is not None
    lockstep.compare(runs, old)


@pytest.mark.parametrize("engine", ["native"])
def test_embeddings_in_lockstep(engine: str) -> None:
    """Marked tables with dense gradients: the option reaches the kernels."""
    runs = []
    for kind in ("reference", engine):
        optimizer, params = lockstep.make(
            "Automagic_CameAMP_Improved", [(40, 24), (24, 40), (16, 64)], torch.float32, kind
        )
        for p in params:
            p._is_embedding = True
        params[0]._is_lora_layer = False
        lockstep.take(optimizer, params, 0)
        runs.append((optimizer, params))
    lockstep.compare(runs, [p.detach().clone() + 1 for p in runs[0][1]], renewed=True)


@given(
    st.sampled_from([(5, 7), (2, 4, 6), (1, 9), (8, 1)]),
    st.integers(0, 500),
    st.sampled_from(["rows", "none"]),
)
def test_sides_follow_the_gradient(shape: tuple[int, ...], seed: int, which: str) -> None:
    layout = Layout.of(shape)
    g = gaps(shape, which, torch.Generator().manual_seed(seed)).reshape(1, *layout.view)
    sides = T.neighbours(g, layout)
    assert sides is not None
    for k in range(layout.batch):
        matrix = g[0, k].tolist()
        down = all(any(x != 0 for x in row) for row in matrix)
        across = all(any(row[c] != 0 for row in matrix) for c in range(layout.cols))
        assert (bool(sides.down[0, k]), bool(sides.across[0, k])) == (down, across)
    assert not bool(T.neighbours(g, layout, 1).down.any())  # type: ignore[union-attr]
    assert not bool(T.neighbours(g, layout, 2).across.any())  # type: ignore[union-attr]


def test_kernels_are_pictures_whatever_their_gradient_is() -> None:
    layout = Layout.of((4, 3, 3, 3))
    assert T.neighbours(torch.zeros(1, 12, 3, 3), layout) is None


def test_marks_of_embeddings_alone_make_no_lora() -> None:
    model = nn.Sequential(nn.Embedding(30, 16), nn.Linear(16, 16))
    mark_lora(model)
    report = Automagic_CameAMP_Improved(model.parameters(), lr=1e-3).lora_report()
    assert (report.lora, report.tables, report.parameters) == (0, 1, 3)
