"""The command ``automagic fit``."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import fields
from typing import Any

EPILOG = """examples:
  automagic fit --model sdxl --train full --gpu 12 --resolution 1024 --batch 1
  automagic fit --model flux --train lora --rank 16 --gpu 8 --base fp8 --swap 16 --resolution 512
  automagic fit --model llama3.1-8b --train full --gpu 24 --host 64 --tokens 1024 --picture fit.png
  automagic fit --model my_model/config.json --json
"""


def _resolution(words: str) -> int | tuple[int, int]:
    sides = [int(side) for side in words.lower().replace(",", "x").split("x")]
    if len(sides) > 2:
        raise ValueError
    return sides[0] if len(sides) == 1 else (sides[0], sides[1])


def add_parser(commands: Any) -> None:
    """The subcommand's options; their names are the fields of ``Question``."""
    p = commands.add_parser(
        "fit",
        help="what fits on a card, before it is tried",
        description="Weights, gradients, optimizer state and activations of a training, without running it.",
        epilog=EPILOG,
    )
    p.add_argument("--list", action="store_true", help="the models that have a name")
    p.add_argument(
        "--model", help="a name (--list), a config.json of diffusers or transformers, or its folder"
    )
    p.add_argument("--train", help="full, lora or lokr (default lora)")
    p.add_argument("--gpu", type=float, metavar="GIB", help="memory of the card (default 12)")
    p.add_argument("--host", type=float, metavar="GIB", help="host memory (default: as much as is needed)")
    p.add_argument(
        "--resolution", type=_resolution, metavar="PIXELS", help="1024 or 832x480 (default: the model's)"
    )
    p.add_argument("--batch", type=int, help="samples in a batch (default 1)")
    p.add_argument("--frames", type=int, help="of a video (default 1)")
    p.add_argument("--tokens", type=int, help="length of the text (default: the model's)")
    p.add_argument("--rank", type=int, help="of a LoRA (default 16)")
    p.add_argument("--factor", type=int, help="of a LoKr, at most (default 8)")
    p.add_argument(
        "--checkpointing", action=argparse.BooleanOptionalAction, help="gradient checkpointing (default on)"
    )
    p.add_argument("--weights", help="bf16, fp16 or fp32 (default bf16)")
    p.add_argument("--compute", help="type of the arithmetic (default: that of the weights; bf16 for fp32)")
    p.add_argument("--trained", help="type of adapters (default fp32)")
    p.add_argument("--base", help="frozen weights under adapters in fp8 or nf4")
    p.add_argument(
        "--swap", type=int, metavar="BLOCKS", help="blocks that wait in host memory (blocks_to_swap)"
    )
    p.add_argument("--accumulation", type=int, help="passes per step (default 1)")
    p.add_argument("--optimizers", nargs="+", metavar="NAME[:K=V;K=V]", help="these only (default: all)")
    p.add_argument("--all", action="store_true", help="every way of every optimizer, not the best of each")
    p.add_argument("--json", action="store_true", help="everything as JSON, with a command for each row")
    p.add_argument("--picture", metavar="FILE", help="stacked bars, as PNG, SVG or PDF")


def run(options: dict[str, Any]) -> int:
    """The subcommand."""
    from .answer import Question, fit
    from .commands import to_dict
    from .models import FitError, known
    from .show import check_picture, picture, text

    if options.get("list"):
        for spec in known().values():
            print(f"{spec.name:<14}{spec.title:<42}{spec.parameters / 1e9:6.2f} B  {spec.source}")
        return 0
    if "model" not in options:
        print("automagic fit: name a model with --model (names: automagic fit --list)", file=sys.stderr)
        return 2
    if "optimizers" in options:
        options["optimizers"] = tuple(options["optimizers"])
    names = {f.name for f in fields(Question)}
    try:
        if "picture" in options:
            check_picture(options["picture"])
        answer = fit(**{key: value for key, value in options.items() if key in names})
        if "picture" in options:
            picture(answer, options["picture"])
    except FitError as error:
        print(f"automagic fit: {error}", file=sys.stderr)
        return 2
    if options.get("json"):
        print(json.dumps(to_dict(answer), indent=1))
    else:
        print(text(answer, every=options.get("all", False), colour=sys.stdout.isatty()))
    return 0
