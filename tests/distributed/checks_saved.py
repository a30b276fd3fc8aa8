"""torch's distributed checkpoints: saved by some processes, loaded by as many, more or one."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)

from automagic_cameamp.optimizers import OPTIMIZERS
from distributed.models import build, distance, is_improved, part_of, set_gradients, twins, whole_of

# Of a warm-up of four steps: saved inside it, and gone on with beyond its end.
BEFORE, AFTER, WARMUP = 3, 2, 4
# Every kind of state: both codes, several momenta, the regularisers' directions.
ON_FOUR = ["Automagic_CameAMP_COptim8bit", "Automagic_CameAMP_Improved_8Bit"]


def _options(name: str) -> dict[str, Any]:
    # Left out by the user, there is nothing to warn about.
    from distributed.models import WITHOUT_NEIGHBOURS

    return {"warmup_steps": WARMUP, **(WITHOUT_NEIGHBOURS if is_improved(name) else {})}


def _whole_state(model: nn.Module, optimizer: Any) -> dict[str, Any]:
    """Weights and states by name, put together from all processes."""
    found: dict[str, Any] = {}
    for name, p in model.named_parameters():
        found[f"{name} p"] = whole_of(p.detach()).clone()
        found.update({f"{name} {key}": whole_of(v).clone() for key, v in optimizer.state[p].items()})
    return found


def save(folder: Path) -> dict[str, Any]:
    """Some steps, a sharded checkpoint and a gathered one per class, some more: what they end with."""
    for name in OPTIMIZERS:
        whole, cut = twins(torch.float32)
        optimizer = build(name, cut.parameters(), **_options(name))
        for t in range(BEFORE):
            set_gradients(whole, cut, t)
            optimizer.step()
        states = get_optimizer_state_dict(cut, optimizer)
        saved = {"model": cut.state_dict(), "optimizer": states}
        dcp.save(saved, checkpoint_id=folder / name)
        options = StateDictOptions(full_state_dict=True, cpu_offload=True)
        # What no process holds a part of is not copied by torch.
        gathered = copy.deepcopy(get_optimizer_state_dict(cut, optimizer, options=options))
        at_save = _whole_state(cut, optimizer)
        for t in range(BEFORE, BEFORE + AFTER):
            set_gradients(whole, cut, t)
            optimizer.step()
        after = _whole_state(cut, optimizer)
        if dist.get_rank() == 0:
            torch.save({"gathered": gathered, "at_save": at_save, "after": after}, folder / f"{name}.pt")
        dist.barrier()
    return {"held": {k: str(part_of(v).dtype) for k, v in optimizer.state[cut.wide].items()}}


def load(folder: Path) -> dict[str, Any]:
    """Into a fresh optimizer: the states, that torch's dummy step moved nothing, and the steps after."""
    results: dict[str, Any] = {}
    for name in OPTIMIZERS if dist.get_world_size() < 4 else ON_FOUR:
        whole, cut = twins(torch.float32)
        reference = torch.load(folder / f"{name}.pt", weights_only=True)
        optimizer = build(name, cut.parameters(), **_options(name))
        start = {n: whole_of(p.detach()).clone() for n, p in cut.named_parameters()}
        target = {"model": cut.state_dict(), "optimizer": get_optimizer_state_dict(cut, optimizer)}
        still = all(torch.equal(start[n], whole_of(p.detach())) for n, p in cut.named_parameters())
        dcp.load(target, checkpoint_id=folder / name)
        cut.load_state_dict(target["model"])
        set_optimizer_state_dict(cut, optimizer, target["optimizer"])
        loaded = _whole_state(cut, optimizer)
        for t in range(BEFORE, BEFORE + AFTER):
            set_gradients(whole, cut, t)
            optimizer.step()
        results[name] = {
            "still": still,
            "differs": _differences(reference["at_save"], loaded),
            "after": _gap(reference["after"], _whole_state(cut, optimizer)),
        }
    return results


def load_gathered(folder: Path) -> dict[str, Any]:
    """A gathered state: into a whole model, and distributed again by torch; both go on."""
    results: dict[str, Any] = {}
    for name in OPTIMIZERS:
        whole, cut = twins(torch.float32)
        reference = torch.load(folder / f"{name}.pt", weights_only=True)
        weights = {n.removesuffix(" p"): v for n, v in reference["at_save"].items() if n.endswith(" p")}
        after = {n.removesuffix(" p"): v for n, v in reference["after"].items() if n.endswith(" p")}
        gaps = {}
        for kind, model in (("whole", whole), ("cut", cut)):
            optimizer = build(name, model.parameters(), **_options(name))
            whole.zero_grad()  # torch's dummy step is left out where there are gradients
            cut.zero_grad()
            with torch.no_grad():
                for n, p in model.named_parameters():
                    part_of(p).copy_(_like(weights[n], p))
            state = copy.deepcopy(reference["gathered"])
            if kind == "whole":  # another form of the codes: torch would mix the two
                optimizer.load_state_dict(state)
            else:
                options = StateDictOptions(full_state_dict=True)
                set_optimizer_state_dict(model, optimizer, state, options=options)
            for t in range(BEFORE, BEFORE + AFTER):
                set_gradients(whole, cut, t)
                optimizer.step()
            ended = {n: whole_of(p.detach()) for n, p in model.named_parameters()}
            gaps[kind] = max(float((ended[n] - after[n]).abs().max()) for n in ended)
            gaps[f"{kind} moved"] = max(float((ended[n] - weights[n]).abs().max()) for n in ended)
        results[name] = {**gaps, "apart": distance(whole, cut)}
    return results


def _like(value: torch.Tensor, p: Any) -> torch.Tensor:
    from distributed.models import shard_like

    return part_of(shard_like(value, p)) if hasattr(p, "placements") else value


def _differences(a: dict[str, Any], b: dict[str, Any]) -> list[str]:
    """Entries that are not the same bit for bit, types included."""
    wrong = sorted(a.keys() ^ b.keys())
    for key in a.keys() & b.keys():
        same = a[key].dtype == b[key].dtype and a[key].shape == b[key].shape
        if not (same and torch.equal(a[key], b[key])):
            wrong.append(key)
    return wrong


def _gap(a: dict[str, Any], b: dict[str, Any]) -> float:
    """Largest difference of a weight."""
    return max(float((a[key] - b[key]).abs().max()) for key in a if key.endswith(" p"))
