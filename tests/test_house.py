"""The house stays a house: no circle of imports, types for our own, nobody in another's private rooms."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest
from torch.utils._device import _device_constructors

from test_layering import SRC, imports_of, modules


def circle(graph: dict[str, set[str]]) -> list[str] | None:
    """A circle in a graph, if there is one."""
    done: set[str] = set()
    path: list[str] = []

    def visit(name: str) -> list[str] | None:
        if name in path:
            return [*path[path.index(name) :], name]
        if name in done:
            return None
        path.append(name)
        found = next((c for other in sorted(graph.get(name, ())) if (c := visit(other))), None)
        path.pop()
        done.add(name)
        return found

    return next((c for name in sorted(graph) if (c := visit(name))), None)


def test_no_module_imports_itself_in_a_circle() -> None:
    """Imports inside functions and those for type checkers count: both make a reader go round."""
    graph = {}
    for module, path in modules():
        found = imports_of(path.read_text("utf-8"), module, path.name == "__init__.py")
        # A package imports its own members to show them; these import each other, not the package.
        graph[module] = {name for name in found if name != module and not name.startswith(f"{module}.")}
    assert circle(graph) is None


def test_a_planted_circle_is_seen() -> None:
    assert circle({"a": {"b"}, "b": {"c"}, "c": {"a"}}) == ["a", "b", "c", "a"]
    assert circle({"a": {"b", "c"}, "b": {"c"}, "c": set()}) is None


def untyped(source: str) -> list[str]:
    """Parameters called optimizer, model or work that are Any."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            for arg in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs):
                kind = "" if arg.annotation is None else ast.unparse(arg.annotation)
                if arg.arg in ("optimizer", "model", "work") and kind in ("", "Any"):
                    found.append(f"{node.name}({arg.arg})")
    return found


def test_the_optimizer_has_a_type_wherever_it_goes() -> None:
    wrong = {m: names for m, path in modules() if (names := untyped(path.read_text("utf-8")))}
    assert not {m: names for m, names in wrong.items() if m.split(".")[0] not in OUTSIDE}, wrong


# Tools that take optimizers of any library.
OUTSIDE = {"monitor", "kohya", "integrations", "fit"}


def reaches(source: str) -> list[str]:
    """Underscored names that are read from something other than self or a class of the module."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Attribute) or not re.match(r"_[a-z]", node.attr):
            continue
        owner = ast.unparse(node.value)
        if owner.split(".")[-1] in ("optimizer", "model", "stepper", "kept", "adapters", "owner", "plans"):
            found.append(f"{owner}.{node.attr}")
    return found


def test_nobody_reaches_into_private_rooms() -> None:
    wrong = {
        module: names
        for module, path in modules()
        if (names := reaches(path.read_text("utf-8"))) and module.split(".")[0] not in OUTSIDE
    }
    assert not wrong


@pytest.mark.parametrize(
    ("source", "count"),
    [
        ("def f(optimizer):\n    return optimizer._plan", (1, 1)),
        ("def f(optimizer: Family):\n    return optimizer.state", (0, 0)),
        ("def f(model: Any):\n    return self.stepper._plans", (1, 1)),
    ],
)
def test_what_is_planted_is_seen(source: str, count: tuple[int, int]) -> None:
    assert (len(untyped(source)), len(reaches(source))) == count


def test_the_rooms_are_there() -> None:
    assert all((SRC / room).is_dir() for room in ("state", "executors", "checkpoints", "training", "reading"))
    assert not Path(SRC, "engine").exists()


def homeless(source: str) -> list[str]:
    """Tensors that are made without saying where: the program's default device decides then."""
    makers = {f.__name__ for f in _device_constructors()}
    calls = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)]
    return [
        ast.unparse(node)
        for node in calls
        if isinstance(node.func, ast.Attribute)
        and ast.unparse(node.func.value) == "torch"
        and node.func.attr in makers
        and not {keyword.arg for keyword in node.keywords} & {"device", None}
    ]


def test_every_tensor_is_made_where_somebody_said() -> None:
    """What that does under ``torch.set_default_device`` is in loops/test_default_device.py."""
    assert homeless("x = torch.zeros(3); y = torch.zeros(3, device='cpu')") == ["torch.zeros(3)"]
    wrong = {m: found for m, path in modules() if (found := homeless(path.read_text("utf-8")))}
    assert not {m: found for m, found in wrong.items() if m.split(".")[0] not in OUTSIDE}, wrong
