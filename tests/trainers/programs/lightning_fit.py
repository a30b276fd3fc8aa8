"""Lightning: the applied rate beside the scheduler's in the log, and resume from its checkpoint."""

import csv
import sys
from pathlib import Path

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import LearningRateMonitor
from lightning.pytorch.loggers import CSVLogger

from automagic_cameamp import Automagic_CameAMP8bit
from automagic_cameamp.integrations.lightning import AppliedRateMonitor

OUT = Path(sys.argv[1])


class Module(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(16, 16)

    def training_step(self, batch, _):
        return (self.layer(batch) - batch).square().mean()

    def configure_optimizers(self):
        optimizer = Automagic_CameAMP8bit(self.parameters(), lr=1e-3)
        schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.1, 8)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def fit(name, steps, resume=None):
    torch.manual_seed(0)
    module = Module()
    # One batch: where in an epoch a run goes on is Lightning's business.
    rows = [torch.randn(16, generator=torch.Generator().manual_seed(i)) for i in range(8)]
    logger = CSVLogger(OUT, name=name, version=0)
    trainer = pl.Trainer(
        max_steps=steps,
        accelerator="cpu",
        logger=logger,
        log_every_n_steps=2,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[LearningRateMonitor("step"), AppliedRateMonitor()],
        default_root_dir=OUT,
    )
    trainer.fit(module, torch.utils.data.DataLoader(rows, 8), ckpt_path=resume)
    trainer.save_checkpoint(OUT / f"{name}.ckpt")
    with open(OUT / name / "version_0" / "metrics.csv", newline="") as file:
        return module, list(csv.DictReader(file))


whole, told = fit("whole", 8)
applied = [
    float(row["lr-Automagic_CameAMP8bit/applied"]) for row in told if row["lr-Automagic_CameAMP8bit/applied"]
]
assert len(applied) == 4 and applied[-1] < applied[0], told  # the schedule falls, so do the applied rates
fit("half", 4)
resumed, _ = fit("resumed", 8, OUT / "half.ckpt")
assert torch.equal(whole.layer.weight, resumed.layer.weight), "resume is not bitwise"
