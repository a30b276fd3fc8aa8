"""Drive the CPU kernels under the address, undefined-behaviour and thread sanitizers.

    python scripts/sanitize.py address thread

Builds the library with ``-fsanitize=...`` beside the shipped one, preloads the sanitizer's runtime
into a fresh Python, and steps every class over awkward shapes; then again in the thread of an offloaded
step, beside a program that steps on its own. All buffers that the kernels see are allocated by malloc, so an
access outside of one is reported. Exit status 0 means that nothing was.
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

# The thread of an offloaded step beside a program that steps on its own: what the two share is the library,
# with its pool of helpers. Python's locks are not seen, so nothing that one of them has written is given to
# the other: the ring's thread stays the same one, and the models are two.
BESIDE = """
import sys, threading, warnings
warnings.simplefilter("ignore")
import torch
torch.set_num_threads(int(sys.argv[1]))
import automagic_cameamp as A
from automagic_cameamp.executors.native.call import Table
from automagic_cameamp.training import ring
ring.IDLE = 3600.0
inside, most, calls, lock, usual = set(), 0, {}, threading.Lock(), Table._run

def counted(table, tasks):
    global most
    me = threading.current_thread().name
    with lock:
        inside.add(me)
        most = max(most, len(inside))
        calls[me] = calls.get(me, 0) + 1
    try:
        return usual(table, tasks)
    finally:
        with lock:
            inside.discard(me)

Table._run = counted
shapes = [(300,), (64, 640), (1, 50), (33, 65), (8, 4, 3, 3), (130, 257)]

def parameters(dtype):
    return [torch.nn.Parameter((torch.randn(s) * 0.05).to(dtype)) for s in shapes]

for name, cls in A.OPTIMIZERS.items():
    for dtype in (torch.float32, torch.bfloat16):
        far, near = parameters(dtype), parameters(dtype)
        offloaded = cls(far, lr=1e-3, offload="cpu", warmup_steps=3)
        own = cls(near, lr=1e-3, engine="native", warmup_steps=3)
        over = threading.Event()

        def train():
            with A.release_gradients(far, offloaded, unscaled=True):
                for _ in range(4):
                    sum(p.float().square().sum() for p in far).backward()
                    offloaded.step()
            over.set()

        beside = threading.Thread(target=train, name="backward")
        beside.start()
        while not over.is_set():
            for p in near:
                p.grad = (torch.randn(p.shape) * 0.01).to(dtype)
            own.step()
        beside.join()
assert most > 1, "they never met"
print(f"calls by thread: {calls}; {most} at a time")
sys.stdout.flush()
import os
os._exit(0)
"""
# What is driven under each, with so many threads.
DRIVERS = {
    "address": ((DRIVER, 2), (BESIDE, 2)),
    "undefined": ((DRIVER, 2),),
    "thread": ((DRIVER, 4), (BESIDE, 2)),
}


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
        return sum(drive(name, driver, threads, environment) for driver, threads in DRIVERS[name])


def drive(name: str, driver: str, threads: int, environment: dict[str, str]) -> int:
    """Run a driver in a process of its own; 1 where anything was reported."""
    command = [sys.executable, "-c", driver, str(threads)]
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
