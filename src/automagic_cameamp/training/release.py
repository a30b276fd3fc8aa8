"""Gradient release: every parameter is updated as soon as its gradient is there, which is then freed.

Numbers over the whole model (mean of the mask, level, controller) are read one step late, so no
update waits for the other gradients: the result is that of ``step()``, bit for bit.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..eager import eager, eagerly
from ..executors import work as backends
from ..state import fits, kinds, memory, tensors
from ..state.chunks import Chunk
from ..state.shards import is_distributed
from ..validate import fail
from . import offload
from .precision import refuse_scaler

if TYPE_CHECKING:
    from ..optimizer import CameAMPOptimizer

Place = tuple[dict[str, Any], Chunk, int]  # group, whole chunk, position in it


class OpenStep:
    """A step that has begun: some parameters are updated, the step has not been counted.

    Args:
        optimizer: whose step it is; it is read, not changed, until the first update.
    """

    def __init__(self, optimizer: CameAMPOptimizer) -> None:
        self.optimizer = optimizer
        kinds.check_groups(optimizer)
        memory.adopt(optimizer)
        optimizer._plan = None  # it would not know of this step's updates
        self.plan = list(optimizer._chunks())
        fits.check(optimizer, self.plan, every=True)
        self.places: dict[int, Place] = {
            id(p): (group, chunk, i) for group, chunk in self.plan for i, p in enumerate(chunk.params)
        }
        # The numbers are live tensors of the states: all groups read them before any update.
        lagged = optimizer._lagged()
        self.shared = []
        for number, group in enumerate(optimizer.param_groups):
            params = group["params"]
            like = next((p for p in params if p.requires_grad), params[0] if params else None)
            self.shared.append(None if like is None else optimizer._share(number, group, lagged, like))
        self.seen: dict[int, tuple[int, int]] = {}
        # (place of the backend, chunk) -> place in the chunk -> its work, and what was told of it
        self.results: dict[tuple[int, tuple[int, int]], dict[int, tuple[backends.Work, Tensor, Any]]] = {}
        self.folded: list[backends.Folded] = []  # what the kernels told the controller
        if optimizer._steps == 0:
            from ..executors import report as who  # here, so that an import of the package stays light

            who.tell_ahead(optimizer)

    def update(self, p: Tensor) -> None:
        """Update one parameter that has a gradient."""
        group, chunk, i = self.places[id(p)]
        self.optimizer._create_states([(group, chunk._replace(params=[p], indices=[chunk.indices[i]]))])
        self._run([self.optimizer._work(group, chunk, [i], self.shared[chunk.key[0]])])
        self.seen[id(p)] = tensors.mark(p.grad)

    def left(self) -> list[tuple[dict[str, Any], Chunk, list[int]]]:
        """Chunks with the members that have a gradient and are not updated yet."""
        found = []
        for group, chunk in self.plan:
            waiting = [i for i, p in enumerate(chunk.params) if p.grad is not None and not self._done(p)]
            if waiting:
                found.append((group, chunk, waiting))
        return found

    def finish(self, loss: Any, rest: bool) -> None:
        """Count the step, after updating what was left where ``rest`` is set."""
        optimizer = self.optimizer
        if rest:
            left = self.left()
            optimizer._create_states(
                [(g, c._replace(params=[c.params[i] for i in waiting])) for g, c, waiting in left]
            )
            self._run([optimizer._work(g, c, waiting, self.shared[c.key[0]]) for g, c, waiting in left])
        if optimizer.controller is not None:
            optimizer.controller.begin(loss)
        chunks = {chunk.key: chunk for _, chunk in self.plan}
        if optimizer.controller is not None and self.folded:
            total = backends.Folded.of(self.folded)
            optimizer.controller.join(total.sketch, total.square, total.bad)
        for rank, key in sorted(self.results):
            optimizer._note(*self._merge(rank, chunks[key]))
        optimizer._open = None
        optimizer._end_step()

    def _done(self, p: Tensor) -> bool:
        if id(p) not in self.seen:
            return False
        if self.seen[id(p)] != tensors.mark(p.grad):
            group, chunk, i = self.places[id(p)]
            name = self.optimizer._name(group, next(n for n, q in enumerate(group["params"]) if q is p))
            raise RuntimeError(
                f"parameter {name} was updated in this step and has another gradient since: call step() "
                "between two backward passes, or release_gradients(..., accumulation=N) for N of them."
            )
        return True

    def _run(self, works: list[backends.Work]) -> None:
        """Execute, and keep what is told of each parameter until the step ends."""
        engine = self.optimizer.config.engine
        for rank, (work, ok, signals) in backends.ranked(engine, works):
            if isinstance(signals, backends.Folded):
                self.folded.append(signals)
                signals = None
            kept = self.results.setdefault((rank, work.chunk.key), {})
            for row, i in enumerate(work.active):
                one = None if signals is None else type(signals)(*(x[row : row + 1] for x in signals))
                kept[i] = (work, ok[row : row + 1], one)

    def _merge(self, rank: int, chunk: Chunk) -> tuple[backends.Work, Tensor, Any]:
        """What ``step()`` would have been told of this chunk as one stack of this backend."""
        found = self.results[rank, chunk.key]
        active = sorted(found)
        work, _, first = found[active[0]]
        part = chunk._replace(
            params=[chunk.params[i] for i in active], indices=[chunk.indices[i] for i in active]
        )
        ok = torch.cat([found[i][1] for i in active])
        signals = None
        if first is not None:
            fields = zip(*(found[i][2] for i in active), strict=True)
            signals = type(first)(*(torch.cat(rows) for rows in fields))
        return work._replace(chunk=part, active=active), ok, signals


@eagerly
class GradientRelease:
    """The releasing half of the engine's optimizer."""

    param_groups: list[dict[str, Any]]
    _open: OpenStep | None
    _handle: ReleaseHandle | None

    @torch.inference_mode(False)
    @torch.no_grad()
    def step_parameter(self, p: Tensor, group: dict[str, Any] | None = None, i: int | None = None) -> None:
        """Update one parameter from its gradient; the caller may free the gradient afterwards.

        The first call begins a step. ``step()`` ends it, after updating the parameters that still have
        a gradient; where a program never calls ``step()``, the next gradient of a parameter that is
        already updated ends it.

        Args:
            p: the parameter; nothing happens where it has no gradient.
            group: the group that the trainer found it in. The optimizer's own group counts: a
                captured one is an old copy after ``load_state_dict``.
            i: position of p in ``group["params"]``.

        Raises:
            ValueError: p is not this optimizer's, or not at this position.
            RuntimeError: the gradient is not dense.
        """
        if i is not None and group is not None and not (0 <= i < len(group["params"])):
            raise fail("i", i, f"a position among the {len(group['params'])} parameters of the group")
        if i is not None and group is not None and group["params"][i] is not p:
            raise fail("i", i, "the position of p in group['params']")
        if p.grad is None:
            return
        offload.refuse_release(self)
        if is_distributed(p):
            raise RuntimeError(
                "a sharded parameter cannot be updated before the others: its sums over the processes go "
                "through the same exchange as theirs. Use step() with fully_shard."
            )
        self._check_gradients(p)
        if self._open is not None and id(p) in self._open.seen:
            self._open.finish(None, rest=False)
        current = OpenStep(self) if self._open is None else self._open  # type: ignore[arg-type]
        if id(p) not in current.places:
            if p.numel() == 0 and any(q is p for g in self.param_groups for q in g["params"]):
                return
            raise fail("p", tuple(p.shape), "a parameter of this optimizer", "It is in none of its groups.")
        self._open = current
        current.update(p)

    def step_param(self, p: Tensor, group: dict[str, Any] | None = None) -> None:
        """The same as ``step_parameter``, under the name that other trainers call."""
        self.step_parameter(p, group)

    def release_gradients(self, model: nn.Module | Iterable[Tensor], **options: Any) -> ReleaseHandle:
        """``release_gradients(model, self, **options)``."""
        return release_gradients(model, self, **options)  # type: ignore[arg-type]

    def _settle(self, doing: str) -> None:
        """End an open step before something that needs whole steps."""
        if self._open is None:
            return
        left = self._open.left()
        if left or self._handle is not None:
            raise RuntimeError(
                f"{doing} in the middle of a step: some parameters are updated already. "
                "Call step() after backward() first."
            )
        self._open.finish(None, rest=False)

    if TYPE_CHECKING:  # the working half's

        def _check_gradients(self, only: Tensor | None = None) -> None: ...


