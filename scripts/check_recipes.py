"""Reads the recipes of examples/trainers with the parsers of the programs that they are for.

    python scripts/check_recipes.py sd-scripts --checkout ~/sd-scripts      # in that program's environment
    python scripts/check_recipes.py llama-factory                           # installed as a package

Each recipe is checked for 24, 16, 12 and 8 GB: every key has to be known to the program's own parser,
every value of its type, and the optimizer is built by the program's own resolver or by what it would call.
Models are not loaded.
"""

from __future__ import annotations

import argparse
import ast
import importlib
import json
import os
import re
import sys
import tempfile
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any
from unittest.mock import patch

ROOT = Path(__file__).resolve().parent.parent
RECIPES = ROOT / "examples" / "trainers"
CARDS = (24, 16, 12, 8)
sys.path[:0] = [str(ROOT / "src"), str(RECIPES)]

from tier import refused, taken  # noqa: E402

from automagic_cameamp import presets  # noqa: E402
from automagic_cameamp.factory import parse_optimizer_args  # noqa: E402
from automagic_cameamp.text import split_args  # noqa: E402


def toy() -> list[Any]:
    """One trainable matrix."""
    import torch

    return [torch.nn.Parameter(torch.zeros(4, 4))]


def same(arguments: Any, options: dict[str, Any]) -> None:
    """The program's arguments have to be what the recipe says."""
    for key, value in options.items():
        assert getattr(arguments, key) == value, f"{key}={value!r} became {getattr(arguments, key)!r}"


def build(name: str, options: dict[str, Any]) -> None:
    """The optimizer of a recipe, on a toy."""
    cls = presets.called(name)
    assert cls is not None, f"{name} is not ours"
    cls(toy(), **options)


def by_argparse(parser: argparse.ArgumentParser, options: dict[str, Any]) -> None:
    """Every option has to be one of the parser's, and of its type."""
    actions = {action.dest: action for action in parser._actions}
    for key, value in options.items():
        assert key in actions, f"unknown option {key}"
        action = actions[key]
        for item in value if isinstance(value, list) else [value]:
            flag = isinstance(action, (argparse._StoreTrueAction, argparse._StoreFalseAction))
            kind = bool if flag else action.type or str
            assert not flag or isinstance(item, bool), f"{key}={item!r} is a flag"
            kind(item)
            assert not action.choices or item in action.choices, f"{key}={item!r}: {action.choices}"


def toml(text: str) -> dict[str, Any]:
    """A TOML file."""
    import tomllib

    return tomllib.loads(text)


def yaml(text: str) -> dict[str, Any]:
    """A YAML file, as these programs read it: 1e-4 is a text there."""
    return importlib.import_module("yaml").safe_load(text)


def words(options: dict[str, Any], key: str = "optimizer_args") -> dict[str, Any]:
    """The optimizer's own arguments."""
    given = options.get(key) or []
    return parse_optimizer_args(split_args(given) if isinstance(given, str) else given)


def read_by(read: Callable[..., Any], parser: argparse.ArgumentParser, text: str) -> Any:
    """The arguments as a program of kohya's has them, after its own function has read the file."""
    options = toml(text)
    by_argparse(parser, options)
    with tempfile.TemporaryDirectory() as folder:
        config = Path(folder, "recipe.toml")
        config.write_text(text, "utf-8")
        with patch.object(sys, "argv", ["x", "--config_file", str(config)]):
            arguments = read(parser.parse_args(), parser)
    same(arguments, options)
    return arguments


def resolved(optimizer: Any, name: str) -> None:
    """What the program's own resolver made of a recipe's name."""
    assert type(optimizer) is presets.called(name), optimizer


def script_of(text: str) -> str:
    """The script that a recipe's first line starts."""
    return re.findall(r"(\w+)(?:\.py)? --config_file", text)[0]


def sd_scripts(text: str) -> None:
    """sd-scripts: the parser of the script, the loading of its file, and its choice of the optimizer."""
    from library import train_util  # type: ignore[import-not-found]

    parser = importlib.import_module(script_of(text)).setup_parser()
    arguments = read_by(train_util.read_config_from_file, parser, text)
    resolved(train_util.get_optimizer(arguments, toy())[2], arguments.optimizer_type)


