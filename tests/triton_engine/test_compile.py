"""Every kernel compiles for an NVIDIA GPU, which needs none: Triton brings its compiler and ptxas."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = """
import sys
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from automagic_cameamp.kernels import apply, context, finish, first, lowrank, second

VARIANTS = {
    "base": {},
    "full": dict(CODE=3, ERROR=4, PICTURE=True, ROW_MASK=True, IMPROVED=True, RANKED=True, LOG=True),
    # Mixed block sizes, four bits, further momenta, 24-bit weights of any type.
    "mixed": dict(CODE=4, P_KIND=3, REST=True, DOUBLINGS=3, NB=64, QB=32, NS=1, LOG=True),
}
WIDE = {"TAB", "DYN", "TILES", "CHUNKS", "PIECES", "SLABS", "FLAT", "KEPT", "SCALES", "LR"}
WHOLE = {"kept", "tensors", "slabs", "per_slice", "slices", "group", "window"}
FLAGS = dict(P_KIND=1, G_KIND=1, CODE=1, ERROR=0, LOG=False, SCALED=False, PICTURE=False, ROW_MASK=False,
             REST=False, DOUBLINGS=0, IMPROVED=False, MULTIPLIED=False, NS=0, RANKED=False, RANDOM=True,
             HALF=True, HAS_FOUND=True, HAS_LOSS=True, BR=16, BC=128, NB=8, QB=256, SHORT=128, LONG=32, W=128)
FLAGS.update(VARIANTS[sys.argv[1]])
kernels = [first.moments, first.columns, first.torque_and_clip, lowrank.project, lowrank.emphasis,
           second.surprise, second.confidence_columns, finish.small_state, apply.lengths, apply.pull,
           context.sketch, context.observe, apply.write]
OF = {"base": kernels, "full": [second.surprise, finish.small_state, apply.write]}
for kernel in OF.get(sys.argv[1], [first.moments, apply.write]):
    signature, constants = {}, {}
    for p in kernel.params:
        if p.is_constexpr:
            constants[p.name] = FLAGS.get(p.name, 256)
            signature[p.name] = "constexpr"
        elif p.name in WHOLE:
            signature[p.name] = "i32"
        elif p.name.isupper():
            signature[p.name] = "*i64" if p.name in WIDE else "*i32" if p.name == "SKIPPED" else "*fp32"
        else:
            signature[p.name] = "fp32"
    source = ASTSource(kernel, signature, constexprs=constants)
    options = {"enable_fp_fusion": False}
    compiled = triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options)
    assert compiled.asm["cubin"], kernel
    print(kernel.__name__, compiled.metadata.shared)
print("all")
"""


@pytest.mark.parametrize("variant", ["base", "full", "mixed"])
def test_for_sm_90(variant: str, tmp_path: Path) -> None:
    environment = {**os.environ, "TRITON_CACHE_DIR": str(tmp_path), "PYTHONPATH": os.pathsep.join(sys.path)}
    environment.pop("TRITON_INTERPRET", None)
    command = [sys.executable, "-c", PROGRAM, variant]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.stdout.endswith("all\n"), done.stderr[-3000:]
