"""Each program's resolver, as a contract: our own stand-ins with the interface read in the real ones.

tests/trainers holds the same against real packages, where they are installed; docs/trainers.md says which
versions of which programs the real resolvers were run in.
"""

from __future__ import annotations

import argparse
import copy
import importlib
import inspect
import io
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from automagic_cameamp import (
    Automagic_CameAMP,
    Automagic_CameAMP8bit,
    Automagic_CameAMP_Improved_8Bit,
    presets,
)
from automagic_cameamp.integrations import enable, hook, registers
from automagic_cameamp.integrations.registers import PANEL, names

FAKES = Path(__file__).resolve().parents[1] / "fakes"


@pytest.fixture(autouse=True)
def undone() -> Iterator[None]:
    """Modules, and the watcher of them, as they were; none at first: another test may have left one."""
    modules, finders = set(sys.modules), list(sys.meta_path)
    sys.meta_path[:] = [finder for finder in finders if not isinstance(finder, hook.Watcher)]
    yield
    for name in set(sys.modules) - modules:
        del sys.modules[name]
    sys.meta_path[:] = finders


@pytest.fixture
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Writes a module of a stand-in program, and imports it as the program would."""
    monkeypatch.syspath_prepend(tmp_path)

    def write(name: str, source: str) -> types.ModuleType:
        path = tmp_path.joinpath(*name.split("."))
        path.parent.mkdir(parents=True, exist_ok=True)
        for folder in path.relative_to(tmp_path).parents[:-1]:
            tmp_path.joinpath(folder, "__init__.py").touch()
        path.with_suffix(".py").write_text(source, "utf-8")
        importlib.invalidate_caches()
        return importlib.import_module(name)

    return write


def parameters(*shapes: tuple[int, ...]) -> list[torch.nn.Parameter]:
    torch.manual_seed(0)
    return [torch.nn.Parameter(torch.randn(shape)) for shape in shapes or [(8, 8)]]


def test_every_watched_module_has_a_register() -> None:
    assert {name for found in hook.MODULES.values() for name in found} == registers.REGISTERS.keys()


def test_a_name_that_is_no_trainer() -> None:
    with pytest.raises(ValueError, match="trainers=.'kohya'. is not allowed: one of transformers"):
        enable("kohya")


@pytest.mark.parametrize(
    ("given", "name"),
    [
        ("automagic_cameamp8bit", "Automagic_CameAMP8bit"),
        ("automagic-cameamp-8bit", "Automagic_CameAMP_8Bit"),
        ("library.automagic_cameamp.Automagic_CameAMP", "Automagic_CameAMP"),
        ("automagic_cameamp_improved_q8", "Automagic_CameAMP_Improved_Q8"),
        ("minimal.automagic_cameamp8bit", "automagic_cameamp.minimal.Automagic_CameAMP8bit"),
        ("adamw_8bit", None),
        ("automagic", None),
        ("automagic3", None),
        ("torch.optim.AdamW", None),
        ("somebody.Automagic_CameAMP", None),
    ],
)
def test_a_name_in_any_spelling(given: str, name: str | None) -> None:
    assert presets.canonical(given) == name


# ---------------------------------------------------------------- ai-toolkit

AI_TOOLKIT = """
import torch
def get_optimizer(params, optimizer_type='adam', learning_rate=1e-6, optimizer_params=None):
    if optimizer_type.lower() == 'adam':
        return torch.optim.Adam(params, lr=float(learning_rate), **(optimizer_params or {}))
    raise ValueError(f'Unknown optimizer type {optimizer_type}')
"""


@pytest.mark.parametrize("first", ["hook", "program"])
def test_ai_toolkit(program: Any, first: str) -> None:
    if first == "hook":
        enable("ai-toolkit")
    program("toolkit.optimizer", AI_TOOLKIT)
    process = program("jobs_process", "from toolkit.optimizer import get_optimizer\n")
    enable("ai-toolkit")  # as its extension's folder does, when the process has the factory already
    optimizer = process.get_optimizer(parameters(), "automagic_cameamp8bit", learning_rate=1e-4)
    assert type(optimizer) is Automagic_CameAMP8bit and optimizer.param_groups[0]["lr"] == 1e-4
    given = {"warmup_steps": "200", "betas": [0.9, 0.99]}
    optimizer = process.get_optimizer(parameters(), "automagic_cameamp", 1e-4, optimizer_params=given)
    assert optimizer.param_groups[0]["warmup_steps"] == 200 and given == {
        "warmup_steps": "200",
        "betas": [0.9, 0.99],
    }
    assert type(process.get_optimizer(parameters(), "adam", 1e-4, {})) is torch.optim.Adam
    with pytest.raises(ValueError, match="Unknown optimizer type automagic9"):
        process.get_optimizer(parameters(), "automagic9")
    with pytest.raises(
        ValueError, match="automagic_cameam: there is no such class; did you mean Automagic_CameAMP"
    ):
        process.get_optimizer(parameters(), "automagic_cameam")


def test_a_program_that_looks_otherwise_runs_without_us(
    program: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    enable("ai-toolkit")
    module = program("toolkit.optimizer", "def build_optimizer(): return 1\n")
    assert module.build_optimizer() == 1
    assert "automagic-cameamp: not registered with toolkit.optimizer (" in capsys.readouterr().err


# ---------------------------------------------------------------- OneTrainer

ONETRAINER = """
class CAME8bit:
    def __init__(self, **options): raise AssertionError("not ours")
