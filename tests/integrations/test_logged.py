"""What trainers log while one of ours trains: the applied rate beside the scheduler's."""

from __future__ import annotations

import argparse
import sys
import types
from typing import Any

import pytest
import torch

from automagic_cameamp import Automagic_CameAMP
from automagic_cameamp.integrations import registers

TRAIN_NETWORK = """
class NetworkTrainer:
    def get_optimizer(self, args, trainable_params): return None
    def generate_step_logs(self, args, current_loss, avr_loss, lr_scheduler, lr_descriptions, optimizer=None):
        return {"loss/current": current_loss, "lr/unet": lr_scheduler.get_last_lr()[0]}
"""
TRAIN_UTIL = """
def append_lr_to_logs_with_names(logs, lr_scheduler, optimizer_type, names):
    logs["lr/" + names[0]] = lr_scheduler.get_last_lr()[0]
def get_optimizer(args, trainable_params):
    return args.optimizer_type
"""
ONETRAINER = """
class BaseModelSetup:
    def report_to_tensorboard(self, model, config, scheduler, tensorboard):
        tensorboard.add_scalar("lr/unet", 1e-4, model.train_progress.global_step)
"""
LLAMA_FACTORY = """
class CallbackHandler:
    def __init__(self, callbacks, trainer):
        self.callbacks, self.trainer = callbacks, trainer
    def on_log(self, args, state, logs):
        for callback in self.callbacks:
            callback(logs)
"""


def module(name: str, source: str) -> Any:
    """A program's module as it is after its import."""
    made = types.ModuleType(name)
    exec(source, made.__dict__)
    return made


def registered(name: str, source: str) -> Any:
    made = module(name, source)
    for _ in range(2):  # twice is once
        registers.register(made)
    return made


def scheduled(optimizer: torch.optim.Optimizer) -> Any:
    """As accelerate hands it on: a scheduler that knows wrapped optimizers."""
    wrapped = types.SimpleNamespace(optimizer=optimizer)
    return types.SimpleNamespace(optimizers=[wrapped], get_last_lr=lambda: [1e-4])


def trained(cls: Any = Automagic_CameAMP) -> Any:
    torch.manual_seed(0)
    p = torch.nn.Parameter(torch.randn(8, 8))
    optimizer = cls([p], lr=1e-4)
    p.grad = torch.ones(8, 8)
    optimizer.step()
    return optimizer


def test_sd_scripts_networks_log_the_applied_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    """Their class stands in the script itself, which runs before anything is asked of train_util."""
    util, script = registered("library.train_util", TRAIN_UTIL), module("train_network", TRAIN_NETWORK)
    monkeypatch.setitem(sys.modules, "train_network", script)
    trainer, optimizer = script.NetworkTrainer(), trained()
    plain = {"loss/current": 1.0, "lr/unet": 1e-4}
    assert trainer.generate_step_logs(None, 1.0, 1.0, scheduled(optimizer), None) == plain, "not asked yet"
    args = argparse.Namespace(optimizer_type="Automagic_CameAMP", optimizer_args=None, learning_rate=1e-4)
    for _ in range(2):
        util.get_optimizer(args, [])
    logs = trainer.generate_step_logs(None, 1.0, 1.0, lr_descriptions=None, lr_scheduler=scheduled(optimizer))
    assert logs == plain | {"lr/applied": optimizer.get_avg_learning_rate()}
    other = scheduled(trained(torch.optim.SGD))
    assert trainer.generate_step_logs(None, 1.0, 1.0, other, None) == plain


def test_sd_scripts_whole_models_log_the_applied_rate() -> None:
    util = registered("library.train_util", TRAIN_UTIL)
    optimizer, logs = trained(), {"loss": 1.0}
    util.append_lr_to_logs_with_names(logs, scheduled(optimizer), "x", names=["unet"])
    assert logs == {"loss": 1.0, "lr/unet": 1e-4, "lr/applied": optimizer.get_avg_learning_rate()}
    logs = {}
    scheduler = torch.optim.lr_scheduler.ConstantLR(optimizer)  # of torch itself, without a wrapper
    util.append_lr_to_logs_with_names(logs, scheduler, "x", ["unet"])
    assert "lr/applied" in logs


def test_musubi_tuner_logs_the_applied_rate() -> None:
    trainer = registered("musubi_tuner.training.trainer_base", TRAIN_NETWORK).NetworkTrainer()
    optimizer = trained()
    logs = trainer.generate_step_logs(None, 1.0, 1.0, scheduled(optimizer), None)
    assert logs["lr/applied"] == optimizer.get_avg_learning_rate()


def test_onetrainer_shows_the_applied_rate() -> None:
    setup = registered("modules.modelSetup.BaseModelSetup", ONETRAINER).BaseModelSetup()
    told: list[tuple[str, float, int]] = []
    board = types.SimpleNamespace(add_scalar=lambda *entry: told.append(entry))
    ours = trained()
    for optimizer in (ours, trained(torch.optim.SGD)):
        progress = types.SimpleNamespace(global_step=7)
        model = types.SimpleNamespace(optimizer=optimizer, train_progress=progress)
        setup.report_to_tensorboard(model, None, None, board)
    assert told == [
        ("lr/unet", 1e-4, 7),
        ("lr/applied", ours.get_avg_learning_rate(), 7),
        ("lr/unet", 1e-4, 7),
    ]


def test_llama_factory_v1_logs_the_applied_rate() -> None:
    handler = registered("llamafactory.v1.utils.callbacks.trainer_callback", LLAMA_FACTORY).CallbackHandler
    told: list[dict[str, float]] = []
    ours = trained()
    for optimizer in (ours, trained(torch.optim.SGD)):
        handler([told.append], types.SimpleNamespace(optimizer=optimizer)).on_log(
            None, None, {"learning_rate": 1e-4}
        )
    applied = {"applied_learning_rate": ours.get_avg_learning_rate()}
    assert told == [{"learning_rate": 1e-4} | applied, {"learning_rate": 1e-4}]
