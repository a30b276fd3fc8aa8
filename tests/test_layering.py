"""The shape of the source: who may import whom, how long a file may be, what text may not say.

The rules are the reading order of the package (docs/architecture.md); trainer/tests/test_layers.py
has those of the trainer. A layer that is not named here yet has to be added to `LAYERS`
before the suite is green again.
"""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = "automagic_cameamp"
SRC = ROOT / "src" / PACKAGE
TRAINER_PACKAGE = "automagic_trainer"
TRAINER_SRC = ROOT / "trainer" / "src" / TRAINER_PACKAGE

# Layer -> the layers it may import, besides itself. The longest matching name counts.
# "*" stands for every layer below the public surface (PUBLIC and TOOLS are the exceptions).
PUBLIC = {"", "optimizers", "factory"}
TOOLS = {"cli", "doctor", "fit", "kohya", "integrations", "monitor", "__main__"}
BELOW = {
    "types",
    "schedule",
    "validate",
    "foreign",
    "control",
    "lora",
    "marked",
    "aliases",
    "configs",
    "policies",
    "recipes",
    "storage",
    "eager",
}
LAYERS: dict[str, set[str]] = {
    "_version": set(),
    "types": set(),
    "schedule": {"types"},
    "control": {"types", "techniques"},
    "text": set(),
    "validate": {"types", "schedule", "text"},
    "foreign": {"text"},
    "aliases": {"foreign", "text", "validate"},
    "configs": {"types", "validate", "aliases"},
    "techniques": {"types"},
    "storage.spec": {"types"},
    "storage": {"types"},
    "kernels": {"types", "storage.spec"},
    "recipes": {"types", "techniques", "schedule", "storage.spec"},
    # The house around the mathematics, from the ground up; it knows torch.optim and no equation.
    "eager": set(),
    "state": BELOW,
    "executors": {*BELOW, "kernels", "state"},
    "step": {*BELOW, "state", "executors"},
    "checkpoints": {*BELOW, "state"},
    "training": {*BELOW, "state", "checkpoints"},
    "reading": {*BELOW, "state"},
    "host": {*BELOW, "state", "executors", "step", "training"},
    "optimizer": {*BELOW, "state", "executors", "step", "host", "checkpoints", "training", "reading"},
    # Storage rules per class, and named sets of options.
    "policies": {"storage", "types"},
    "profiles": {"configs"},
    "optimizers": {"*"},
    "factory": {"*", "optimizers"},
    "": {"*", "optimizers", "factory", "_version"},
    "presets": {"aliases", "optimizers", "profiles"},
    "memory_optimized": {"presets"},
    "minimal": {"presets"},
    "balanced": {"presets"},
    "quality_optimized": {"presets"},
    "lora": {"marked"},
    "marked": set(),
    # The tools are customers: they see what `import automagic_cameamp` shows, nothing more.
    "monitor": {"", "_version", "profiles"},
    "kohya": {"", "_version", "presets"},
    "fit": {"", "factory", "presets", "profiles"},
    "integrations": {"", "text", "factory", "presets", "kohya"},
    "doctor": {"", "_version", "integrations", "kernels"},
    "cli": {"", "_version", "factory", "fit", "kohya", "integrations", "doctor"},
    "__main__": {"cli"},
}
# The only module of the optimizers that knows the trainer, and what it may import of it.
ENTRANCE = ("cli", "commands")

MAX_LINES = 400
LONGER: dict[str, str] = {
    "tests/contracts/test_ten_contracts.py": "one section per contract, in their order",
    "tests/improved/test_interface.py": "one table of every documented argument",
    "tests/improved/test_surface.py": "one section per public name of the documents",
    "tests/engine/test_options.py": "one table of bad values for every option",
}

FORBIDDEN_AT_IMPORT = {
    "triton",
    "bitsandbytes",
    "diffusers",
    "peft",
    "transformers",
    "accelerate",
    "safetensors",
    "rich",
    "matplotlib",
    "PIL",
    "scipy",
    "pandas",
    "tensorboard",
    "wandb",
    "torch._dynamo",
    "torch._inductor",
    "torch.distributed.fsdp",
    "torch.utils.cpp_extension",
}
# Importing the package after torch should cost well under 0.2 s. Seconds depend on the machine,
# so modules are counted: ours are some dozens of small files, and a few of the standard library.
MAX_NEW_MODULES = 100


def layer_of(module: str) -> str:
    """The layer of a module given relative to the package ('state.chunks' -> 'state')."""
    parts = module.split(".")
    for length in range(len(parts), 0, -1):
        if ".".join(parts[:length]) in LAYERS:
            return ".".join(parts[:length])
    return module


