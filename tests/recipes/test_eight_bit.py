"""The 8-bit class does what its 32-bit twin does: how far apart their updates are."""

from __future__ import annotations

import pytest
import torch

from automagic_cameamp import Automagic_CameAMP, Automagic_CameAMP8bit
from reference import drive
from reference.draws import relative

SHAPE, STEPS = (128, 256), 500
# Standard deviation of the logarithm of each scale (row, column, element), share of dead elements.
DATA = {
    "homogeneous": (0.0, 0.0),
    "heavy": (1.0, 0.0),
    "heavy with dead elements": (1.0, 0.01),
    "very heavy": (2.0, 0.0),
}


def gradients(kind, seed=0):
    """Noise around a mean of 0.3 standard deviations, scales lognormal by row, column and element."""
    spread, dead = DATA[kind]
    generator = torch.Generator().manual_seed(seed)

    def normal(*size):
        return torch.randn(*size, generator=generator)

    rows, columns = SHAPE
    sigma = torch.exp(spread * (normal(rows, 1) + normal(1, columns) + normal(rows, columns))) * 1e-3
    sigma[torch.rand(SHAPE, generator=generator) < dead] = 0.0
    mean = 0.3 * sigma * normal(*SHAPE).sign()
    for _ in range(STEPS):
        yield mean + sigma * normal(*SHAPE)


def update_error(kind, **options):
    """Relative L2 distance of the updates of step 500, where both start from the same weights."""
    start = 0.02 * torch.randn(SHAPE, generator=torch.Generator().manual_seed(1))
    params = [torch.nn.Parameter(start.clone()) for _ in range(2)]
    eight = Automagic_CameAMP8bit([params[0]], lr=1e-3, **options)
    full = Automagic_CameAMP([params[1]], lr=1e-3)
    for t, g in enumerate(gradients(kind), start=1):
        if t == STEPS:
            with torch.no_grad():
                params[1].copy_(params[0])
            before = params[0].detach().clone()
        for p, optimizer in zip(params, (eight, full), strict=True):
            p.grad = g
            optimizer.step()
    moved = [p.detach().double() - before.double() for p in params]
    assert float(moved[1].norm()) > 0
    return relative(moved[0], moved[1])


@pytest.mark.parametrize("kind", DATA)
def test_the_update_stays_within_two_percent_of_the_32_bit_twin(kind):
    error = update_error(kind)
    assert error < 0.02
    assert error > 1e-5, "nothing was quantised"


@pytest.mark.parametrize("kind", ["homogeneous", "heavy"])
def test_softsign_too_on_data_that_is_not_extreme(kind):
    assert update_error(kind, state_code="softsign") < 0.02


@pytest.mark.parametrize("way", ["default", "adabelief plain", "distance", "additive mask"])
def test_small_tensors_and_vectors_are_exactly_the_32_bit_ones(way):
    shapes = [(), (7,), (5000,), (5, 7), (2, 3, 4)]
    runs = []
    for cls in (Automagic_CameAMP, Automagic_CameAMP8bit):
        params = drive.parameters(shapes)
        runs.append(drive.bits(drive.train(params, 8, cls, **drive.WAYS[way])))
    assert drive.equal(*runs)


def test_the_two_classes_differ_where_something_is_quantised():
    weights = []
    for cls in (Automagic_CameAMP, Automagic_CameAMP8bit):
        params = drive.parameters([(64, 64)])
        drive.train(params, 8, cls)
        weights.append(params[0].detach())
    assert 0 < relative(weights[1], weights[0]) < 1e-3
