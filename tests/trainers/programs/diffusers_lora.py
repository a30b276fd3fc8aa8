"""A LoRA on diffusers' U-Net, through accelerate, as the example scripts train it; state saved and loaded."""

import sys

import small_unet
import torch
from accelerate import Accelerator
from diffusers.optimization import get_scheduler
from peft import LoraConfig

from automagic_cameamp import Automagic_CameAMP_COptim8bit
from automagic_cameamp.integrations.rates import applied_rates

OUT = sys.argv[1]


def made():
    unet = small_unet.made()
    unet.requires_grad_(False)
    unet.add_adapter(
        LoraConfig(r=4, init_lora_weights="gaussian", target_modules=["to_q", "to_k", "to_v", "to_out.0"])
    )
    weights = [p for p in unet.parameters() if p.requires_grad]
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=2)
    optimizer = Automagic_CameAMP_COptim8bit(
        weights, lr=1e-4, betas=(0.9, 0.999), eps=1e-8, weight_decay=1e-2
    )
    schedule = get_scheduler("cosine", optimizer, num_warmup_steps=1, num_training_steps=8)
    return accelerator, *accelerator.prepare(unet, optimizer, schedule), weights


def train(accelerator, unet, optimizer, schedule, weights, first, last):
    for step in range(first, last):
        with accelerator.accumulate(unet):
            accelerator.backward(small_unet.loss_of(unet, step))
            if accelerator.sync_gradients:
                accelerator.clip_grad_norm_(weights, 1.0)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()


whole = made()
train(*whole, 0, 8)
assert 0 < applied_rates(whole[2])["lr/applied"] < 1
half = made()
train(*half, 0, 4)
half[0].save_state(OUT)
resumed = made()
resumed[0].load_state(OUT)
train(*resumed, 4, 8)
assert all(torch.equal(a, b) for a, b in zip(whole[4], resumed[4], strict=True)), "resume is not bitwise"
