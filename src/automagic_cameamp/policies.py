"""How each class holds the state of a parameter."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Callable
from typing import Any

from torch import Tensor

from .storage import MIN_QUANTIZED, Policy

Name = Callable[[], str]

# The eight-bit codes are our own, equal to bitsandbytes' code for code, so nothing depends on it;
# the name is kept because users test it.
BITSANDBYTES_AVAILABLE = importlib.util.find_spec("bitsandbytes") is not None


def full_precision(config: Any, p: Tensor, name: Name) -> Policy:
    """Nothing is quantised."""
    return Policy()


def block_coded(config: Any, p: Tensor, name: Name) -> Policy:
    """One code, one block size for all."""
    return Policy(config.state_code, config.blocksize)


def error_corrected(config: Any, p: Tensor, name: Name) -> Policy:
    """The documents' own code: blocks, error correction, a strategy that may decide per parameter."""
    chosen = config.quantization_strategy
    if not config.quantize_states:
        return Policy()
    if chosen is not None and not chosen.should_quantize(name(), p.shape, p.dtype):
        return Policy()
    size = config.block_size
    if chosen is not None:
        size = int(chosen.get_block_size(p.shape))
    elif config.adaptive_block_size:
        size = adaptive_block(p.numel(), config.min_block_size, config.max_block_size)
    bits = config.error_bits if config.error_correction else 0
    vectors = "fp32" if config.mixed_precision else "log16"
    return Policy(config.state_code, size, bits, MIN_QUANTIZED, vectors)


def adaptive_block(numel: int, low: int, high: int) -> int:
    """Larger blocks for larger tensors, inside [low, high]."""
    size = 512 if numel > 1_000_000 else 256 if numel > 100_000 else 128
    return min(max(size, low), high)


def sized(config: Any, p: Tensor, name: Name) -> Policy:
    """Bitsandbytes' code from ``min_8bit_size`` elements on."""
    embedding = config.stable_emb and getattr(p, "_is_embedding", False)
    if config.optim_bits == 32 or (embedding and not config.force_8bit):
        return Policy()
    block = 256 if config.block_wise else 2 ** math.ceil(math.log2(max(2, p.numel())))
    return Policy("dynamic", block, 0, config.min_8bit_size, "thin", config.force_8bit)
