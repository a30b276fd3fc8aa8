"""Gradient release: every parameter is updated as soon as its gradient is there, which is then freed.

Numbers over the whole model (mean of the mask, level, controller) are read one step late, so no
update waits for the other gradients: the result is that of ``step()``, bit for bit.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from ..eager import eager, eagerly
from ..state.family import Family
from ..state.shards import is_distributed
from ..state.tensors import on_gradient
from ..validate import argument, fail, integer, number, optional
from .precision import refuse_scaler


@eagerly
class ReleaseHandle:
    """Hooks that update every parameter as soon as its gradient is complete, until ``remove()``.

    The optimizer holds the handle and the hooks do not, or neither could be freed before ``remove()``: torch
    does not see a cycle that goes through the hooks of a parameter.

    Args:
        optimizer: whose parameters they are.
        params: those that are released.
        accumulation: backward passes per step.
        max_norm: largest norm of the whole gradient, or None.
        unscaled: the caller answers for gradients that no GradScaler has scaled.
    """

    def __init__(
        self,
        optimizer: Family,
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
        self._counts: dict[int, int] = {}  # passes that gave a parameter a gradient
        self._counted = self._over()
        self._drops = optimizer.stepper.drops
        self._norms: dict[int, Tensor] | None = None
        self._before: dict[int, Tensor] = {}  # gradients that were there when the norm is measured
        self._reentrant = False  # whether a checkpoint of the old kind was met
        self._gain: Tensor | None = None
        self._hook = _Arrival(self)
        self._hooks = [on_gradient(p, self._hook) for p in params]
        self._hooked = [p._cdata for p in params]
        self._after = optimizer.register_step_post_hook(_Renewal(self))
        optimizer.stepper.handle = self

    def step(self, loss: Any = None) -> Any:
        """The same as ``optimizer.step(loss=loss)``: ends the step."""
        return self.optimizer.step(loss=loss)

    def backward(self, loss: Tensor) -> Tensor | None:
        """``loss.backward()``; with ``max_norm`` two passes: the first measures, the second updates.

        The norm is that of all trainable parameters of the optimizer, with what their gradients held before;
        no other leaf gets a gradient of the first pass.

        Args:
            loss: the scalar to minimise.

        Returns:
            Norm of the whole gradient before clipping, 0-D; None without ``max_norm``.

        Source: LOMO, arXiv 2306.09782, section 3.2 (two backward passes for the norm).
        """
        if self.max_norm is None:
            loss.backward()
            return None
        own = [p for p in self.optimizer.model.params() if p.requires_grad and p.is_leaf]
        norms = self._measured(loss, own)
        if not norms:
            raise RuntimeError("backward reached no parameter of the handle: there is no gradient to clip.")
        total = torch.linalg.vector_norm(torch.stack([n.to(norms[0].device) for n in norms]))
        # The coefficient of torch.nn.utils.clip_grad_norm_.
        self._gain = gain = (self.max_norm / (total + 1e-6)).clamp(max=1.0)
        try:
            loss.backward()
            for p in own:
                if p.grad is not None:  # for step(): not released, or not reached in this pass
                    p.grad.mul_(gain.to(p.grad.device))
        finally:
            self._gain = None
        return total

    def _measured(self, loss: Tensor, own: list[Tensor]) -> list[Tensor]:
        """Norms of what a backward pass gives, which leaves gradients as they were."""
        self._norms = {}
        self._before = {id(p): p.grad for p in own if p.grad is not None}
        try:
            self._first_pass(loss, own)
            for p in own:
                if id(p) not in self._norms and (p.grad is not None or id(p) in self._before):
                    self._measure(p)
            order = dict.fromkeys([*map(id, self._params), *map(id, own)])
            return [self._norms[key] for key in order if key in self._norms]
        finally:
            for p in own:
                p.grad = self._before.get(id(p))
            self._norms, self._before = None, {}

    def _first_pass(self, loss: Tensor, own: list[Tensor]) -> None:
        """A backward pass that gives no other leaf a gradient."""
        for p in own:
            p.grad = None
        if own and not self._reentrant:
            try:
                return loss.backward(retain_graph=True, inputs=own)
            except RuntimeError as error:
                if "use_reentrant" not in str(error):
                    raise
            self._reentrant = True  # such checkpoints take no list of leaves: the others get theirs back
            self._norms = {}
            for p in own:
                p.grad = None
        known = set(map(id, own))
        others = [(p, p.grad) for p in _leaves(loss) if id(p) not in known]
        try:
            for p, _ in others:
                p.grad = None
            loss.backward(retain_graph=True)
        finally:
            for p, before in others:
                p.grad = before

    def _measure(self, p: Tensor) -> None:
        assert self._norms is not None
        if id(p) in self._norms:
            raise _twice(self.optimizer, p, 1)
        parts = [g for g in (p.grad, self._before.get(id(p))) if g is not None]
        self._norms[id(p)] = torch.linalg.vector_norm(parts[0] + parts[1] if len(parts) == 2 else parts[0])
        p.grad = None

    def renew(self) -> None:
        """Hooks for parameters that torch has swapped: the old ones went with what was."""
        for i, p in enumerate(self._params if self._hooks else []):
            if self._hooked[i] != p._cdata:
                self._hooks[i].remove()
                self._hooks[i], self._hooked[i] = on_gradient(p, self._hook), p._cdata

    def remove(self) -> None:
        """Take the hooks off; gradients stay from now on. Parameters that are updated keep that."""
        if self._hooks:
            self.optimizer.stepper.handle = None
        self._after.remove()
        for hook in self._hooks:
            hook.remove()
        self._hooks = []
        self.optimizer.stepper.wait()  # a pass that raised has left what it had begun

    def __enter__(self) -> ReleaseHandle:
        return self

    def __exit__(self, *_: object) -> None:
        self.remove()

    def _over(self) -> tuple[int, int]:
        """Steps that have ended so far, one way or the other."""
        return self.optimizer.kept.steps, self.optimizer.stepper.abandoned

    def arrived(self, p: Tensor) -> None:
        """A gradient has been added to ``p.grad``."""
        if self._norms is not None:
            self._measure(p)
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
        stepper = self.optimizer.stepper
        if self._counted != self._over():
            self._counts, self._counted = {}, self._over()
        if self._drops != stepper.drops:  # what had added up is gone; what is updated stays so
            self._counts = {key: n for key, n in self._counts.items() if n >= self.accumulation}
            self._drops = stepper.drops
        count = self._counts[id(p)] = self._counts.get(id(p), 0) + 1
        if count > self.accumulation:
            p.grad = None  # so that step() can end the step
            raise _twice(self.optimizer, p, self.accumulation)
        if count < self.accumulation:
            if stepper.hold(self.optimizer.model, p):
                p.grad = None
        else:
            if self._gain is not None:
                assert p.grad is not None
                p.grad.mul_(self._gain.to(p.grad.device))
            self.optimizer.step_parameter(p)
            p.grad = None


def _leaves(loss: Tensor) -> list[Tensor]:
    """Leaves that a backward pass from here reaches; not those within reentrant checkpoints."""
    found, seen, waiting = [], set(), [loss.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if isinstance(leaf := getattr(node, "variable", None), Tensor):
            found.append(leaf)
        waiting += [before for before, _ in node.next_functions]
    return found


class _Arrival:
    """Tells a handle of a gradient, as long as there is one."""

    def __init__(self, handle: ReleaseHandle) -> None:
        self.handle = weakref.ref(handle)

    @eager
    @torch.no_grad()
    def __call__(self, p: Tensor) -> None:
        handle = self.handle()
        if handle is not None:
            handle.arrived(p)


class _Renewal:
    """Renews the hooks of a handle after each step, as long as there is one."""

    def __init__(self, handle: ReleaseHandle) -> None:
        self.handle = weakref.ref(handle)

    def __call__(self, *_: Any) -> None:
        handle = self.handle()
        if handle is not None:
            handle.renew()


def _twice(optimizer: Family, p: Tensor, accumulation: int) -> RuntimeError:
    name = optimizer.model.name(p)
    return RuntimeError(
        f"parameter {name} has a gradient for the {accumulation + 1}. time since the last step(), and "
        f"accumulation={accumulation}: call step() after every {accumulation} backward passes, or name "
        "their number. Weights that reentrant checkpointing uses twice need use_reentrant=False."
    )


@eager
def release_gradients(
    model: nn.Module | Iterable[Tensor],
    optimizer: Family,
    *,
    accumulation: int = 1,
    max_norm: float | None = None,
    unscaled: bool = False,
) -> ReleaseHandle:
    """Update every parameter inside ``backward()`` and free its gradient there.

    Keep calling ``optimizer.step()`` (or ``handle.step()``) where it was called: it ends the step and
    updates what was not released. The result is that of the plain loop bit for bit; the peak of memory
    is lower by all gradients but the largest. With ``offload='cpu'`` gradients leave for the host, whose
    thread updates them while backward goes on; all weights are back where ``backward()`` returns.

    Args:
        model: module, or parameters, to release; those that the optimizer does not hold are left alone.
        optimizer: an optimizer of the family.
        accumulation: backward passes per step; gradients stay until the last one, with
            ``offload='cpu'`` on the host. A parameter that has a gradient in some of them only is
            updated by ``step()``.
        max_norm: clip the norm of the whole gradient to this; then call ``handle.backward(loss)``.
        unscaled: no GradScaler scales these gradients, though one may be in use.

    Returns:
        The handle: ``remove()``, ``step()``, ``backward(loss)``, and a context manager.

    Raises:
        TypeError: another library's optimizer.
        ValueError: a wrong value, nothing to release, or a combination that could not be correct.
    """
    if not hasattr(optimizer, "stepper"):
        raise TypeError(
            f"optimizer is a {type(optimizer).__name__}: gradients are released to one of automagic_cameamp."
        )
    accumulation = argument("accumulation", accumulation, integer(1))
    max_norm = argument("max_norm", max_norm, optional(number(0.0, open_low=True)))
    if max_norm is not None and accumulation > 1:
        raise fail(
            "max_norm",
            max_norm,
            f"None with accumulation={accumulation}",
            "Accumulated gradients are all held anyway: use clip_grad_norm_ and step() without a handle.",
        )
    if optimizer.stepper.handle is not None:
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
    own = set(map(id, optimizer.model.params()))
    params = list(model.parameters() if isinstance(model, nn.Module) else model)
    released = [p for p in params if id(p) in own and p.requires_grad and p.is_leaf]
    if not released:
        raise fail("model", type(model).__name__, "one with parameters that the optimizer holds and trains")
    return ReleaseHandle(optimizer, released, accumulation, max_norm, unscaled)


def check_release(p: Tensor, group: dict[str, Any] | None, i: int | None) -> None:
    """Refuse a parameter that cannot be updated before the others.

    Raises:
        ValueError: it is not at this position of the group.
        RuntimeError: it is sharded.
    """
    if i is not None and group is not None and not (0 <= i < len(group["params"])):
        raise fail("i", i, f"a position among the {len(group['params'])} parameters of the group")
    if i is not None and group is not None and group["params"][i] is not p:
        raise fail("i", i, "the position of p in group['params']")
    if p.grad is None:
        return
    if is_distributed(p):
        raise RuntimeError(
            "a sharded parameter cannot be updated before the others: its sums over the processes go "
            "through the same exchange as theirs. Use step() with fully_shard."
        )
