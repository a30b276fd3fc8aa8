"""Small faults put into the engine and the codes, one at a time: does a test notice each?

    python scripts/mutate.py --count 150 --seed 0
    python scripts/mutate.py --only storage/rows.py:54:2     # again, one that nobody noticed

A fault (mutant) is one change of one expression or statement: another comparison, + for -, * for /, 1 for 0,
'and' for 'or', a missing 'not', None returned, a call or a raise left out. It is made in a copy of the
checkout in a temporary folder, and the tests that ``mutate_map.py`` names for the module run on that copy
until the first failure. What survives is printed; it is a gap in the tests, or a change that changes nothing.
"""

from __future__ import annotations

import argparse
import ast
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = Path("src") / "automagic_cameamp"
COPIED = ("src", "trainer", "tests", "benchmarks", "scripts", "docs", "examples")
COPIED += ("conftest.py", "pyproject.toml")
OUT = ROOT / "benchmarks" / "results" / "mutation.jsonl"
FAILED, PASSED, LATE = "failed", "passed", "late"
LIMIT = 600  # seconds; only an endless loop takes longer

SWAPS: dict[type[Any], type[Any]] = {
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.In: ast.NotIn, ast.NotIn: ast.In,
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.FloorDiv: ast.Mult,
    ast.And: ast.Or, ast.Or: ast.And,
}  # fmt: skip


class Mutant(NamedTuple):
    """One change: of the ``number``-th place of a module that can be changed."""

    module: str
    line: int
    number: int
    kind: str
    before: str
    after: str

    @property
    def name(self) -> str:
        return f"{self.module}:{self.line}:{self.number}"


def changed(node: ast.AST) -> tuple[str, ast.AST] | None:
    """The kind of change that a node allows, and what takes its place."""
    new: Any = deepcopy(node)
    if isinstance(node, ast.Compare) and len(node.ops) == 1 and type(node.ops[0]) in SWAPS:
        new.ops = [SWAPS[type(node.ops[0])]()]
        return "comparison", new
    if isinstance(node, ast.BinOp | ast.AugAssign) and type(node.op) in SWAPS:
        new.op = SWAPS[type(node.op)]()
        return "arithmetic", new
    if isinstance(node, ast.BoolOp):
        new.op = SWAPS[type(node.op)]()
        return "and/or", new
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
        return "not", new.operand
    if isinstance(node, ast.Constant) and type(node.value) in (int, float) and node.value in (0, 1):
        new.value = type(node.value)(1 - node.value)
        return "constant", new
    if isinstance(node, ast.Return) and node.value is not None:
        if isinstance(node.value, ast.Constant) and node.value.value is None:
            return None
        new.value = ast.Constant(None)
        return "return", new
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
        return "call", ast.copy_location(ast.Pass(), node)
    if isinstance(node, ast.Raise):
        return "raise", ast.copy_location(ast.Pass(), node)
    return None


def places(tree: ast.AST) -> Iterator[tuple[ast.AST, str, int | None, ast.AST, str, ast.AST]]:
    """Where a tree can be changed: parent, its field, index in it, the node, kind of change, the new node.

    Left out: annotations, what only a type checker reads, and the words of an error.
    """
    for field, value in ast.iter_fields(tree):
        if field in ("annotation", "returns", "decorator_list"):
            continue
        members = enumerate(value) if isinstance(value, list) else [(None, value)]
        for index, node in members:
            if not isinstance(node, ast.AST):
                continue
            if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
                continue
            found = changed(node)
            if found is not None:
                yield tree, field, index, node, *found
            if not isinstance(node, ast.Raise):
                yield from places(node)


def mutants_of(module: str, source: str) -> list[Mutant]:
    """All changes of a module, in the order of its text."""
    return [
        Mutant(module, getattr(node, "lineno", 0), number, kind, _short(node), _short(new))
        for number, (_, _, _, node, kind, new) in enumerate(places(ast.parse(source)))
    ]


def _short(node: ast.AST) -> str:
    text = " ".join(ast.unparse(node).split())
    return text if len(text) <= 90 else text[:87] + "..."


def mutated(source: str, number: int) -> str:
    """The text of a module with one of its changes."""
    tree = ast.parse(source)
    parent, field, index, _, _, new = list(places(tree))[number]
    if index is None:
        setattr(parent, field, new)
    else:
        getattr(parent, field)[index] = new
    return ast.unparse(ast.fix_missing_locations(tree))


