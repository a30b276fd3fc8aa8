"""Train the small base model that the demo adapts, on the shipped emoji (not on the cats).

    python trainer/scripts/train_base.py      # about half an hour on one CPU core
    python trainer/scripts/train_base.py --embed captions.safetensors      # only embed the captions
    python trainer/scripts/train_base.py --embeddings captions.safetensors # train where MiniLM is missing

Faces are drawn more often than the other pictures (--face-share), because the demo turns faces into cats.
The weights kept are an exponential moving average; they are written in half precision, with the settings and
the losses beside them.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import sys
import time
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "src"), str(ROOT.parent / "src")]

from automagic_trainer import diffusion, text  # noqa: E402
from automagic_trainer.data import PictureSet, load_shipped  # noqa: E402
from automagic_trainer.model import BASE_CONFIG, BASE_NAME, new_unet  # noqa: E402
from automagic_trainer.rng import generator  # noqa: E402

ASSETS = ROOT / "src" / "automagic_trainer" / "assets"


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=7000)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--ema", type=float, default=0.998)
    parser.add_argument("--face-share", type=float, default=0.55)
    parser.add_argument("--caption-dropout", type=float, default=0.1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--out", type=Path, default=ASSETS)
    parser.add_argument("--save-every", type=int, default=1000, help="also write the average every N steps")
    parser.add_argument("--embed", type=Path, help="write the captions' embeddings here and stop")
    parser.add_argument("--embeddings", type=Path, help="read them from here")
    return parser.parse_args()


def pick(data: PictureSet, args: argparse.Namespace, step: int) -> torch.Tensor:
    """The pictures of one batch: faces with probability --face-share."""
    g = generator(args.seed, "batch", step)
    faces = torch.tensor([group == "face" for group in data.groups])
    weight = torch.where(faces, args.face_share / faces.sum(), (1 - args.face_share) / (~faces).sum())
    return torch.multinomial(weight, args.batch, replacement=True, generator=g)


def save(average: torch.nn.Module, args: argparse.Namespace, record: dict[str, object]) -> None:
    """Write weights and config; the learning record goes into the config."""
    from safetensors.torch import save_file

    weights = {k: v.detach().half().cpu().contiguous() for k, v in average.state_dict().items()}
    args.out.mkdir(parents=True, exist_ok=True)
    save_file(weights, str(args.out / f"{BASE_NAME}.safetensors"))
    settings = {k: str(v) if isinstance(v, Path) else v for k, v in vars(args).items()}
    left_out = ("out", "embed", "embeddings", "save_every", "threads")
    kept = {k: v for k, v in settings.items() if k not in left_out}
    config = {"unet": BASE_CONFIG, "trained_with": kept, "result": record}
    (args.out / f"{BASE_NAME}.json").write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")


def main() -> None:
    """Train and save."""
    args = arguments()
    torch.set_num_threads(args.threads)
    data = load_shipped("base")
    captions = ["", *data.captions]
    if args.embed:
        every = [*captions, *load_shipped("cats").captions]
        text.encode(every).save(args.embed, every)
        return
    cache = args.embeddings
    embedded = text.TextEmbeddings.load(cache, captions) if cache else text.encode(captions)
    embedded, latents = embedded.to(args.device), diffusion.to_latents(data.pictures).to(args.device)

    torch.manual_seed(args.seed)
    unet = new_unet(BASE_CONFIG).to(args.device)
    average = copy.deepcopy(unet).requires_grad_(False)
    optimizer = torch.optim.AdamW(unet.parameters(), lr=args.lr, betas=(0.9, 0.99), weight_decay=0.01)
    denoise, schedule = diffusion.denoiser(unet), diffusion.scheduler()
    started, running = time.time(), float("nan")
    for step in range(args.steps):
        ramp = min(1.0, (step + 1) / 200)
        for group in optimizer.param_groups:
            group["lr"] = args.lr * ramp * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * step / args.steps)))
        g = generator(args.seed, "train", step)
        rows = pick(data, args, step)
        noise = torch.randn(args.batch, *diffusion.SHAPE, generator=g).to(args.device)
        times = torch.randint(0, diffusion.TIMESTEPS, (args.batch,), generator=g).to(args.device)
        keep = torch.rand(args.batch, generator=g) >= args.caption_dropout
        words = embedded[((rows + 1) * keep).to(args.device)]  # row 0 is the empty caption
        loss = diffusion.v_loss(denoise, schedule, latents[rows.to(args.device)], noise, times, words)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(unet.parameters(), 1.0)
        optimizer.step()
        with torch.no_grad():
            decay = min(args.ema, (step + 1) / (step + 10))
            torch._foreach_lerp_(list(average.parameters()), list(unet.parameters()), 1 - decay)
        if (step + 1) % 50 == 0:
            running = loss.item() if math.isnan(running) else 0.8 * running + 0.2 * loss.item()
            print(f"step {step + 1} loss {running:.4f} {time.time() - started:.0f} s", flush=True)
        if (step + 1) % args.save_every == 0 or step + 1 == args.steps:
            record = {"step": step + 1, "loss": round(running, 5), "seconds": round(time.time() - started)}
            save(average, args, record | {"device": args.device})


if __name__ == "__main__":
    main()
