"""State dicts of optimizers outside the family, on the shapes of ``members``.

Adam comes from torch, CAME and bitsandbytes from their packages where they are installed (else in the
same layout, from numbers); ai-toolkit's Automagic is not a package: its layouts are written out here
from the public source (toolkit/optimizers/automagic.py, automagic2.py, automagic3.py).
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from checkpoint.members import SHAPES, never
from engine.helpers import disk, draw, parameters, train

STEPS = 6
try:
    import came_pytorch
except ImportError:
    came_pytorch = None
try:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import bitsandbytes
except ImportError:
    bitsandbytes = None


def run(optimizer: Any, params: list[Tensor], steps: int = STEPS) -> dict[str, Any]:
    train(optimizer, params, range(1, steps + 1), never)
    return disk(optimizer.state_dict())


def adamw(steps: int = STEPS, **options: Any) -> dict[str, Any]:
    params = parameters(shapes=SHAPES)
    return run(torch.optim.AdamW(params, **options), params, steps)


def came() -> dict[str, Any]:
    if came_pytorch is not None:
        params = parameters(shapes=SHAPES)
        return run(came_pytorch.CAME(params, lr=1e-4), params)
    state: dict[int, dict[str, Any]] = {}
    for i, shape in enumerate(SHAPES):
        state[i] = {"step": STEPS, "exp_avg": 0.2 * draw(1, i, shape=shape), "RMS": torch.tensor(1.0)}
        for name in ("exp_avg_sq", "exp_avg_res") if len(shape) > 1 else ():
            state[i][f"{name}_row"] = draw(2, i, shape=shape[:-1]).square() + 0.1
            state[i][f"{name}_col"] = draw(3, i, shape=shape[:-2] + shape[-1:]).square() + 0.1
        if len(shape) < 2:
            state[i]["exp_avg_sq"] = draw(4, i, shape=shape).square()
    group = {"lr": 1e-4, "eps": (1e-30, 1e-16), "clip_threshold": 1.0, "betas": (0.9, 0.999, 0.9999)}
    return {"state": state, "param_groups": [{**group, "params": list(range(len(SHAPES)))}]}


def bnb(name: str = "AdamW8bit") -> dict[str, Any]:
    if bitsandbytes is not None:
        params = parameters(shapes=SHAPES)
        return run(getattr(bitsandbytes.optim, name)(params, lr=1e-4), params)
    signed = torch.linspace(-1, 1, 256)
    state: dict[int, dict[str, Any]] = {}
    for i, shape in enumerate(SHAPES):
        n = draw(shape=shape).numel()
        if n < 4096 or not name.endswith("8bit"):
            inner = {"state1": 0.1 * draw(1, i, shape=shape), "state2": draw(2, i, shape=shape).square()}
        else:
            inner = {}
            for number, qmap in ((1, signed), (2, signed.abs().sort().values)):
                codes = (draw(number, i, shape=shape) * 40 + 128).clamp(0, 255).to(torch.uint8)
                absmax = draw(5, number, shape=(-(-n // 256),)).abs() + 0.1
                inner |= {f"state{number}": codes, f"qmap{number}": qmap, f"absmax{number}": absmax}
        state[i] = {"step": STEPS, "__bnb_optimizer_quant_state__": inner}
    group = {"lr": 1e-4, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.01, "t_alpha": None}
    return {"state": state, "param_groups": [{**group, "params": list(range(len(SHAPES)))}]}


def moments(i: int, shape: tuple[int, ...]) -> dict[str, Tensor]:
    if len(shape) < 2:
        return {"exp_avg_sq": draw(4, i, shape=shape).square()}
    return {
        "exp_avg_sq_row": draw(2, i, shape=shape[:-1]).square() + 0.1,
        "exp_avg_sq_col": draw(3, i, shape=shape[:-2] + shape[-1:]).square() + 0.1,
    }


def automagic(version: int) -> dict[str, Any]:
    state: dict[int, dict[str, Any]] = {}
    for i, shape in enumerate(SHAPES):
        entry: dict[str, Any] = {"step": STEPS, **moments(i, shape)}
        positive = draw(6, i, shape=shape) > 0
        rates = 1e-4 * torch.exp(0.5 * draw(7, i, shape=shape))
        if version == 1:
            scale = float(rates.max()) / 127
            codes = (rates / scale).round().clamp(-127, 127).to(torch.int8)
            entry["lr_mask"] = {"quantized": codes, "scale": scale, "orig_dtype": torch.float32}
            entry |= {"last_polarity": positive, "avg_lr": rates.mean(), "RMS": torch.tensor(1.0)}
        elif version == 2:
            entry |= {"lr": rates.mean(), "last_polarity": positive}
        else:
            planes = (draw(8, i, shape=(8, -(-positive.numel() // 8))) * 99).to(torch.int64) % 256
            entry |= {"lr": torch.tensor(2e-4), "sign_history": planes.to(torch.uint8)}
            entry |= {"hist_idx": 3, "hist_fill": 6}
        state[i] = entry
    return {"state": state, "param_groups": [{"lr": 1e-6, "params": list(range(len(SHAPES)))}]}


STATES: dict[str, Callable[[], dict[str, Any]]] = {
    "adamw": adamw,
    "came": came,
    "bitsandbytes": bnb,
    "automagic 1": lambda: automagic(1),
    "automagic 2": lambda: automagic(2),
    "automagic 3": lambda: automagic(3),
}
