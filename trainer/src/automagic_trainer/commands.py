"""The commands ``automagic demo``, ``train`` and ``sample``; ``automagic_cameamp.cli`` calls them.

Nothing heavy is imported before one of them runs, so that ``automagic --help`` answers at once.
"""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from pathlib import Path
from typing import Any

DEMO_EPILOG = """examples:
  automagic demo --quick                          half a minute, to see that everything works
  automagic demo --prompt "cat face with sunglasses"
  automagic demo --optimizers AdamW Automagic_CameAMP8bit bitsandbytes.AdamW8bit --steps 300
  automagic demo --resume                         go on after Ctrl-C

The folder --out then holds samples.png, report.html, metrics.jsonl, adapter.safetensors (with its
adapter_config.json), and adapters/, one for each optimizer.
"""
TRAIN_EPILOG = """examples:
  automagic train --data my_pictures --steps 400
  automagic train --data my_pictures --optimizer AdamW --lr 2e-3 --schedule cosine --warmup 20
  automagic train --data my_pictures --optimizer AdamW --optimizer-args betas=0.9,0.99 amsgrad=True
  automagic train --config run.toml --seed 1      the command line wins over the file
  automagic train --resume --out runs/train --steps 600

--data is a folder of pictures with a .txt file beside each, or with a captions.csv or captions.jsonl (columns
file and caption). Pictures become 32x32 pixels, because the shipped base model draws that size.
The TOML file has the same names: steps = 400, optimizer = "AdamW", [optimizer_args] betas = [0.9, 0.99].
"""
SAMPLE_EPILOG = """examples:
  automagic sample --adapter runs/demo/adapter.safetensors --prompt "weary cat face" --out weary.png
  automagic sample --prompt "rocket" "red apple" --out base.png       the base model, without an adapter
"""


def add_parsers(commands: Any) -> None:
    """The options of each command."""
    _demo_parser(commands)
    _train_parser(commands)
    _sample_parser(commands)


