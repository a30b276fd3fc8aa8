"""What is done to each training program's module: the least that lets its resolver give one of our classes.

Every function here takes a module that has just been imported, checks that it looks as expected, and may be
called twice. Names are looked up by `presets.called`: any spelling, with or without a profile.
"""

from __future__ import annotations

import argparse
import functools
import inspect
import logging
import sys
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any

from .. import presets
from ..factory import OptimizerArgumentError, parse_optimizer_args
from ..kohya.rewrite import quoted
from ..text import split_args
from . import logged

log = logging.getLogger(__name__)


def register(module: ModuleType) -> None:
    """Register with the program whose module this is.

    Raises:
        RuntimeError: this version of the program looks otherwise than expected; nothing was changed.
    """
    REGISTERS[module.__name__](module)


def names() -> dict[str, Any]:
    """The names that lists and tables of others get: lower case, as such tables have them -> class.

    Those with a profile before them come last.
    """
    plain = {name.lower(): cls for name, cls in presets.OPTIMIZERS.items()}
    return plain | {name.lower(): cls for name, cls in presets.with_profiles().items()}


# The rate of a program whose user has given none.
DEFAULT_RATES = {"transformers": 5e-5, "sd-scripts": 2e-6, "ai-toolkit": 1e-6}
_said: set[str] = set()


def _left_open(program: str, rate: Any, options: Mapping[str, Any]) -> bool:
    """Whether nobody has chosen the rate, which is the program's default then; said once."""
    chosen = options.keys() & {"lr", "lr_level"} or options.get("lr_mask_rule") in ("additive", "'additive'")
    if chosen or rate != DEFAULT_RATES[program]:
        return False
    if program not in _said:
        _said.add(program)
        log.warning(
            "learning_rate=%s is the default of %s, and so the automatic level finds the rate; give one, or "
            "lr_level=fixed, to set it",
            rate,
            program,
        )
    return True


def _replace(owner: Any, name: str, make: Callable[[Any], Any]) -> None:
    """Put ``make(original)`` in the place of a function, once."""
    static = inspect.getattr_static(owner, name, None)
    original = getattr(owner, name, None)
    if not callable(original):
        raise RuntimeError(f"{getattr(owner, '__name__', owner)} has no {name}: an unknown version")
    if getattr(original, "_automagic_cameamp", False):
        return
    made = functools.wraps(original, updated=())(make(original))
    made._automagic_cameamp = True  # type: ignore[attr-defined]
    setattr(owner, name, staticmethod(made) if isinstance(static, staticmethod) else made)


# ---------------------------------------------------------------- Hugging Face


def transformers_arguments(module: ModuleType) -> None:
    """``TrainingArguments(optim=...)``: the enum of names gets ours."""
    names_of = module.OptimizerNames
    for name in names():
        if name in names_of._value2member_map_:
            continue
        member = str.__new__(names_of, name)
        member._name_, member._value_ = name.upper(), name
        member._sort_order_ = len(names_of._member_names_)
        names_of._member_names_.append(name.upper())
        names_of._member_map_[name.upper()] = member
        names_of._value2member_map_[name] = member
    missing = names_of._missing_.__func__

    def _missing_(cls: Any, value: Any) -> Any:
        found = presets.called(value) if isinstance(value, str) else None
        spelled = next((name for name, ours in names().items() if ours is found), None)
        return missing(cls, value) if spelled is None else cls._value2member_map_[spelled]

    if not hasattr(names_of, "_automagic_cameamp"):
        names_of._missing_ = classmethod(_missing_)
        names_of._automagic_cameamp = True


def _say_adams(args: Any) -> None:
    """Say that the Trainer's settings of Adam change nothing here, where somebody has set them."""
    plain = {"adam_beta1": 0.9, "adam_beta2": 0.999, "adam_epsilon": 1e-8}
    for name, value in plain.items():
        if (given := getattr(args, name, value)) != value:
            option = "eps" if name == "adam_epsilon" else "betas"
            log.warning("%s=%s is for Adam and is not used; give %s in optim_args", name, given, option)


