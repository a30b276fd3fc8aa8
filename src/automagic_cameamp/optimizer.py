"""The one torch optimizer: groups, checkpoints and what a program may ask. Steps are taken in ``step``."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from copy import copy
from dataclasses import fields as dataclass_fields
from types import ModuleType
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from . import configs
from .checkpoints import load as checkpoint
from .eager import eager, eagerly
from .state import kinds, memory
from .state.adapters import Adapters, LoraReport
from .state.contract import Controller
from .state.groups import new_group
from .state.kept import Kept
from .state.model import Model
from .step import Stepper
from .storage import Policy
from .training.precision import advise_scaler
from .training.release import ReleaseHandle, check_release, release_gradients
from .training.verify import ResumeCheck, verify_resume
from .validate import fail, unknown_option

if TYPE_CHECKING:
    from .executors.report import EngineReport
    from .reading.bytes import Planned
    from .reading.views import StateView
    from .training.recorder import FlightRecorder

logger = logging.getLogger("automagic_cameamp")


@eagerly
class CameAMPOptimizer(Optimizer):
    """Base of the family. Final classes set ``recipe``, ``config_class``, ``policy``, nothing else.

    State is created at the first gradient of a parameter, from the parameter as it is then; no
    list of parameters is held; nothing adapted is ever written into ``group["lr"]``.
    """

    controller: Controller | None
    recipe: ClassVar[ModuleType]
    config_class: ClassVar[type[configs.SharedConfig]]
    # (config, parameter, its name) -> how its state is held
    policy: ClassVar[Callable[[Any, Tensor, Callable[[], str]], Policy]]
    # config -> controller, for the classes that have one
    controller_of: ClassVar[Callable[[Any], Controller | None]] = staticmethod(lambda config: None)
    adapters: Adapters
    _flight: FlightRecorder | None = None

    if TYPE_CHECKING:  # what the final classes show; ``optimizers._configured`` makes it

        def __init__(self, params: Iterable[Any], lr: Any = ..., **options: Any) -> None: ...

    def _start(self, params: Iterable[Any], config: Any) -> None:
        if isinstance(params, (set, frozenset)):
            raise TypeError("parameters in a set have no order that a checkpoint could keep: pass a list.")
        self.config = config
        self.controller = type(self).controller_of(config)
        self._begin_anew(None)
        values = {f.name: getattr(config, f.name) for f in dataclass_fields(config)}
        configs.check_together(values, "in the constructor")
        defaults = {k: v for k, v in values.items() if k not in configs.engine_options(config)}
        Optimizer.__init__(self, params, configs.in_group(defaults))
        self.model.built()
        self._keep_step_eager()
        if config.verbose:
            options = ", ".join(f"{k}={v!r}" for k, v in values.items())
            logger.info("%s(%s)", type(self).__name__, options)

    def _begin_anew(self, copied: list[frozenset[int]] | None) -> None:
        """What no checkpoint needs."""
        self.kept = Kept(built="param_groups" in self.__dict__)
        self.adapters = Adapters(copied)
        self.stepper = self._new_stepper()

    def _new_stepper(self) -> Stepper:
        if self.config.offload == "none":
            return Stepper()
        from .host import HostStepper  # here, so that an import of the package stays light

        return HostStepper()

    def _keep_step_eager(self) -> None:
        """The whole step, with the hooks that torch has laid around it, is never traced."""
        type(self).step = eager(type(self).step)

    def __getstate__(self) -> dict[str, Any]:
        self.stepper.settle(self.model, "copying")
        lora = self.adapters.remembered(self.param_groups, bool(self.state))
        own = {"config": self.config, "controller": self.controller, "_copied_lora": lora}
        return {**super().__getstate__(), **own}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._keep_step_eager()
        if "kept" not in self.__dict__:
            self._begin_anew(self.__dict__.pop("_copied_lora", None))
        self.kept.forget()
        self.stepper.forget()

    @property
    def model(self) -> Model:
        """The parameters as the family sees them: stacks, fields, options, state."""
        return Model(self)

    # ---------------------------------------------------------------- groups

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group; its options are checked like the constructor's. Allowed between any two steps.

        It holds ``min_lr`` and ``max_lr`` as ``lr_floor`` and ``lr_cap``: schedulers write the former.
        """
        self.stepper.settle(self.model, "adding a group")
        before = self.model.reference()
        super().add_param_group(new_group(self.model, param_group))
        kinds.note_matrices(self.model)
        self.model.joined(before)

    @property
    def base_lrs(self) -> list[float]:
        """Learning rate of each group at construction: the start of its schedule."""
        return [group["base_lr"] for group in self.param_groups]

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
        self.stepper.step(self.model, loss)
        return loss

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
        check_release(p, group, i)
        if p.grad is None or self.stepper.parameter(self.model, p):
            return
        if p.numel() or not any(q is p for q in self.model.params()):
            raise fail("p", tuple(p.shape), "a parameter of this optimizer", "It is in none of its groups.")

    def step_param(self, p: Tensor, group: dict[str, Any] | None = None) -> None:
        """The same as ``step_parameter``, under the name that other trainers call."""
        self.step_parameter(p, group)

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Gradients to None (or zero), also those that add up on the host (``release_gradients``)."""
        super().zero_grad(set_to_none)
        self.stepper.drop()

    def release_gradients(self, model: nn.Module | Iterable[Tensor], **options: Any) -> ReleaseHandle:
        """``release_gradients(model, self, **options)``."""
        return release_gradients(model, self, **options)

    @property
    def _step_supports_amp_scaling(self) -> bool:
        """What GradScaler asks before it unscales: absent, so that it does; the moment to warn."""
        advise_scaler(self.model)
        raise AttributeError("_step_supports_amp_scaling")

    @_step_supports_amp_scaling.setter
    def _step_supports_amp_scaling(self, value: bool) -> None:
        if value:
            raise fail(
                "_step_supports_amp_scaling", value, "only False", "GradScaler unscales the gradients."
            )

    # ---------------------------------------------------------------- checkpoints

    def state_dict(self) -> dict[str, Any]:
        """State as plain tensors and numbers, readable with ``torch.load(weights_only=True)``."""
        self.stepper.settle(self.model, "state_dict()")
        extra = {} if self.controller is None else {memory.KEY: self.controller.state_dict()}
        saved = super().state_dict()
        for group in saved["param_groups"]:
            if group["lr_level"] == "auto":
                group.pop("d", None)  # it follows from the state
        return {**saved, "magic_version": checkpoint.FORMAT_VERSION, **extra}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:  # type: ignore[override]
        """Load what ``state_dict`` gave: bit for bit, types included, or not at all.

        The state of another class of the family, or of other codes and block sizes, is converted;
        one line of the log says what starts fresh and what is dropped.

        Raises:
            CheckpointError: the state is of another optimizer or model, or damaged; nothing was
                changed then.
        """
        with torch.inference_mode(False), torch.no_grad():
            state_dict = copy(state_dict)
            for hook in self._optimizer_load_state_dict_pre_hooks.values():
                result = hook(self, state_dict)
                state_dict = state_dict if result is None else result
            with self.stepper.loading(self.model):
                fitted = checkpoint.fit(self.model, state_dict)
                self.stepper.abandon()
                checkpoint.commit(self.model, fitted)
            self.model.tell_level()
            checkpoint.say(self.model, fitted)
            for post_hook in self._optimizer_load_state_dict_post_hooks.values():
                post_hook(self)

    @torch.no_grad()
    def verify_resume(self, steps: int = 3) -> ResumeCheck:
        """Save, load and replay on copies; nothing of this optimizer or its parameters changes.

        One copy of the optimizer goes on from its state as it is, another from what
        ``torch.load(weights_only=True)`` read of its ``state_dict()``; both get the gradients that
        the parameters have now (drawn ones where none has any), with changing signs. While it runs
        it needs memory for two copies of parameters, gradients and state, and the saved bytes on
        the host. With torch.distributed, call it on every rank or on none.

        Args:
            steps: steps to replay, at least 0.

        Returns:
            ``ResumeCheck``: true where every bit was the same, else with the first difference:
            parameter, field, index and both values.
        """
        return verify_resume(self, steps)

    def record(
        self, steps: int = 50, *, snapshot_every: int = 0, snapshot_bits: int = 8, **unknown: Any
    ) -> FlightRecorder:
        """Record every step from now on; a recorder that was there is closed.

        Args:
            steps: how many of the last steps are kept, at least 1.
            snapshot_every: steps between two snapshots for ``rollback``; 0: none.
            snapshot_bits: 8, 16 or 32 bits of a parameter in a snapshot.
            **unknown: refused.

        Returns:
            The recorder: ``read()``, ``first_bad()``, ``take()``, ``rollback()``, ``close()``.

        Raises:
            ValueError: a number is not allowed, or a parameter is sharded.
            TypeError: there is no such option.
        """
        for name in unknown:
            raise unknown_option("record", name, ("steps", "snapshot_every", "snapshot_bits"))
        from .training.recorder import FlightRecorder  # most programs never record

        recorder = FlightRecorder(self, steps, snapshot_every=snapshot_every, snapshot_bits=snapshot_bits)
        if self._flight is not None:
            self._flight.close()
        self._flight = recorder
        return recorder

    @property
    def flight(self) -> FlightRecorder | None:
        """The recorder, or None where nothing is recorded."""
        return self._flight

    def rollback(self) -> int:
        """``flight.rollback()``: parameters and state of the last snapshot.

        Returns:
            The recorder's number of the step after which it was taken.

        Raises:
            RuntimeError: nothing is recorded, or there is no snapshot that could be used.
        """
        if self._flight is None:
            raise RuntimeError("nothing is recorded: call record(snapshot_every=100) before training.")
        return self._flight.rollback()

    # ---------------------------------------------------------------- what it does and holds

    def lora_report(self) -> LoraReport:
        """Which parameters are taken for a LoRA's, and how they were known.

        ALLoRA's row gain and the low-rank terms act on them alone.
        """
        return self.model.lora_report()

    def engine_report(self) -> EngineReport:
        """Who steps how many parameters and elements, and why; before the first step, who will.

        Returns:
            ``rows`` of ``engine`` ('native': the CPU kernels; 'compiled': torch.compile; 'sharded';
            'reference': plain torch; 'none'), ``reason``, ``parameters``, ``elements`` and ``names``;
            printed, it is a table.
        """
        from .executors import choose  # here, so that an import of the package stays light

        return choose.report(self.model)

    def health(self) -> dict[str, Any]:
        """Updates that were skipped because a gradient was not finite. One synchronisation.

        Returns:
            ``steps`` taken by this object, ``skipped_updates`` in all, and ``parameters``: name ->
            number of its skipped updates (names from ``named_parameters`` or ``param_<index>``).
        """
        return _reports().health(self.model)

    def get_learning_rates(self) -> list[float]:
        """Mean rate really applied in each group at its last step: schedule, level, mask and row gain.

        One synchronisation. A group without any update yet reports ``lr``, times ``d`` where it is found.
        """
        return _reports().learning_rates(self.model)

    def get_avg_learning_rate(self) -> float:
        """Mean of ``get_learning_rates`` over all elements of all groups. One synchronisation."""
        return _reports().mean_rate(self.model)

    def _get_group_lr(self, group: dict[str, Any]) -> float:
        """Mean rate really applied in this group."""
        return self.get_learning_rates()[next(i for i, g in enumerate(self.param_groups) if g is group)]

    def get_memory_stats(self) -> dict[str, int | float]:
        """Bytes of state really held here, counted from the tensors; zeros before the first step.

        Returns:
            ``total_quantized_memory`` (codes and scales) and ``total_high_precision_memory`` in
            bytes; ``quantized_params`` and ``high_precision_params`` in elements;
            ``fraction_of_fp32`` = bytes held / bytes of the same states in fp32 (smaller is better),
            also as ``compression_ratio``; ``bytes_per_parameter``; ``fraction_of_adam`` (Adam holds
            8 bytes).
        """
        return _reports().memory_stats(self.model)

    def planned_memory(self) -> Planned:
        """Bytes of state that will be held once every parameter had a gradient; parameters may be on meta.

        Returns:
            ``state`` in bytes; ``alone`` and ``stacked``: elements of the largest tensor that is stepped
            alone, and of the largest stack, which bound the temporary memory of a step; ``crossing``: bytes
            of the host's ring, and of gradients on their way to it, with released gradients and offload.
        """
        return _reports().planned(self.model)

    def get_memory_efficiency_report(self) -> dict[str, Any]:
        """How many parameters have eight-bit state and what that saves.

        Returns:
            ``bitsandbytes_available``; ``total_parameters``, ``8bit_parameters``,
            ``32bit_parameters`` in elements; ``memory_saved_mb`` = fp32 bytes of the states held
            less bytes held, in MiB; ``8bit_fraction`` = 8bit_parameters / total_parameters (larger is
            better), also as ``compression_ratio``; ``states_breakdown``: state name -> bytes held.
        """
        return _reports().efficiency(self.model)

    @property
    def quantized_states(self) -> StateView:
        """Parameter index -> state name -> codes, scales, zeros, dequantize(), error_accumulator."""
        return _reports().quantized_states(self.model)

    @property
    def high_precision_states(self) -> StateView:
        """Parameter index -> state name -> tensor; ``lr_mask`` as rates, ``last_polarity`` as signs."""
        return _reports().high_precision_states(self.model)

    def clear_cache(self) -> None:
        """Nothing is cached that would need clearing; kept because old scripts call it."""


def _reports() -> Any:
    from .reading import reports  # here, so that an import of the package stays light

    return reports
