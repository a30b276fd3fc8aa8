"""What sd-scripts does with the optimizer options of a command line, as a contract.

Our own code. The contract, read in kohya-ss/sd-scripts 48d368f and checked against it by running both:

* ``--optimizer_args`` words are split at "=" into exactly two parts; the value is a Python literal.
* The name, in lower case, is compared with a list of built-in ones. Whatever ends in "8bit" makes it
  import bitsandbytes. What is not built in is an attribute of ``torch.optim``, or a dotted path; both
  case-sensitive.
* The class is called with the parameter groups, ``lr`` from ``--learning_rate``, and the words.
* ``--config_file`` names a TOML file; sections are flattened; the command line wins.
"""

from __future__ import annotations

import argparse
import ast
import importlib
import os
import sys
from typing import Any

import torch

BUILT_IN = {"adamw": torch.optim.AdamW, "sgdnesterov": torch.optim.SGD}


def add_optimizer_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--optimizer_type", type=str, default="")
    parser.add_argument("--optimizer_args", type=str, default=None, nargs="*")
    parser.add_argument("--learning_rate", type=float, default=2.0e-6)
    parser.add_argument("--unet_lr", type=float, default=None)
    parser.add_argument("--text_encoder_lr", type=float, default=None, nargs="*")
    parser.add_argument("--max_grad_norm", type=float, default=1.0)
    parser.add_argument("--fused_backward_pass", action="store_true")
    parser.add_argument("--config_file", type=str, default=None)
    parser.add_argument("--output_dir", type=str, default=None)
    parser.add_argument("--output_name", type=str, default="out")
    parser.add_argument("--network_module", type=str, default=None)
    parser.add_argument("--network_dim", type=int, default=4)
    parser.add_argument("--network_args", type=str, default=None, nargs="*")
    parser.add_argument("--full_bf16", action="store_true")
    parser.add_argument("--pretrained_model_name_or_path", type=str, default=None)
    parser.add_argument("--max_train_steps", type=int, default=2)


def read_config_from_file(args: argparse.Namespace, parser: argparse.ArgumentParser) -> argparse.Namespace:
    if not args.config_file:
        return args
    name = args.config_file if args.config_file.endswith(".toml") else args.config_file + ".toml"
    if not os.path.exists(name):
        print(f"{name} not found.")
        sys.exit(1)
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib
    with open(name, "rb") as file:
        sections = tomllib.load(file)
    flat: dict[str, Any] = {}
    for key, value in sections.items():
        if isinstance(value, dict):
            flat.update(value)
        else:
            flat[key] = value
    # the file's values stand in the namespace; the parser overwrites those that the command line names
    return parser.parse_args(namespace=argparse.Namespace(**flat))


def get_optimizer(args: argparse.Namespace, trainable_params: list[Any]) -> tuple[str, str, Any]:
    if args.fused_backward_pass:
        assert args.optimizer_type.lower() == "adafactor", "fused_backward_pass only works with Adafactor"
    keywords: dict[str, Any] = {}
    for word in args.optimizer_args or []:
        key, value = word.split("=")
        keywords[key] = ast.literal_eval(value)
    name = args.optimizer_type or "AdamW"
    lowered = name.lower()
    cls: Any = None
    if lowered.endswith("8bit"):
        try:
            import bitsandbytes as bnb
        except ImportError:
            raise ImportError("No bitsandbytes") from None
        if lowered == "adamw8bit":
            cls = bnb.optim.AdamW8bit
    elif lowered in BUILT_IN:
        cls = BUILT_IN[lowered]
    if cls is None:
        if "." not in name:
            module, last = torch.optim, name
        else:
            prefix, _, last = name.rpartition(".")
            module = importlib.import_module(prefix)
        cls = getattr(module, last)
    optimizer = cls(trainable_params, lr=args.learning_rate, **keywords)
    full_name = cls.__module__ + "." + cls.__name__
    return full_name, ",".join(f"{k}={v}" for k, v in keywords.items()), optimizer
