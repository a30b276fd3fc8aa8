"""The real programs that run on a CPU: accelerate, and the Hugging Face Trainer with PEFT."""

from __future__ import annotations

import copy
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import lr_scheduler

from automagic_cameamp import Automagic_CameAMP, Automagic_CameAMP8bit
from engine.helpers import CLASSES, build, differences, draw, same_bits, snapshot

KINDS = pytest.mark.parametrize("kind", CLASSES)


@pytest.fixture(autouse=True)
def _their_warnings(monkeypatch: pytest.MonkeyPatch) -> Any:
    """What these programs warn about is not ours; our own warnings stay errors."""
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setenv("WANDB_DISABLED", "true")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.filterwarnings("error", module="automagic_cameamp")
        yield


def network() -> nn.Sequential:
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(32, 40), nn.Tanh(), nn.Linear(40, 8))


# ---------------------------------------------------------------- accelerate


@pytest.fixture
def accelerator() -> Any:
    accelerate = pytest.importorskip("accelerate")
    from accelerate.state import AcceleratorState, GradientState

    AcceleratorState._reset_state(True)
    GradientState._reset_state()
    made = accelerate.Accelerator(cpu=True, gradient_accumulation_steps=2)
    yield made
    AcceleratorState._reset_state(True)
    GradientState._reset_state()


def go(accelerator: Any, model: Any, optimizer: Any, scheduler: Any, steps: range) -> None:
    for t in steps:
        with accelerator.accumulate(model):
            loss = (model(draw(1, t, shape=(8, 32))) - draw(2, t, shape=(8, 8))).square().mean()
            accelerator.backward(loss)
            if accelerator.sync_gradients:
                accelerator.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            scheduler.step()
            optimizer.zero_grad()


@KINDS
def test_accelerate_saves_and_resumes_bitwise(kind: str, accelerator: Any, tmp_path: Path) -> None:
    def prepared() -> tuple[Any, Any, Any]:
        model = network()
        optimizer = build(kind, model.parameters())
        scheduler = lr_scheduler.CosineAnnealingLR(optimizer, 20)
        return accelerator.prepare(model, optimizer, scheduler)

    model, optimizer, scheduler = prepared()
    go(accelerator, model, optimizer, scheduler, range(8))
    assert optimizer.optimizer.health()["steps"] == 4
    accelerator.save_state(str(tmp_path / "state"))
    go(accelerator, model, optimizer, scheduler, range(8, 14))
    finished = snapshot(optimizer.optimizer)

    # A second set, as a new process would build it.
    accelerator._models.clear(), accelerator._optimizers.clear(), accelerator._schedulers.clear()
    model, optimizer, scheduler = prepared()
    accelerator.load_state(str(tmp_path / "state"))
    go(accelerator, model, optimizer, scheduler, range(8, 14))
    assert differences(finished, snapshot(optimizer.optimizer)) == []


# ---------------------------------------------------------------- Hugging Face Trainer and PEFT


class Tokens(torch.utils.data.Dataset[dict[str, torch.Tensor]]):
    def __len__(self) -> int:
        return 64

    def __getitem__(self, i: int) -> dict[str, torch.Tensor]:
        generator = torch.Generator().manual_seed(i)
        ids = torch.randint(0, 64, (12,), generator=generator)
        return {"input_ids": ids, "labels": ids}


def lora() -> Any:
    peft = pytest.importorskip("peft")
    transformers = pytest.importorskip("transformers")
    config = transformers.LlamaConfig(
        vocab_size=64,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=32,
    )
    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(config)
    return peft.get_peft_model(
        model, peft.LoraConfig(r=16, target_modules=["q_proj", "v_proj"], lora_dropout=0.1)
    )


def trainer(folder: Path, cls: Any, options: dict[str, Any]) -> Any:
    from transformers import Trainer, TrainingArguments

    arguments = TrainingArguments(
        output_dir=str(folder),
        max_steps=8,
        save_steps=4,
        per_device_train_batch_size=2,
        gradient_accumulation_steps=2,
        learning_rate=5e-4,
        lr_scheduler_type="cosine",
        warmup_steps=2,
        use_cpu=True,
        report_to=[],
        disable_tqdm=True,
        logging_steps=4,
        seed=1,
    )
    return Trainer(
        model=lora(), args=arguments, train_dataset=Tokens(), optimizer_cls_and_kwargs=(cls, options)
    )


@pytest.mark.parametrize(
    ("cls", "options"),
    [
        (Automagic_CameAMP, {"lr": 5e-4, "warmup_steps": 5}),
        (Automagic_CameAMP8bit, {"lr": 5e-4, "warmup_steps": 5, "blocksize": 64}),
    ],
    ids=["32bit", "8bit"],
)
def test_trainer_with_peft_resumes_bitwise(cls: Any, options: dict[str, Any], tmp_path: Path) -> None:
    whole = trainer(tmp_path / "whole", cls, options)
    whole.train()
    assert isinstance(whole.optimizer.optimizer, cls)
    assert len(whole.optimizer.param_groups) == 2 and whole.optimizer.param_groups[1]["params"] == []
    trained = {n: p.detach().clone() for n, p in whole.model.named_parameters() if p.requires_grad}
    untrained = dict(lora().named_parameters())
    assert sum(not torch.equal(p, untrained[n]) for n, p in trained.items()) == len(trained)

    again = trainer(tmp_path / "again", cls, options)
    again.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-4"))
    for name, p in again.model.named_parameters():
        if p.requires_grad:
            assert same_bits(p, trained[name]), name
    inner, outer = again.optimizer.optimizer, whole.optimizer.optimizer
    assert differences(snapshot(outer), snapshot(inner)) == []
    if cls is Automagic_CameAMP8bit:
        assert inner.get_memory_stats()["quantized_params"] > 0


def test_peft_loraplus_groups() -> None:
    """Four groups with their own lr and decay; one factory, keyword arguments passed through."""
    pytest.importorskip("peft")
    from peft.optimizers import create_loraplus_optimizer

    model = lora()
    optimizer = create_loraplus_optimizer(
        model, Automagic_CameAMP8bit, lr=5e-5, loraplus_lr_ratio=16, warmup_steps=3
    )
    assert isinstance(optimizer, Automagic_CameAMP8bit)
    rates = {g["lr"] for g in optimizer.param_groups if g["params"]}
    assert len(optimizer.param_groups) == 4 and sorted(rates) == pytest.approx([5e-5, 8e-4])
    ids = torch.randint(0, 64, (2, 12))
    for _ in range(4):
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    twin = copy.deepcopy(optimizer.state_dict())
    optimizer.load_state_dict(twin)
    assert optimizer.health()["skipped_updates"] == 0
