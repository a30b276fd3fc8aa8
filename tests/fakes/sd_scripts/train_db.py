"""Stands for sd-scripts' train_db.py, which handles the optimizer in the same way."""

from __future__ import annotations

import runpy
from pathlib import Path

if __name__ == "__main__":
    runpy.run_path(str(Path(__file__).with_name("train_network.py")), run_name="__main__")
