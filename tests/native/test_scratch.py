"""A step of a large tensor needs little memory beside the tensors themselves."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from automagic_cameamp.kernels.native import why_not

pytestmark = [
    pytest.mark.skipif(why_not() is not None, reason=f"no native library: {why_not()}"),
    pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs Linux' /proc"),
]
# Resident bytes of a fresh process before the first step and after the third, less the state.
SCRIPT = """
import ctypes, sys, torch
from automagic_cameamp import OPTIMIZERS
torch.set_num_threads(1)
def resident():
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # what was freed is nobody's any more
    if trim is not None:
        trim(0)
    return int(open("/proc/self/statm").read().split()[1]) * 4096
p = torch.nn.Parameter(torch.ones(4096, 2048))
p.grad = torch.ones(4096, 2048)
small = torch.nn.Parameter(torch.ones(64, 64))
small.grad = torch.ones(64, 64)
options = {"profile": sys.argv[2]} if len(sys.argv) > 2 else {}
first = OPTIMIZERS[sys.argv[1]]([small], engine="native", **options)
first.step()
optimizer = OPTIMIZERS[sys.argv[1]]([p], engine="native", **options)
before = resident()
for _ in range(3):
    optimizer.step()
state = sum(t.numel() * t.element_size() for t in optimizer.state[p].values() if torch.is_tensor(t))
print(resident() - before - state)
"""


@pytest.mark.parametrize(
    "candidate",
    [
        ["Automagic_CameAMP"],
        ["Automagic_CameAMP_Improved"],
        ["Automagic_CameAMP_Improved_8Bit", "balanced"],
    ],
    ids=" ".join,
)
def test_scratch_is_a_small_part_of_a_large_tensor(candidate: list[str]) -> None:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, *candidate], capture_output=True, text=True, check=True, timeout=120
    )
    # 5% of the weights, and what Python takes meanwhile; planes of its size would be 32 MiB each.
    assert int(done.stdout) < 0.05 * 4096 * 2048 * 4 + 12 * 2**20