def musubi_tuner(text: str) -> None:
    """musubi-tuner: the common parser, the script's own options, the loading of its file, its optimizer.

    Wan's text encoder asks for the number of the current card in a default argument, so while it is
    imported. Where there is no card, that one call is stood in for.
    """
    import torch
    from musubi_tuner.training import parser_common, trainer_base  # type: ignore[import-not-found]

    name = script_of(text)
    parser = parser_common.setup_parser_common()
    whole = name.endswith("_train")  # on top of what a network's script takes
    for found in (f"{name}_network", name) if whole else (name,):
        with nullcontext() if torch.cuda.is_available() else patch("torch.cuda.current_device", lambda: 0):
            module = importlib.import_module(f"musubi_tuner.{found}")
        for key, add in list(vars(module).items()):
            if key.endswith("_setup_parser") and add.__module__ == module.__name__:
                parser = add(parser)
    arguments = read_by(parser_common.read_config_from_file, parser, text)
    optimizer = trainer_base.NetworkTrainer.get_optimizer(None, arguments, toy())[2]
    resolved(optimizer, arguments.optimizer_type)


def ai_toolkit(text: str) -> None:
    """ai-toolkit: its classes of options, whose source says what they read, its checks and its factory."""
    from toolkit import config_modules, optimizer  # type: ignore[import-not-found]

    source = Path(config_modules.__file__).read_text("utf-8")
    (process,) = yaml(text)["config"]["process"]
    kinds = {"train": "TrainConfig", "model": "ModelConfig", "network": "NetworkConfig", "save": "SaveConfig"}
    parts = [
        (kind, process[name]) for name, kind in kinds.items() if name != "network" or "network" in process
    ]
    parts += [("DatasetConfig", part) for part in process["datasets"]]
    for kind, part in parts:
        body = source.partition(f"class {kind}")[2].partition("\nclass ")[0]
        unknown = [key for key in part if not re.search(rf"""['"]{key}['"]|\b{key}:""", body)]
        assert not unknown, f"{kind} does not read {unknown}"
        getattr(config_modules, kind)(**part)
    train = config_modules.TrainConfig(**process["train"])
    config_modules.validate_configs(
        train,
        config_modules.ModelConfig(**process["model"]),
        config_modules.SaveConfig(**process["save"]),
        [config_modules.DatasetConfig(**part) for part in process["datasets"]],
    )
    made = optimizer.get_optimizer(
        toy(), train.optimizer.lower(), train.lr, optimizer_params=train.optimizer_params
    )
    resolved(made, train.optimizer)


def simpletuner(text: str) -> None:
    """SimpleTuner: its own parser with all its checks, and its choice of the optimizer's class."""
    from simpletuner.helpers.configuration import cli_utils, cmd_args  # type: ignore[import-not-found]
    from simpletuner.helpers.training import optimizer_param  # type: ignore[import-not-found]

    options = toml(text)
    by_argparse(cmd_args.get_argument_parser(), options)
    arguments = cmd_args.parse_cmdline_args(cli_utils.mapping_to_cli_args(options))
    same(arguments, options)
    given, cls = optimizer_param.determine_optimizer_class_with_config(arguments, False, False, False)
    resolved(cls(toy(), **{"lr": arguments.learning_rate, **given}), options["optimizer"])


def diffusion_pipe(text: str) -> None:
    """diffusion-pipe: no parser; every key has to stand as a text in its code."""
    read = "\n".join(path.read_text("utf-8") for path in Path().rglob("*.py"))
    literals = {
        n.value
        for n in ast.walk(ast.parse(Path("train.py").read_text("utf-8")))
        if isinstance(n, ast.Constant)
    }
    options = toml(text)
    optimizer = options.pop("optimizer")
    keys = [key for key, value in options.items()] + [
        k for v in options.values() if isinstance(v, dict) for k in v
    ]
    unknown = [key for key in keys if f"'{key}'" not in read and f'"{key}"' not in read]
    assert not unknown, f"no code reads {unknown}"
    assert options["model"]["type"] in literals, options["model"]["type"]
    assert "gradient_release" in literals
    optimizer.pop("gradient_release", None)  # the program's own
    build(optimizer.pop("type"), optimizer)


