"""PEFT: LoRA+ with its four groups, and the Riemannian wrapper where this version has it."""

import peft
import torch
from peft import LoraConfig, get_peft_model
from peft.optimizers import create_loraplus_optimizer

from automagic_cameamp import OPTIMIZERS
from automagic_cameamp.integrations.rates import applied_rates


def model():
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(16, 32), torch.nn.SiLU(), torch.nn.Linear(32, 16))
    return get_peft_model(net, LoraConfig(r=4, target_modules=["0", "2"]))


def trained(optimizer, lora):
    x = torch.randn(64, 16)
    losses = []
    for _ in range(40):
        loss = (lora(x) - x.flip(1)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


for cls in OPTIMIZERS.values():
    lora = model()
    optimizer = create_loraplus_optimizer(lora, cls, lr=1e-4, loraplus_lr_ratio=16, max_lr=1e-2)
    losses = trained(optimizer, lora)
    assert losses[-1] < losses[0], (cls, losses)
    told = applied_rates(optimizer)
    lrs = [group["lr"] for group in optimizer.param_groups if group["params"]]
    assert max(lrs) == 1e-4 * 16 and min(lrs) == 1e-4, lrs
    rates = [told[f"lr/applied/{i}"] for i, group in enumerate(optimizer.param_groups) if group["params"]]
    assert max(rates) / min(rates) > 4, told  # the ratio reaches what is applied
if hasattr(peft.optimizers, "create_riemannian_optimizer"):
    for cls in OPTIMIZERS.values():
        lora = model()
        optimizer = peft.optimizers.create_riemannian_optimizer(lora, cls, lr=1e-3, max_lr=1e-2)
        assert isinstance(optimizer, cls)
        losses = trained(optimizer, lora)
        assert losses[-1] < losses[0], (cls, losses)
        fresh = peft.optimizers.create_riemannian_optimizer(lora, cls, lr=1e-3, max_lr=1e-2)
        fresh.load_state_dict(optimizer.state_dict())
