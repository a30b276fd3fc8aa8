"""Builds environments of real training programs and runs tests/trainers in them: `make test-trainers`.

    python scripts/test_trainers.py                   # all of them
    python scripts/test_trainers.py --set new old     # some
    python scripts/test_trainers.py --list

Each set has an environment of its own, because the programs pin versions that exclude each other. In each the
start-up hook is installed, as a user would; this checkout is seen through a ``.pth`` file.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TOOLS = ["numpy", "pytest>=8", "pytest-timeout>=2.3"]
# set -> what is installed beside torch; the versions that docs/trainers.md lists
SETS: dict[str, list[str]] = {
    "new": [
        "transformers==5.23.0",
        "trl==1.16.0",
        "peft==0.21.2",
        "accelerate==1.15.0",
        "diffusers==0.42.1",
        "lightning==2.6.6",
        "lycoris-lora==4.1.3",
        "datasets==5.2.0",
    ],
    "old": ["transformers==4.57.6", "trl==0.24.0", "peft==0.17.1", "accelerate==1.15.0", "datasets==5.0.1"],
    "llama-factory": ["llamafactory==0.9.5"],
    "simpletuner": ["simpletuner==3.1.6"],
    "pytorch-optimizer": ["pytorch_optimizer==4.1.0"],
}
# set -> the programs that it is there for; the others are skipped or were run in another set
PROGRAMS = {
    "new": "hf_trainer or trl_sft or peft or lightning or diffusers or lycoris or whole",
    "old": "hf_trainer or trl_sft or peft",
    "llama-factory": "llama_factory or hf_trainer",
    "simpletuner": "simpletuner",
    "pytorch-optimizer": "pytorch_optimizer",
}


def built(name: str, python: str, torch: str, folder: Path) -> Path:
    """The Python of a set's environment, built where it is missing or differs from what is asked for."""
    home = folder / name
    inside = home / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    wanted = hashlib.sha256(repr((torch, TOOLS, SETS[name], str(ROOT))).encode()).hexdigest()
    stamp = home / ".stamp"
    if stamp.is_file() and stamp.read_text("utf-8") == wanted:
        return inside
    print(f"{name}: building {home}", flush=True)
    subprocess.run([python, "-m", "venv", "--clear", str(home)], check=True)
    pip = [str(inside), "-m", "pip", "install", "--quiet"]
    subprocess.run([*pip, torch, *TOOLS], check=True)
    pins = home / "pins.txt"
    pins.write_text(f"{torch}\n", "utf-8")
    subprocess.run([*pip, "--constraint", str(pins), *SETS[name]], check=True)
    where = "import sysconfig; print(sysconfig.get_path('purelib'))"
    site = subprocess.run([str(inside), "-c", where], check=True, capture_output=True, text=True).stdout
    Path(site.strip(), "checkout.pth").write_text(f"{ROOT / 'src'}\n", "utf-8")
    subprocess.run([str(inside), "-m", "automagic_cameamp", "integrate", "install"], check=True)
    stamp.write_text(wanted, "utf-8")
    return inside


def main() -> int:
    """Build and run; 1 where a test of any set failed."""
    layout = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=layout)
    parser.add_argument("--set", nargs="*", choices=list(SETS), default=list(SETS))
    parser.add_argument("--list", action="store_true", help="print the sets and stop")
    parser.add_argument("--python", default=sys.executable)
    parser.add_argument("--torch", default="torch==2.13.0")
    parser.add_argument("--folder", type=Path, default=ROOT / ".venv-trainers")
    given = parser.parse_args()
    if given.list:
        for name, packages in SETS.items():
            print(f"{name}: {' '.join(packages)}")
        return 0
    failed = []
    for name in given.set:
        python = built(name, given.python, given.torch, given.folder.resolve())
        print(f"{name}: {PROGRAMS[name]}", flush=True)
        # Without the suite's own plug-ins and settings: only pytest is there.
        options = ["-q", "-ra", "--noconftest", "-o", "addopts=", "-o", "filterwarnings="]
        options += [
            "--import-mode=importlib",
            "-p",
            "no:cacheprovider",
            "-k",
            PROGRAMS[name],
            "tests/trainers",
        ]
        if subprocess.run([str(python), "-m", "pytest", *options], check=False, cwd=ROOT).returncode:
            failed.append(name)
    print(f"failed: {', '.join(failed)}" if failed else "test-trainers: ok")
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