class Copy:
    """The checkout in a folder where it may be broken."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        unwanted = shutil.ignore_patterns("__pycache__", "*.egg-info")
        for name in COPIED:
            source = ROOT / name
            if source.is_dir():
                shutil.copytree(source, folder / name, ignore=unwanted)
            else:
                shutil.copy(source, folder / name)

    def path(self, module: str) -> Path:
        return self.folder / PACKAGE / module

    def write(self, module: str, text: str) -> None:
        path = self.path(module)
        path.write_text(text, "utf-8")
        # Two versions may have one size and one time; Python would take the older one's bytecode.
        for old in (path.parent / "__pycache__").glob(f"{path.stem}.*"):
            old.unlink()

    def test(self, tests: Sequence[str], seconds: float) -> tuple[str, str]:
        """Run tests until the first failure: how it ended, and the last line that says so."""
        log = self.folder / "log.txt"
        child = os.fork()  # torch and pytest are imported already
        if child == 0:
            self._child(tests, log)
        end = time.monotonic() + seconds
        while True:
            done, status = os.waitpid(child, os.WNOHANG)
            if done:
                break
            if time.monotonic() > end:
                os.kill(child, signal.SIGKILL)
                os.waitpid(child, 0)
                return LATE, ""
            time.sleep(0.02)
        words = [line for line in log.read_text("utf-8").splitlines() if line.startswith(("FAILED", "ERROR"))]
        code = os.waitstatus_to_exitcode(status)
        if code not in (0, 1, 2, 3, 4) and code > 0:
            raise SystemExit(f"pytest ended with {code}: {log.read_text('utf-8')[-2000:]}")
        return (PASSED if code == 0 else FAILED), (words[0] if words else f"exit status {code}")

    def _child(self, tests: Sequence[str], log: Path) -> None:
        code = 70
        try:
            os.chdir(self.folder)
            sys.path[:0] = [str(self.folder / "src")]
            with open(log, "w") as file:
                os.dup2(file.fileno(), 1)
                os.dup2(file.fileno(), 2)
            import pytest

            # hypothesis was imported before pytest could rewrite its assertions.
            options = [
                "-x",
                "-q",
                "-p",
                "no:cacheprovider",
                "-W",
                "ignore::pytest.PytestAssertRewriteWarning",
            ]
            code = int(pytest.main([*options, *tests]))
            import automagic_cameamp

            if not str(automagic_cameamp.__file__).startswith(str(self.folder)):
                code = 71
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)


def sample(count: int, seed: int, covered: dict[str, list[str]]) -> tuple[list[Mutant], int]:
    """A part of all changes, every one as likely as any other; and how many there are."""
    everything = [
        mutant
        for module in sorted(covered)
        for mutant in mutants_of(module, (ROOT / PACKAGE / module).read_text("utf-8"))
    ]
    # In the order drawn: a run that is cut short has seen a fair sample too.
    return random.Random(seed).sample(everything, min(count, len(everything))), len(everything)


@contextmanager
def copied() -> Iterator[Copy]:
    """A copy of the checkout, for a while."""
    with tempfile.TemporaryDirectory() as name:
        yield Copy(Path(name))


def run(
    copy: Copy,
    chosen: list[Mutant],
    covered: dict[str, list[str]],
    minutes: float,
    change: Callable[[Mutant, str], str],
    build: Callable[[Copy], bool] = lambda copy: True,
) -> dict[str, list[Mutant]]:
    """Every mutant against its tests, until the time is over.

    Args:
        copy: where the changes are made.
        chosen: the mutants.
        covered: module -> its tests.
        minutes: how long.
        change: the text of a module with a mutant in it.
        build: what has to happen before tests see a change; where it fails, the mutant is none.
    """
    found: dict[str, list[Mutant]] = {FAILED: [], PASSED: [], LATE: []}
    noticing: set[str] = set()
    end = time.monotonic() + 60 * minutes
    for mutant in chosen:
        if time.monotonic() > end:
            break
        source = copy.path(mutant.module).read_text("utf-8")
        copy.write(mutant.module, change(mutant, source))
        built = build(copy)
        how, words = copy.test(covered[mutant.module], LIMIT) if built else ("", "")
        copy.write(mutant.module, source)
        said = f"{mutant.name} {mutant.kind}: {mutant.before} -> {mutant.after}"
        if not built:
            print(f"not built: {said}", flush=True)
            continue
        found[how].append(mutant)
        if how == FAILED and words.startswith(("FAILED ", "ERROR ")):
            noticing.add(words.partition(" ")[2].partition(" - ")[0])
        print(f"{'SURVIVED' if how == PASSED else how}: {said} | {words[:150]}", flush=True)
    # A test that fails by itself would notice everything.
    if not build(copy):
        raise SystemExit("not built without any change")
    how, words = copy.test(sorted(noticing), float("inf")) if noticing else (PASSED, "")
    if how != PASSED:
        raise SystemExit(f"{how} without any change: {words}")
    return found


def environment() -> dict[str, Any]:
    """What benchmarks.common says of this machine and commit; it imports the package, so not in here."""
    program = "import json, benchmarks.common as c; print(json.dumps(c.environment()))"
    output = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return json.loads(output.stdout)


def _last(path: Path, seed: int, modules: list[str] | None) -> dict[str, Any]:
    """The newest row of a seed and of these modules; rows of other modules have other mutants."""
    rows = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    return next(row for row in reversed(rows) if row["seed"] == seed and row.get("of_modules") == modules)


def import_once() -> None:
    """What every run of the tests needs; of the package nothing, or forks would test the tree."""
    import hypothesis  # noqa: F401
    import pytest  # noqa: F401
    import torch  # noqa: F401


def row_of(
    found: dict[str, list[Mutant]],
    seed: int,
    total: int,
    modules: list[str] | None,
    seconds: float,
    where: dict[str, Any],
) -> dict[str, Any]:
    """The row of a run over a sample of so many mutants."""
    seen = [mutant for members in found.values() for mutant in members]
    return {
        "bench": "mutation",
        "seed": seed,
        "mutants": len(seen),
        "of": total,
        "modules": len({m.module for m in seen}),
        "of_modules": modules,
        "noticed": len(found[FAILED]),
        "late": len(found[LATE]),
        "survived": len(found[PASSED]),
        "kinds": dict(sorted(Counter(m.kind for m in seen).items())),
        "survivors": [f"{m.name} {m.kind}: {m.before} -> {m.after}" for m in found[PASSED]],
        "seconds": round(seconds),
        **where,
    }


def finish(row: dict[str, Any], out: Path | None) -> dict[str, Any]:
    """Write a row, where it is wanted, and say what is in it."""
    if out is not None:
        with open(out, "a") as file:
            file.write(json.dumps(row) + "\n")
    for line in row["survivors"]:
        print(line)
    print({key: value for key, value in row.items() if key != "survivors"})
    return row


def main(argv: list[str] | None = None) -> dict[str, Any]:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--count", type=int, default=150, help="how many mutants")
    parser.add_argument("--seed", type=int, default=0, help="decides which")
    parser.add_argument("--minutes", type=float, default=24 * 60, help="stop then, with what was seen")
    parser.add_argument("--modules", nargs="+", help="or folders, of mutate_map.py; all by default")
    parser.add_argument("--only", nargs="+", help="these mutants (module:line:number); no row is written")
    parser.add_argument("--again", action="store_true", help="what survived the last run of this seed")
    parser.add_argument("--tests", nargs="+", help="instead of those of mutate_map.py; no row is written")
    parser.add_argument("--out", type=Path, default=OUT)
    args = parser.parse_args(argv)
    os.environ.update(OMP_NUM_THREADS="1", MPLBACKEND="Agg")
    import_once()
    from mutate_map import COVERED

    covered = {m: t for m, t in COVERED.items() if args.modules is None or m.startswith(tuple(args.modules))}
    if args.tests:
        covered = {module: args.tests for module in covered}
    last = _last(args.out, args.seed, args.modules) if args.again else None
    only = args.only if last is None else [text.split()[0] for text in last["survivors"]]
    if only:
        known = {m.name: m for m in sample(sys.maxsize, 0, covered)[0]}
        chosen, total = [known[name] for name in only], len(known)
    else:
        chosen, total = sample(args.count, args.seed, covered)
    started, where = time.monotonic(), environment()
    with copied() as copy:
        found = run(copy, chosen, covered, args.minutes, lambda m, source: mutated(source, m.number))
    row = row_of(found, args.seed, total, args.modules, time.monotonic() - started, where)
    if last is not None:  # the same sample, its survivors seen anew
        row.update({key: last[key] for key in ("mutants", "of", "modules", "kinds")})
        row.update(noticed=last["noticed"] + len(found[FAILED]), late=last["late"] + len(found[LATE]))
        row["again"] = sum(map(len, found.values()))
    return finish(row, None if args.only or args.tests else args.out)


if __name__ == "__main__":
    main()