def transformers_trainer(module: ModuleType) -> None:
    """``Trainer``: builds the class with ``optim_args``, and logs the rate that was really applied."""

    def resolver(original: Any) -> Any:
        def get_optimizer_cls_and_kwargs(args: Any, model: Any = None) -> tuple[Any, dict[str, Any]]:
            optim = getattr(args.optim, "value", args.optim)
            cls = presets.called(optim) if isinstance(optim, str) else None
            if cls is None:
                return original(args, model)
            given = parse_optimizer_args(split_args(args.optim_args or ""))
            if "weight_decay" in given:
                raise OptimizerArgumentError(
                    "optim_args: weight_decay would be overwritten by the Trainer's; give it as "
                    "TrainingArguments(weight_decay=...)"
                )
            _say_adams(args)
            if _left_open("transformers", args.learning_rate, given):
                given["lr_level"] = "auto"
            return cls, {"lr": args.learning_rate} | given

        return get_optimizer_cls_and_kwargs

    def creator(original: Any) -> Any:
        def create_optimizer(self: Any, *args: Any, **kwargs: Any) -> Any:
            from .huggingface import log_applied_rate

            made = original(self, *args, **kwargs)
            log_applied_rate(self)
            return made

        return create_optimizer

    _replace(module.Trainer, "get_optimizer_cls_and_kwargs", resolver)
    _replace(module.Trainer, "create_optimizer", creator)


def llama_factory(module: ModuleType) -> None:
    """LLaMA-Factory v1: one entry per class in the registry of `OptimizerPlugin`."""

    def build(cls: Any, model: Any, optim_config: Any) -> Any:
        options = {key: value for key, value in dict(optim_config).items() if key != "name"}
        return cls((pair for pair in model.named_parameters() if pair[1].requires_grad), **options)

    for name, cls in names().items():
        if name not in module.OptimizerPlugin._registry:
            module.OptimizerPlugin(name).register()(functools.partial(build, cls))


def llama_factory_logs(module: ModuleType) -> None:
    """LLaMA-Factory v1: the applied rate in its entries, which every callback gets."""
    _replace(module.CallbackHandler, "on_log", logged.handed_on)


# ---------------------------------------------------------------- kohya's


def _kohya(original: Any) -> Any:
    """``get_optimizer([self,] args, trainable_params)`` of sd-scripts and musubi-tuner."""

    def get_optimizer(*call: Any, **named: Any) -> Any:
        bound = inspect.signature(original).bind(*call, **named)
        args, params = bound.arguments["args"], bound.arguments["trainable_params"]
        given = getattr(args, "optimizer_type", None)
        name = presets.canonical(given) if isinstance(given, str) and given else None
        if name is None:
            return original(*call, **named)
        for script in ("__main__", "train_network"):  # sd-scripts' class stands in the script itself
            _log_steps(getattr(sys.modules.get(script), "NetworkTrainer", None))
        if getattr(args, "fused_backward_pass", False):
            raise ValueError(
                f"--fused_backward_pass is written for Adafactor and cannot go with {given}: leave it out."
            )
        options = quoted(args.optimizer_args or ())
        params = list(params)
        rates = {group.get("lr", args.learning_rate) for group in params if isinstance(group, dict)}
        if _left_open("sd-scripts", max(rates, default=args.learning_rate), options):
            options["lr_level"] = "'auto'"
        rate = options.pop("lr", None)
        if rate is not None:  # as --learning_rate, which stands in what is saved of a run
            before, args.learning_rate = args.learning_rate, float(rate)
            for group in params:
                if isinstance(group, dict) and group.get("lr") == before:
                    group["lr"] = args.learning_rate
        own = argparse.Namespace(**vars(args))
        short = presets.q8_name(name)
        home = "automagic_cameamp.kohya" if short.endswith("Q8") else "automagic_cameamp"
        own.optimizer_type = short if "." in short else f"{home}.{short}"
        own.optimizer_args = [f"{key}={value}" for key, value in options.items()]
        bound.arguments |= {"args": own, "trainable_params": params}
        return original(*bound.args, **bound.kwargs)

    return get_optimizer


def _log_steps(trainer: Any) -> None:
    """A class that makes a step's logs adds the applied rate."""
    if hasattr(trainer, "generate_step_logs"):
        _replace(trainer, "generate_step_logs", logged.step_logs)


def sd_scripts(module: ModuleType) -> None:
    """sd-scripts: bare names, plain ``optimizer_args`` and ``lr=`` among them; no bitsandbytes."""
    _replace(module, "get_optimizer", _kohya)
    if hasattr(module, "append_lr_to_logs_with_names"):
        _replace(module, "append_lr_to_logs_with_names", logged.appended)


def musubi_tuner(module: ModuleType) -> None:
    """musubi-tuner: the same in every class of the module that resolves names itself."""
    found = [c for c in vars(module).values() if isinstance(c, type) and "get_optimizer" in vars(c)]
    for trainer in found:
        _replace(trainer, "get_optimizer", _kohya)
        _log_steps(trainer)


# ---------------------------------------------------------------- others


