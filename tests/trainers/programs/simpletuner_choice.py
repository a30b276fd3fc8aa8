"""SimpleTuner's own resolver: from ``--optimizer`` and ``--optimizer_config`` to a stepped optimizer."""

from types import SimpleNamespace

import simpletuner.helpers.training.optimizer_param as resolver
import torch

listed = [key for key in resolver.available_optimizer_keys() if key.startswith("automagic_cameamp")]
assert len(listed) == 7, listed
assert "minimal.automagic_cameamp8bit" in resolver.available_optimizer_keys()
given = SimpleNamespace(
    optimizer="automagic_cameamp8bit",
    optimizer_config="warmup_steps=200,weight_decay=0.02,lr_mask_granularity=row,came=true",
    optimizer_beta1=None,
    optimizer_beta2=None,
    optimizer_release_gradients=False,
    learning_rate=1e-4,
    lr_warmup_steps=0,
    use_fsdp=False,
    fsdp_enable=False,
)
options, cls = resolver.determine_optimizer_class_with_config(given, False, False, False)
model = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.LayerNorm(8))
optimizer = resolver.create_optimizer_with_param_groups(model, cls, {**options, "lr": 1e-4})
assert type(optimizer).__name__ == "Automagic_CameAMP8bit"
first = optimizer.param_groups[0]
assert (first["lr"], first["weight_decay"], first["warmup_steps"]) == (1e-4, 0.02, 200)
assert first["lr_mask_granularity"] == "row"
model(torch.randn(2, 8)).square().mean().backward()
optimizer.step()