"""
KEYWORDS: dict[str, Any] = {"eps": (1e-30, 1e-16), "weight_decay": 0.01, "stochastic_rounding": True}
KEYWORDS |= PANEL  # as modules/util/create.py passes them


def test_onetrainer_translates_its_panel(program: Any, caplog: pytest.LogCaptureFixture) -> None:
    enable("onetrainer")
    came = program("modules.util.optimizer.CAME8bit", ONETRAINER).CAME8bit
    config = came(params=parameters(), lr=3e-4, **KEYWORDS).config
    assert (config.lr, config.weight_decay, config.stochastic_rounding) == (3e-4, 0.01, True)
    assert config.betas == Automagic_CameAMP8bit.config_class().betas, (
        "CAME's own are not what the user chose"
    )
    assert "CAME_8BIT is Automagic_CameAMP8bit(lr=0.0003" in caplog.text and "no effect" not in caplog.text
    chosen = {**KEYWORDS, "betas": (0.85, 0.99, 0.999), "quant_block_size": 512, "min_8bit_size": 1}
    config = came(params=parameters(), lr=3e-4, **chosen).config
    assert (config.betas, config.blocksize) == ((0.85, 0.99, 0.999), 512)
    assert "min_8bit_size=1 has no effect" in caplog.text


def test_onetrainer_fused_back_pass_and_resume(program: Any) -> None:
    enable("onetrainer")
    came = program("modules.util.optimizer.CAME8bit", ONETRAINER).CAME8bit

    def steps(optimizer: Any, first: int, last: int, fused: bool) -> None:
        for step in range(first, last):
            generator = torch.Generator().manual_seed(step)
            for group in optimizer.param_groups:
                for i, p in enumerate(group["params"]):
                    p.grad = torch.randn(p.shape, generator=generator)
                    if fused:  # GenericTrainer's hook
                        optimizer.step_parameter(p, group, i)
                        p.grad = None
            if not fused:
                optimizer.step()

    def build(params: list[Any]) -> Any:
        groups = [
            {"params": params[:1], "lr": 3e-4, "initial_lr": 3e-4, "name": "unet"},
            {"params": params[1:]},
        ]
        return came(params=groups, lr=3e-4, **KEYWORDS)

    whole, parts = parameters((64, 32), (32,)), parameters((64, 32), (32,))
    steps(build(whole), 0, 6, fused=False)
    optimizer = build(parts)
    steps(optimizer, 0, 3, fused=True)
    file = io.BytesIO()
    torch.save({**optimizer.state_dict(), "param_group_mapping": ["unet", "te"]}, file)
    file.seek(0)
    resumed = build(parts)
    resumed.load_state_dict(torch.load(file, weights_only=True))
    steps(resumed, 3, 6, fused=True)
    assert all(torch.equal(a, b) for a, b in zip(whole, parts, strict=True))


# ---------------------------------------------------------------- SimpleTuner


def test_simpletuner(program: Any) -> None:
    enable("simpletuner")
    source = "import torch\noptimizer_choices = {'torch-adam': {'class': torch.optim.Adam}}\n"
    table = program("simpletuner.helpers.training.optimizer_param", source).optimizer_choices
    assert table.keys() == {"torch-adam", *names()}
    for name, cls in names().items():
        entry = copy.deepcopy(table[name])  # as the program does with all but the class
        assert entry["class"] is cls and entry["precision"] == "any"
        # it drops what the signature does not take
        kinds = {p.kind for p in inspect.signature(cls.__init__).parameters.values()}
        assert inspect.Parameter.VAR_KEYWORD in kinds, name
        cls(parameters(), lr=1e-4, **entry["default_settings"])


# ---------------------------------------------------------------- LLaMA-Factory v1

LLAMA_FACTORY = """
class OptimizerPlugin:
    _registry = {}
    def __init__(self, name): self.name = name
    def register(self):
        def keep(function):
            self._registry[self.name] = function
            return function
        return keep
    def __call__(self, *args): return self._registry[self.name](*args)
