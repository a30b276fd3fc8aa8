"""A small model of every shape, reproducible gradients, and comparison bit by bit."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable, Iterable, Iterator
from functools import lru_cache
from typing import Any

import pytest
import torch
from torch import Tensor

from automagic_cameamp import Automagic_CameAMP, Automagic_CameAMP8bit

# name -> (class, options that make its code visible on small tensors)
CLASSES: dict[str, tuple[type, dict[str, Any]]] = {
    "32bit": (Automagic_CameAMP, {}),
    "dynamic": (Automagic_CameAMP8bit, {"state_code": "dynamic", "blocksize": 64}),
    "softsign": (Automagic_CameAMP8bit, {"state_code": "softsign", "blocksize": 256}),
}

# Every state field and every branch of the recipe appears in at least one of these.
OPTIONS: dict[str, dict[str, Any]] = {
    "default": {},
    "additive": {"lr_mask_rule": "additive"},
    "row mask": {"lr_mask_granularity": "row"},
    "tensor mask": {"lr_mask_granularity": "tensor", "lr_mask_rule": "additive"},
    "group mask": {"lr_mask_granularity": "group"},
    "no mask": {"lr_mask_rule": "none"},
    "distance": {"lr_level": "distance"},
    "vote": {"lr_level": "vote"},
    "belief": {"came": False},
    "unfactored": {"factored": False, "confidence_1d": True},
    "all stages": {
        "use_agr": True,
        "use_orthograd": True,
        "tam_granularity": "row",
        "weight_decay_phase": "always",
        "hard_min_lr": True,
    },
    "few stages": {"use_tam": False, "use_grams": False, "final_clip": float("inf"), "full_finetune": True},
    "no warm-up": {"warmup_steps": 0},
}


def usual_pairs() -> Iterator[tuple[str, str, bool]]:
    """Every code with every set of options, and whether the two meet at every run."""
    for number, name in enumerate(OPTIONS):
        for place, kind in enumerate(CLASSES):
            yield kind, name, name in ("default", "all stages") or number % len(CLASSES) == place


def usually(*values: Any, name: str, usual: bool) -> Any:
    """A row of parameters that is slow where it is not usual."""
    return pytest.param(*values, id=name, marks=[] if usual else [pytest.mark.slow])


# Each set of options with one code, in turn, two with all of them; the other pairs under `pytest -m slow`.
EVERY = pytest.mark.parametrize(
    ("kind", "options"),
    [usually(kind, OPTIONS[way], name=f"{kind}-{way}", usual=usual) for kind, way, usual in usual_pairs()],
)

# Two of a kind, odd sizes, every rank; 40 x 32 is large enough to be quantised.
SHAPES = [(40, 32), (8,), (40, 32), (3, 5, 7), (4, 3, 3, 3), (), (40, 32), (8,), (40, 32)]
NEVER, SOMETIMES, LATE = 6, 7, 8  # positions whose gradient is missing always, often, until step 4
WARMUP = 7

FLOATS = [torch.float32, torch.bfloat16, torch.float16, torch.float64]


def name_of(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def draw(*key: int, shape: tuple[int, ...] = ()) -> Tensor:
    """Normal numbers that depend on the key only."""
    return _drawn(key, shape).clone()


@lru_cache(maxsize=20_000)
def _drawn(key: tuple[int, ...], shape: tuple[int, ...]) -> Tensor:
    seed = 0
    for k in key:
        seed = seed * 1_000_003 + k
    return torch.randn(shape, generator=torch.Generator("cpu").manual_seed(seed), device="cpu")


def parameters(
    dtype: torch.dtype = torch.float32, shapes: Iterable[tuple[int, ...]] = SHAPES
) -> list[Tensor]:
    """A small LoRA, by its marks: with ALLoRA's row gain."""
    params = [torch.nn.Parameter(draw(7, i, shape=s).to(dtype)) for i, s in enumerate(shapes)]
    for p in params:
        p._is_lora_layer = True  # type: ignore[attr-defined]
    return params


