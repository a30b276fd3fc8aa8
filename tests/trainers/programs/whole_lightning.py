"""Lightning: released gradients stepped on the host, accumulated, against the plain loop; resume."""

import sys
from pathlib import Path

import lightning.pytorch as pl
import torch

from automagic_cameamp import Automagic_CameAMP8bit, release_gradients

OUT, PASSES = Path(sys.argv[1]), 2
ROWS = [
    torch.randn(16, generator=torch.Generator().manual_seed(i)) for i in range(7)
]  # the last pass is alone


def net():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(16, 32), torch.nn.Tanh(), torch.nn.Linear(32, 16))


class Module(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.net = net()

    def training_step(self, batch, _):
        return (self.net(batch) - batch).square().mean()

    def configure_optimizers(self):
        optimizer = Automagic_CameAMP8bit(self.parameters(), lr=1e-3, offload="cpu")
        self.handle = release_gradients(self, optimizer, accumulation=PASSES)
        return optimizer


def fit(epochs, resume=None):
    module = Module()
    trainer = pl.Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        accumulate_grad_batches=PASSES,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=OUT,
    )
    trainer.fit(module, torch.utils.data.DataLoader(ROWS, 1), ckpt_path=resume)
    trainer.save_checkpoint(OUT / f"{epochs}.ckpt")
    module.handle.remove()
    return module.net


def compare(a, b, what):
    assert all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters(), strict=True)), what


plain = net()
optimizer = Automagic_CameAMP8bit(plain.parameters(), lr=1e-3)
for _ in range(3):
    for i, row in enumerate(ROWS):
        ((plain(row[None]) - row).square().mean() / PASSES).backward()
        if i % PASSES == PASSES - 1 or i == len(ROWS) - 1:
            optimizer.step()
            optimizer.zero_grad()
compare(fit(3), plain, "accumulation")
fit(1)
compare(fit(3, OUT / "1.ckpt"), plain, "resume")
print("Lightning: equal")
