"""Changing the precision of a running optimizer, by hand, by the loss, or by a plan."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable
from typing import Any, TextIO

import numpy as np
from torch import Tensor, nn

from automagic_cameamp import OPTIMIZERS, convert_state

from ..profiles import PROFILES
from .read import number, unwrap
from .recommend import NEVER

WINDOW = 100  # losses whose mean is compared with the mean of as many before them
WORSE = 0.1
SMALLEST_BLOCK = 128
SCHEDULES = ("Automagic_CameAMP_8Bit", "Automagic_CameAMP_Improved_8Bit")


def change_precision(optimizer: Any, **options: Any) -> Any:
    """Give a running optimizer other options and keep its state, converted to the new precision.

    The object stays the same, so schedulers and trainers keep working; learning rates, step counts, phases
    and the learning-rate mask go on. On an error nothing is changed.

    Args:
        optimizer: one of ours, at any step.
        options: constructor options: ``block_size=64``, ``quantize_states=False``, ``min_8bit_size=2048``,
            ``profile="memory_optimized"``. All options but ``lr`` are allowed.

    Returns:
        The same optimizer.
    """
    inner = unwrap(optimizer)
    if "lr" in options:
        raise ValueError("lr is not allowed: it belongs to your scheduler; set group['lr'] instead")
    if options.get("profile"):
        known = sorted(PROFILES)
        if options["profile"] not in PROFILES:
            raise ValueError(f"profile={options['profile']!r} is not allowed: one of {', '.join(known)}")
        options = {**PROFILES[options["profile"]], **options}
    old = inner.config
    groups = [{**g, **{k: v for k, v in options.items() if k in g}} for g in inner.param_groups]
    if all(hasattr(old, k) and getattr(old, k) == v for k, v in options.items()):
        if all(
            g.get(k) == new.get(k) for g, new in zip(inner.param_groups, groups, strict=True) for k in options
        ):
            return optimizer
    target = _empty_twin(inner, groups, options)
    state = convert_state(inner.state_dict(), target, options="own")
    inner.config = target.config
    try:
        inner.load_state_dict(state)
    except BaseException:
        inner.config = old
        raise
    return optimizer


def _empty_twin(inner: Any, groups: list[dict[str, Any]], options: dict[str, Any]) -> Any:
    """An optimizer of the same class over the same parameters, with other options and without state."""
    values = {**vars(inner.config), **options}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what there was to say was said when the first one was built
        twin = type(inner)(groups, **{**values, "verbose": False})
    twin.config.verbose = values["verbose"]
    return twin


def class_for(config: Any) -> Any:
    """The optimizer class that this config configures."""
    for cls in OPTIMIZERS.values():
        found: Any = cls
        if found.config_class is type(config):
            return found
    raise TypeError(f"config={type(config).__name__} is not allowed: pass a config of automagic_cameamp")


class AdaptiveOptimizer:
    """Trains, and quantises less when the loss gets worse: every 100 steps, against the 100 before.

    Blocks are halved down to 128 elements; a config without ``block_size`` has its ``min_8bit_size``
    doubled. The running state is converted, not thrown away.

    Args:
        model_params: parameters or groups.
        base_config: an ``Optimizer8BitConfig``, or the config of another of our 8-bit classes. It is changed
            along with the optimizer.
        file: where to print; None is standard output.
    """

    def __init__(self, model_params: Iterable[Any], base_config: Any, *, file: TextIO | None = None) -> None:
        self.base_config = base_config
        self.optimizer = class_for(base_config)(model_params, **vars(base_config))
        self.performance_history: list[float] = []
        self._file = file

    def step_with_adaptation(self, loss: Tensor) -> None:
        """Backward, step, and every 100 steps a look at the losses."""
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self.performance_history.append(number(loss))
        if len(self.performance_history) % WINDOW == 0:
            self._adapt_configuration()

    def _adapt_configuration(self) -> None:
        history = self.performance_history
        if len(history) < 2 * WINDOW:
            return
        recent, before = np.mean(history[-WINDOW:]), np.mean(history[-2 * WINDOW : -WINDOW])
        if recent <= before + WORSE * abs(before):
            return
        options = self._less_quantised()
        if options:
            change_precision(self.optimizer, **options)
            for name, value in options.items():
                setattr(self.base_config, name, value)
                print(f"The loss got worse: {name} is now {value}", file=self._file)

    def _less_quantised(self) -> dict[str, Any]:
        config = self.base_config
        for name in ("block_size", "blocksize"):
            if getattr(config, name, 0) > SMALLEST_BLOCK:
                return {name: getattr(config, name) // 2}
        if 0 < getattr(config, "min_8bit_size", 0) < NEVER:
            return {"min_8bit_size": min(NEVER, 2 * config.min_8bit_size)}
        return {}


def progressive_quantization_training(
    model: nn.Module,
    dataloader: Iterable[Any],
    total_epochs: int,
    *,
    train_epoch: Callable[[nn.Module, Any, Iterable[Any]], Any] | None = None,
    loss_fn: Callable[[nn.Module, Any], Tensor] | None = None,
    optimizer: str = "Automagic_CameAMP_8Bit",
    file: TextIO | None = None,
    **options: Any,
) -> Any:
    """Train with 32-bit state first and quantise later, without losing the state on the way.

    ``Automagic_CameAMP_8Bit``: a quarter of the epochs in 32 bits, the rest in blocks of 128 with error
    correction. ``Automagic_CameAMP_Improved_8Bit``: a fifth with quality_optimized in 32 bits, three fifths
    with balanced, whose ``min_8bit_size`` falls from 8192 towards 2048, the rest with memory_optimized.

    Args:
        model: trained in place.
        dataloader: gone through once per epoch.
        total_epochs: epochs in all.
        train_epoch: called as ``train_epoch(model, optimizer, dataloader)``.
        loss_fn: instead of it: ``loss_fn(model, batch)`` returns the loss of one batch.
        optimizer: which of the two plans.
        file: where to print; None is standard output.
        options: for the optimizer, in every stage: ``lr=1e-4``.

    Returns:
        The optimizer, one object from the first epoch to the last.
    """
    if optimizer not in SCHEDULES:
        raise ValueError(f"optimizer={optimizer!r} is not allowed: one of {', '.join(SCHEDULES)}")
    if (train_epoch is None) == (loss_fn is None):
        raise ValueError("train_epoch=None is not allowed: pass it or loss_fn, one of the two")
    if total_epochs < 0:
        raise ValueError(f"total_epochs={total_epochs!r} is not allowed: it must be at least 0")
    work = train_epoch if train_epoch is not None else _plain_epoch(loss_fn)
    plan = _plan_8bit if optimizer == SCHEDULES[0] else _plan_improved
    later = {name: value for name, value in options.items() if name != "lr"}
    current: Any = None
    for name, epochs in plan(total_epochs):
        print(f"{name} ({len(epochs)} epochs)", file=file)
        for changes in epochs:
            if current is None:
                current = _class_of(optimizer)(model.parameters(), **{**changes, **options})
            else:
                change_precision(current, **{**changes, **later})
            work(model, current, dataloader)
    if current is None:
        current = _class_of(optimizer)(model.parameters(), **options)
    return current


def _class_of(name: str) -> Any:
    return OPTIMIZERS[name]


def _plain_epoch(loss_fn: Any) -> Callable[[nn.Module, Any, Iterable[Any]], None]:
    def train_epoch(model: nn.Module, optimizer: Any, dataloader: Iterable[Any]) -> None:
        for batch in dataloader:
            optimizer.zero_grad()
            loss_fn(model, batch).backward()
            optimizer.step()

    return train_epoch


def _plan_8bit(total: int) -> list[tuple[str, list[dict[str, Any]]]]:
    """Stage -> the options of each of its epochs."""
    warm = total // 4
    coded = {"quantize_states": True, "error_correction": True, "block_size": 128}
    return [
        ("Stage 1: 32-bit state", [{"quantize_states": False}] * warm),
        ("Stage 2: 8-bit state", [coded] * (total - warm)),
    ]


def _plan_improved(total: int) -> list[tuple[str, list[dict[str, Any]]]]:
    warm, middle = total // 5, total * 3 // 5
    sizes = [int(8192 + (2048 - 8192) * epoch / middle) for epoch in range(middle)]
    return [
        (
            "Stage 1: 32-bit state",
            [{"profile": "quality_optimized", "min_8bit_size": NEVER}] * warm,
        ),
        ("Stage 2: more and more in 8 bits", [{"profile": "balanced", "min_8bit_size": s} for s in sizes]),
        ("Stage 3: 8-bit state", [{"profile": "memory_optimized"}] * (total - warm - middle)),
    ]
