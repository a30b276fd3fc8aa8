"""Whether this run could be resumed to the bit: saved, loaded and replayed, on copies."""

from __future__ import annotations

import io
import pickle
import warnings
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..checkpoints.saved import CheckpointError
from ..state import memory, tensors
from ..state.adapters import Adapters
from ..state.family import Family

GAINS = (1.0, -0.5, 2.0)  # of the gradient from step to step: signs turn, as they do in training
LOSS = 1.0
INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


@dataclass(frozen=True)
class ResumeCheck:
    """What ``verify_resume`` found. True where every bit was the same; ``str`` is one line.

    Args:
        bitwise: whether the copy that was saved and loaded went on like the one that was not.
        steps: steps that both made.
        parameters: parameters that had state.
        saved_bytes: size of the saved state.
        difference: the first difference, in words; None where there is none.
    """

    bitwise: bool
    steps: int
    parameters: int
    saved_bytes: int
    difference: str | None = None

    def __bool__(self) -> bool:
        return self.bitwise

    def __str__(self) -> str:
        if self.difference is not None:
            return f"not bitwise: {self.difference}"
        return (
            f"bitwise: the state of {self.parameters} parameters ({self.saved_bytes / 1e6:.3g} MB) "
            f"was saved, loaded and replayed for {self.steps} steps"
        )


@torch.inference_mode(False)  # copies made in such a block could not be updated
@torch.no_grad()
def verify_resume(optimizer: Family, steps: int) -> ResumeCheck:
    """Save, load and replay on copies; ``CameAMPOptimizer.verify_resume`` says more."""
    if not isinstance(steps, int) or steps < 0:
        raise ValueError(f"steps={steps!r} is not allowed: a whole number >= 0.")
    count = sum(bool(optimizer.state.get(p)) for group in optimizer.param_groups for p in group["params"])
    saved, size = None, 0
    try:
        saved, size = _through_bytes(optimizer.state_dict())
        again = _copy_of(optimizer)
        for name in ("_optimizer_load_state_dict_pre_hooks", "_optimizer_load_state_dict_post_hooks"):
            setattr(again, name, getattr(optimizer, name).copy())
        again.load_state_dict(saved)
        whole = _copy_of(optimizer)
    except torch.OutOfMemoryError:
        raise
    except CheckpointError as error:
        return ResumeCheck(False, 0, count, size, f"what was saved is refused: {error}")
    except (pickle.PickleError, AttributeError, TypeError, ValueError, RuntimeError) as error:
        words = " ".join(str(error).split())[:300]
        return ResumeCheck(False, 0, count, size, f"it cannot be saved and built anew: {words}")
    del saved
    _hand_over(optimizer, whole)
    found = next(_differences(optimizer, whole, again, "after loading"), None)
    if found is None:
        gradients = list(_gradients(optimizer))
        devices = {p.device for group in optimizer.param_groups for p in group["params"]}
        devices = [device for device in devices if device.type == "cuda"]
        for number in range(steps):
            for twin in (whole, again):
                _give(twin, gradients, GAINS[number % len(GAINS)])
                with torch.random.fork_rng(devices):  # weights that round by themselves draw from it
                    twin.step(loss=LOSS)
            found = next(_differences(optimizer, whole, again, f"at replayed step {number + 1}"), None)
            if found is not None:
                break
    return ResumeCheck(found is None, steps, count, size, found)


def _differences(optimizer: Family, whole: Family, again: Family, when: str) -> Iterator[str]:
    """Where the copy that was loaded differs from the one that was not."""
    names = (name for name, _ in optimizer.model.named())
    for number in range(len(optimizer.param_groups)):
        mine, loaded = whole.param_groups[number], again.param_groups[number]
        for key in dict.fromkeys([*mine, *loaded]):
            if key != "params" and not _alike(mine.get(key), loaded.get(key)):
                yield f"{when}, {key!r} of group {number} is {loaded.get(key)!r}, was {mine.get(key)!r}"
        for p, q in zip(mine["params"], loaded["params"], strict=True):
            name = next(names)
            yield from _unlike(p, q, f"{when}, {name}")
            mine_, loaded_ = whole.state.get(p) or {}, again.state.get(q) or {}
            for key in dict.fromkeys([*mine_, *loaded_]):
                if key not in mine_ or key not in loaded_:
                    side = "missing" if key in mine_ else "new"
                    yield f"{when}, state {key!r} of {name} is {side}"
                else:
                    yield from _unlike(mine_[key], loaded_[key], f"{when}, state {key!r} of {name}")