def twin_of(p: Tensor) -> Tensor:
    """A copy of a parameter, its marks included: a clone has none."""
    twin = torch.nn.Parameter(p.detach().clone())
    vars(twin).update(vars(p))  # type: ignore[attr-defined]
    return twin


def missing(position: int, step: int) -> bool:
    """Whether this parameter has no gradient at this step."""
    return position == NEVER or (position == SOMETIMES and step % 3 != 0) or (position == LATE and step < 4)


def give_gradients(
    params: list[Tensor], step: int, absent: Callable[[int, int], bool] = missing, salt: int = 0
) -> None:
    for i, p in enumerate(params):
        shape = tuple(p.shape)
        mean = 0.5 * draw(1, i, shape=shape)
        g = None if absent(i, step) else (mean + draw(2 + salt, i, step, shape=shape)).to(p.dtype)
        p.grad = g if g is None else g.to(p.device)


def train(
    optimizer: Any,
    params: list[Tensor],
    steps: range,
    absent: Callable[[int, int], bool] = missing,
    salt: int = 0,
) -> None:
    for t in steps:
        give_gradients(params, t, absent, salt)
        optimizer.step()


def build(kind: str, params: Any, **options: Any) -> Any:
    cls, own = CLASSES[kind]
    return cls(params, **{"lr": 5e-4, "warmup_steps": WARMUP, "weight_decay": 0.1, **own, **options})


def disk(state_dict: dict[str, Any]) -> dict[str, Any]:
    """Through a file, read the way trainers read it."""
    buffer = io.BytesIO()
    torch.save(state_dict, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=True)


def bits(x: Tensor) -> Tensor:
    return x.detach().cpu().contiguous().reshape(-1).view(torch.uint8)


def same_bits(a: Tensor, b: Tensor) -> bool:
    return a.dtype == b.dtype and a.shape == b.shape and torch.equal(bits(a), bits(b))


def snapshot(optimizer: Any) -> Any:
    """Everything a failed operation must leave as it was: weights, state, groups."""
    params = [p for g in optimizer.param_groups for p in g["params"]]
    states = [optimizer.state.get(p) for p in params]
    return (
        [p.detach().clone() for p in params],
        [{k: v.clone() for k, v in state.items()} if state else None for state in states],
        copy.deepcopy([{k: v for k, v in g.items() if k != "params"} for g in optimizer.param_groups]),
    )


def differences(a: Any, b: Any) -> list[str]:
    """Where two snapshots differ, in words; nothing where every bit is the same."""
    found = []
    if len(a[0]) != len(b[0]):
        return [f"{len(a[0])} parameters against {len(b[0])}"]
    for i, (p, q) in enumerate(zip(a[0], b[0], strict=True)):
        if not same_bits(p, q):
            found.append(f"parameter {i} {tuple(p.shape)}: {int((p != q).sum())} of {p.numel()} elements")
    for i, (s, t) in enumerate(zip(a[1], b[1], strict=True)):
        if not s or not t:
            found += [] if not s and not t else [f"state of parameter {i} exists on one side only"]
            continue
        if s.keys() != t.keys():
            found.append(f"state {i} has other keys: {sorted(s.keys() ^ t.keys())}")
            continue
        for key in s:
            if not same_bits(s[key], t[key]):
                found.append(f"state {i} {key!r}: {s[key].dtype} {tuple(s[key].shape)} / {t[key].dtype}")
    for i, (g, h) in enumerate(zip(a[2], b[2], strict=True)):
        if repr(sorted(g.items())) != repr(sorted(h.items())):
            found.append(f"group {i}: {g} / {h}")
    return found


def state_bytes(optimizer: Any) -> int:
    return sum(
        v.numel() * v.element_size()
        for s in optimizer.state.values()
        for v in s.values()
        if isinstance(v, Tensor)
    )


def held_bytes(optimizer: Any) -> int:
    """Bytes of the storages behind the state: what the allocator really gave."""
    storages = {}
    for s in optimizer.state.values():
        for v in s.values():
            if isinstance(v, Tensor):
                storage = v.untyped_storage()
                storages[storage.data_ptr()] = storage.nbytes()
    return sum(storages.values())
