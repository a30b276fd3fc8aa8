"""Stands for a training script of kohya-ss/musubi-tuner (read at 30c658c): the same resolver, and one trap.

``--fused_backward_pass`` does not look at the optimizer's type: it overwrites its ``step`` with Adafactor's.
It runs as a script and as a module (``python -m fake_musubi_train``).
"""

from __future__ import annotations

import argparse
import ast
import importlib
import json
from pathlib import Path
from typing import Any

import torch


def get_optimizer(args: argparse.Namespace, params: list[Any]) -> tuple[str, Any]:
    keywords = {}
    for word in args.optimizer_args or []:
        key, value = word.split("=")
        keywords[key] = ast.literal_eval(value)
    name = args.optimizer_type
    if name.lower().endswith("8bit"):
        importlib.import_module("bitsandbytes")
    if name.lower() == "adamw":
        cls: Any = torch.optim.AdamW
    elif "." in name:
        prefix, _, last = name.rpartition(".")
        cls = getattr(importlib.import_module(prefix), last)
    else:
        cls = getattr(torch.optim, name)
    optimizer = cls(params, lr=args.learning_rate, **keywords)
    if hasattr(optimizer, "train"):
        optimizer.train(), optimizer.eval()
    return cls.__module__ + "." + cls.__name__, optimizer


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--optimizer_type", type=str, default="AdamW")
    parser.add_argument("--optimizer_args", type=str, default=None, nargs="*")
    parser.add_argument("--learning_rate", type=float, default=2.0e-6)
    parser.add_argument("--fused_backward_pass", action="store_true")
    parser.add_argument("--config_file", type=str, default=None)
    parser.add_argument("--output_dir", type=str, required=True)
    args = parser.parse_args()
    p = torch.nn.Parameter(torch.ones(16, 8))
    name, optimizer = get_optimizer(args, [{"params": [p], "lr": args.learning_rate}])
    if args.fused_backward_pass:
        optimizer.step = lambda *_: None
    p.square().mean().backward()
    optimizer.step()
    lr = [group["lr"] for group in optimizer.param_groups]
    result = {"ss_optimizer": name, "lr": lr, "moved": bool((p != 1).any())}
    Path(args.output_dir, "out.json").write_text(json.dumps(result), encoding="utf-8")


if __name__ == "__main__":
    main()
