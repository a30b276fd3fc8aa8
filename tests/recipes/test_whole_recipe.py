"""The default recipe against a slow reference that was written from the text, over all phases."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from automagic_cameamp import Automagic_CameAMP
from reference import recipe
from reference.draws import normal

SHAPES = [(), (7,), (5, 7), (1, 6), (6, 1), (2, 3, 4), (3, 2, 2, 2)]


@pytest.mark.parametrize("warmup", [0, 1, 2, 7, 12])
@pytest.mark.parametrize(("full_finetune", "follows"), [(False, False), (True, False), (False, True)])
def test_default_recipe_in_fp64(warmup, full_finetune, follows):
    """Several shapes at once, because the mask is divided by its mean over all of them."""
    options = recipe.Options(
        warmup_steps=warmup, allora=not full_finetune, weight_decay=0.05, follows=follows
    )
    params = [torch.nn.Parameter(normal(s, i)) for i, s in enumerate(SHAPES)]
    for p in params:
        p._is_lora_layer = True  # type: ignore[attr-defined]
    tensors = [recipe.Tensor(p.detach().numpy().copy(), options) for p in params]
    optimizer = Automagic_CameAMP(
        params,
        lr=options.lr,
        min_lr=options.min_lr,
        max_lr=options.max_lr,
        weight_decay=options.weight_decay,
        warmup_steps=warmup,
        full_finetune=full_finetune,
        beta1_follows_lr=follows or None,
    )
    for t in range(1, 31):
        schedule = 1.0 if t < 20 else 0.25
        optimizer.param_groups[0]["lr"] = options.lr * schedule
        mean = recipe.mean_of_masks(tensors)
        for i, (p, tensor) in enumerate(zip(params, tensors, strict=True)):
            g = 0.3 * normal(p.shape, 500 + i) + normal(p.shape, 1000 * t + i)
            p.grad = g
            tensor.step(g.numpy(), mean, schedule)
        optimizer.step()
        for p, tensor in zip(params, tensors, strict=True):
            # The mean of the mask is kept in fp32, all else in fp64.
            np.testing.assert_allclose(p.detach().numpy(), tensor.p, rtol=0, atol=1e-8)
            assert float(optimizer.state[p]["avg_lr"]) == pytest.approx(tensor.rate, rel=1e-6)
    moved = max(abs(k) for tensor in tensors for k in tensor.mask.k)
    assert (moved > 0) == (warmup > 2)


def test_the_two_moving_parts_of_the_reference_move():
    """The comparison above would prove little if torque or disagreement never happened."""
    options = recipe.Options(warmup_steps=12)
    tensor = recipe.Tensor(normal((5, 7), 0).numpy(), options)
    for t in range(1, 12):
        tensor.step((0.3 * normal((5, 7), 1) + normal((5, 7), 100 * t)).numpy(), 1.0)
    assert 0 < abs(tensor.torque) < 1
    assert len(set(tensor.mask.k)) > 3