def onetrainer(text: str) -> None:
    """OneTrainer: its configuration over each of its own presets."""
    from modules.util.config.TrainConfig import TrainConfig  # type: ignore[import-not-found]

    given = json.loads(text)
    folders = ("SDXL", "Flux Dev.1", "SD3", "Z-Image", "QwenImage")
    presets_of = [
        path for folder in folders for path in sorted(Path("training_presets", folder).glob("*.json"))
    ]
    assert presets_of
    for path in presets_of:
        config = TrainConfig.default_values()
        # as its window loads them: of the newest version, but for what the recipe says
        whole = {**json.loads(path.read_text("utf-8")), **given, "__version": config.config_version}
        config.from_dict(whole)
        assert (
            str(config.optimizer.optimizer) == "CAME_8BIT" and config.learning_rate == given["learning_rate"]
        )
        for key, value in given["optimizer"].items():
            assert key in ("__version", "optimizer") or getattr(config.optimizer, key) == value, key


def axolotl(text: str) -> None:
    """Axolotl: its schema."""
    from axolotl.utils.schemas.config import AxolotlInputConfig  # type: ignore[import-not-found]

    options = yaml(text)
    unknown = options.keys() - AxolotlInputConfig.model_fields.keys()
    assert not unknown, unknown
    AxolotlInputConfig(**options)
    build(options["optimizer"], {"lr": options["learning_rate"], **options["optim_args"]})


def llama_factory(text: str) -> None:
    """LLaMA-Factory: its parser."""
    os.environ["DISABLE_VERSION_CHECK"] = "1"
    from llamafactory.hparams import get_train_args  # type: ignore[import-not-found]

    options = yaml(text)
    arguments = get_train_args({**options, "use_cpu": True, "bf16": False})[2]
    build(arguments.optim.value, {"lr": arguments.learning_rate, **words(options, "optim_args")})


def trl(text: str) -> None:
    """TRL: the parser of ``trl sft``, strict about unknown keys, and the Trainer's resolver."""
    from transformers import Trainer
    from trl.scripts.sft import make_parser  # type: ignore[import-not-found]

    with tempfile.TemporaryDirectory() as folder:
        config = Path(folder, "config.yaml")
        config.write_text(re.sub("bf16: true", "bf16: false\nuse_cpu: true", text), "utf-8")
        arguments = make_parser().parse_args_and_config(["--config", str(config)])[1]
    cls, given = Trainer.get_optimizer_cls_and_kwargs(arguments)
    assert presets.called(yaml(text)["optim"]) is cls
    build(yaml(text)["optim"], given)


CHECKS: dict[str, Callable[[str], None]] = {
    "sd-scripts": sd_scripts,
    "musubi-tuner": musubi_tuner,
    "ai-toolkit": ai_toolkit,
    "onetrainer": onetrainer,
    "simpletuner": simpletuner,
    "diffusion-pipe": diffusion_pipe,
    "axolotl": axolotl,
    "llama-factory": llama_factory,
    "trl": trl,
}


def main() -> int:
    """Check the recipes of one program; 1 where one is wrong."""
    layout = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=layout)
    parser.add_argument("trainer", choices=list(CHECKS))
    parser.add_argument("--checkout", type=Path, help="where the program lies, if it is no installed package")
    given = parser.parse_args()
    from automagic_cameamp.integrations import enable, hook

    enable(*[name for name in (given.trainer, "transformers") if name in hook.MODULES])
    if given.checkout:
        os.chdir(given.checkout)
        sys.path[:0] = [str(Path.cwd()), str(Path.cwd() / "src")]
    wrong = 0
    for path in sorted((RECIPES / given.trainer).iterdir()):
        text = path.read_text("utf-8")
        cards = [gpu for gpu in CARDS if refused(text, gpu) is None]
        for gpu in cards:
            sys.argv = ["x"]
            try:
                CHECKS[given.trainer](taken(text, gpu))
            except Exception as error:
                wrong += 1
                print(f"{path.name} for {gpu} GB: {type(error).__name__}: {error}")
                break
        else:
            print(f"{path.name}: ok for {', '.join(map(str, cards))} GB")
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
