"""Flat shards and optimizers that are themselves cut over the processes; run on all of them."""

from __future__ import annotations

import copy
import io
import warnings
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import FullyShardedDataParallel

from automagic_cameamp.optimizers import OPTIMIZERS
from distributed.models import build, set_gradients, twins

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # torch's own, of what it deprecates and still uses
    from torch.distributed.optim import ZeroRedundancyOptimizer


def _model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 12), nn.Tanh(), nn.Linear(12, 4))


def _refusal(call: Any) -> str:
    try:
        call()
    except (ValueError, RuntimeError) as error:
        return f"{type(error).__name__}: {error}"
    return "accepted"


def _wrapped(model: nn.Module, original: bool) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return FullyShardedDataParallel(model, use_orig_params=original, device_id=torch.device("cpu"))


def flat(folder: Path) -> dict[str, Any]:
    """FSDP1 in both its forms: before and after the first forward, and an optimizer that was there first."""
    found: dict[str, Any] = {}
    for original in (False, True):
        for name in OPTIMIZERS:
            model = _wrapped(_model(), original)
            found[f"{name} {original}"] = _refusal(lambda n=name, m=model: build(n, m.named_parameters()))
        model(torch.ones(2, 8)).sum().backward()
        found[f"trained {original}"] = _refusal(lambda m=model: build("Automagic_CameAMP", m.parameters()))
    model = _model()
    optimizer = build("Automagic_CameAMP", model.named_parameters())
    sharded = _wrapped(model, True)
    sharded(torch.ones(2, 8)).sum().backward()
    found["optimizer first"] = _refusal(optimizer.step)
    return found


def _zero(name: str, params: list[nn.Parameter], engine: str) -> Any:
    return ZeroRedundancyOptimizer(
        params, OPTIMIZERS[name], lr=1e-2, max_lr=1.0, warmup_steps=4, engine=engine, weight_decay=0.1
    )


def _train(optimizer: Any, params: list[nn.Parameter], steps: range) -> None:
    for t in steps:
        draw = torch.Generator().manual_seed(t)
        for p in params:
            p.grad = torch.randn(p.shape, generator=draw).to(p.dtype)
        optimizer.step()


def _saved(optimizer: Any) -> dict[str, Any]:
    """The consolidated state on every process, through bytes."""
    buffer = io.BytesIO()
    for rank in range(dist.get_world_size()):
        optimizer.consolidate_state_dict(to=rank)  # and forgotten by the others
        if rank == dist.get_rank():
            torch.save(optimizer.state_dict(), buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=True)


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor):
        return isinstance(b, Tensor) and a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(_same(a[k], b[k]) for k in a)
    return a == b


def zero(folder: Path) -> dict[str, Any]:
    """ZeroRedundancyOptimizer: resumed bit for bit; what it joins goes into an optimizer without it."""
    found: dict[str, Any] = {}
    for name in OPTIMIZERS:
        for engine in ("auto", "reference"):
            dtype = torch.bfloat16 if engine == "auto" and name.endswith("8bit") else torch.float32
            torch.manual_seed(0)
            shapes = [(24, 16), (16,), (40, 128), (5, 3), (128, 40), (7,)]
            params = [nn.Parameter(torch.randn(shape).to(dtype)) for shape in shapes]
            optimizer = _zero(name, params, engine)
            _train(optimizer, params, range(3))
            saved = _saved(optimizer)
            again_params = [nn.Parameter(p.detach().clone()) for p in params]
            again = _zero(name, again_params, engine)
            again.load_state_dict(copy.deepcopy(saved))
            plain_params = [nn.Parameter(p.detach().clone()) for p in params]
            plain = OPTIMIZERS[name](plain_params, lr=1e-2, max_lr=1.0, warmup_steps=4, engine=engine)
            with warnings.catch_warnings(record=True) as said:
                warnings.simplefilter("always")
                plain.load_state_dict(copy.deepcopy(saved))
            loaded = copy.deepcopy(plain.state_dict()["state"])
            joined = {i: {k: v for k, v in s.items() if k != "c_optim"} for i, s in saved["state"].items()}
            _train(optimizer, params, range(3, 6))
            _train(again, again_params, range(3, 6))
            _train(plain, plain_params, range(3, 4))
            found[f"{name} {engine}"] = {
                "weights": all(
                    _same(p.detach(), q.detach()) for p, q in zip(params, again_params, strict=True)
                ),
                "state": _same(_saved(optimizer)["state"], _saved(again)["state"]),
                "joined": all(_same({k: loaded[i][k] for k in s}, s) for i, s in joined.items()),
                "memories": sum("c_optim" in s for s in saved["state"].values()),
                "taken": sum("c_optim" in s for s in plain.state_dict()["state"].values()),
                "said": [str(w.message) for w in said],
            }
    return found


def changed_shards(folder: Path) -> dict[str, Any]:
    """FSDP2: state that a program has cut or cast is refused by name, and no bit moves."""
    found: dict[str, Any] = {}
    for name in OPTIMIZERS:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            whole, sharded = twins(torch.float32)
            optimizer = build(name, sharded.named_parameters())
            set_gradients(whole, sharded, 0)
            optimizer.step()
            p = dict(sharded.named_parameters())["a.weight"]
            key = "exp_avg" if "exp_avg" in optimizer.state[p] else "exp_avg_q_scale"
            good = optimizer.state[p][key]
            results = []
            for bad in (good.to(torch.float16), good[:-1]):
                optimizer.state[p][key] = bad
                before = [q.to_local().clone() for q in sharded.parameters()]
                set_gradients(whole, sharded, 1)
                results.append(_refusal(optimizer.step))
                after = [q.to_local() for q in sharded.parameters()]
                results.append(all(map(torch.equal, before, after)))
            optimizer.state[p][key] = good
            optimizer.step()
        found[name] = [key, *results]
    return found
