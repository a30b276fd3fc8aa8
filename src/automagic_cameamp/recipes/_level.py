"""The level of the rate: what each rule keeps, what it sees, and the number that comes of it."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from .. import techniques as T
from ..storage.spec import StateSpec
from ..types import Layout, Scalars
from ._data import Hyper, Shared, State

LAGGED = ("lr_level", "level_r", "level_norm", "vote_clock", "auto_level")
EVIDENCE = 3  # numbers of ``auto_level`` before those of ``techniques.Level``
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


def steered(rows: Tensor | None, start: float, schedule: float | Tensor, device: torch.device) -> Tensor:
    """The automatic level of this step, [8], from what all parameters keep of it.

    In host memory the rule is worked out in numbers, which is 20 times faster than in 0-D tensors; on a
    device nobody waits for it.

    Args:
        rows: [N,11] evidence of each parameter's last update, and the level which that was made at; or None.
        start: largest learning rate of all groups.
        schedule: see ``share``.
        device: where it is wanted.
    """
    first = [0.0] * len(T.Level._fields)
    first[T.Level._fields.index("value")] = T.level_start(start)
    if device.type == "cpu" and (rows is None or rows.is_cpu):
        evidence, old = (0.0, 0.0, 0.0), T.Level(*first)
        if rows is not None:
            evidence, old = _latest(rows.detach().numpy(), old)
        level = T.steer(old, evidence, float(schedule))
        return torch.tensor(level, dtype=torch.float32, device=device)
    begun = torch.stack([torch.full((), x, device=device) for x in first])
    sums = torch.zeros(EVIDENCE, device=device)
    if rows is not None:
        steps = rows[:, EVIDENCE]
        latest = steps.max()
        # Who had no part in the last update says nothing, and its level is an old one.
        fresh = ((steps == latest) & (latest > 0)).to(rows.dtype)
        # In doubles no engine's order of summation shows; MPS has none.
        wide = rows[:, :EVIDENCE] if rows.device.type == "mps" else rows[:, :EVIDENCE].double()
        sums = (wide * fresh.unsqueeze(1)).sum(0).float()  # below 1e30 each, so never infinite
        row = rows.index_select(0, fresh.argmax().view(1)).view(-1)[EVIDENCE:].float()
        begun = torch.where(latest > 0, row, begun)
    product, g_square, way_square = sums.unbind()
    now = torch.as_tensor(schedule, dtype=torch.float32, device=device)
    level = T.steer(T.Level.of(begun), (product, g_square, way_square), now)
    return torch.stack([torch.as_tensor(x, device=device) for x in level])


def _latest(rows: np.ndarray, old: T.Level) -> tuple[tuple[float, float, float], T.Level]:
    """The same sums, and the level that they are of, in numbers; ``old`` where there was no update yet."""
    steps = rows[:, EVIDENCE]
    latest = steps.max()
    if not latest > 0:
        return (0.0, 0.0, 0.0), old
    fresh = steps == latest
    product, g_square, way_square = rows[fresh, :EVIDENCE].sum(0, dtype=np.float64).tolist()
    return (product, g_square, way_square), T.Level(*rows[fresh.argmax(), EVIDENCE:].tolist())


def level_under(steering: Tensor, start: float, lr: float | Tensor, base_lr: float) -> Tensor:
    """The automatic level as what multiplies the lr of a group: its ``d``."""
    if base_lr <= 0 or start <= 0:
        return steering.new_zeros(())
    if steering.is_cpu:
        found = T.lifted(T.Level(*steering.tolist()), float(lr) / base_lr) / start
        return torch.tensor(found, dtype=steering.dtype, device=steering.device)
    found = T.lifted(T.Level.of(steering), torch.as_tensor(lr / base_lr, device=steering.device))
    return torch.as_tensor(found, dtype=steering.dtype, device=steering.device) / start


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
        assert shared.steering is not None and state.auto_anchor is not None
        seen, kept = yield from T.look_back.steps(g, state.auto_anchor, p, T.Level.of(shared.steering))
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