def is_module(name: str, package: str = PACKAGE) -> bool:
    path = {PACKAGE: SRC, TRAINER_PACKAGE: TRAINER_SRC}[package].joinpath(*name.split("."))
    return path.with_suffix(".py").is_file() or (path / "__init__.py").is_file()


def imports_of(
    source: str, module: str, is_package: bool, of: str = PACKAGE, within: str = PACKAGE
) -> set[str]:
    """Names relative to the package `of` of all that `source`, a module of `within`, imports of it.

    "" means the package itself: `from automagic_cameamp import X`, where X is no module.
    """
    package = [within, *(module.split(".") if module else [])]
    if not is_package:
        package = package[:-1]
    found = set()

    def add(dotted: list[str], names: list[str]) -> None:
        if dotted[0] != of:
            return
        base = dotted[1:]
        for name in names:
            inner = ".".join([*base, name])
            found.add(inner if is_module(inner, of) else ".".join(base))

    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                dotted = alias.name.split(".")
                add(dotted[:1] if len(dotted) == 1 else dotted[:-1], [dotted[-1]])
        elif isinstance(node, ast.ImportFrom):
            if node.level:
                start = package[: len(package) - node.level + 1]
                add(start + (node.module.split(".") if node.module else []), [a.name for a in node.names])
            elif node.module:
                add(node.module.split("."), [a.name for a in node.names])
    return found


def allowed(layer: str, target: str) -> bool:
    if layer == target or target in LAYERS[layer]:
        return True
    # A part may use its whole: storage.spec and storage stand side by side only for outsiders.
    if target.startswith(layer + ".") and layer:
        return True
    return "*" in LAYERS[layer] and target not in PUBLIC | TOOLS


def violations(source: str, module: str, is_package: bool = False) -> list[str]:
    layer = layer_of(module)
    if layer not in LAYERS:
        return [f"{module}: a layer that LAYERS in {Path(__file__).name} does not know"]
    wrong = []
    for name in sorted(imports_of(source, module, is_package)):
        if not allowed(layer, layer_of(name)):
            wrong.append(f"{module or '__init__'} imports {name or PACKAGE}, which layer '{layer}' may not")
    return wrong


def modules(root: Path = SRC) -> list[tuple[str, Path]]:
    rows = []
    for path in sorted(root.rglob("*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        rows.append((".".join(p for p in parts if p != "__init__"), path))
    return rows


def test_every_module_imports_only_what_its_layer_may() -> None:
    found = modules()
    assert len(found) > 10, f"{SRC} holds only {len(found)} modules: the rules would be checked on nothing"
    wrong = [
        line
        for module, path in found
        for line in violations(path.read_text("utf-8"), module, path.name == "__init__.py")
    ]
    assert not wrong, "\n" + "\n".join(wrong)


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("techniques.direction", "from ..schedule import phase"),
        ("techniques.direction", "def f():\n    import automagic_cameamp.types, automagic_cameamp.schedule"),
        ("schedule", "from . import optimizer"),
        ("recipes.came_amp", "from ..storage import affine8"),
        ("executors.update", "from ..techniques import ema"),
        ("state.chunks", "from .. import techniques"),
        ("storage.fp32", "from automagic_cameamp.recipes import came_amp"),
        ("monitor.page", "from automagic_cameamp import optimizer"),
        ("optimizers", "from .cli import main"),
        ("brand_new_layer", "import torch"),
    ],
)
def test_a_planted_violation_is_seen(module: str, source: str) -> None:
    assert violations(source, module)


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("techniques.direction", "import torch\nfrom ..types import Phase\nfrom ._reduce import rms"),
        ("recipes.came_amp", "from .. import techniques as T\nfrom ..storage.spec import StateSpec"),
        ("executors.update", "from . import work\nfrom ..recipes import Steps"),
        ("monitor.page", "import automagic_cameamp\nfrom automagic_cameamp import Automagic_CameAMP"),
        ("cli", "from .kohya import shims"),
    ],
)
def test_what_the_rules_allow_passes(module: str, source: str) -> None:
    assert violations(source, module) == []


def outside_violations(module: str, source: str) -> list[str]:
    """What a module of the optimizers imports of the trainer and may not."""
    found = imports_of(source, module, False, of=TRAINER_PACKAGE)
    return [f"{module} imports {n}" for n in sorted(found) if (module, n) != ENTRANCE]