@eagerly
class ReleaseHandle:
    """Hooks that update every parameter as soon as its gradient is complete. Ends with ``remove()``.

    Args:
        optimizer: whose parameters they are.
        params: those that are released.
        accumulation: backward passes per step.
        max_norm: largest norm of the whole gradient, or None.
        unscaled: the caller answers for gradients that no GradScaler has scaled.
    """

    def __init__(
        self,
        optimizer: CameAMPOptimizer,
        params: list[Tensor],
        accumulation: int,
        max_norm: float | None,
        unscaled: bool,
    ) -> None:
        self.optimizer = optimizer
        self.accumulation = accumulation
        self.max_norm = max_norm
        self._unscaled = unscaled
        self._params = params
        self._counts: dict[int, int] = {}
        self._norms: dict[int, Tensor] | None = None
        self._gain: Tensor | None = None
        self._hooks = [p.register_post_accumulate_grad_hook(self._arrived) for p in params]
        self._hooks.append(optimizer.register_step_post_hook(lambda *_: self._counts.clear()))
        optimizer._handle = self

    def step(self, loss: Any = None) -> Any:
        """The same as ``optimizer.step(loss=loss)``: ends the step."""
        return self.optimizer.step(loss=loss)

    def backward(self, loss: Tensor) -> Tensor | None:
        """``loss.backward()``; with ``max_norm`` two passes: the first measures, the second updates.

        Args:
            loss: the scalar to minimise.

        Returns:
            Norm of the whole gradient before clipping, 0-D; None without ``max_norm``.

        Source: LOMO, arXiv 2306.09782, section 3.2 (two backward passes for the norm).
        """
        if self.max_norm is None:
            loss.backward()
            return None
        self._norms = {}
        try:
            loss.backward(retain_graph=True)
            norms = [self._norms[id(p)] for p in self._params if id(p) in self._norms]
        finally:
            self._norms = None
        if not norms:
            raise RuntimeError("backward reached no parameter of the handle: there is no gradient to clip.")
        total = torch.linalg.vector_norm(torch.stack([n.to(norms[0].device) for n in norms]))
        # The coefficient of torch.nn.utils.clip_grad_norm_.
        self._gain = (self.max_norm / (total + 1e-6)).clamp(max=1.0)
        try:
            loss.backward()
        finally:
            self._gain = None
        return total

    def remove(self) -> None:
        """Take the hooks off; gradients stay from now on. Parameters that are updated keep that."""
        for hook in self._hooks:
            hook.remove()
        self._hooks = []
        if self.optimizer._handle is self:
            self.optimizer._handle = None

    def __enter__(self) -> ReleaseHandle:
        return self

    def __exit__(self, *_: object) -> None:
        self.remove()

    @eager
    @torch.no_grad()
    def _arrived(self, p: Tensor) -> None:
        """A gradient has been added to ``p.grad``."""
        if self._norms is not None:
            assert p.grad is not None
            if id(p) in self._norms:
                raise _twice(self.optimizer, p, 1)
            self._norms[id(p)] = torch.linalg.vector_norm(p.grad)
            p.grad = None
            return
        if self.max_norm is not None and self._gain is None:
            p.grad = None
            raise RuntimeError(
                f"max_norm={self.max_norm:g} needs the norm of the whole gradient before the first update: "
                "call handle.backward(loss) in place of loss.backward()."
            )
        if not self._unscaled:
            refuse_scaler()
            self._unscaled = True  # a later scaler has no gradients to unscale, and says so itself
        count = self._counts[id(p)] = self._counts.get(id(p), 0) + 1
        if count > self.accumulation:
            raise _twice(self.optimizer, p, self.accumulation)
        if count == self.accumulation:
            if self._gain is not None:
                assert p.grad is not None
                p.grad.mul_(self._gain.to(p.grad.device))
            self.optimizer.step_parameter(p)
            p.grad = None


