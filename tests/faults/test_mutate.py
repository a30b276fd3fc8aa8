"""What scripts/mutate.py changes, and that its map names every module and only tests that exist."""

from __future__ import annotations

import ast
import importlib.util
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
SOURCE = '''
"""Text."""
from typing import TYPE_CHECKING
if TYPE_CHECKING:
    x = 0
def f(a: int = 0, b: "x == 1" = 5) -> "1 + 1":
    """Calls g()."""
    if not a < b and a is None:
        raise ValueError("a" + "b", 0)
    a += 2 * b
    print(a)
    return a / 3.0
'''


def with_mutate(name: str) -> Any:
    """A script that imports the two beside it."""
    both = {other: script(other) for other in ("mutate", "mutate_map")}
    sys.modules.update(both)
    try:
        return script(name)
    finally:
        for other in both:
            del sys.modules[other]


def script(name: str) -> Any:
    spec = importlib.util.spec_from_file_location(name, ROOT / "scripts" / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # named tuples look for their module
    try:
        spec.loader.exec_module(module)
    finally:
        del sys.modules[name]
    return module


KERNEL = """// 1 + 1
template <int A = 0>
float f(const float* x, bool on) {
    float sum = 0;  // x < y
    for (int i = 0; i < 8; ++i) sum += x[i] * smaller(x[i], 1.0f);
    return !on && sum >= 10 ? sum : -sum;
}
"""


def test_what_can_be_changed_in_the_kernels() -> None:
    kernels = with_mutate("mutate_kernels")
    found = kernels.mutants_of("f.h", KERNEL, set(range(1, 7)))
    assert [(m.line, m.after) for m in found] == [
        (4, "0 becomes 1"),
        (5, "< becomes <="),
        (5, "+= becomes -="),
        (5, "* becomes /"),
        (5, "0 becomes 1"),
        (5, "1 becomes 0"),
        (5, "smaller becomes larger"),
        (6, "&& becomes ||"),
        (6, ">= becomes >"),
        (6, "! becomes nothing"),
    ]
    programs = {kernels.mutated(KERNEL, m.number, set(range(1, 7))) for m in found}
    assert len(programs) == len(found) and KERNEL not in programs
    assert not kernels.mutants_of("f.h", KERNEL, {1, 2, 7}), "what is not compiled or only says what is"


def test_what_can_be_changed_and_what_not() -> None:
    mutate = script("mutate")
    found = {(m.kind, m.before, m.after) for m in mutate.mutants_of("f.py", SOURCE)}
    assert found == {
        ("constant", "0", "1"),
        ("and/or", "not a < b and a is None", "not a < b or a is None"),
        ("not", "not a < b", "a < b"),
        ("comparison", "a < b", "a <= b"),
        ("comparison", "a is None", "a is not None"),
        ("raise", "raise ValueError('a' + 'b', 0)", "pass"),
        ("arithmetic", "a += 2 * b", "a -= 2 * b"),
        ("arithmetic", "2 * b", "2 / b"),
        ("call", "print(a)", "pass"),
        ("return", "return a / 3.0", "return None"),
        ("arithmetic", "a / 3.0", "a * 3.0"),
    }


def test_every_change_is_one_other_program() -> None:
    mutate = script("mutate")
    path = ROOT / mutate.PACKAGE / "storage" / "small.py"
    source = path.read_text("utf-8")
    whole = ast.unparse(ast.parse(source)).splitlines()
    programs = [mutate.mutated(source, m.number) for m in mutate.mutants_of("storage/small.py", source)]
    assert len(programs) > 30 and len(set(programs)) == len(programs)
    for program in programs:
        compile(program, "mutant", "exec")
        assert sum(a != b for a, b in zip(whole, program.splitlines(), strict=True)) == 1


def test_a_copy_is_broken_the_tree_is_not(tmp_path: Path) -> None:
    mutate = script("mutate")
    copy = mutate.Copy(tmp_path)
    original = ROOT / mutate.PACKAGE / "storage" / "small.py"
    before = original.read_text("utf-8")
    copy.write("storage/small.py", "raise ImportError\n")
    assert original.read_text("utf-8") == before
    assert copy.path("storage/small.py").read_text("utf-8") == "raise ImportError\n"


def test_the_map_names_modules_and_tests_that_are_there() -> None:
    mutate, covered = script("mutate"), script("mutate_map").COVERED
    package = ROOT / mutate.PACKAGE
    there = {
        path.relative_to(package).as_posix()
        for folder in ("state", "executors", "kernels", "checkpoints", "training", "reading", "storage")
        for path in (package / folder).rglob("*.py")
    } | {"eager.py", "optimizer.py", "step.py", "techniques/level.py", "recipes/_level.py"}
    empty = {n for n in there if not mutate.mutants_of(n, (package / n).read_text("utf-8"))}
    assert covered.keys() == there - empty
    for tests in (*covered.values(), script("mutate_map").KERNELS):
        names = [text.removeprefix("--deselect=") for text in tests if "tests/" in text]
        assert names and all((ROOT / name.partition("::")[0]).is_file() for name in names)
        for name in names:
            function = name.partition("::")[2]
            assert f"def {function}" in (ROOT / name.partition("::")[0]).read_text("utf-8")


def test_a_sample_is_that_of_its_seed() -> None:
    mutate = script("mutate")
    covered: dict[str, list[str]] = {f"storage/{name}.py": [] for name in ("blocks", "rows", "small")}
    (first, total), (again, _) = (mutate.sample(20, 3, covered) for _ in range(2))
    other, _ = mutate.sample(20, 4, covered)
    assert first == again != other and len(first) == 20 < total
    everything, _ = mutate.sample(10**6, 3, covered)
    assert len({m.name for m in everything}) == total