def test_the_optimizers_know_the_trainer_in_one_place() -> None:
    wrong = [
        line for module, path in modules() for line in outside_violations(module, path.read_text("utf-8"))
    ]
    assert not wrong, "\n" + "\n".join(wrong)
    entrance = (SRC / f"{ENTRANCE[0]}.py").read_text("utf-8")
    assert imports_of(entrance, ENTRANCE[0], False, of=TRAINER_PACKAGE) == {ENTRANCE[1]}


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("factory", "def f():\n    from automagic_trainer import commands"),
        ("cli", "from automagic_trainer.errors import UserError"),
        ("cli", "import automagic_trainer"),
    ],
)
def test_a_planted_use_of_the_trainer_is_seen(module: str, source: str) -> None:
    assert outside_violations(module, source)


@pytest.mark.parametrize("layer", ["techniques", "recipes", "schedule", "storage"])
def test_the_mathematics_knows_no_optimizer(layer: str) -> None:
    paths = [path for module, path in modules() if layer_of(module).split(".")[0] == layer]
    assert paths, f"no module of layer {layer}"
    for path in paths:
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and node.module:
                names = [node.module, *(f"{node.module}.{a.name}" for a in node.names)]
            assert not [n for n in names if n.startswith("torch.optim")], f"{path.name} imports torch.optim"


def test_import_is_light() -> None:
    program = (
        "import sys, torch\n"
        "before = set(sys.modules)\n"
        f"import {PACKAGE}\n"
        "print('\\n'.join(sorted(set(sys.modules) - before)))\n"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program],
        capture_output=True,
        text=True,
        check=False,
        env=None,
        cwd=SRC.parent,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == "", "importing the package must print nothing"
    new = done.stdout.split()
    heavy = [n for n in new if any(n == bad or n.startswith(bad + ".") for bad in FORBIDDEN_AT_IMPORT)]
    assert not heavy, f"`import {PACKAGE}` pulls in {heavy}"
    assert f"{PACKAGE}.optimizers" in new
    assert not [n for n in new if n.startswith((TRAINER_PACKAGE, f"{PACKAGE}.cli"))]
    assert len(new) <= MAX_NEW_MODULES, f"{len(new)} new modules: {new}"


# ---------------------------------------------------------------------------------- text of the repository


def repository_files() -> list[Path]:
    """The files that are or would be committed."""
    if shutil.which("git") and (ROOT / ".git").exists():
        command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
        names = subprocess.run(command, cwd=ROOT, capture_output=True, check=True).stdout.decode().split("\0")
        return [ROOT / name for name in names if name and (ROOT / name).is_file()]
    skip = {".venv", ".git", "build", "dist", "runs", "__pycache__"}
    return [p for p in ROOT.rglob("*") if p.is_file() and not skip & set(p.relative_to(ROOT).parts)]


def text_of(path: Path) -> str | None:
    try:
        return path.read_text("utf-8")
    except UnicodeDecodeError:
        return None


def test_no_file_is_too_long() -> None:
    sources = [p for p in repository_files() if p.suffix in {".py", ".cpp", ".h", ".cu", ".sh"}]
    assert sources
    names = {p.relative_to(ROOT).as_posix(): len(p.read_text("utf-8").splitlines()) for p in sources}
    assert not set(LONGER) - set(names), "LONGER names files that are gone"
    long = {n: lines for n, lines in names.items() if lines > MAX_LINES and n not in LONGER}
    assert not long, f"over {MAX_LINES} lines; split them, or name them in LONGER with the reason: {long}"
    assert all(names[n] > MAX_LINES for n in LONGER), "LONGER names a file that is short again"


# A path that exists on one machine only. Written in pieces, so that this file passes its own test.
MACHINE_PATH = re.compile(
    r"(?<![\w.$}~-])/(?:"
    + "|".join(["work", "home", "root", "Users", "tmp", "opt/wheels", "mnt"])
    + r")/[\w.-]"
)


def test_no_path_of_one_machine() -> None:
    wrong = []
    for path in repository_files():
        text = text_of(path)
        if text is None:
            continue
        for number, line in enumerate(text.splitlines(), 1):
            hit = MACHINE_PATH.search(line)
            if hit:
                wrong.append(
                    f"{path.relative_to(ROOT)}:{number}: {line.strip()[max(0, hit.start() - 20) :][:80]}"
                )
    assert not wrong, "\n" + "\n".join(wrong)


@pytest.mark.parametrize("text", ["cd /" + "work/main", '"/' + 'home/me/x"', "=/" + "tmp/out"])
def test_a_planted_path_is_seen(text: str) -> None:
    assert MACHINE_PATH.search(text)


def test_documents_are_named_only_by_tests() -> None:
    name = "shared/" + "documents"
    wrong = [
        str(p.relative_to(ROOT))
        for p in repository_files()
        if p.relative_to(ROOT).parts[0] != "tests" and name in (text_of(p) or "")
    ]
    assert not wrong
