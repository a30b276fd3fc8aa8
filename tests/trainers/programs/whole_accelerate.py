"""A whole U-Net as diffusers' scripts train it, released and stepped on the host, against the plain loop."""

import copy

import small_unet
import torch
from accelerate import Accelerator
from diffusers.optimization import get_scheduler
from small_unet import loss_of

from automagic_cameamp import Automagic_CameAMP8bit, release_gradients

PASSES, STEPS = 2, 4


def made():
    unet = small_unet.made()
    unet.enable_gradient_checkpointing()
    return unet.train()


def expected(passes, clip):
    unet = made()
    optimizer = Automagic_CameAMP8bit(unet.parameters(), lr=1e-4)
    schedule = get_scheduler("cosine", optimizer, num_warmup_steps=1, num_training_steps=STEPS)
    for step in range(STEPS):
        for micro in range(passes):
            (loss_of(unet, passes * step + micro) / passes).backward()
        if clip:
            torch.nn.utils.clip_grad_norm_(unet.parameters(), clip)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    return unet


def compare(a, b, what):
    assert all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters(), strict=True)), what


# The loop of the scripts, with what docs/training.md adds to it.
accelerator = Accelerator(cpu=True, gradient_accumulation_steps=PASSES)
unet = made()
optimizer = Automagic_CameAMP8bit(unet.parameters(), lr=1e-4, offload="cpu")
schedule = get_scheduler("cosine", optimizer, num_warmup_steps=1, num_training_steps=STEPS)
unet, optimizer, schedule = accelerator.prepare(unet, optimizer, schedule)
handle = release_gradients(unet, optimizer.optimizer, accumulation=PASSES)
for step in range(PASSES * STEPS):
    with accelerator.accumulate(unet):
        accelerator.backward(loss_of(unet, step))
        assert all(p.grad is None for p in unet.parameters())
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
compare(unet, expected(PASSES, None), "accumulation")
handle.remove()

# Clipping, in two passes.
clip = 0.05
unet = made()
optimizer = Automagic_CameAMP8bit(unet.parameters(), lr=1e-4, offload="cpu")
schedule = get_scheduler("cosine", optimizer, num_warmup_steps=1, num_training_steps=STEPS)
accelerator = Accelerator(cpu=True)
unet, optimizer, schedule = accelerator.prepare(unet, optimizer, schedule)
with release_gradients(unet, optimizer.optimizer, max_norm=clip) as handle:
    for step in range(STEPS):
        norm = handle.backward(loss_of(unet, step))
        assert norm > clip
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
compare(unet, expected(1, clip), "clipping")

# One step done, its state saved and loaded by accelerate's own way of copying.
state = copy.deepcopy(optimizer.state_dict())
optimizer.load_state_dict(state)
print("accelerate: equal")
