"""The one torch optimizer: collects gradients, forms stacks, runs the recipe, writes back."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Iterable, Iterator
from copy import copy
from dataclasses import fields as dataclass_fields
from itertools import chain
from types import ModuleType
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor
from torch.optim import Optimizer

from . import configs
from .checkpoints import load as checkpoint
from .eager import eager, keep_step_eager
from .executors import searches as directions
from .executors import sharded
from .executors import update as execute
from .executors import work as backends
from .reading.reports import Reports
from .state import fits as states
from .state import kinds, memory, phases, shards, tensors
from .state.adapters import Adapters
from .state.chunks import Chunk, chunks
from .state.contract import Controller
from .state.groups import new_group
from .state.random_bits import parameter_key
from .storage import CORRECTION, Policy
from .training import offload
from .training.precision import LOW_PRECISION, ScalerAdvice
from .training.release import GradientRelease
from .training.verify import Recording, Resume

if TYPE_CHECKING:
    from .executors.native import plan as native

logger = logging.getLogger("automagic_cameamp")
LOG_EVERY = 100


class CameAMPOptimizer(GradientRelease, ScalerAdvice, Adapters, Reports, Resume, Recording, Optimizer):
    """Engine of the family. Final classes set ``recipe``, ``config_class``, ``policy``, nothing else.

    State is created at the first gradient of a parameter, from the parameter as it is then; no
    list of parameters is held; nothing adapted is ever written into ``group["lr"]``.
    """

    controller: Controller | None
    recipe: ClassVar[ModuleType]
    config_class: ClassVar[type]
    # (config, parameter, its name) -> how its state is held
    policy: ClassVar[Callable[[Any, Tensor, Callable[[], str]], Policy]]
    # config -> controller, for the classes that have one
    controller_of: ClassVar[Callable[[Any], Controller | None]] = staticmethod(lambda config: None)

    if TYPE_CHECKING:  # what the final classes show; ``optimizers._configured`` makes it

        def __init__(self, params: Iterable[Any], lr: Any = ..., **options: Any) -> None: ...

    def _start(self, params: Iterable[Any], config: Any) -> None:
        if isinstance(params, (set, frozenset)):
            raise TypeError("parameters in a set have no order that a checkpoint could keep: pass a list.")
        self.config = config
        self.controller = type(self).controller_of(config)
        self._reset_transient()
        values = {f.name: getattr(config, f.name) for f in dataclass_fields(config)}
        configs.check_together(values, "in the constructor")
        defaults = {k: v for k, v in values.items() if k not in configs.engine_options(config)}
        Optimizer.__init__(self, params, configs.in_group(defaults))
        keep_step_eager(type(self))
        if config.verbose:
            options = ", ".join(f"{k}={v!r}" for k, v in values.items())
            logger.info("%s(%s)", type(self).__name__, options)

    def _reset_transient(self) -> None:
        """Caches and counters that no checkpoint needs."""
        self._steps = 0
        self._plan: native.Plan | None = None
        self._plans: dict[bytes, native.Plan] = {}  # by who has a gradient
        self._open = None
        self._handle = None
        self._offload: offload.Offload | None = None
        self._device_lists: dict[tuple[Any, ...], Tensor] = {}
        self._skipped: dict[torch.device, Tensor] = {}
        self._counts = directions.Counts()
        self._phases = phases.Phases()
        self._neutral = False  # whether it was said that the controller starts without memory
        self._types: states.Types = {}  # of the parameters, as of the last step that looked
        self._matrices = kinds.matrices(self.__dict__.get("param_groups", ()))

    def __getstate__(self) -> dict[str, Any]:
        self._settle("copying")
        own = {"config": self.config, "controller": self.controller, "_copied_lora": self._remembered()}
        return {**super().__getstate__(), **own}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        keep_step_eager(type(self))
        if "_steps" not in self.__dict__:
            self._reset_transient()
        self._plan, self._plans = None, {}  # what they and the counts know of the old state may not hold
        self._counts.clear()
        self._phases.clear()

    # ---------------------------------------------------------------- groups

    @eager
    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group; its options are checked like the constructor's. Allowed between any two steps.

        A group holds ``min_lr`` and ``max_lr`` as ``lr_floor`` and ``lr_cap``, because schedulers write the
        former: what stands there after construction is theirs, and changes nothing here.
        """
        self._settle("adding a group")
        super().add_param_group(new_group(self, param_group))
        self._matrices += kinds.matrices(self.param_groups[-1:])

    @property
    def base_lrs(self) -> list[float]:
        """Learning rate of each group at construction: the start of its schedule."""
        return [group["base_lr"] for group in self.param_groups]

    def _hyper(self, group: dict[str, Any], lora: bool, table: int = 0) -> Any:
        values = {name: group[name] for name in self.recipe.Hyper._fields if name in group}
        if values.get("final_clip") is None:
            values["final_clip"] = group["clip_threshold"]
        values["allora"] = lora and not group["full_finetune"]
        if "lora" in self.recipe.Hyper._fields:
            values["lora"], values["table"] = lora, table
        return self.recipe.Hyper(**values)

    def _policy(self, group: dict[str, Any], position: int) -> Policy:
        name = functools.partial(self._name, group, position)
        return type(self).policy(self.config, group["params"][position], name)

    def _chunks(self, groups: list[dict[str, Any]] | None = None) -> Iterator[tuple[dict[str, Any], Chunk]]:
        groups = self.param_groups if groups is None else groups
        return chunks(groups, self._policy, self._lora(groups))

    def _fields(self, group: dict[str, Any], chunk: Chunk) -> list[execute.Field]:
        by_rows = chunk.shard is not None
        hp = self._options(group, chunk)
        fields = execute.fields_of(self.recipe, chunk.layout, hp, chunk.policy, by_rows)
        kept = self.config.master_weight_bits == 24 and chunk.params[0].dtype in LOW_PRECISION
        return [*fields, execute.Field(CORRECTION, None)] if kept else fields

    def _options(self, group: dict[str, Any], chunk: Chunk) -> Any:
        """The recipe's options as they hold for a chunk."""
        hp = self._hyper(group, chunk.lora, chunk.table)
        return hp if chunk.shard is None else sharded.options(self, hp)

    # ---------------------------------------------------------------- step

    @torch.inference_mode(False)  # state made in a block of inference mode could not be written outside
    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None, *, loss: Any = None) -> Any:  # type: ignore[override]
        """Update all parameters that have a gradient.

        Args:
            closure: evaluates the model with gradients enabled and returns the loss.
            loss: the loss of this step, where no closure gives it.

        Returns:
            The closure's loss, or ``loss``.
        """
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        if self._open is not None:  # begun by released gradients
            self._check_gradients()
            self._open.finish(loss, rest=True)
            return loss
        with offload.on_host(self):
            self._advance(loss)
        return loss

    def _advance(self, loss: Any) -> None:
        """One step of all parameters that have a gradient."""
        from .executors.native import plan as native  # here, so that an import of the package stays light

        memory.adopt(self)
        plan = self._plan
        if plan is None or not plan.fits(self):
            plan = self._plan = native.known(self)
        if plan is None:
            self._check_gradients()
        if self.controller is not None:
            self.controller.begin(loss)
        works = [] if plan is not None else self._works()
        cut = [work for work in works if work.chunk.shard is not None]
        if plan is None:
            plan = self._plan = native.planned(self, works)
        if plan is not None:
            plan.run(self)
        else:
            rest = [work for work in works if work.chunk.shard is None]
            outcomes = (sharded.run(cut, self.controller), backends.run(self.config.engine, rest))
            for work, ok, signals in chain(*outcomes):
                self._note(work, ok, signals)
        self._end_step()

    def _end_step(self) -> None:
        """Count a step whose updates are all done."""
        for group in self.param_groups:
            group["clock"] += 1
        if self.controller is not None:
            self.controller.finish(self.param_groups)
            params = chain.from_iterable(group["params"] for group in self.param_groups)
            memory.keep(self.state, params, self.controller.memory)
        self._tell_lora()
        self._steps += 1
        if self.config.verbose and self._steps % LOG_EVERY == 1:
            rates = ", ".join(f"{float(g['lr']):.3g}" for g in self.param_groups)
            logger.info("%s: step %d, scheduler lr %s", type(self).__name__, self._steps, rates)

    def _works(self) -> list[backends.Work]:
        """The updates of this step."""
        plan = list(self._chunks())
        states.check(self, plan)
        # All groups look at the model as the last step left it: before any of them moves, and without those
        # that have their first gradient, as where gradients are released nobody knows yet who will.
        lagged = self._lagged()
        self._create_states(plan)
        shared = [self._share(number, group, lagged) for number, group in enumerate(self.param_groups)]
        return [
            self._work(group, chunk, active, shared[chunk.key[0]])
            for group, chunk in plan
            if (active := [i for i, p in enumerate(chunk.params) if p.grad is not None])
        ]

    def _create_states(self, plan: list[tuple[dict[str, Any], Chunk]]) -> None:
        """State of every parameter that has its first gradient: first all storage, then all values."""
        made: list[tuple[Any, ...]] = []
        try:
            for group, chunk in plan:
                fresh = [p for p in chunk.params if p.grad is not None and not self.state[p]]
                if fresh:
                    fields = self._fields(group, chunk)
                    made.append((fresh, fields, chunk))
                    states = [self.state[p] for p in fresh]
                    layout = chunk.layout if chunk.shard is None else chunk.shard.layout
                    stacks = execute.allocate_state(states, fresh[0], fields, layout)
                    made[-1] += (stacks, layout)
                    self._phases.begin(states, group["warmup_steps"])
            for fresh, fields, chunk, stacks, layout in made:
                execute.fill_state(stacks, fresh, self.recipe, fields, layout)
                if chunk.shard is not None:
                    compute = execute.compute_dtype(fresh[0])
                    for p in fresh:
                        shards.wrap(self.state[p], fields, chunk.layout, compute, chunk.shard)
        except BaseException:  # out of memory: leave no state without values behind
            for fresh, *_ in made:
                for p in fresh:
                    self.state.pop(p, None)
            raise

    def _work(self, group: dict[str, Any], chunk: Chunk, active: list[int], shared: Any) -> backends.Work:
        """The update of the active members of a chunk, ready for a backend."""
        part = chunk._replace(
            params=[chunk.params[i] for i in active], indices=[chunk.indices[i] for i in active]
        )
        hp = self._options(group, chunk)
        fields = self._fields(group, chunk)
        held = [self.state[p] for p in part.params]
        execute.check_complete(held, fields, chunk.layout)
        if directions.name_of(fields):
            shared = shared._replace(refresh=self._counts.due(held, group["sync_frequency"]))
        apart = chunk.shard is None and tensors.is_wrapper(part.params[0])  # rounds by itself
        low = part.params[0].dtype in LOW_PRECISION and not apart
        rounds = low and self.config.stochastic_rounding is not False
        coded = any(f.codec is not None and f.codec.random for f in fields)
        keys = self._keys(part) if rounds or coded else None
        return backends.Work(
            part,
            active,
            len(chunk.params),
            held,
            self.recipe,
            fields,
            shared,
            hp,
            keys,
            rounds,
            self._phases.of(held, hp.warmup_steps),
        )

    def _note(self, work: Any, ok: Tensor, signals: Any) -> None:
        """What the controller and the health report want to know of an update."""
        if self.controller is not None:
            if isinstance(signals, backends.Folded):
                self.controller.join(signals.sketch, signals.square, signals.bad)
            elif signals is not None:
                rows = None
                if len(work.active) < work.members:
                    rows = self._on_device(work.active, torch.int64, ok.device)
                self.controller.collect(signals, work.chunk.key, rows, work.members)
        self._count_skipped(work.chunk, ok)

    def _keys(self, chunk: Chunk) -> Tensor:
        """Random keys of the chunk's parameters."""
        keys = [parameter_key(self.config.seed, i) for i in chunk.indices]
        return self._on_device(keys, torch.int32, chunk.params[0].device)

    def _check_gradients(self, only: Tensor | None = None) -> None:
        """Refuse what cannot be updated before anything is."""
        kinds.before_step(self, only)

    # ---------------------------------------------------------------- numbers over all parameters

    def _lagged(self) -> list[dict[str, list[tuple[Tensor, int]]]]:
        """Per group: name -> (number kept by a parameter, its elements), in parameter order."""
        result = []
        for group in self.param_groups:
            found: dict[str, list[tuple[Tensor, int]]] = {}
            for p in group["params"]:
                state = self.state.get(p)
                if state:
                    for name in self.recipe.LAGGED:
                        if name in state and (name != "lr_mask" or "lr_mask_vote" in state):
                            found.setdefault(name, []).append((state[name], p.numel()))
            result.append(found)
        return result

    def _share(
        self, number: int, group: dict[str, Any], lagged: list[Any], first: Tensor | None = None
    ) -> Any:
        """The recipe's shared scalars for one group, None where nothing has a gradient (nor will: first)."""
        p = next((p for p in group["params"] if p.grad is not None), None) if first is None else first
        if p is None:
            return None
        like = torch.empty((), dtype=execute.compute_dtype(p), device=p.device)
        every: dict[str, Tensor] = {}
        own: dict[str, Tensor] = {}
        masked = 0
        for name in self.recipe.LAGGED:
            values = [v for found in lagged for v in found.get(name, [])]
            if values:
                every[name] = execute.as_vector(values, like)
                masked = sum(n for _, n in values) if name == "lr_mask_sum" else masked
            if lagged[number].get(name):
                own[name] = execute.as_vector(lagged[number][name], like)
        hp = self._hyper(group, lora=False)
        shared = self.recipe.share(every, own, masked, group["clock"], hp, max(self.base_lrs), like)
        if self.controller is not None:
            shared = shared._replace(multiplier=self.controller.multiplier(like))
        return shared

    # ---------------------------------------------------------------- checkpoints

    @eager
    def state_dict(self) -> dict[str, Any]:
        """State as plain tensors and numbers, readable with ``torch.load(weights_only=True)``."""
        self._settle("state_dict()")
        extra = {} if self.controller is None else {memory.KEY: self.controller.state_dict()}
        return {**super().state_dict(), "magic_version": checkpoint.FORMAT_VERSION, **extra}

    @eager
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:  # type: ignore[override]
        """Load what ``state_dict`` gave: bit for bit, types included, or not at all.

        The state of another class of the family, or of other codes and block sizes, is converted;
        one line of the log says what starts fresh and what is dropped.

        Raises:
            CheckpointError: the state is of another optimizer or model, or damaged; nothing was
                changed then.
        """
        with torch.inference_mode(False), torch.no_grad():
            self._load(state_dict)

    def _load(self, state_dict: dict[str, Any]) -> None:
        state_dict = copy(state_dict)
        for hook in self._optimizer_load_state_dict_pre_hooks.values():
            result = hook(self, state_dict)
            state_dict = state_dict if result is None else result
        with offload.on_host(self, stepping=False):
            fitted = checkpoint.fit(self, state_dict)
            self._open = None  # what an unfinished step has changed is replaced
            checkpoint.commit(self, fitted)
        checkpoint.say(self, fitted)
        for post_hook in self._optimizer_load_state_dict_post_hooks.values():
            post_hook(self)