def _twice(optimizer: CameAMPOptimizer, p: Tensor, accumulation: int) -> RuntimeError:
    name = next(
        optimizer._name(group, i)
        for group in optimizer.param_groups
        for i, q in enumerate(group["params"])
        if q is p
    )
    return RuntimeError(
        f"parameter {name} has a gradient for the {accumulation + 1}. time since the last step(), and "
        f"accumulation={accumulation}: call step() after every {accumulation} backward passes, or name "
        "their number. Weights that reentrant checkpointing uses twice need use_reentrant=False."
    )


@eager
def release_gradients(
    model: nn.Module | Iterable[Tensor],
    optimizer: CameAMPOptimizer,
    *,
    accumulation: int = 1,
    max_norm: float | None = None,
    unscaled: bool = False,
) -> ReleaseHandle:
    """Update every parameter inside ``backward()`` and free its gradient there.

    Keep calling ``optimizer.step()`` (or ``handle.step()``) where it was called: it ends the step and
    updates what was not released. The result is that of the plain loop bit for bit; the peak of memory
    is lower by all gradients but the largest.

    Args:
        model: module, or parameters, to release; those that the optimizer does not hold are left alone.
        optimizer: an optimizer of the family.
        accumulation: backward passes per step; gradients stay until the last one. A parameter that
            has a gradient in some of them only is updated by ``step()``.
        max_norm: clip the norm of the whole gradient to this; then call ``handle.backward(loss)``.
        unscaled: no GradScaler scales these gradients, though one may be in use.

    Returns:
        The handle: ``remove()``, ``step()``, ``backward(loss)``, and a context manager.

    Raises:
        ValueError: a wrong value, nothing to release, or a combination that could not be correct.
    """
    offload.refuse_release(optimizer)
    if isinstance(accumulation, bool) or not isinstance(accumulation, int) or accumulation < 1:
        raise fail("accumulation", accumulation, "a whole number of backward passes, at least 1")
    if max_norm is not None and not 0 < float(max_norm) < float("inf"):
        raise fail("max_norm", max_norm, "None, or a number above 0")
    if max_norm is not None and accumulation > 1:
        raise fail(
            "max_norm",
            max_norm,
            f"None with accumulation={accumulation}",
            "Accumulated gradients are all held anyway: use clip_grad_norm_ and step() without a handle.",
        )
    if optimizer._handle is not None:
        raise ValueError("the gradients of this optimizer are released already: call remove() first.")
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        if torch.distributed.get_world_size() > 1:
            raise ValueError(
                "gradients cannot be released with several processes: each would use its own gradient "
                "before they are averaged. Use step() with DistributedDataParallel, or fully_shard."
            )
    wrappers = model.modules() if isinstance(model, nn.Module) else ()
    if any(type(m).__name__ == "DistributedDataParallel" for m in wrappers):
        raise ValueError(
            "gradients of a DistributedDataParallel model cannot be released: each process would use its "
            "own before they are averaged. Use step() without a handle."
        )
    own = {id(p) for group in optimizer.param_groups for p in group["params"]}
    params = list(model.parameters() if isinstance(model, nn.Module) else model)
    released = [p for p in params if id(p) in own and p.requires_grad and p.is_leaf]
    if not released:
        raise fail("model", type(model).__name__, "one with parameters that the optimizer holds and trains")
    return ReleaseHandle(optimizer, released, accumulation, max_norm, unscaled)
