"""Ways in which a state dict, or the file of one, can be wrong."""

from __future__ import annotations

import copy
import io
import random
import zipfile
from typing import Any

import torch
from torch import Tensor

JUNK: list[Any] = [None, "x", -1, 0, 7, 1.5, float("nan"), float("inf"), [], {}, True, (1, 2), object()]
JUNK += [torch.zeros(()), torch.ones(3), torch.full((2, 2), float("nan")), 10**400, b"raw", {1: 2}]
DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.int8, torch.uint8, torch.int64]
DTYPES += [torch.bool, torch.complex64, torch.int16]
NUMBERS = [float("nan"), float("inf"), -float("inf"), -1.0, 0.0, 1e-38, 1e15, 3e38, 255.0]


def one(rng: random.Random, values: Any) -> Any:
    return rng.choice(list(values))


def damage_tensor(rng: random.Random, x: Tensor) -> Any:
    """Another type, shape, content or thing in place of a tensor."""
    kind = rng.randrange(9)
    if kind == 0:
        return x.to(one(rng, DTYPES))
    if kind == 1:
        return x.flatten()[: rng.randrange(x.numel() + 1)]
    if kind == 2:
        return x.mT if x.dim() >= 2 else x.reshape(1, -1)
    if kind == 3:
        return torch.cat([x.flatten(), x.flatten()])
    if kind == 4:
        return x.double().fill_(one(rng, NUMBERS)).to(x.dtype) if x.is_floating_point() else ~x
    if kind == 5:
        y = x.clone().flatten()
        if y.is_floating_point():
            y[rng.randrange(len(y))] = torch.tensor(one(rng, NUMBERS), dtype=torch.float64)
        elif y.dtype is not torch.bool:
            y[:] = torch.randint(0, 127, y.shape, generator=torch.Generator().manual_seed(rng.randrange(9)))
        return y.reshape(x.shape)
    if kind == 6:
        return x * -1 if x.is_floating_point() else x + 1
    if kind == 7:
        return x.to("meta")
    return one(rng, JUNK)


def damage_state(rng: random.Random, state: dict[Any, Any]) -> None:
    """Something wrong with the state of one or two parameters."""
    if not state:
        return
    i = one(rng, state)
    entry = state[i]
    kind = rng.randrange(9)
    if not isinstance(entry, dict) or not entry or kind == 0:
        state[i] = one(rng, JUNK)
    elif kind == 1:
        del entry[one(rng, entry)]
    elif kind == 2:
        entry[one(rng, ["junk", "exp_avg", "lr_mask", "exp_avg_q_residual", 5, "c_optim"])] = one(rng, JUNK)
    elif kind == 3:
        a, b = one(rng, entry), one(rng, entry)
        entry[a], entry[b] = entry[b], entry[a]
    elif kind == 4:
        key = one(rng, entry)
        entry[f"{key}_old"] = entry.pop(key)
    elif kind == 5:
        j = one(rng, state)
        state[i], state[j] = state[j], state[i]
    elif kind == 6:
        state[one(rng, ["a", 99, -1, None])] = state.pop(i)
    else:
        key = one(rng, entry)
        value = entry[key]
        if isinstance(value, dict) and value:
            key, entry = one(rng, value), value
            value = entry[key]
        entry[key] = damage_tensor(rng, value) if isinstance(value, Tensor) else one(rng, JUNK)


def damage_groups(rng: random.Random, saved: dict[str, Any]) -> None:
    """Something wrong with the groups."""
    groups = saved["param_groups"]
    kind = rng.randrange(8)
    if not isinstance(groups, list) or not groups or kind == 0:
        saved["param_groups"] = one(rng, JUNK)
    elif kind == 1:
        groups.append(copy.deepcopy(groups[0]))
    elif not isinstance(groups[0], dict) or not groups[0] or kind == 2:
        groups[0] = one(rng, JUNK)
    elif kind == 3:
        groups[0]["params"] = one(
            rng, [[0], [0, 0, 0], [2, 1, 0], ["a", 1, 2], [None, 1, 2], 3, None, [[], 1, 2]]
        )
    elif kind == 4:
        groups[0].pop(one(rng, groups[0]), None)
    else:
        groups[0][one(rng, groups[0])] = one(rng, JUNK)


def damaged(rng: random.Random, saved: dict[str, Any]) -> dict[str, Any]:
    for _ in range(rng.randint(1, 3)):
        kind = rng.randrange(10)
        if kind == 0:
            saved.pop(one(rng, saved), None)
        elif kind == 1:
            saved[one(rng, ["state", "magic_version", "c_optim", "other"])] = one(rng, JUNK)
        elif kind <= 3 and "param_groups" in saved:
            damage_groups(rng, saved)
        elif isinstance(saved.get("state"), dict):
            damage_state(rng, saved["state"])
        if not saved:
            break
    return saved


class Bomb:
    """What a pickle may not be allowed to do: it makes a folder of this name when it is read."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        import os

        return os.mkdir, (self.path,)


def damaged_file(rng: random.Random, content: bytes, trap: str) -> bytes:
    """Bytes of a file, changed in one to four places, cut, lengthened, or with a pickle that executes."""
    data = bytearray(content)
    kind = rng.randrange(8)
    if kind == 0:
        return bytes(data[: rng.randrange(len(data))])
    if kind == 1:
        return armed(content, trap)
    if kind == 2:
        return rng.randbytes(rng.randrange(200)) if rng.random() < 0.5 else b""
    if kind == 3:
        start = rng.randrange(len(data))
        length = rng.randrange(1, 300)
        other = rng.randbytes(length) if rng.random() < 0.5 else b""
        return bytes(data[:start] + other + data[start + length :])
    # Most flips go where the structure is: the pickle near the beginning, the directory at the end.
    for _ in range(rng.randint(1, 4)):
        ends = (rng.randrange(min(6000, len(data))), len(data) - 1 - rng.randrange(min(6000, len(data))))
        data[one(rng, [*ends, rng.randrange(len(data))])] ^= 1 << rng.randrange(8)
    return bytes(data)


def armed(content: bytes, trap: str) -> bytes:
    """The same archive with another pickle in it."""
    import pickle

    source, target = zipfile.ZipFile(io.BytesIO(content)), io.BytesIO()
    with zipfile.ZipFile(target, "w") as out:
        for name in source.namelist():
            own = pickle.dumps({"state": Bomb(trap)}, protocol=2)
            out.writestr(name, own if name.endswith("data.pkl") else source.read(name))
    return target.getvalue()