def _through_bytes(state_dict: dict[str, Any]) -> tuple[dict[str, Any], int]:
    """A state dict as it comes back from a file, and the size of that file."""
    buffer = io.BytesIO()
    torch.save(state_dict, buffer)
    size = buffer.tell()
    buffer.seek(0)
    return torch.load(buffer, weights_only=True, map_location="cpu"), size


def _copy_of(optimizer: Family) -> Family:
    """A new optimizer of the same class and options over copies of the parameters, without state."""
    groups = []
    for group in optimizer.param_groups:
        plain = {k: deepcopy(v) for k, v in group.items() if k not in ("params", "param_names")}
        params: list[Any] = [_copy_of_parameter(p) for p in group["params"]]
        if "param_names" in group:
            params = list(zip(group["param_names"], params, strict=True))
        groups.append({**plain, "params": params})
    options = {**vars(optimizer.config), "verbose": False}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # said when the original was built
        twin: Any = type(optimizer)(groups, **options)  # type: ignore[call-arg]
    twin.adapters = Adapters(optimizer.adapters.remembered(optimizer.param_groups, bool(optimizer.state)))
    return twin


def _copy_of_parameter(p: Tensor) -> Tensor:
    copy = torch.nn.Parameter(p.detach().clone(), requires_grad=p.requires_grad)
    # Marks, such as those of lora.mark_lora; not the tensors that a wrapper holds its values in.
    vars(copy).update({key: value for key, value in vars(p).items() if key not in vars(copy)})  # type: ignore[attr-defined]
    return copy


def _hand_over(optimizer: Family, twin: Family) -> None:
    """Give the copy the state, tensor by tensor."""
    for group, other in zip(optimizer.param_groups, twin.param_groups, strict=True):
        for p, q in zip(group["params"], other["params"], strict=True):
            if own := optimizer.state.get(p):
                twin.state[q] = {
                    k: v.clone() if isinstance(v, Tensor) else deepcopy(v) for k, v in own.items()
                }
    twin.model.tell_level()
    if twin.controller is not None and optimizer.controller is not None:
        twin.controller.load(optimizer.controller.memory)
        memory.keep(twin.state, twin.model.params(), twin.controller.memory)


def _gradients(optimizer: Family) -> Iterator[Tensor | None]:
    """The gradients that are there, in order; drawn ones of all that train where there are none at all."""
    params = optimizer.model.params()
    if any(p.grad is not None for p in params):
        yield from (p.grad for p in params)
        return
    for i, p in enumerate(params):
        if not p.requires_grad:
            yield None
            continue
        generator = torch.Generator(p.device).manual_seed(i)
        yield torch.randn(p.shape, generator=generator, dtype=torch.float32, device=p.device).to(p.dtype)


def _give(twin: Family, gradients: list[Tensor | None], gain: float) -> None:
    params = twin.model.params()
    for p, g in zip(params, gradients, strict=True):
        p.grad = None if g is None else g.detach() * gain


def _alike(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor) or isinstance(b, Tensor):
        return isinstance(a, Tensor) and isinstance(b, Tensor) and not list(_unlike(a, b, ""))
    return type(a) is type(b) and (a == b or (a != a and b != b))


def _unlike(a: Any, b: Any, where: str) -> Iterator[str]:
    """How two values differ, by type, shape or bit."""
    if not isinstance(a, Tensor) or not isinstance(b, Tensor):
        if not _alike(a, b):
            yield f"{where} is {b!r}, was {a!r}"
        return
    if a.dtype != b.dtype or a.shape != b.shape or a.device != b.device:
        forms = [f"{x.dtype} {tuple(x.shape)} on {x.device}" for x in (b, a)]
        yield f"{where} is {forms[0]}, was {forms[1]}"
        return
    if a.is_meta:
        return
    a, b = tensors.plain(a), tensors.plain(b)
    form = INTEGERS[a.element_size()] if not a.is_complex() else torch.uint8
    wrong = a.detach().reshape(-1).view(form) != b.detach().reshape(-1).view(form)
    if bool(wrong.any()):
        first = int(wrong.nonzero()[0])
        index = (
            [int(x) for x in torch.unravel_index(torch.tensor(first, device="cpu"), a.shape)]
            if a.dim()
            else []
        )
        values = [x.reshape(-1)[first].item() for x in (a, b)]
        yield (
            f"{where} differs in {int(wrong.sum())} of {a.numel()} elements, first at {index}: "
            f"{values[0]!r} without saving, {values[1]!r} with"
        )
