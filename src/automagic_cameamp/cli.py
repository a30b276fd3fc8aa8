"""The command ``automagic``: doctor, fit, integrate and others; with the trainer demo, train and sample.

Nothing heavy is imported before a subcommand runs, so that ``automagic --help`` answers at once.
"""

from __future__ import annotations

import argparse
import errno
import os
import sys
from collections.abc import Sequence
from types import ModuleType
from typing import Any, NoReturn

from ._version import __version__

EPILOG = """examples:
  automagic demo                                  teach a diffusion model to draw cat faces
  automagic train --data my_pictures --optimizer Automagic_CameAMP8bit
  automagic train --resume --out runs/train       go on after Ctrl-C
  automagic sample --adapter runs/demo/adapter.safetensors --prompt "grinning cat face" --out cat.png
  automagic fit --model sdxl --train full --gpu 12  what fits on a card of 12 GiB
  automagic optimizers                            every optimizer that has a name
  automagic integrate install                     ... made known to the trainers that you have
  automagic doctor                                what is installed and whether it works, for bug reports
"""
# What the trainer, a package of its own, would add.
TRAINER = {
    "demo": "cat faces in two minutes",
    "train": "train on your own pictures",
    "sample": "draw from words",
}
MISSING = (
    "the trainer is a package of its own and is not installed: in a clone of the repository, "
    "pip install . ./trainer"
)


class Parser(argparse.ArgumentParser):
    """An argparse parser whose errors are one line."""

    def __init__(self, **options: Any) -> None:
        super().__init__(
            formatter_class=argparse.RawDescriptionHelpFormatter,
            argument_default=argparse.SUPPRESS,
            **options,
        )

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message} (see {self.prog} --help)\n")


def trainer() -> ModuleType | None:
    """The trainer's commands, or None where it is not installed."""
    try:
        from automagic_trainer import commands
    except ModuleNotFoundError as error:
        if error.name != "automagic_trainer":  # it is there, and something that it needs is not
            raise
        return None
    return commands


def parser() -> Parser:
    """The whole command line."""
    from .doctor import command as doctor
    from .fit import command as fit
    from .integrations import install
    from .kohya import shims

    top = Parser(
        prog="automagic", description="Automagic CameAMP: optimizers, a trainer, a demo.", epilog=EPILOG
    )
    top.add_argument("--version", action="version", version=f"automagic-cameamp {__version__}")
    commands = top.add_subparsers(dest="command", metavar="command", title="commands", required=True)
    found = trainer()
    if found is None:
        for name, text in TRAINER.items():
            commands.add_parser(name, help=f"{text} (needs the trainer)")
    else:
        found.add_parsers(commands)
    install.add_parser(commands)
    shims.add_parser(commands)
    fit.add_parser(commands)
    doctor.add_parser(commands)
    listing = commands.add_parser(
        "optimizers", help="list the optimizers", description="List the optimizers."
    )
    listing.add_argument("--all", action="store_true", help="torch.optim's as well as ours")
    return top


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code: 0, 1 failed, 2 bad input, 130 stopped by Ctrl-C."""
    words = list(sys.argv[1:] if argv is None else argv)
    found = trainer()
    if found is None and words and words[0] in TRAINER:
        print(f"automagic {words[0]}: {MISSING}", file=sys.stderr)
        return 2
    called = "automagic"
    try:
        options = vars(parser().parse_args(words))
        command = options.pop("command")
        called = f"automagic {command}"
        run = found.run if found is not None and command in TRAINER else _run
        code = run(command, options)
        sys.stdout.flush()  # here, where what comes of it can be told
        return code
    except KeyboardInterrupt:
        print(f"{called}: stopped", file=sys.stderr)
        return 130
    except OSError as error:
        if error.errno not in (errno.EPIPE, errno.ENOSPC):
            raise
        # Nobody reads what is still to be written, and Python would say so once more at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if error.errno == errno.ENOSPC:
            print(f"{called}: the output could not be written: {error.strerror}", file=sys.stderr)
        return 1


def _run(command: str, options: dict[str, Any]) -> int:
    return COMMANDS[command](options)


def _sd_scripts(options: dict[str, Any]) -> int:
    from .kohya.shims import run

    return run(options)


def _integrate(options: dict[str, Any]) -> int:
    from .integrations.install import run

    return run(options)


def _fit(options: dict[str, Any]) -> int:
    from .fit.command import run

    return run(options)


def _doctor(options: dict[str, Any]) -> int:
    from .doctor.command import run

    return run(options)


def _optimizers(options: dict[str, Any]) -> int:
    from .factory import list_optimizers

    rows = [row for row in list_optimizers() if options.get("all") or row.source != "torch.optim"]
    width = max(len(row.name) for row in rows)
    for row in rows:
        print(f"{row.name:<{width}}  {row.summary}".rstrip())
    if not options.get("all"):
        print("\ntorch.optim's also have names (--all); any other class is given by its dotted path.")
    return 0


COMMANDS = {
    "integrate": _integrate,
    "sd-scripts": _sd_scripts,
    "fit": _fit,
    "doctor": _doctor,
    "optimizers": _optimizers,
}


if __name__ == "__main__":
    sys.exit(main())
