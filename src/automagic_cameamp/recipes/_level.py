"""The level of the rate: what each rule keeps, what it sees, and the number that comes of it."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .. import techniques as T
from ..storage.spec import StateSpec
from ..types import Layout, Scalars
from ._data import Hyper, Shared, State

LAGGED = ("lr_level", "level_r", "level_norm", "vote_clock", "auto_level")
EVIDENCE = 3  # numbers of ``auto_level`` before those of ``techniques.Level``
LATELY = 16  # steps; who has had no gradient for longer rests, and does not count
SINCE = EVIDENCE + T.Level._fields.index("since")
# The group's clock at the parameter's last vote: an old vote must not be counted again.
CLOCK = StateSpec("vote_clock", "tensor", dtype=torch.float32, initial=-1.0)


def specs(layout: Layout, hp: Hyper) -> list[StateSpec]:
    """Fields of the rule that these options name."""
    if hp.lr_level == "distance":
        count = T.sample_size(layout.numel)
        return [
            StateSpec("lr_level", "tensor", dtype=torch.float32, initial=1.0),
            StateSpec("level_anchor", "sample", dtype=torch.float32, count=count),
            StateSpec("level_sum", "sample", dtype=torch.float32, count=count),
            StateSpec("level_r", "tensor", dtype=torch.float32),
            StateSpec("level_norm", "tensor", dtype=torch.float32),
        ]
    if hp.lr_level == "vote":
        return [
            StateSpec("lr_level", "tensor", dtype=torch.float32),
            StateSpec("sign_history", "full", dtype=torch.uint8),
            StateSpec("level_r", "tensor", dtype=torch.float32),
            StateSpec("level_norm", "tensor", dtype=torch.float32),
            CLOCK,
        ]
    if hp.lr_level == "auto":
        count = EVIDENCE + len(T.Level._fields)
        return [
            StateSpec("auto_level", "sample", dtype=torch.float32, count=count),
            StateSpec("auto_anchor", "left", dtype=torch.float32, count=looked_at(layout)),
        ]
    return []


def looked_at(layout: Layout) -> int:
    """Columns that the automatic level looks at: of a whole tensor, wherever its rows are."""
    k, m, n = layout.view
    if layout.place is not None and layout.matrix:
        k, m = (layout.place.size, m) if layout.place.split == 1 else (k, layout.place.size)
    return T.left_columns(k * m, n, layout.matrix)


def active_share(rows: Any, steps: Any, latest: Any) -> Any:
    """Share of the parameters trained lately that had a gradient other than 0 in the last update.

    Trained is what has a gradient, or has moved since it was remembered. All are arrays, or all tensors.
    """
    gradient, moved = rows[:, 1] > 0, rows[:, 2] > 0
    trained = (steps > 0) & (steps > latest - LATELY) & (gradient | moved)
    return ((steps == latest) & gradient).sum() / trained.sum().clip(min=1)


class Seen(NamedTuple):
    """What the parameters of the last update saw together, and the level that it was made at, in numbers."""

    evidence: tuple[float, float, float] = (0.0, 0.0, 0.0)
    level: T.Level | None = None  # before the first update
    active: float = 1.0  # share of the parameters updated lately that had a part in the last update


def seen(rows: NDArray[np.float32]) -> Seen:
    """From the rows [N,11] of all parameters: those that had no part in the last update say nothing."""
    steps = rows[:, EVIDENCE]
    latest = steps.max()
    if not latest > 0:
        return Seen()
    fresh = steps == latest
    # Summed in doubles and rounded, so that no engine's order of summation shows.
    sums = rows[fresh, :EVIDENCE].sum(0, dtype=np.float64).astype(np.float32)
    product, g_square, way_square = sums.tolist()
    level = T.Level(*rows[fresh.argmax(), EVIDENCE:].tolist())
    return Seen((product, g_square, way_square), level, float(active_share(rows, steps, latest)))


def steered_here(last: Seen, start: float, schedule: float, limit: float = math.inf) -> T.Level:
    """The automatic level of this step in numbers, 20 times faster than in 0-D tensors: for host memory."""
    return T.steer(last.level or T.Level.begun(start), last.evidence, schedule, last.active, limit)


def steered(
    rows: Tensor | None,
    start: float,
    schedule: float | Tensor,
    device: torch.device,
    limit: float | Tensor = math.inf,
) -> Tensor:
    """The automatic level of this step, [8], from what all parameters keep of it.

    Args:
        rows: [N,11] evidence of each parameter's last update, and the level which that was made at; or None.
        start: largest learning rate of all groups.
        schedule: see ``share``.
        device: where it is wanted.
        limit: see ``speed_limit``.
    """
    if device.type == "cpu" and (rows is None or rows.is_cpu):
        last = Seen() if rows is None else seen(rows.detach().numpy())
        level = steered_here(last, start, float(schedule), float(limit))
        return torch.tensor(level, dtype=torch.float32, device=device)
    return steered_there(rows, start, schedule, device, limit)


def steered_there(
    rows: Tensor | None,
    start: float,
    schedule: float | Tensor,
    device: torch.device,
    limit: float | Tensor = math.inf,
) -> Tensor:
    """The same on a device that nobody waits for; see ``steered``."""
    kind: Any = {"dtype": torch.float32, "device": device}  # not the program's default type
    begun = torch.stack([torch.full((), float(x), **kind) for x in T.Level.begun(start)])
    sums, active = torch.zeros(EVIDENCE, **kind), torch.ones((), **kind)
    if rows is not None:
        steps = rows[:, EVIDENCE]
        latest = steps.max()
        fresh = ((steps == latest) & (latest > 0)).to(rows.dtype)
        active = torch.where(latest > 0, active_share(rows, steps, latest), active)
        seen_by = rows[:, :EVIDENCE]
        wide = seen_by if rows.device.type == "mps" else seen_by.double()  # MPS has none
        sums = (wide * fresh.unsqueeze(1)).sum(0).float()  # below 1e30 each, so never infinite
        row = rows.index_select(0, fresh.argmax().view(1)).view(-1)[EVIDENCE:].float()
        begun = torch.where(latest > 0, row, begun)
    product, g_square, way_square = sums.unbind()
    now = schedule.to(**kind) if isinstance(schedule, Tensor) else torch.full((), schedule, **kind)
    most = limit.to(**kind) if isinstance(limit, Tensor) else torch.full((), limit, **kind)
    level = T.steer(T.Level.of(begun), (product, g_square, way_square), now, active, most)
    return torch.stack([torch.as_tensor(x, **kind) for x in level])


def level_under(level: T.Level, start: float, schedule: float | Tensor) -> float | Tensor:
    """The automatic level as what multiplies the lr of every group, ``d``: a number, or a tensor as it is."""
    if start <= 0:
        return level.value * 0
    return T.lifted(level, schedule) / start


def one_of(largest: float) -> float:
    """What "1" is where this is the largest first learning rate: itself, where it is a start."""
    return 1.0 if largest >= T.CONVENTION else largest


def rescale(row: Tensor, factor: float) -> None:
    """Multiply the level that a parameter remembers."""
    row.detach().view(-1)[EVIDENCE + T.Level._fields.index("value")] *= factor


def initial(name: str, params: list[Tensor], layout: Layout) -> Tensor | None:
    """First values [B,*] of a field that depends on the weights; None for any other field."""
    if name not in ("level_anchor", "auto_anchor"):
        return None
    views = [p.detach().reshape(1, *layout.view) for p in params]
    if name == "level_anchor":
        return torch.cat([T.sample(view) for view in views])
    return torch.cat([T.left(view, looked_at(layout)) for view in views])


def level(shared: Shared, hp: Hyper) -> Tensor | float:
    """Level of the rate, relative to the group's lr."""
    if hp.lr_level == "fixed":
        return 1.0
    if hp.lr_level == "distance":
        return shared.level * T.DISTANCE_GAIN
    return shared.level if hp.lr_level == "auto" else shared.level.exp()


