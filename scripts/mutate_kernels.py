"""Small faults put into the CPU kernels, one at a time: does a test notice each?

    python scripts/mutate_kernels.py --count 60 --seed 0
    python scripts/mutate_kernels.py --only kernels/cpu/mask.h:88:3   # again, one that nobody noticed

As ``mutate.py`` does for Python. A mutant is another operator, another of 0 and 1, a smaller for a
larger, or a missing 'not' in a line that is compiled for AVX2; that set alone is compiled anew (about
20 s of one core), and the tests that hold the kernels to the reference run on it until the first
failure. What does not compile is not counted.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import random
import re
import subprocess
import time
from pathlib import Path
from typing import Any

import mutate
from mutate import PACKAGE, ROOT, Copy, Mutant
from mutate_map import KERNELS

FOLDER = Path("kernels") / "cpu"
FLAVOUR = "isa_avx2"
SWAPS = {
    "comparison": {"<": "<=", "<=": "<", ">": ">=", ">=": ">", "==": "!=", "!=": "=="},
    "arithmetic": {"+": "-", "-": "+", "*": "/", "/": "*", "%": "*", "+=": "-=", "-=": "+="},
    "shift": {"<<": ">>", ">>": "<<"},
    "and/or": {"&&": "||", "||": "&&", "&": "|", "|": "&"},
}
OPERATOR = re.compile(r"(?<=[\w)\]] )(<=|>=|==|!=|\+=|-=|<<|>>|&&|\|\||[-+*/%<>&|])(?= [\w(!~*])")
NUMBER = re.compile(r"(?<![\w.])([01])(\.0f)?(?![\w.])")
LIMITS = re.compile(r"\b(smaller|larger)(?=\()")
NOT = re.compile(r"(?<![\w)])!(?=[\w(])")
# Lines that say what something is, not what happens.
DECLARES = re.compile(r"\s*(#|//|template|struct|enum|using|namespace|typedef|constexpr char|static_assert)")


def places(source: str, lines: set[int]) -> list[tuple[int, int, int, str, str]]:
    """(line, start, end, kind, new text) of every change of these lines."""
    found = []
    for number, text in enumerate(source.splitlines(), 1):
        if number not in lines or DECLARES.match(text) or "AHEAD" in text:
            continue
        code = text.partition("//")[0]
        for match in OPERATOR.finditer(code):
            kind, new = next((k, swaps[match[1]]) for k, swaps in SWAPS.items() if match[1] in swaps)
            found.append((number, *match.span(1), kind, new))
        for match in NUMBER.finditer(code):
            found.append((number, *match.span(1), "constant", "10"[int(match[1])]))
        for match in LIMITS.finditer(code):
            found.append(
                (number, *match.span(1), "comparison", {"smaller": "larger", "larger": "smaller"}[match[1]])
            )
        for match in NOT.finditer(code):
            found.append((number, *match.span(), "not", ""))
    return found


def mutated(source: str, number: int, lines: set[int]) -> str:
    """The text with one of its changes."""
    line, start, end, _, new = places(source, lines)[number]
    texts = source.splitlines(keepends=True)
    texts[line - 1] = texts[line - 1][:start] + new + texts[line - 1][end:]
    return "".join(texts)


def mutants_of(module: str, source: str, lines: set[int]) -> list[Mutant]:
    """All changes of a file, in the order of its text."""
    texts = source.splitlines()
    found = []
    for number, (line, start, end, kind, new) in enumerate(places(source, lines)):
        text = texts[line - 1]
        change = f"{text[start:end]} becomes {new or 'nothing'}"
        found.append(Mutant(module, line, number, kind, text.strip()[:90], change))
    return found


class Kernels:
    """How the library of a copy is built: all of it once, then one instruction set after each change."""

    def __init__(self, folder: Path) -> None:
        # By its path: beside it lies a module whose name tests have too.
        spec = importlib.util.spec_from_file_location("build", folder / PACKAGE / "kernels" / "build.py")
        assert spec is not None and spec.loader is not None
        self.build = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(self.build)
        build = self.build
        self.objects = folder / "objects"
        self.objects.mkdir()
        jobs, self.linked = build.commands(build.compiler(), self.objects)
        build.compile_all(jobs, lambda line: None)
        self.job = next(job for job in jobs if f"-DAUTOMAGIC_ISA={FLAVOUR}" in job)

    def active(self) -> dict[str, set[int]]:
        """File name -> numbers of the lines that are compiled."""
        command = [word for word in self.job if word != "-c"]
        command = [*command[: command.index("-o")], "-E"]
        text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        found: dict[str, set[int]] = {}
        here, number = None, 0
        for line in text.splitlines():
            if mark := re.match(r'# (\d+) "([^"]+)"', line):
                number, path = int(mark[1]), Path(mark[2])
                here = path.name if path.parent.name == "cpu" else None
                continue
            if here is not None and line.strip():
                found.setdefault(here, set()).add(number)
            number += 1
        return found

    def __call__(self, copy: Copy) -> bool:
        """Compile and link; whether that went well."""
        library = copy.folder / PACKAGE / "kernels" / self.build.LIBRARY.name
        library.unlink(missing_ok=True)  # another file: a process may have mapped the old one
        link = [
            self.build.compiler(),
            "-shared",
            *self.linked,
            "-o",
            str(library),
            "-pthread",
            "-static-libgcc",
        ]
        return all(
            subprocess.run(c, capture_output=True, check=False).returncode == 0 for c in (self.job, link)
        )


def main(argv: list[str] | None = None) -> dict[str, Any]:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--count", type=int, default=60, help="how many mutants")
    parser.add_argument("--seed", type=int, default=0, help="decides which")
    parser.add_argument("--minutes", type=float, default=24 * 60, help="stop then, with what was seen")
    parser.add_argument("--modules", nargs="+", metavar="FILE", help="of kernels/cpu; all by default")
    parser.add_argument("--only", nargs="+", help="these mutants (file:line:number); no row is written")
    parser.add_argument("--out", type=Path, default=mutate.OUT)
    args = parser.parse_args(argv)
    os.environ.update(OMP_NUM_THREADS="1", AUTOMAGIC_CAMEAMP_ISA="avx2")
    mutate.import_once()
    started, where = time.monotonic(), mutate.environment()
    with mutate.copied() as copy:
        kernels = Kernels(copy.folder)
        lines = {str(FOLDER / name): active for name, active in sorted(kernels.active().items())}
        wanted = [str(FOLDER / name) for name in args.modules or ()] or list(lines)
        if lost := set(wanted) - lines.keys():
            parser.error(f"--modules: nothing is compiled of {', '.join(sorted(lost))}")
        lines = {name: lines[name] for name in wanted}
        texts = {module: (ROOT / PACKAGE / module).read_text("utf-8") for module in lines}
        everything = [m for module, text in texts.items() for m in mutants_of(module, text, lines[module])]
        chosen = random.Random(args.seed).sample(everything, min(args.count, len(everything)))
        if args.only:
            chosen = [m for m in everything if m.name in args.only]

        def change(mutant: Mutant, source: str) -> str:
            return mutated(source, mutant.number, lines[mutant.module])

        found = mutate.run(copy, chosen, dict.fromkeys(texts, KERNELS), args.minutes, change, kernels)
    seconds = time.monotonic() - started
    names = [str(FOLDER)] if args.modules is None else sorted(lines)
    row = mutate.row_of(found, args.seed, len(everything), names, seconds, where)
    return mutate.finish(row, None if args.only else args.out)


if __name__ == "__main__":
    main()
