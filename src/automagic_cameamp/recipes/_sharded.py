r"""An update of tensors that are split over processes, in two exchanges.

Nothing is defined twice: the recipe's own ``update`` runs three times on what a process holds, and
``Totals`` answers its sums. The first run notes what this process adds to the sums of the first
half, the second run, which knows them, what it adds to those of the second half; the third knows
all sums and its result counts. Between two runs the noted numbers are added over all processes.

Two exchanges are enough because of one identity. The size of :math:`u_{ij} = g_{ij} / \sqrt{R_i C_j
/ \bar R}` is needed in the half in which C and R are still unknown, but

.. math:: \sum_{ij} u_{ij}^2 = \bar R \sum_j \frac{1}{C_j} \left(\sum_i \frac{g_{ij}^2}{R_i}\right)

and the inner sums need no C: so where a column factor is unknown, 1 stands for it, sums are noted
per column, and the factor is put in afterwards. The same holds for <u, m> and for the final update.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .. import techniques as T
from ._rate import has_mask

__all__ = ["ROUNDS", "Place", "Totals", "adapt", "answering", "refused"]

ROUNDS = (1, 2)
FINAL = 3
# In which run a process knows its share of a sum.
ROUND_OF = {
    "square.col": 1,
    "square.rows": 1,
    "update": 1,
    "torque.mm": 1,
    "torque.uu": 1,
    "torque.mu": 1,
    "finite": 1,
    "finite.row": 1,
    "finite.col": 1,
    "boost": 1,
    "background": 1,
    "decay.mean": 1,
    "spd.before": 1,
    "spd.along": 1,
    "signals": 1,
    "surprise.col": 2,
    "surprise.rows": 2,
    "final": 2,
    "finite.variance": 2,
    "cautious": 2,
    "mask": 2,
    "rate": 2,
    "decay.std": 2,
    "spd.after.along": 2,
    "spd.after.square": 2,
    "sketch": 2,
}
# Sums that hold a column factor, of which moment, and to which power of its root. The torque is a
# cosine: that its u was clipped after the sums were noted does not show.
COLUMN_FACTOR = {
    "update": ("square", 2),
    "torque.uu": ("square", 2),
    "torque.mu": ("square", 1),
    "final": ("surprise", 2),
    "spd.after.along": ("surprise", 1),
    "spd.after.square": ("surprise", 2),
}


class Place(NamedTuple):
    """Which part of a tensor is here.

    Args:
        split: dimension of [B,K,m,n] that is split: 1, 2 or 3.
        size: its length in the whole tensor.
        length: its length here; 0 where nothing is.
        first: flat index of the first element that is here.
        whole: elements of the whole tensor.
    """

    split: int
    size: int
    length: int
    first: int
    whole: int


class Totals:
    """Answers the sums of one run of an update.

    Args:
        place: which part of the tensors is here.
        known: sums over all processes by site.
        stage: 1 or 2: sums of this round are noted in ``parts``; 3: all are known.
    """

    def __init__(self, place: Place, known: dict[str, Tensor], stage: int) -> None:
        self.place, self.known, self.stage = place, known, stage
        self.split, self.first, self.whole = place.split, place.first, place.whole
        self.parts: dict[str, Tensor] = {}
        self._means: dict[str, Tensor] = {}
        # moment -> mean(R) / C, or None while the columns are unknown
        self._factors: dict[str, Tensor | None] = {}

    def _note(self, site: str, part: Tensor) -> None:
        if site not in ROUND_OF or self.stage == FINAL or site in self.parts:
            raise RuntimeError(
                f"the sum {site!r} has no place in the exchange between processes: this option cannot be "
                "used with sharded parameters."
            )
        if ROUND_OF[site] == self.stage:
            self.parts[site] = part

    def _here(self, x: Tensor) -> Tensor:
        """A tensor that is alike along the split dimension, once for each of its members here."""
        shape = list(x.shape)
        shape[self.split] = self.place.length
        return x.expand(shape)

    def sum(self, x: Tensor, site: str, scale: Tensor | None = None) -> Tensor:
        """Sum over the tensor; 0 while it is unknown (a gain is then 1)."""
        if self.split == 2 and site == "finite.col":
            return T.local_sum(x)  # the columns are known everywhere
        if site not in self.known:
            source = COLUMN_FACTOR.get(site, ("", 0))[0]
            here = self._here(x)
            self._note(site, here.sum(2, keepdim=True) if source in self._factors else T.local_sum(here))
            unknown = x.new_zeros(len(x), 1, 1, 1)
            # Where nothing agrees yet, Cautious would scale by a thousand.
            return unknown + self.numel(x) if site == "cautious" else unknown
        total = self._with_columns(self.known[site], site)
        return total if scale is None else total * scale.square()

    def _with_columns(self, noted: Tensor, site: str) -> Tensor:
        source, power = COLUMN_FACTOR.get(site, ("", 0))
        factor = self._factors.get(source)
        if factor is None:
            return noted
        return T.local_sum(noted * (factor if power == 2 else factor.sqrt()))

    def exact(self, x: Tensor, site: str) -> Tensor:
        """Sum over the processes of something that is no [B,K,m,n]."""
        if site in self.known:
            return self.known[site]
        self._note(site, x)
        return x

    def moved(self, p: Tensor, new: Tensor, site: str, scale: Tensor | None) -> Tensor:
        """Sum of squares of new = p - d, from those of p, <p, d> and d."""
        d = p - new
        along, square = self.sum(p * d, f"{site}.along"), self.sum(d.square(), f"{site}.square", scale)
        along = along if scale is None else along * scale
        return (self.known["spd.before"] if "spd.before" in self.known else square) - 2 * along + square

    def col_mean(self, x: Tensor, site: str) -> Tensor:
        """Column means over all rows."""
        part = x.sum(2, keepdim=True)
        if site not in self.known:
            self._note(site, part)
        return self.known.get(site, part) / self.place.size

    def mean_of_rows(self, row: Tensor, site: str) -> Tensor:
        """Mean of a row statistic over all rows; 1 while it is unknown."""
        key = site if site in ROUND_OF else f"{site}.rows"
        if key not in self.known:
            part = row.sum(2, keepdim=True)
            self._note(key, part)
            return torch.ones_like(part)
        self._means[site] = self.known[key] / self.place.size
        return self._means[site]

    def columns(self, col: Tensor, site: str) -> Tensor:
        """Column statistics where they are over all rows; 1 while they are unknown."""
        if f"{site}.col" not in self.known:
            self._factors[site] = None
            return torch.ones_like(col)
        self._factors[site] = self._means[site] / col
        return col

    def numel(self, x: Tensor) -> int:
        """Elements of one whole tensor."""
        shape = list(x.shape)
        shape[self.split] = self.place.size
        return shape[1] * shape[2] * shape[3]


def answering(totals: Totals) -> AbstractContextManager[None]:
    """The sums of an update inside are these."""
    return T.over_ranks(totals)


# ---------------------------------------------------------------- options

# They look at neighbours in both directions or at the whole matrix, of which a process has rows.
NEIGHBOURS: dict[str, tuple[Any, Any]] = {
    "frequency_penalty": (0.0, "damping of high frequencies"),
    "edge_suppression": (False, "damping of edges"),
    "spatial_awareness": (False, "gain of detailed rows"),
    "lora_rank_penalty": (False, "low-rank penalty and emphasis"),
}
NEEDED = {
    "use_agr": (False, "it needs a third sum over the processes"),
    "use_orthograd": (False, "it needs a third sum over the processes"),
    "percentile_clipping": (100, "it needs a third sum over the processes"),
    "lr_mask_granularity": ("element", "signs of other granularities are packed across rows"),
    "lr_level": ("fixed", "the sample of the weights that it compares is of the whole tensor"),
}


def refused(hp: Any) -> tuple[str, Any, Any, str] | None:
    """An option that cannot be used with sharded parameters: name, value, what is possible, why."""
    for name, (allowed, why) in NEEDED.items():
        value = getattr(hp, name, allowed)
        if value != allowed and (name != "lr_mask_granularity" or has_mask(hp)):
            return name, value, allowed, why
    return None


def adapt(hp: Any) -> tuple[Any, list[str]]:
    """Options without the stages that need neighbours in other processes, and what those do."""
    on = {name: off for name, (off, _) in NEIGHBOURS.items() if getattr(hp, name, off) != off}
    return hp._replace(**on), [NEIGHBOURS[name][1] for name in on]
