"""diffusion-pipe's way: an attribute of `pytorch_optimizer`, with its own classes still there."""

import pytorch_optimizer
import torch

for name in ("Automagic_CameAMP8bit", "automagic_cameamp8bit"):
    cls = getattr(pytorch_optimizer, name)
    optimizer = cls([torch.nn.Parameter(torch.zeros(4, 4))], lr=1e-4, betas=[0.9, 0.99], weight_decay=0.01)
    assert type(optimizer).__name__ == "Automagic_CameAMP8bit"
minimal = getattr(pytorch_optimizer, "minimal.Automagic_CameAMP8bit")([torch.nn.Parameter(torch.zeros(4, 4))])
assert minimal.config.state_code == "softsign4"
assert issubclass(pytorch_optimizer.CAME, torch.optim.Optimizer)
