"""A constant's codes without the constant: what coding the whole tensor gives, in every codec and shape."""

from __future__ import annotations

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from automagic_cameamp import storage
from automagic_cameamp.types import Layout

SHAPES = [
    (1,),
    (2,),
    (1031,),
    (1, 1),
    (3, 5),
    (64, 33),
    (33, 31),
    (2, 9, 7),
    (8, 3, 3, 3),
    (1, 2049),
    (2049, 1),
    (0, 4),
]
POLICIES = {
    "dynamic": storage.Policy("dynamic", 64, force=True, min_size=0),
    "softsign": storage.Policy("softsign", 256, force=True, min_size=0),
    "affine": storage.Policy("affine", 100, force=True, min_size=0),
    "affine+4": storage.Policy("affine", 64, error_bits=4, force=True, min_size=0),
    "softsign+8": storage.Policy("softsign", 64, error_bits=8, force=True, min_size=0),
    "softsign4": storage.Policy("softsign4", 32, force=True, min_size=0),
}
DOMAINS = {"signed": (0.0, 0.25, -3.0), "positive": (0.0, 1.0), "unit": (0.0, 0.5, 1.0)}


@pytest.mark.parametrize("by_rows", [False, True])
@pytest.mark.parametrize("domain", DOMAINS)
@pytest.mark.parametrize("code", POLICIES)
def test_it_is_what_coding_the_whole_tensor_gives(code, domain, by_rows):
    tried = 0
    for shape in SHAPES:
        layout = Layout.of(shape)
        spec = storage.StateSpec("x", domain=domain)
        codec = storage.choose(spec, layout, POLICIES[code], by_rows)
        if codec is None:
            continue
        for value in DOMAINS[domain]:
            planes = codec.planes(layout)
            held = [torch.full((3, *plane.shape), 77, dtype=plane.dtype) for plane in planes]
            storage.fill(held, codec, value, layout)
            if layout.numel:
                wanted = codec.encode(torch.full((3, *layout.view), value))
                for plane, mine, theirs in zip(planes, held, wanted, strict=True):
                    assert torch.equal(mine, theirs), (shape, value, plane.suffix)
            tried += 1
    assert tried or (by_rows and domain == "unit")


class Largest(TorchDispatchMode):
    """Elements of the largest tensor that an operation makes beside those that are there."""

    def __init__(self, there: list[torch.Tensor]) -> None:
        super().__init__()
        self.there = {plane.untyped_storage().data_ptr() for plane in there}
        self.numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for made in (x for x in torch.utils._pytree.tree_leaves(out) if isinstance(x, torch.Tensor)):
            if made.untyped_storage().data_ptr() not in self.there:
                self.numel = max(self.numel, made.numel())
        return out


@pytest.mark.parametrize("code", POLICIES)
def test_nothing_of_the_tensors_size_is_made(code):
    layout = Layout.of((512, 511))
    codec = storage.choose(storage.StateSpec("x", domain="signed"), layout, POLICIES[code])
    assert codec is not None
    held = [torch.empty((1, *plane.shape), dtype=plane.dtype) for plane in codec.planes(layout)]
    storage.fill(held, codec, 0.0, layout)  # tables that stay are made
    with Largest(held) as seen:
        storage.fill(held, codec, 0.0, layout)
    assert 0 < seen.numel <= 256