def ai_toolkit(module: ModuleType) -> None:
    """ai-toolkit: the factory, here and in every module that has imported it by name already."""
    before = module.get_optimizer

    def factory(original: Any) -> Any:
        def get_optimizer(
            params: Any, optimizer_type: str = "adam", learning_rate: Any = 1e-6, optimizer_params: Any = None
        ) -> Any:
            cls = presets.called(optimizer_type)
            if cls is None:
                return original(params, optimizer_type, learning_rate, optimizer_params)
            given = dict(optimizer_params or {})
            if _left_open("ai-toolkit", learning_rate, given):
                given["lr_level"] = "auto"
            return cls(params, **{"lr": learning_rate, **given})

        return get_optimizer

    _replace(module, "get_optimizer", factory)
    for other in list(sys.modules.values()):
        if other is not None and getattr(other, "__dict__", {}).get("get_optimizer") is before:
            other.get_optimizer = module.get_optimizer  # type: ignore[attr-defined]


# What the panel of CAME_8BIT shows where nobody has changed it: CAME's own numbers.
PANEL = {"betas": (0.9, 0.999, 0.9999), "min_8bit_size": 16384, "quant_block_size": 2048}


def onetrainer(module: ModuleType) -> None:
    """OneTrainer: ``Automagic_CameAMP8bit`` in the place of CAME_8BIT, whose panel sets its options."""

    def made(original: Any) -> Any:
        def CAME8bit(params: Any, lr: Any = None, **given: Any) -> Any:
            blocks = given.pop("quant_block_size", PANEL["quant_block_size"])
            least = given.pop("min_8bit_size", PANEL["min_8bit_size"])
            if given.pop("use_cautious", False):
                raise ValueError(
                    "use_cautious=True is not allowed: Automagic_CameAMP8bit has its own signs. Untick it."
                )
            if tuple(given.get("betas") or PANEL["betas"]) == PANEL["betas"]:
                given.pop("betas", None)
            if least != PANEL["min_8bit_size"]:
                log.warning(
                    "min_8bit_size=%s has no effect: Automagic_CameAMP8bit holds eight bits from 1 on", least
                )
            if blocks != PANEL["quant_block_size"]:
                given["blocksize"] = blocks
            log.warning("CAME_8BIT is Automagic_CameAMP8bit(lr=%s, %s)", lr, given)
            return presets.OPTIMIZERS["Automagic_CameAMP8bit"](
                params, **given, **({} if lr is None else {"lr": lr})
            )

        return CAME8bit

    _replace(module, "CAME8bit", made)


def onetrainer_logs(module: ModuleType) -> None:
    """OneTrainer: the applied rate in its TensorBoard."""
    _replace(module.BaseModelSetup, "report_to_tensorboard", logged.tensorboard)


def simpletuner(module: ModuleType) -> None:
    """SimpleTuner: one entry per class in its table, which also fills menus and ``--help``."""
    for name, cls in names().items():
        # It takes 0.01 where the entry names no decay.
        settings = {"weight_decay": cls.config_class().weight_decay}
        module.optimizer_choices.setdefault(
            name, {"precision": "any", "default_settings": settings, "class": cls}
        )


def diffusion_pipe(module: ModuleType) -> None:
    """diffusion-pipe looks for unknown types in `pytorch_optimizer`: our classes stand there."""
    for name, cls in {**presets.every_name(), **names()}.items():
        if not hasattr(module, name):
            setattr(module, name, cls)
    before = vars(module).get("__getattr__")
    if getattr(before, "_automagic_cameamp", False):
        return

    def __getattr__(name: str) -> Any:  # what has another spelling, or another profile's
        try:
            cls = None if name.startswith("__") else presets.called(name)
        except ValueError as error:
            raise AttributeError(str(error)) from None
        if cls is not None:
            return cls
        if before is not None:
            return before(name)
        raise AttributeError(f"module {module.__name__!r} has no attribute {name!r}")

    __getattr__._automagic_cameamp = True  # type: ignore[attr-defined]
    setattr(module, "__getattr__", __getattr__)  # noqa: B010


REGISTERS: dict[str, Callable[[ModuleType], None]] = {
    "transformers.training_args": transformers_arguments,
    "transformers.trainer": transformers_trainer,
    "library.train_util": sd_scripts,
    "musubi_tuner.training.trainer_base": musubi_tuner,
    "musubi_tuner.hv_train_network": musubi_tuner,
    "musubi_tuner.hv_train": musubi_tuner,
    "toolkit.optimizer": ai_toolkit,
    "modules.util.optimizer.CAME8bit": onetrainer,
    "modules.modelSetup.BaseModelSetup": onetrainer_logs,
    "simpletuner.helpers.training.optimizer_param": simpletuner,
    "llamafactory.v1.plugins.trainer_plugins.optimizer": llama_factory,
    "llamafactory.v1.plugins.trainer_plugins.optimizers.optimizer": llama_factory,
    "llamafactory.v1.utils.callbacks.trainer_callback": llama_factory_logs,
    "pytorch_optimizer": diffusion_pipe,
}
