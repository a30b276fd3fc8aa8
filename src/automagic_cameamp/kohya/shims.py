"""Files for an sd-scripts checkout, so that ``from library.automagic_cameamp import ...`` works there.

    automagic sd-scripts --install DIR      writes them into DIR/library
    automagic sd-scripts --uninstall DIR    removes them again, and nothing else

Each begins with a line that carries the checksum of the rest. So a file that is not ours, or was edited
since, is never overwritten nor removed.
"""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path
from typing import Any, NamedTuple

from .config_file import LauncherError

# What earlier versions wrote differs between the two.
WRITER, CHECKSUM = "# Written by automagic-cameamp, ", "sha256 of the rest: "
MARKER = f"{WRITER}see `automagic --help`. {CHECKSUM}"

_EXPORTS = '''"""{text}"""

from {module} import *  # noqa: F401,F403
'''
_EXAMPLE = '''"""The profiles of Automagic_CameAMP_Improved_8Bit, its options, and a few steps with each."""

from automagic_cameamp.kohya.profile_example import main

if __name__ == "__main__":
    main()
'''
_TEXTS = {
    "automagic_cameamp": "All optimizers of automagic-cameamp.",
    "automagic_cameamp_improved": "Automagic_CameAMP_Improved and its config.",
    "automagic_cameamp_improved_8bit": "Automagic_CameAMP_Improved_8Bit, its config, profiles and factory.",
    "automagic_cameamp_8bit": "Automagic_CameAMP_8Bit and its config.",
}
BODIES = {f"{name}.py": _EXPORTS.format(text=text, module=name) for name, text in _TEXTS.items()}
BODIES["optimizer_profile_example.py"] = _EXAMPLE


class Change(NamedTuple):
    """What was, or would be, done to one file."""

    action: str  # "write", "keep" (already there), "remove"
    path: Path


def content(name: str) -> str:
    """The whole text of one shim."""
    return marked(BODIES[name])


def marked(body: str) -> str:
    """A text with the line before it by which `is_ours` knows it."""
    return MARKER + hashlib.sha256(body.encode()).hexdigest() + "\n" + body


def install(folder: Path | str, *, dry_run: bool = False) -> list[Change]:
    """Write the shims into ``folder/library``, all or none.

    Args:
        folder: an sd-scripts checkout.
        dry_run: change nothing, only tell.
    """
    library = _library(folder)
    paths = [library / name for name in BODIES]
    foreign = [path for path in paths if _is_there(path) and not is_ours(path)]
    if foreign:
        raise LauncherError(
            f"not overwriting what automagic-cameamp did not write, or what was edited since: "
            f"{', '.join(map(str, foreign))}. Move it away first. Nothing was written."
        )
    changes = []
    for path in paths:
        same = _is_there(path) and path.read_text("utf-8") == content(path.name)
        changes.append(Change("keep" if same else "write", path))
        if not same and not dry_run:
            path.write_text(content(path.name), encoding="utf-8")
    return changes


def uninstall(folder: Path | str, *, dry_run: bool = False) -> list[Change]:
    """Remove the shims that are ours and unchanged; anything else stays."""
    library = _library(folder)
    changes = []
    for path in (library / name for name in BODIES):
        if _is_there(path):
            changes.append(Change("remove" if is_ours(path) else "keep", path))
            if changes[-1].action == "remove" and not dry_run:
                path.unlink()
    return changes


def is_ours(path: Path) -> bool:
    """Whether we wrote this file, and nobody changed it since."""
    if path.is_symlink() or not path.is_file():
        return False
    try:
        first, _, body = path.read_text("utf-8").partition("\n")
    except UnicodeDecodeError:
        return False
    digest = hashlib.sha256(body.encode()).hexdigest()
    return first.startswith(WRITER) and first.endswith(CHECKSUM + digest)


def _is_there(path: Path) -> bool:
    return path.is_symlink() or path.exists()


def _library(folder: Path | str) -> Path:
    folder = Path(folder)
    library = folder / "library"
    if not library.is_dir():
        raise LauncherError(f"{folder} is no sd-scripts checkout: it has no folder 'library'")
    return library


EPILOG = """examples:
  automagic sd-scripts --install ~/sd-scripts             write them
  automagic sd-scripts --install ~/sd-scripts --dry-run   only list what would be written
  automagic sd-scripts --uninstall ~/sd-scripts           remove those files again, and nothing else

Then `from library.automagic_cameamp_improved_8bit import ...` works in the scripts of that checkout.

To train there with a bare name: python -m automagic_cameamp.kohya train_network.py --optimizer_type=...
"""


def add_parser(commands: Any) -> None:
    """The subcommand's options."""
    p = commands.add_parser(
        "sd-scripts",
        help="put import files into a kohya sd-scripts checkout",
        description="Write or remove files in an sd-scripts checkout that re-export our classes.",
        epilog=EPILOG,
    )
    which = p.add_mutually_exclusive_group(required=True)
    which.add_argument("--install", metavar="DIR", help="the checkout to write into")
    which.add_argument("--uninstall", metavar="DIR", help="the checkout to clean")
    p.add_argument("--dry-run", action="store_true", help="only list what would be done")


def run(options: dict[str, Any]) -> int:
    """The subcommand."""
    dry_run = options.get("dry_run", False)
    work, word = (install, "install") if "install" in options else (uninstall, "uninstall")
    try:
        changes = work(options[word], dry_run=dry_run)
    except (LauncherError, OSError) as error:
        print(f"automagic sd-scripts: {error}", file=sys.stderr)
        return 2
    for action, path in changes:
        print(f"{'would ' if dry_run and action != 'keep' else ''}{action} {path}")
    if not changes:
        print("nothing of ours is there")
    return 0
