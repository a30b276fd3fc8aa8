"""Drive the CPU kernels under the address, undefined-behaviour and thread sanitizers.

    python scripts/sanitize.py address thread

Builds the library with ``-fsanitize=...`` beside the shipped one, preloads the sanitizer's runtime
into a fresh Python, and steps every class over awkward shapes. All buffers that the kernels see are
allocated by malloc, so an access outside of one is reported. Exit status 0 means that nothing was.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "src"))

FLAGS = {
    "address": ("-fsanitize=address", "-fno-omit-frame-pointer", "-g1"),
    "undefined": ("-fsanitize=undefined", "-fno-sanitize-recover=undefined", "-g1"),
    "thread": ("-fsanitize=thread", "-g1"),
}
RUNTIME = {"address": "libasan.so", "undefined": "libubsan.so", "thread": "libtsan.so"}
# Python and torch leak by design, and the thread sanitizer sees only our library's synchronisation.
SETTINGS = {
    "ASAN_OPTIONS": "detect_leaks=0:exitcode=99",
    "UBSAN_OPTIONS": "print_stacktrace=1:halt_on_error=1",
    "TSAN_OPTIONS": "exitcode=99:halt_on_error=0:ignore_noninstrumented_modules=1",
    "PYTHONMALLOC": "malloc",
}
DRIVER = """
import sys, warnings
warnings.simplefilter("ignore")
import torch
torch.set_num_threads(int(sys.argv[1]))
import automagic_cameamp as A
from automagic_cameamp.kernels.native import flavour
shapes = [(), (1,), (7,), (300,), (16, 640), (640, 16), (1, 50), (50, 1), (33, 65), (13, 601), (3, 17, 19),
          (8, 4, 3, 3), (5, 3, 2, 2, 3), (1031, 1033)]
done = 0
for name, cls in A.OPTIMIZERS.items():
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        for warmup in (0, 3):
            params = [torch.nn.Parameter((torch.randn(s) * 0.05).to(dtype)) for s in shapes]
            optimizer = cls(params, lr=1e-3, engine="native", warmup_steps=warmup)
            for _ in range(3):
                for p in params:
                    p.grad = (torch.randn(p.shape) * 0.01).to(dtype)
                optimizer.step()
            done += 3
print(f"{done} steps of {len(A.OPTIMIZERS)} classes, {len(shapes)} shapes, {flavour()}")
"""


def runtime(name: str) -> str:
    """Path of a sanitizer's shared library."""
    compiler = os.environ.get("CXX", "c++").split()
    found = subprocess.run([*compiler, f"-print-file-name={RUNTIME[name]}"], capture_output=True, text=True)
    path = found.stdout.strip()
    if not os.path.isabs(path):
        raise SystemExit(
            f"sanitize: {compiler[0]} has no {RUNTIME[name]}; use gcc with its sanitizer libraries"
        )
    return os.path.realpath(path)


def run(name: str) -> int:
    """Build, drive, report."""
    from automagic_cameamp.kernels.build import build

    with tempfile.TemporaryDirectory() as folder:
        library = build(Path(folder) / f"{name}.so", FLAGS[name])
        environment = {**os.environ, **SETTINGS, "PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"}
        environment |= {"LD_PRELOAD": runtime(name), "AUTOMAGIC_CAMEAMP_NATIVE": str(library)}
        command = [sys.executable, "-c", DRIVER, "4" if name == "thread" else "2"]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    text = done.stdout + done.stderr
    reported = "Sanitizer" in text or "runtime error" in text
    print(f"{name}: exit {done.returncode}{', REPORTS' if reported else ''}: {done.stdout.strip()}")
    if done.returncode or reported:
        print(done.stderr[-6000:])
    return int(bool(done.returncode) or reported)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("sanitizers", nargs="*", default=list(FLAGS), help="address, undefined, thread")
    return sum(run(name) for name in parser.parse_args().sanitizers)


if __name__ == "__main__":
    sys.exit(main())
