"""LLaMA-Factory's own parser (v0) and registry (v1)."""

import os

os.environ["DISABLE_VERSION_CHECK"] = "1"

import torch
from llamafactory.hparams import get_train_args
from transformers import Trainer

given = {
    "model_name_or_path": "none",
    "stage": "sft",
    "do_train": True,
    "finetuning_type": "lora",
    "dataset": "alpaca_en_demo",
    "template": "default",
    "output_dir": "none",
    "optim": "automagic_cameamp8bit",
    "optim_args": "warmup_steps=200",
    "use_cpu": True,
    "report_to": "none",
}
arguments = get_train_args(given)[2]
cls, options = Trainer.get_optimizer_cls_and_kwargs(arguments)
assert cls.__name__ == "Automagic_CameAMP8bit" and options["warmup_steps"] == 200

try:
    from llamafactory.v1.plugins.trainer_plugins.optimizers.optimizer import OptimizerPlugin
except ImportError:  # up to 0.9.5
    from llamafactory.v1.plugins.trainer_plugins.optimizer import OptimizerPlugin
name = "automagic_cameamp8bit"
optimizer = OptimizerPlugin(name)(torch.nn.Linear(4, 4), {"name": name, "lr": 3e-4, "warmup_steps": "20"})
assert type(optimizer).__name__ == "Automagic_CameAMP8bit"
assert (optimizer.param_groups[0]["lr"], optimizer.param_groups[0]["warmup_steps"]) == (3e-4, 20)
