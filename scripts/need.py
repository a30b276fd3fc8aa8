"""Install the packages that an extra names, pinned, without installing this one again.

    python scripts/need.py docs release

Installing `.[docs]` would build the CPU kernels anew, which takes minutes.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parents[1]


def wanted(extras: list[str]) -> list[str]:
    """The requirements of these extras."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    return [requirement for extra in extras for requirement in project["optional-dependencies"][extra]]


def main() -> int:
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    return subprocess.run(
        [*command, "--constraint", str(ROOT / "constraints.txt"), *wanted(sys.argv[1:])], check=False
    ).returncode


if __name__ == "__main__":
    sys.exit(main())
