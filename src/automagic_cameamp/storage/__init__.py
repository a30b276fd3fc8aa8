"""How state is held. Math never knows: it sees fp32."""

from __future__ import annotations

from ..types import Layout
from .codec import Codec, Log8, Plane, Softsign8
from .dynamic8 import Dynamic8, dynamic_map
from .spec import StateSpec

# Codes cost a scale and a launch; below this many elements they save nothing worth having.
MIN_QUANTIZED = 1024
SIGNED_CODES = {"dynamic": Dynamic8, "softsign": Softsign8}

__all__ = [
    "MIN_QUANTIZED",
    "SIGNED_CODES",
    "Codec",
    "Dynamic8",
    "Log8",
    "Plane",
    "Softsign8",
    "StateSpec",
    "choose",
    "dynamic_map",
]


def choose(spec: StateSpec, layout: Layout, state_code: str, block_size: int) -> Codec | None:
    """Codec of a field, or None where it is held as it is.

    Vectors (biases, norms) and tiny tensors stay in fp32: they are a rounding error of the
    memory and the most sensitive weights of a model.
    """
    if state_code == "fp32" or spec.domain == "plain" or not layout.matrix or layout.numel < MIN_QUANTIZED:
        return None
    return Log8(block_size) if spec.domain == "positive" else SIGNED_CODES[state_code](block_size)
