"""Builds the CPU kernels: one source, compiled once per instruction set, linked into one library.

Needs a C++17 compiler with GCC's vector pragmas (g++ or clang++; ``CXX`` names another one) and
nothing else: no Python or torch headers. ``setup.py`` runs it; in a clone it can be run by hand:

    python src/automagic_cameamp/kernels/build.py
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
import tempfile
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
        *(("kernel.cpp", (f"-DAUTOMAGIC_ISA={name}", *flags)) for name, flags in flavours.items()),
        ("dispatch.cpp", plain),
        ("pool.cpp", plain),
    ]:
        objects.append(str(folder / f"{len(objects)}.o"))
        jobs.append([*base, *flags, "-c", str(SOURCES / source), "-o", objects[-1]])
    return jobs, objects


def build(target: Path = LIBRARY, extra: tuple[str, ...] = ()) -> Path:
    """Compile and link; the finished library replaces an old one in one move.

    Args:
        target: the library to write.
        extra: further flags, for example ``-fsanitize=address``.

    Raises:
        BuildError: there is no compiler, or it failed.
    """
    name = compiler()
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as held:
        folder = Path(held)
        jobs, objects = commands(name, folder, extra)
        pipe = subprocess.PIPE
        running = [subprocess.Popen(job, stdout=pipe, stderr=subprocess.STDOUT, text=True) for job in jobs]
        said = [process.communicate()[0] for process in running]
        for process, text in zip(running, said, strict=True):
            if process.returncode:
                raise BuildError(f"{name} failed:\n{text[-4000:]}")
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
