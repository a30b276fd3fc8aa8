"""Builds the CPU kernels: one source, compiled once per instruction set, linked into one library.

Needs a C++17 compiler with GCC's vector pragmas (g++ or clang++; ``CXX`` names another one) and
nothing else: no Python or torch headers. ``setup.py`` runs it; in a clone it can be run by hand:

    python src/automagic_cameamp/kernels/build.py

It says what it compiles and how long each part took, which pip shows with ``-v``.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

HERE = Path(__file__).resolve().parent
SOURCES = HERE / "cpu"
ENDINGS = {"win32": ".dll", "darwin": ".dylib"}
LIBRARY = HERE / f"_native{ENDINGS.get(sys.platform, '.so')}"

COMMON = (
    "-std=c++17",
    "-O3",
    "-DNDEBUG",
    "-fvisibility=hidden",
    "-fopenmp-simd",
    # Products and sums are fused only where the source says so; nothing is reordered.
    "-ffp-contract=off",
    "-fno-math-errno",
    "-fno-trapping-math",
)
SHARED = ("dispatch.cpp", "look.cpp", "pool.cpp")  # compiled once, for all instruction sets
V3 = ("-mavx2", "-mfma", "-mf16c", "-mbmi2")
FLAVOURS = {
    "isa_base": ("-msse4.2", "-mpopcnt"),
    "isa_avx2": (*V3, "-mprefer-vector-width=256"),
    "isa_avx512": (*V3, "-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mprefer-vector-width=512"),
}


class BuildError(RuntimeError):
    """The kernels could not be built; the message says why."""


def is_x86() -> bool:
    """Whether the three x86 flavours are wanted; other processors get one generic flavour."""
    here = platform.machine().lower() in ("x86_64", "amd64")
    return here and "arm64" not in os.environ.get("ARCHFLAGS", "")


def compiler() -> str:
    """The C++ compiler: ``CXX``, else the first of the usual names that exists."""
    for name in (os.environ.get("CXX"), "c++", "g++", "clang++"):
        if name and shutil.which(name.split()[0]):
            return name
    raise BuildError("no C++ compiler was found (looked for $CXX, c++, g++, clang++)")


def commands(compiler_: str, folder: Path, extra: tuple[str, ...] = ()) -> tuple[list[list[str]], list[str]]:
    """Command lines that compile the objects, in any order, and the objects."""
    shared = [] if sys.platform == "win32" else ["-fPIC"]
    x86 = is_x86()
    flavours = FLAVOURS if x86 else {"isa_base": ()}
    base = [*compiler_.split(), *COMMON, *shared, *extra, *(["-DAUTOMAGIC_X86"] if x86 else [])]
    plain = FLAVOURS["isa_base"] if x86 else ()
    jobs, objects = [], []
    for source, flags in [
        # The longest first: they share the cores.
        *(("kernel.cpp", (f"-DAUTOMAGIC_ISA={name}", *flags)) for name, flags in reversed(flavours.items())),
        *((name, plain) for name in SHARED),
    ]:
        objects.append(str(folder / f"{len(objects)}.o"))
        jobs.append([*base, *flags, "-c", str(SOURCES / source), "-o", objects[-1]])
    return jobs, objects


def cores() -> int:
    """Processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def tell(text: str) -> None:
    """One line of progress."""
    print(f"kernels: {text}", flush=True)


def title(job: list[str]) -> str:
    """What a command line compiles, in words."""
    source = Path(job[job.index("-c") + 1]).name
    flavour = next((word.partition("=")[2] for word in job if word.startswith("-DAUTOMAGIC_ISA=")), "")
    return f"{source} for {flavour.removeprefix('isa_')}" if flavour else source


def compile_all(jobs: list[list[str]], say: Callable[[str], None]) -> None:
    """Run the command lines, as many at a time as there are cores.

    Raises:
        BuildError: one of them failed.
    """
    from concurrent.futures import ThreadPoolExecutor, as_completed

    def run(job: list[str]) -> tuple[list[str], float, subprocess.CompletedProcess[str]]:
        start = time.monotonic()
        done = subprocess.run(
            job, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False, errors="replace"
        )
        return job, time.monotonic() - start, done

    with ThreadPoolExecutor(min(len(jobs), cores())) as pool:
        running = [pool.submit(run, job) for job in jobs]
        for one in as_completed(running):
            job, seconds, done = one.result()
            if done.returncode:
                for other in running:
                    other.cancel()
                raise BuildError(f"{job[0]} failed at {title(job)}:\n{done.stdout[-4000:]}")
            if seconds >= 1:
                say(f"{title(job)}: {seconds:.0f} s")


def build(target: Path = LIBRARY, extra: tuple[str, ...] = (), say: Callable[[str], None] = tell) -> Path:
    """Compile and link; the finished library replaces an old one in one move.

    Args:
        target: the library to write.
        extra: further flags, for example ``-fsanitize=address``.
        say: called with each line of progress.

    Raises:
        BuildError: there is no compiler, or it failed.
    """
    name = compiler()
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as held:
        folder = Path(held)
        jobs, objects = commands(name, folder, extra)
        flavours = len(jobs) - len(SHARED)
        used = min(flavours, cores())
        count = f"{flavours} instruction sets" if flavours > 1 else "one instruction set"
        say(f"{name} compiles {count}, {used} at a time; together about a minute of one core")
        compile_all(jobs, say)
        made = folder / target.name
        link = [*name.split(), "-shared", *extra, *objects, "-o", str(made)]
        if sys.platform.startswith("linux"):
            link += ["-pthread", "-static-libgcc"]
        done = subprocess.run(link, capture_output=True, text=True, check=False)
        if done.returncode:
            raise BuildError(f"{name} could not link:\n{done.stderr[-4000:]}")
        os.replace(made, target)
    return target


if __name__ == "__main__":
    try:
        print(build())
    except BuildError as error:
        sys.exit(f"build: {error}")
