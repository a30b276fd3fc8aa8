"""A small U-Net of diffusers and its loss, imported by name by the programs that train one."""

import torch
from diffusers import UNet2DConditionModel


def made():
    torch.manual_seed(0)
    return UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(16, 32),
        layers_per_block=1,
        norm_num_groups=8,
        cross_attention_dim=16,
        attention_head_dim=8,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
    )


def loss_of(unet, step):
    seed = torch.Generator().manual_seed(step)
    noise, text = torch.randn(2, 4, 8, 8, generator=seed), torch.randn(2, 5, 16, generator=seed)
    return (unet(noise, torch.tensor([3, 700]), text).sample - noise).square().mean()
