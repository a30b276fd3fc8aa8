"""Hugging Face Trainer: the name in ``optim``, its arguments in ``optim_args``, the applied rate, resume."""

import pickle
import sys
from pathlib import Path

import torch
from transformers import HfArgumentParser, Trainer, TrainingArguments

OUT = Path(sys.argv[1])


class Regression(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(16, 1)

    def forward(self, x, labels):
        return {"loss": (self.layer(x).squeeze(-1) - labels).square().mean()}


torch.manual_seed(1)
rows = [{"x": torch.randn(16), "labels": torch.randn(())} for _ in range(16)]


def made(name, out, optim_args="warmup_steps=200,betas=0.9,0.99"):
    torch.manual_seed(0)
    arguments = TrainingArguments(
        str(out),
        max_steps=6,
        use_cpu=True,
        report_to=[],
        logging_steps=2,
        save_steps=3,
        disable_tqdm=True,
        dataloader_pin_memory=False,
        optim=name,
        optim_args=optim_args,
    )
    return Trainer(Regression(), arguments, train_dataset=rows)


for name, expected in (
    ("automagic_cameamp8bit", "Automagic_CameAMP8bit"),
    ("Automagic_CameAMP_Improved_8Bit", "Automagic_CameAMP_Improved_8Bit"),
    ("adamw_torch", "AdamW"),
):
    folder = OUT / name
    trainer = made(name, folder) if expected != "AdamW" else made(name, folder, None)
    trainer.train()
    optimizer = getattr(trainer.optimizer, "optimizer", trainer.optimizer)
    assert type(optimizer).__name__ == expected
    logged = [row for row in trainer.state.log_history if "learning_rate" in row]
    if expected == "AdamW":
        assert all("applied_learning_rate" not in row for row in logged)
        continue
    assert all(row["applied_learning_rate"] > 0 for row in logged) and len(logged) == 3
    assert optimizer.param_groups[0]["warmup_steps"] == 200
    assert tuple(optimizer.param_groups[0]["betas"]) == (0.9, 0.99, 0.999)
    resumed = made(name, folder)
    resumed.train(resume_from_checkpoint=str(folder / "checkpoint-3"))
    assert torch.equal(trainer.model.layer.weight, resumed.model.layer.weight), "resume is not bitwise"

for name, message in (
    ("automagic_cameam8bit", "did you mean Automagic_CameAMP8bit"),
    ("nonsense", "nonsense"),
):
    try:
        TrainingArguments(str(OUT), optim=name)
    except ValueError as error:
        assert message in str(error), error
    else:
        raise AssertionError(name)
try:
    made("automagic_cameamp", OUT / "decay", "weight_decay=0.1").train()
except ValueError as error:
    assert "TrainingArguments(weight_decay=" in str(error)
else:
    raise AssertionError("a weight decay that the Trainer overwrites was taken")
words = ["--output_dir", str(OUT), "--optim", "automagic_cameamp_coptim8bit"]
(arguments,) = HfArgumentParser(TrainingArguments).parse_args_into_dataclasses(words)
assert arguments.to_dict()["optim"] == "automagic_cameamp_coptim8bit"
assert pickle.loads(pickle.dumps(arguments)).optim is arguments.optim
