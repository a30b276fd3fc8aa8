"""Every kernel compiles for an NVIDIA GPU, which needs none: Triton brings its compiler and ptxas."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

PROGRAM = """
import sys
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from automagic_cameamp.kernels import apply, context, finish, first, lowrank, second

WIDE = {"TAB", "DYN", "TILES", "CHUNKS", "PIECES", "SLABS", "FLAT", "KEPT", "SCALES", "LR"}
WHOLE = {"kept", "tensors", "slabs", "per_slice", "slices", "group", "window"}
FLAGS = dict(P_KIND=1, G_KIND=1, CODE=1, ERROR=0, LOG=False, SCALED=False, PICTURE=False, ROW_MASK=False,
             IMPROVED=False, MULTIPLIED=False, NS=0, RANKED=False, RANDOM=True, HALF=True, HAS_FOUND=True,
             HAS_LOSS=True, BR=16, BC=128, NB=8, QB=256, SHORT=128, LONG=32, W=128)
if sys.argv[1] == "full":
    FLAGS.update(CODE=3, ERROR=4, PICTURE=True, ROW_MASK=True, IMPROVED=True, RANKED=True, LOG=True)
kernels = [first.moments, first.columns, first.torque_and_clip, lowrank.project, lowrank.emphasis,
           second.surprise, second.confidence_columns, finish.small_state, apply.lengths, apply.pull,
           context.sketch, context.observe, apply.write]
for kernel in kernels:
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


def test_for_sm_90(tmp_path: Path) -> None:
    environment = {**os.environ, "TRITON_CACHE_DIR": str(tmp_path), "PYTHONPATH": os.pathsep.join(sys.path)}
    environment.pop("TRITON_INTERPRET", None)
    command = [sys.executable, "-c", PROGRAM, "base"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.stdout.endswith("all\n"), done.stderr[-3000:]
