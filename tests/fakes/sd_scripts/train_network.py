"""Stands for sd-scripts' train_network.py: reads its options as that does, and trains a toy LoRA."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import torch
from library import train_util


def setup_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser()
    train_util.add_optimizer_arguments(parser)
    return parser


def train(args: argparse.Namespace) -> dict[str, Any]:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    down = torch.nn.Linear(8, args.network_dim, bias=False)
    up = torch.nn.Linear(args.network_dim, 8, bias=False)
    torch.nn.init.zeros_(up.weight)
    lr = args.unet_lr if args.unet_lr is not None else args.learning_rate
    group = {"params": [*down.parameters(), *up.parameters()], "lr": lr}
    name, words, optimizer = train_util.get_optimizer(args, [group])
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)
    for _ in range(args.max_train_steps):
        loss = (up(down(torch.ones(2, 8))) - 1).square().mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(group["params"], args.max_grad_norm)
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad(set_to_none=True)
    config = getattr(optimizer, "config", None)
    return {
        "ss_optimizer": f"{name}({words})",
        "class": type(optimizer).__name__,
        "lr": [float(rate) for rate in scheduler.get_last_lr()],
        "learning_rate": args.learning_rate,
        "config": {k: v for k, v in vars(config).items() if isinstance(v, (int, float, str, bool))}
        if config is not None
        else {},
        "moved": bool(up.weight.abs().sum() > 0),
        "argv": sys.argv,
        "path0": sys.path[0],
    }


if __name__ == "__main__":
    parser = setup_parser()
    args = train_util.read_config_from_file(parser.parse_args(), parser)
    result = train(args)
    if args.output_dir:
        Path(args.output_dir, f"{args.output_name}.json").write_text(json.dumps(result), encoding="utf-8")