def run(command: str, options: dict[str, Any]) -> int:
    """Run one command; returns the exit code: 0, 1 failed, 2 bad input, 130 stopped by Ctrl-C."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")  # everything needed is installed; nothing is fetched
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    from .errors import INSTALL, TrainingFailed, UserError

    try:
        return COMMANDS[command](options)
    except UserError as error:
        print(f"automagic {command}: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except TrainingFailed as error:
        print(f"automagic {command}: {error}", file=sys.stderr)
        return 1
    except ImportError as error:
        if (error.name or "").split(".")[0] not in PACKAGES:
            raise
        need = f"in a clone of the repository, {INSTALL}"
        print(f"automagic {command}: the package {error.name!r} is missing: {need}", file=sys.stderr)
        return 2


def _demo_parser(commands: Any) -> None:
    text = "From nine pictures, a LoRA teaches a small diffusion model to draw cat faces; AdamW beside ours."
    p = commands.add_parser("demo", help="cat faces in two minutes", description=text, epilog=DEMO_EPILOG)
    p.add_argument("--out", default="runs/demo", metavar="DIR", help="folder for the results (runs/demo)")
    p.add_argument("--steps", metavar="N", help="steps for each optimizer (125)")
    p.add_argument("--prompt", nargs="+", metavar="TEXT", help="words of your own to draw as well")
    p.add_argument(
        "--optimizers", nargs="+", metavar="NAME", help="which ones; the last one's LoRA is the result"
    )
    p.add_argument("--seed", metavar="N", help="noise, order and first LoRA matrices (0)")
    p.add_argument("--device", metavar="NAME", help="auto, cpu, cuda or cuda:N (auto)")
    p.add_argument("--quick", action="store_true", help="a tiny run that only shows that everything works")
    p.add_argument("--resume", action="store_true", help="go on with the demo that was stopped in --out")
    _threads(p)


def _train_parser(commands: Any) -> None:
    from .settings import HELP, TrainSettings

    text = "Train a LoRA on pictures of your own, with any optimizer."
    p = commands.add_parser("train", help="train on your own pictures", description=text, epilog=TRAIN_EPILOG)
    p.add_argument("--config", metavar="FILE", help="read options from a TOML file")
    defaults = TrainSettings()
    for name, help_text in HELP.items():
        value = getattr(defaults, name)
        shown = "" if value is None else f" ({value})"
        kind = "TEXT" if isinstance(value, str) else "N"
        p.add_argument("--" + name.replace("_", "-"), metavar=kind, help=help_text + shown)
    p.add_argument("--optimizer-args", nargs="*", metavar="KEY=VALUE", help="more for the optimizer")
    p.add_argument("--prompt", nargs="+", metavar="TEXT", help="words of your own to draw before and after")
    p.add_argument("--resume", action="store_true", help="go on from the newest checkpoint in --out")
    p.add_argument("--overwrite", action="store_true", help="replace the run that --out holds")
    _threads(p)


def _sample_parser(commands: Any) -> None:
    text = "Draw pictures from words, with a trained adapter or with the base model alone."
    p = commands.add_parser("sample", help="draw from words", description=text, epilog=SAMPLE_EPILOG)
    p.add_argument("--adapter", metavar="FILE", help="adapter.safetensors, or a PEFT folder")
    p.add_argument("--prompt", nargs="+", metavar="TEXT", required=True, help="one picture for each")
    p.add_argument("--out", default="sample.png", metavar="FILE", help="the picture to write (sample.png)")
    p.add_argument("--seed", metavar="N", help="the noise to start from (0)")
    p.add_argument("--steps", metavar="N", help="DDIM steps (25)")
    p.add_argument("--guidance", metavar="X", help="push towards the words; 1 is none (1)")
    p.add_argument("--device", metavar="NAME", help="auto, cpu, cuda or cuda:N (auto)")
    _threads(p)


def _threads(p: argparse.ArgumentParser) -> None:
    p.add_argument("--threads", metavar="N", help="CPU threads (all cores)")


def _number(options: dict[str, Any], name: str, default: Any, low: float, high: float) -> Any:
    """Take a number out of `options`; whole if its default is."""
    from .errors import UserError

    text = options.pop(name, None)
    if text is None:
        return default
    try:
        value = int(text) if isinstance(default, int) else float(text)
    except ValueError:
        value = float("nan")
    if not low <= value <= high:
        whole = "whole " if isinstance(default, int) else ""
        raise UserError(f"--{name} must be a {whole}number from {low:g} to {high:g}, got {text!r}")
    return value


def _start(options: dict[str, Any]) -> None:
    """Threads, and silence from libraries that have nothing to tell the user."""
    import logging

    import torch

    threads = _number(options, "threads", 0, 1, 1024)
    if threads:
        torch.set_num_threads(threads)
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)


def _demo(options: dict[str, Any]) -> int:
    from .demo import TITLE, demo_session
    from .session import resumed

    _start(options)
    resume = options.pop("resume", False)
    out = options["out"]
    if resume:
        changed = {k: _parsed(v) for k, v in options.items() if k in ("steps", "device", "seed")}
        session = resumed("demo", Path(out), changed)
    else:
        session = demo_session(
            out,
            steps=_parsed(options.get("steps")),
            optimizers=options.get("optimizers"),
            prompts=options.get("prompt", ()),
            seed=_parsed(options.get("seed", "0")),
            quick=options.get("quick", False),
            device=options.get("device", "auto"),
        )
    return _run(session, TITLE, resume=resume, overwrite=True)


def _train(options: dict[str, Any]) -> int:
    from .gallery import Drawing
    from .presets import filled
    from .session import Session, resumed
    from .settings import build, read_toml

    _start(options)
    resume, overwrite = options.pop("resume", False), options.pop("overwrite", False)
    values: dict[str, Any] = {}
    if "config" in options:
        path = options.pop("config")
        values = read_toml(Path(path))
        prompts = values.pop("prompt", [])
        prompts = [prompts] if isinstance(prompts, str) else list(prompts)
        build(values, path)  # so that a mistake in the file is reported as the file's
        options.setdefault("prompt", prompts)
    prompts = options.pop("prompt", [])
    values |= {k: v if k in TEXT_OPTIONS else _parsed(v) for k, v in options.items()}
    if resume:
        out = values.pop("out", None) or build({}).out
        session = resumed("train", Path(out), values)
    else:
        settings = filled(build(values))
        session = Session("train", [settings], prompts, Drawing(seed=settings.seed))
    name = Path(session.runs[0].data).name
    return _run(session, f"A LoRA for {name}: before and after", resume=resume, overwrite=overwrite)


TEXT_OPTIONS = {"data", "out", "optimizer", "optimizer_args", "schedule", "precision", "device"}


def _parsed(value: Any) -> Any:
    from automagic_cameamp.factory import read

    return read(value)


def _run(session: Any, title: str, *, resume: bool, overwrite: bool) -> int:
    from .session import prepare

    data = prepare(session, resume=resume, overwrite=overwrite)
    from rich.console import Console

    console, out = Console(), session.out
    if not console.is_terminal:
        print(f"automagic {session.kind}: loading the model; results will be in {out}", flush=True)

    from .loop import Stopped
    from .progress import progress, summary
    from .session import run_session

    try:
        with progress(console) as watch:
            results = run_session(session, data, title=title, resume=resume, watch=watch)
    except Stopped as stopped:
        console.print(f"Stopped after step {stopped.step}; everything is saved. To go on:")
        console.print(f"  {_resume_command(session.kind, out)}", highlight=False, soft_wrap=True)
        return 130
    adapter, caption = shlex.quote(str(out / "adapter.safetensors")), shlex.quote(data.captions[0])
    again = f"{_program()} sample --adapter {adapter} --prompt {caption} --out picture.png"
    summary(console, out, results, again)
    return 0


def _program() -> str:
    """How the user started us, so that a printed command can be pasted."""
    name = Path(sys.argv[0]).name
    if name.startswith("automagic"):
        return shlex.quote(sys.argv[0])
    return f"{shlex.quote(sys.executable)} -m automagic_cameamp"


def _resume_command(kind: str, out: Path) -> str:
    where = f"--resume --out {shlex.quote(str(out))}"
    if "MAKELEVEL" in os.environ and kind == "demo":
        return f"make demo ARGS={shlex.quote(where)}"
    return f"{_program()} {kind} {where}"


def _sample(options: dict[str, Any]) -> int:
    from .errors import UserError
    from .gallery import Drawing, draw, write_grid
    from .loop import device_of
    from .settings import build

    _start(options)
    how = Drawing(
        seed=_number(options, "seed", 0, 0, 2**63 - 1),
        steps=_number(options, "steps", Drawing.steps, 1, 1000),
        guidance=_number(options, "guidance", Drawing.guidance, 0.0, 100.0),
    )
    out = Path(options["out"])
    if out.suffix.lower() not in (".png", ".jpg", ".jpeg", ".webp"):
        raise UserError(f"--out {out}: the name must end in .png, .jpg or .webp")
    device = device_of(build({"device": options.get("device", "auto")}))
    adapter = Path(options["adapter"]) if "adapter" in options else None
    pictures = draw(adapter, options["prompt"], how, device)
    try:
        write_grid(pictures, options["prompt"], out)
    except OSError as error:
        raise UserError(f"--out {out}: cannot write there: {error.strerror or error}") from None
    print(out)
    return 0


# the top-level modules of what trainer/pyproject.toml asks for
PACKAGES = {"accelerate", "diffusers", "matplotlib", "peft", "PIL", "rich", "safetensors", "tomli"}
PACKAGES |= {"transformers"}
COMMANDS = {"demo": _demo, "train": _train, "sample": _sample}
