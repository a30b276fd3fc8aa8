"""Steps of the kernels that end with a search for new low-rank directions (``sync_frequency``).

The kernels do the whole step, with the directions they have; what remains is small, and done by the recipe.
The reference shrinks weights before it rounds them, so parameters of less than fp32 take such a step as fp32
copies.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..recipes import improved
from . import execute

FIELDS = ("lowrank_basis", "lowrank_tail")


def name_of(fields: list[execute.Field]) -> str | None:
    """The state that holds the directions of a parameter, if it has any."""
    return next((spec.name for spec, _ in fields if spec.name in FIELDS), None)


def due(group: dict[str, Any]) -> bool:
    """Whether the step that comes searches in this group."""
    return group["clock"] % group["sync_frequency"] == 0


class Search:
    """The search for the members of a chunk.

    Args:
        member: the chunk, as the kernels know it.
        params: its parameters.
        rows: [B] of the kernels' table.
    """

    def __init__(self, member: Any, params: list[Tensor], rows: Any) -> None:
        self.member, self.params, self.rows = member, params, rows
        self.usual: Any = None
        self.weights = [p.detach() for p in params]
        if params[0].dtype != torch.float32:
            self.weights = [w.float() for w in self.weights]
            self.usual = rows.copy()
            rows["p"] = [w.data_ptr() for w in self.weights]
            rows["p_type"], rows["rounds"] = 0, 0

    def finish(self) -> None:
        """Search, shrink and write, after the step: only where the gradient was usable."""
        m = self.member
        done = [i for i, ok in enumerate((self.rows["ok"] == 1).tolist()) if ok]
        if self.usual is not None:
            for name in ("p", "p_type", "rounds"):
                self.rows[name] = self.usual[name]
        if not done:
            return
        states, params = [m.states[i] for i in done], [self.params[i] for i in done]
        name = name_of(m.fields)
        assert name is not None
        weights = execute.stack_params([self.weights[i] for i in done], m.chunk.layout, torch.float32)
        owed = torch.stack([state["lowrank_rate"] for state in states]).view(-1, 1, 1, 1)
        new, basis = improved.renew_directions(weights, owed, m.hp, tail=name == "lowrank_tail")
        held = [state[name] for state in states]
        torch._foreach_copy_(held, [b.view_as(h) for b, h in zip(basis.unbind(0), held, strict=True)])
        torch._foreach_zero_([state["lowrank_rate"] for state in states])
        noise = None
        if m.rounds:
            step = torch.stack([state["step"] for state in states]).flatten()
            noise = execute.Noise(m.keys[done], step)
        execute.write_params(params, new, noise)