"""


@pytest.mark.parametrize("place", ["optimizer", "optimizers.optimizer"])
def test_llama_factory_v1(program: Any, place: str) -> None:
    enable("llama-factory")
    name = f"llamafactory.v1.plugins.trainer_plugins.{place}"
    plugin = program(name, LLAMA_FACTORY).OptimizerPlugin
    model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Linear(4, 4))
    model[0].requires_grad_(False)
    config = {"name": "automagic_cameamp8bit", "lr": 2e-4, "warmup_steps": 10}
    optimizer = plugin("automagic_cameamp8bit")(model, config)
    (group,) = optimizer.param_groups
    assert (group["lr"], group["warmup_steps"], len(group["params"])) == (2e-4, 10, 2)
    assert group["param_names"] == ["1.weight", "1.bias"]


# ---------------------------------------------------------------- diffusion-pipe


def test_diffusion_pipe(program: Any) -> None:
    enable("diffusion-pipe")
    module = program("pytorch_optimizer", "class CAME: pass\n")
    assert {name for name in vars(module) if "utomagic" in name} >= {*presets.every_name(), *names()}
    for spelling in ("Automagic_CameAMP8bit", "automagic_cameamp8bit", "Automagic-CameAMP8bit"):
        assert getattr(module, spelling) is Automagic_CameAMP8bit
    minimal = presets.preset_class("minimal", "Automagic_CameAMP8bit")
    for spelling in ("minimal.Automagic_CameAMP8bit", "minimal.automagic_cameamp8bit"):
        assert getattr(module, spelling) is minimal
    assert not hasattr(module, "automagic_cameam") and not hasattr(module, "Lion")
    with pytest.raises(AttributeError, match="did you mean Automagic_CameAMP"):
        _ = module.automagic_cameam
    # gradient_release: one optimizer per parameter, betas raised in place in a list
    optimizers = [
        module.Automagic_CameAMP([p], lr=1e-4, betas=[0.9**0.5, 0.99**0.5]) for p in parameters((4, 4), (4,))
    ]
    assert optimizers[0].param_groups[0]["betas"][0] == pytest.approx(0.9**0.5)


def test_diffusion_pipe_whose_library_answers_for_names_itself(program: Any) -> None:
    enable("diffusion-pipe")
    source = "def __getattr__(name):\n    if name == 'Lazy': return 1\n    raise AttributeError(name)\n"
    module = program("pytorch_optimizer", source)
    registers.register(module)  # twice
    assert module.Lazy == 1 and not hasattr(module, "Lion")
    assert getattr(module, "minimal.Automagic_CameAMPQ8") is getattr(module, "minimal.automagic_cameamp8bit")


# ---------------------------------------------------------------- sd-scripts and musubi-tuner


def arguments(*words: str, **options: Any) -> argparse.Namespace:
    given = {"optimizer_type": words[0], "optimizer_args": list(words[1:]), "learning_rate": 2e-6}
    return argparse.Namespace(**{**given, "fused_backward_pass": False, **options})


@pytest.fixture
def sd_scripts(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(FAKES / "sd_scripts")
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    enable("sd-scripts")
    return importlib.import_module("library.train_util")


def test_sd_scripts_takes_the_plain_lines(sd_scripts: Any) -> None:
    words = ("automagic_cameamp_improved_8bit", "profile=memory_optimized", "betas=0.9,0.99", "lr=1e-4")
    groups = [{"params": parameters(), "lr": 2e-6}, {"params": parameters(), "lr": 5e-5}]
    args = arguments(*words)
    name, told, optimizer = sd_scripts.get_optimizer(args, trainable_params=groups)
    assert (
        type(optimizer) is Automagic_CameAMP_Improved_8Bit and optimizer.config.profile == "memory_optimized"
    )
    assert [group["lr"] for group in optimizer.param_groups] == [1e-4, 5e-5], "a rate of a group's own stays"
    assert name == "automagic_cameamp.optimizers.Automagic_CameAMP_Improved_8Bit" and "profile=" in told
    assert args == arguments(*words, learning_rate=1e-4), "all else of the program's own arguments stays"
    assert type(sd_scripts.get_optimizer(arguments("AdamW"), groups)[2]) is torch.optim.AdamW
    with pytest.raises(ValueError, match="fused_backward_pass is written for Adafactor"):
        sd_scripts.get_optimizer(arguments(*words, fused_backward_pass=True), groups)


def test_musubi_tuner(program: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    enable("musubi-tuner")
    contract = (FAKES / "musubi" / "fake_musubi_train.py").read_text("utf-8").partition("def main")[0]
    trainer = "class NetworkTrainer:\n    def get_optimizer(self, args, trainable_params):\n"
    source = contract + trainer + "        return get_optimizer(args, trainable_params)\n"
    module = program("musubi_tuner.training.trainer_base", source)
    words = ("Automagic_CameAMP8bit", "warmup_steps=100", "lr_mask_granularity=row")
    name, optimizer = module.NetworkTrainer().get_optimizer(arguments(*words), parameters())
    assert name.endswith(".Automagic_CameAMP8bit") and optimizer.param_groups[0]["warmup_steps"] == 100
    _, optimizer = module.NetworkTrainer().get_optimizer(arguments("automagic_cameamp"), parameters())
    assert type(optimizer) is Automagic_CameAMP


# ---------------------------------------------------------------- axolotl


def test_axolotls_plug_in_registers_with_transformers(program: Any) -> None:
    program("axolotl.integrations.base", "class BasePlugin:\n    def __init__(self): pass\n")
    source = "from enum import Enum\nclass OptimizerNames(str, Enum):\n    ADAMW = 'adamw'\n"
    theirs = [name for name in sys.modules if name.partition(".")[0] == "transformers"]
    own = {name: sys.modules.pop(name) for name in theirs}
    try:
        names = program("transformers.training_args", source).OptimizerNames
        plugin = importlib.import_module("automagic_cameamp.integrations.axolotl")
        assert [member.value for member in names] == ["adamw"]
        plugin.Plugin()  # as axolotl's load_plugin does, whether or not `register` follows
        assert names("automagic_cameamp8bit").value == "automagic_cameamp8bit"
        assert names("Automagic-CameAMP8bit") is names("automagic_cameamp8bit")
        assert names("Automagic_CameAMPQ8") is names("automagic_cameamp8bit")
        assert names("minimal.Automagic_CameAMP8bit").value == "minimal.automagic_cameamp8bit"
        assert len(list(names)) == 1 + len(registers.names())
        with pytest.raises(ValueError, match="'nobody' is not a valid OptimizerNames"):
            names("nobody")
    finally:
        for name in [name for name in sys.modules if name.partition(".")[0] == "transformers"]:
            del sys.modules[name]
        sys.modules.update(own)


def test_settings_of_adam_that_the_trainer_would_drop_are_named(caplog: pytest.LogCaptureFixture) -> None:
    class Trainer:
        @staticmethod
        def get_optimizer_cls_and_kwargs(args: Any, model: Any = None) -> Any:
            raise AssertionError("not asked")

        def create_optimizer(self) -> None: ...

    registers.transformers_trainer(types.SimpleNamespace(Trainer=Trainer))  # type: ignore[arg-type]
    plain = {"optim": "automagic_cameamp8bit", "optim_args": None, "learning_rate": 1e-4, "adam_beta1": 0.9}
    cls, options = Trainer.get_optimizer_cls_and_kwargs(types.SimpleNamespace(**plain))
    assert cls is Automagic_CameAMP8bit and options == {"lr": 1e-4} and not caplog.text
    Trainer.get_optimizer_cls_and_kwargs(
        types.SimpleNamespace(**{**plain, "adam_beta1": 0.5, "adam_epsilon": 1e-3})
    )
    assert "adam_beta1=0.5 is for Adam and is not used; give betas in optim_args" in caplog.text
    assert "adam_epsilon=0.001 is for Adam and is not used; give eps in optim_args" in caplog.text


def test_a_rate_that_nobody_chose_is_found_and_that_is_said_once(
    sd_scripts: Any, program: Any, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registers, "_said", set())

    def level(*words: str, lr: float = 2e-6) -> str:
        groups = [{"params": parameters(), "lr": 2e-6}, {"params": parameters(), "lr": lr}]
        optimizer = sd_scripts.get_optimizer(arguments("Automagic_CameAMP", *words), groups)[2]
        return optimizer.param_groups[0]["lr_level"]

    assert level("lr=1e-4") == level("lr_level=fixed") == level("lr_mask_rule=additive") == "fixed"
    assert level(lr=1e-4) == "fixed", "one group has a rate of its own"
    assert not caplog.text
    assert level() == level() == "auto"
    assert caplog.text.count("learning_rate=2e-06 is the default of sd-scripts") == 1
    enable("ai-toolkit")
    build = program("toolkit.optimizer", AI_TOOLKIT).get_optimizer
    assert build(parameters(), "automagic_cameamp", "1e-4").param_groups[0]["lr_level"] == "fixed"
    assert "ai-toolkit" not in caplog.text
    assert build(parameters(), "automagic_cameamp").param_groups[0]["lr_level"] == "auto"
    assert "learning_rate=1e-06 is the default of ai-toolkit" in caplog.text