def evidence(
    g: Tensor, u: Tensor, p: Tensor, state: State, shared: Shared, k: Scalars, hp: Hyper
) -> T.Steps[dict[str, Tensor]]:
    """What this step says about the level of the next one, as fields of the state."""
    if hp.lr_level == "fixed":
        return {}
    if hp.lr_level == "auto":
        assert shared.steering is not None and state.auto_anchor is not None and state.auto_level is not None
        level, before = T.Level.of(shared.steering), state.auto_level[:, SINCE]
        seen, kept = yield from T.look_back.steps(g, state.auto_anchor, p, level, before)
        copy = shared.steering.expand(g.shape[0], -1)
        return {"auto_level": torch.cat([seen.float(), copy], 1), "auto_anchor": kept}
    flat = (-1, 1, 1, 1)
    copy = shared.level.to(torch.float32).expand(g.shape[0]).reshape(flat)
    if hp.lr_level == "distance":
        assert state.level_anchor is not None and state.level_sum is not None and state.level_r is not None
        weight = shared.level_start * shared.level.square()
        travelled = state.level_anchor.to(g.dtype) - T.sample(p)
        r, total, norm = T.distance_evidence(
            state.level_r.flatten(), state.level_sum, T.sample(g), travelled, weight
        )
        fields = {"level_sum": total.float()}
    else:
        assert state.sign_history is not None and shared.clock is not None
        history = T.push_sign(state.sign_history, g)
        r, norm = T.sign_vote(history, u, (k.t >= T.VOTE_HISTORY).flatten())
        fields = {"sign_history": history, "vote_clock": shared.clock.expand_as(copy)}
    numbers = {"level_r": r.float().reshape(flat), "level_norm": norm.float().reshape(flat)}
    return {**fields, **numbers, "lr_level": copy}
    yield []
