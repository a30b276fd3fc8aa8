"""The base model that the trainer adapts, and the LoRA adapters around it."""

from __future__ import annotations

import json
import shutil
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from torch import nn

from . import durable
from .errors import INSTALL, UserError

BASE_NAME = "emoji-base"
ADAPTER_WEIGHTS = "adapter_model.safetensors"  # the names PEFT looks for in a folder
ADAPTER_CONFIG = "adapter_config.json"
LORA_TARGETS = ["to_q", "to_k", "to_v", "to_out.0", "conv1", "conv2", "proj_in", "proj_out"]

BASE_CONFIG: dict[str, Any] = {
    "sample_size": 16,
    "in_channels": 12,
    "out_channels": 12,
    "layers_per_block": 1,
    "block_out_channels": [48, 96],
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D"],
    "mid_block_type": "UNetMidBlock2DCrossAttn",
    "up_block_types": ["CrossAttnUpBlock2D", "UpBlock2D"],
    "cross_attention_dim": 384,
    "attention_head_dim": 4,
    "norm_num_groups": 16,
}


def asset(name: str):
    """A file that ships with the package."""
    return resources.files("automagic_trainer") / "assets" / name


def new_unet(config: dict[str, Any]) -> nn.Module:
    """A U-Net with random weights."""
    try:
        from diffusers import UNet2DConditionModel  # pyright: ignore[reportPrivateImportUsage]
        from diffusers.utils import logging
    except ImportError:
        raise UserError(f"the trainer needs diffusers: in a clone of the repository, {INSTALL}") from None
    logging.set_verbosity_error()  # it warns about every dtype it is cast to
    return UNet2DConditionModel(**config)


def load_base(dtype: torch.dtype = torch.float32) -> nn.Module:
    """The shipped base model, frozen, in evaluation mode (it has no dropout)."""
    from safetensors.torch import load

    unet = new_unet(json.loads(asset(f"{BASE_NAME}.json").read_text(encoding="utf-8"))["unet"])
    weights = load(asset(f"{BASE_NAME}.safetensors").read_bytes())
    unet.load_state_dict(weights)
    return unet.to(dtype).eval().requires_grad_(False)


def add_lora(unet: nn.Module, rank: int, seed: int) -> nn.Module:
    """Wrap `unet` with a fresh PEFT LoRA; its first matrices depend on `seed` alone."""
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(r=rank, lora_alpha=rank, target_modules=LORA_TARGETS, bias="none")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        # without autocast_adapter_dtype the LoRA has the base's dtype: bf16 training is bf16 throughout
        model: Any = unet  # PEFT declares transformers' base class, but takes any module
        return get_peft_model(model, config, autocast_adapter_dtype=False)


def save_adapter(model: Any, folder: Path) -> None:
    """Write a folder that ``PeftModel.from_pretrained(base, folder)`` reads."""
    from peft import get_peft_model_state_dict
    from safetensors.torch import save

    folder.mkdir(parents=True, exist_ok=True)
    weights = {k: v.detach().float().cpu().contiguous() for k, v in get_peft_model_state_dict(model).items()}
    content = save(weights, {"base": BASE_NAME})
    durable.replace(folder / ADAPTER_WEIGHTS, lambda sink: sink.write(content))
    model.peft_config["default"].base_model_name_or_path = BASE_NAME
    model.peft_config["default"].save_pretrained(str(folder))


def copy_adapter(folder: Path, target: Path) -> None:
    """Put one adapter under a name of its own: `target`, and its config beside it."""
    shutil.copyfile(folder / ADAPTER_WEIGHTS, target)
    shutil.copyfile(folder / ADAPTER_CONFIG, target.with_name(ADAPTER_CONFIG))


def load_adapter(unet: nn.Module, path: Path) -> nn.Module:
    """Put a saved adapter on the base: `path` is a .safetensors file or a PEFT folder."""
    from peft import LoraConfig, get_peft_model, set_peft_model_state_dict
    from safetensors.torch import load_file

    file = path / ADAPTER_WEIGHTS if path.is_dir() else path
    config_file = file.with_name(ADAPTER_CONFIG)
    for needed in (file, config_file):
        if not needed.is_file():
            raise UserError(f"no adapter at {path}: {needed} is missing")
    try:
        weights = load_file(str(file))
        config = LoraConfig.from_pretrained(str(file.parent))
        config.base_model_name_or_path = None  # PEFT would warn: a U-Net has none
    except Exception as error:  # safetensors, JSON and PEFT each raise their own kinds
        raise UserError(f"{path} is not a readable adapter: {str(error).splitlines()[0]}") from None
    if not getattr(config, "target_modules", None):  # PEFT would look for a transformer's
        raise UserError(f"{path} is not a readable adapter: {config_file} names no target_modules")
    wrapped: Any = unet
    try:
        model = get_peft_model(wrapped, config)
        result = set_peft_model_state_dict(model, weights)
    except (RuntimeError, ValueError, TypeError, KeyError) as error:  # another shape, module or kind
        reason = str(error).strip().splitlines()[-1].strip()
        raise UserError(f"{path} does not fit the base model {BASE_NAME}: {reason}") from None
    lost = [k for k in result.missing_keys if "lora_" in k]
    if result.unexpected_keys or lost:
        name = (result.unexpected_keys or lost)[0]
        raise UserError(f"{path} does not fit the base model {BASE_NAME}: first mismatch at {name}")
    return model.eval()
