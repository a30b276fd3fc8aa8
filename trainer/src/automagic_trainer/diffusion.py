"""The diffusion mathematics: pictures as 12x16x16 tensors, v-prediction, DDIM sampling.

Sources: DDPM (2006.11239), v-prediction and its loss (2202.00512), zero terminal SNR (2305.08891),
DDIM (2010.02502), classifier-free guidance (2207.12598). The schedule and the solver are diffusers'.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from .rng import generator
from .text import TextEmbeddings

SIZE = 32
SHAPE = (12, 16, 16)
TIMESTEPS = 1000
GUIDANCE = 1.0  # so small a model, of few pictures, draws best without a push
SAMPLE_STEPS = 25

# (noisy pictures, timesteps, text) -> v
Denoiser = Callable[[Tensor, Tensor, TextEmbeddings], Tensor]


def scheduler():
    """The noise schedule, as a diffusers DDIMScheduler."""
    from diffusers import DDIMScheduler  # pyright: ignore[reportPrivateImportUsage]

    return DDIMScheduler(
        num_train_timesteps=TIMESTEPS,
        beta_schedule="squaredcos_cap_v2",
        prediction_type="v_prediction",
        rescale_betas_zero_snr=True,
        timestep_spacing="trailing",
        clip_sample=True,
    )


def to_latents(pictures: np.ndarray) -> Tensor:
    """uint8 [N, 32, 32, 3] -> fp32 [N, 12, 16, 16] in [-1, 1]."""
    x = torch.from_numpy(np.ascontiguousarray(pictures)).permute(0, 3, 1, 2).float() / 127.5 - 1
    return F.pixel_unshuffle(x, 2)


def to_pictures(latents: Tensor) -> np.ndarray:
    """The inverse of `to_latents`."""
    x = F.pixel_shuffle(latents.float().cpu(), 2).clamp(-1, 1)
    return ((x + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()


def denoiser(unet: torch.nn.Module) -> Denoiser:
    """Hide the U-Net's keyword names and its dtype."""
    dtype = next(unet.parameters()).dtype

    def call(x: Tensor, t: Tensor, text: TextEmbeddings) -> Tensor:
        words = text.vectors.to(dtype)
        return unet(x.to(dtype), t, encoder_hidden_states=words, encoder_attention_mask=text.mask).sample

    return call


def v_loss(
    denoise: Denoiser, schedule, latents: Tensor, noise: Tensor, timesteps: Tensor, text: TextEmbeddings
) -> Tensor:
    """Mean squared error of the predicted v."""
    noisy = schedule.add_noise(latents, noise, timesteps)
    target = schedule.get_velocity(latents, noise, timesteps)
    return F.mse_loss(denoise(noisy, timesteps, text).float(), target)


@torch.no_grad()
def sample(
    denoise: Denoiser,
    text: TextEmbeddings,
    empty: TextEmbeddings,
    *,
    seed: int,
    steps: int = SAMPLE_STEPS,
    guidance: float = GUIDANCE,
    first: int = 0,
    on_step: Callable[[], object] = lambda: None,
) -> np.ndarray:
    """Draw one picture for each row of `text`; picture i starts from the noise of (seed, first + i).

    `empty` is the embedding of the empty caption, one row.
    """
    device = text.vectors.device
    schedule = scheduler()
    schedule.set_timesteps(steps)
    n = len(text)
    places = range(first, first + n)
    x = torch.stack([torch.randn(SHAPE, generator=generator(seed, "sample", i)) for i in places]).to(device)
    both = TextEmbeddings(
        torch.cat([text.vectors, empty.vectors.expand(n, -1, -1)]),
        torch.cat([text.mask, empty.mask.expand(n, -1)]),
    )
    for t in schedule.timesteps:
        if guidance == 1:  # the empty caption would cancel out
            v = denoise(x, t.to(device).expand(n), text).float()
        else:
            v, v_empty = denoise(torch.cat([x, x]), t.to(device).expand(2 * n), both).float().chunk(2)
            v = v_empty + guidance * (v - v_empty)
        x = schedule.step(v, t, x, return_dict=False)[0]  # pyright: ignore[reportArgumentType]
        on_step()
    return to_pictures(x)
