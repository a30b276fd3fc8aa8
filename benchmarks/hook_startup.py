"""What the start-up hook of `automagic integrate` adds to a start of Python.

    python benchmarks/hook_startup.py --rounds 40

Prints the processor time of ``python -c pass`` without the hook, and what the hook adds: median and interval.
"""

from __future__ import annotations

import argparse
import random
import resource
import statistics
import subprocess
import tempfile
import venv
from pathlib import Path

from automagic_cameamp.integrations import hook, install


def started(python: Path) -> float:
    """Milliseconds of processor time of a start of Python: others on the machine do not count."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([str(python), "-c", "pass"], check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return 1e3 * (after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)


def main(argv: list[str] | None = None) -> float:
    """Measure, print, and return the median difference in milliseconds."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=40)
    rounds = parser.parse_args(argv).rounds
    with tempfile.TemporaryDirectory() as folder:
        pythons = {}
        for name in ("without", "with"):
            root = Path(folder) / name
            venv.create(root)
            pythons[name] = root / "bin" / "python"
        site = next((Path(folder) / "with").glob("lib/python*/site-packages"))
        install.install(list(hook.MODULES), site)
        for python in pythons.values():
            started(python)  # compiles the hook, warms the caches
        pairs = []
        for _ in range(rounds):
            order = random.sample(sorted(pythons), 2)
            times = {name: started(pythons[name]) for name in order}
            pairs.append((times["without"], times["with"]))
    differences = sorted(after - before for before, after in pairs)
    low, high = differences[len(differences) // 10], differences[-1 - len(differences) // 10]
    median = statistics.median(differences)
    print(f"python -c pass: {statistics.median(before for before, _ in pairs):.1f} ms without the hook")
    print(f"the hook adds {median:.2f} ms (80% of {rounds} pairs: {low:.2f} to {high:.2f})")
    return median


if __name__ == "__main__":
    main()
