"""The documentation as a site in site/, every link checked: `make site`.

    python scripts/site.py            # build
    python scripts/site.py --serve    # build, and show it at http://127.0.0.1:8000

The pages are laid out as in the repository, with every file that they link to. A dead link or anchor fails
the build, and so does a page that would ask another host for a script, a style, a font or a picture.
"""

from __future__ import annotations

import argparse
import ast
import functools
import http.server
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
STAGE, SITE = ROOT / "build" / "site-pages", ROOT / "site"
PAGES = ("README.md", "README.zh-TW.md", "CONTRIBUTING.md", "CHANGELOG.md", "trainer/README.md")
PAGES += ("examples/trainers/README.md",)
LINK = re.compile(r"\]\(([^)\s#]+)(?:#[^)\s]*)?\)")
# What a browser fetches by itself. Links that a reader clicks may lead anywhere.
FETCHED = re.compile(
    r"<(?:script|img|iframe|source|video|audio)\b[^>]*?\bsrc=[\"']?(?:https?:)?//[^\s\"'>]+"
    r"|<link\b(?=[^>]*\brel=[\"']?(?:stylesheet|preconnect|preload|icon|dns-prefetch))[^>]*?\bhref=[\"']?(?:https?:)?//[^\s\"'>]+"
    r"|url\([\"']?https?://[^)]+\)|@import\s+[\"']?https?://\S+"
)
MODULES = {
    "factory": "Optimizers by name and from a command line.",
    "lora": "Which parameters are a LoRA's.",
    "fit": "What fits on a card.",
    "presets": "Classes with a profile, by name.",
    "integrations": "Other training programs.",
    "monitor": "Reports, health, recommended settings.",
}


def stage() -> None:
    """Lay out the pages, what they link to, and the reference."""
    shutil.rmtree(STAGE, ignore_errors=True)
    pages = [ROOT / name for name in PAGES] + sorted((ROOT / "docs").rglob("*.md"))
    for page in pages:
        _copy(page)
        for match in LINK.finditer(page.read_text("utf-8")):
            target = (page.parent / match[1]).resolve()
            if "://" not in match[1] and target.is_file() and target.is_relative_to(ROOT):
                _copy(target)
    for path in (ROOT / "examples" / "trainers").rglob("*.*"):
        if path.suffix != ".pyc":
            _copy(path)
    folder = STAGE / "reference"
    folder.mkdir()
    for name, text in reference().items():
        (folder / f"{name}.md").write_text(text, "utf-8")


def _copy(path: Path) -> None:
    target = STAGE / path.relative_to(ROOT)
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(path, target)


def public() -> list[str]:
    """``automagic_cameamp.__all__``, read and not imported: a site needs no torch."""
    tree = ast.parse((ROOT / "src" / "automagic_cameamp" / "__init__.py").read_text("utf-8"))
    (node,) = (n for n in tree.body if isinstance(n, ast.Assign) and ast.unparse(n.targets[0]) == "__all__")
    return [name for name in ast.literal_eval(node.value) if name != "__version__"]


def tables() -> dict[str, str]:
    """Class of optimizers, and 'shared' -> its options as a table, read from the declarations."""
    source = ROOT / "src" / "automagic_cameamp"
    configs = {}
    for node in ast.parse((source / "configs.py").read_text("utf-8")).body:
        if isinstance(node, ast.ClassDef):
            rows = []
            for field in node.body:
                call = field.value if isinstance(field, ast.AnnAssign) else None
                if isinstance(call, ast.Call) and ast.unparse(call.func) in ("option", "technique"):
                    default = ast.unparse(call.args[0])
                    default = "" if default.startswith("Untouched") else f"`{default}`"
                    kind = "word of `techniques`" if ast.unparse(call.func) == "technique" else "option"
                    words = ast.literal_eval(call.args[2])
                    rows.append(f"| `{ast.unparse(field.target)}` | {default} | {kind} | {words} |")  # type: ignore[union-attr]
            configs[node.name] = ([ast.unparse(base) for base in node.bases], rows)

    def rows_of(name: str) -> list[str]:
        bases, rows = configs.get(name, ([], []))
        return [row for base in bases if base != "SharedConfig" for row in rows_of(base)] + rows

    head = "| name | default | | what |\n| --- | --- | --- | --- |\n"
    found = {"shared": head + "\n".join(configs["SharedConfig"][1])}
    for node in ast.parse((source / "optimizers.py").read_text("utf-8")).body:
        for field in node.body if isinstance(node, ast.ClassDef) else ():
            if isinstance(field, ast.Assign) and ast.unparse(field.targets[0]) == "config_class":
                found[node.name] = head + "\n".join(rows_of(ast.unparse(field.value)))
    return found


def reference() -> dict[str, str]:
    """Pages of the Python names; mkdocstrings fills them from the docstrings."""
    package, names, options = "automagic_cameamp", public(), tables()
    classes = [name for name in options if name in names]
    optimizers = [
        "# Optimizers\n",
        "Options are told by `help(Automagic_CameAMP)` as well, with their ranges.\n",
    ]
    optimizers += ["## Options of all classes\n", options["shared"], "\n## Classes\n"]
    for name in classes:
        optimizers.append(f"::: {package}.{name}\n\n{options[name]}\n")
    optimizers += ["## Methods of all classes\n", f"::: {package}.CameAMPOptimizer\n"]
    kinds = ("Config", "Config8bit", "Report", "Marks", "Error", "Handle", "Profiles")
    shown = [n for n in names if n[0].islower()] + [n for n in names if n.endswith(kinds)]
    return {
        "optimizers": "\n".join(optimizers),
        "functions": "\n".join(
            ["# Functions, configurations and reports\n", *(f"::: {package}.{n}\n" for n in shown)]
        ),
        "modules": "\n".join(
            ["# Modules\n", *(f"## {n}\n\n{w}\n\n::: {package}.{n}\n" for n, w in MODULES.items())]
        ),
    }


def fetched(folder: Path) -> Iterator[str]:
    """What pages and styles would ask other hosts for."""
    for path in sorted(folder.rglob("*")):
        if path.suffix in (".html", ".css"):
            for match in FETCHED.finditer(path.read_text("utf-8")):
                yield f"{path.relative_to(folder)}: {match[0][:120]}"


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--serve", action="store_true", help="show it afterwards, on this machine only")
    args = parser.parse_args()
    stage()
    # Not --quiet: what is not said is not counted by --strict either.
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--clean"]
    settings = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}  # of its theme's successor, in a box
    done = subprocess.run(command, cwd=ROOT, env=settings, capture_output=True, text=True, check=False)
    if done.returncode:
        wrong = [
            line
            for line in done.stderr.splitlines()
            if not line.startswith(("INFO", "Building prefix", "Load"))
        ]
        print("\n".join(wrong), file=sys.stderr)
        return done.returncode
    if outside := list(fetched(SITE)):
        print("site: pages ask other hosts:\n  " + "\n  ".join(outside), file=sys.stderr)
        return 1
    print(f"site: {len(list(SITE.rglob('*.html')))} pages in {SITE.relative_to(ROOT)}/, no request leaves it")
    if args.serve:
        handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(SITE))
        print("site: http://127.0.0.1:8000")
        with http.server.ThreadingHTTPServer(("127.0.0.1", 8000), handler) as server:
            server.serve_forever()
    return 0


if __name__ == "__main__":
    sys.exit(main())
