"""LyCORIS adapters: LoCon, LoHa, LoKr on layers and convolutions, marked and trained."""

import torch
from lycoris import LycorisNetwork, create_lycoris

from automagic_cameamp import Automagic_CameAMP8bit, Automagic_CameAMP_Improved, mark_lora


class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = torch.nn.Conv2d(4, 32, 3, padding=1)
        self.layer = torch.nn.Linear(32, 32)

    def forward(self, x):
        return self.layer(self.conv(x).mean((2, 3)))


for algo in ("lora", "loha", "lokr"):
    for cls in (Automagic_CameAMP8bit, Automagic_CameAMP_Improved):
        torch.manual_seed(0)
        LycorisNetwork.apply_preset({"target_name": [".*"]})
        net = Net()
        net.requires_grad_(False)
        adapter = create_lycoris(net, 1.0, linear_dim=4, linear_alpha=2, algo=algo)
        adapter.apply_to()
        found = mark_lora(adapter)
        assert found.lora, algo
        optimizer = cls(adapter.parameters(), lr=1e-2, max_lr=1e-1)
        x, y = torch.randn(16, 4, 8, 8), torch.randn(16, 32)
        losses = []
        for _ in range(40):
            loss = (net(x) - y).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        assert losses[-1] < losses[0], (algo, cls, losses[0], losses[-1])
