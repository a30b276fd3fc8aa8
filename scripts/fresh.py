"""Runs every command of README and of the documentation in a fresh clone, and says how long each took.

    python scripts/fresh.py fresh                     # all; an hour on two cores, gigabytes of packages
    python scripts/fresh.py fresh --page docs/recipes.md README.md
    python scripts/fresh.py fresh --only kohya        # commands with this word
    python scripts/fresh.py fresh --list

In the folder: a clone of what is committed, and an empty environment in which `pip install` runs.
Placeholders are filled (PLACES), commands of sd-scripts are shown instead of started, and what is not run
says why (NOT). The rows go to rows.jsonl in the folder, the table to the terminal: seconds, and processors'.
Committed are those of the last whole run, benchmarks/results/commands.jsonl: add what is new or changed.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import resource
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
PAGES = ["README.md", "trainer/README.md", "CONTRIBUTING.md", "examples/trainers/README.md"]
PAGES += [
    f"docs/{name}.md" for name in ("guide", "recipes", "trainers", "checkpoints", "doctor", "releasing")
]
BLOCK = re.compile(r"```bash\n(.*?)```", re.S)
# What stands in for a reader's own files, made by `prepare`.
PLACES = {
    "my_model/transformer": "my_model",
    "path/to/ai-toolkit": "ai-toolkit",
    "path/to/sd-scripts": "sd-scripts",
}
NOT = {
    "make test": "the suite's time is in testing.md",
    "make dist": "see releasing.md: it is a release's own check",
    'make dist ARGS="--torch 2.6.0 newest"': "the same",
}


def commands(page: str) -> list[str]:
    """The command lines of a page's bash blocks, without comments."""
    lines = "\n".join(BLOCK.findall((ROOT / page).read_text("utf-8"))).splitlines()
    return [
        bare for line in lines if (bare := re.sub(r"\s+#.*", "", line).strip()) and not bare.startswith("#")
    ]


def filled(command: str) -> str:
    """As it is run here."""
    for written, here in PLACES.items():
        command = command.replace(written, here)
    return re.sub(r"(-m automagic_cameamp\.kohya) (?!--show)", r"\1 --show ", command)


def prepare(folder: Path) -> Path:
    """Clone, environment, and what stands in for a reader's files."""
    clone = folder / "clone"
    if not clone.exists():
        subprocess.run(["git", "clone", "--quiet", str(ROOT), str(clone)], check=True)
        subprocess.run([sys.executable, "-m", "venv", str(folder / "env")], check=True)
        (clone / "my_model").mkdir()
        models = json.loads((ROOT / "src" / "automagic_cameamp" / "fit" / "models.json").read_text("utf-8"))
        config = {"_class_name": models["sdxl"]["cls"], **models["sdxl"]["config"]}
        (clone / "my_model" / "config.json").write_text(json.dumps(config), "utf-8")
        for name in ("ai-toolkit/extensions", "ai-toolkit/toolkit", "sd-scripts/library"):
            (clone / name).mkdir(parents=True)
        (clone / "ai-toolkit" / "toolkit" / "optimizer.py").touch()
        for name in ("train_network", "sdxl_train_network", "flux_train_network", "train_db", "sdxl_train"):
            (clone / "sd-scripts" / f"{name}.py").touch()
    return clone


def pictures(clone: Path, python: Path) -> None:
    """Nine pictures with captions, as a reader's folder."""
    if (clone / "my_pictures").exists():
        return
    code = (
        "from automagic_trainer.data import load_shipped; from PIL import Image; from pathlib import Path\n"
        "out = Path('my_pictures'); out.mkdir(); data = load_shipped('cats')\n"
        "for i, (picture, words) in enumerate(zip(data.pictures, data.captions)):\n"
        "    Image.fromarray(picture).save(out / f'{i}.png'); (out / f'{i}.txt').write_text(words)\n"
    )
    subprocess.run([str(python), "-c", code], check=True, cwd=clone)


def run(command: str, clone: Path, env: dict[str, str], limit: float) -> tuple[int, float, str]:
    """Exit code, seconds, last line; a server is stopped once it serves."""
    started = time.perf_counter()
    serves = "--serve" in command
    log = Path(tempfile.gettempdir()) / f"fresh-{os.getpid()}.log"
    with log.open("w") as sink:
        process = subprocess.Popen(
            ["bash", "-c", command],
            cwd=clone,
            env=env,
            stdout=sink,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        while process.poll() is None and time.perf_counter() - started < limit:
            time.sleep(0.2)
            if serves and "http://127.0.0.1" in log.read_text("utf-8", "replace"):
                os.killpg(process.pid, signal.SIGTERM)
                process.wait()
                return 0, time.perf_counter() - started, "served"
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            return 124, time.perf_counter() - started, "too long"
    lines = [line for line in log.read_text("utf-8", "replace").splitlines() if line.strip()]
    return process.returncode, time.perf_counter() - started, lines[-1].strip() if lines else ""


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def main() -> int:
    """Run them; 1 where one failed."""
    layout = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=layout)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--page", nargs="*", default=PAGES)
    parser.add_argument("--only", default="", metavar="WORD", help="commands that have it")
    parser.add_argument("--list", action="store_true", help="print the commands and stop")
    parser.add_argument("--limit", type=float, default=1800, help="seconds for one command")
    given = parser.parse_args()
    if given.list:
        for page in given.page:
            print(page, *commands(page), sep="\n    ")
        return 0
    given.folder.mkdir(parents=True, exist_ok=True)
    folder = given.folder.resolve()
    clone, bin = prepare(folder), folder / "env" / "bin"
    env = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV")}
    env["PATH"] = f"{bin}{os.pathsep}{env['PATH']}"
    commit = ["git", "-C", str(clone), "rev-parse", "--short=12", "HEAD"]
    about = {
        "bench": "commands",
        "commit": subprocess.run(commit, check=True, capture_output=True, text=True).stdout.strip(),
        "cpu": _processor(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
    }
    seen: set[str] = set()
    failed = 0
    for page in given.page:
        for command in commands(page):
            if command in seen or given.only not in command:
                continue
            seen.add(command)
            if command in NOT:
                row: dict[str, Any] = {"page": page, "command": command, "not run": NOT[command]}
            else:
                if "my_pictures" in command:
                    pictures(clone, bin / "python")
                if " train " in command and "--resume" not in command:
                    subprocess.run(["rm", "-rf", str(clone / "runs" / "train")], check=True)
                before = resource.getrusage(resource.RUSAGE_CHILDREN)
                # Those commands are meant for a checkout of sd-scripts.
                place = clone / "sd-scripts" if "automagic_cameamp.kohya" in command else clone
                rc, seconds, last = run(filled(command), place, env, given.limit)
                after = resource.getrusage(resource.RUSAGE_CHILDREN)
                cpu = after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime
                failed += rc != 0
                row = {
                    "page": page,
                    "command": command,
                    "rc": rc,
                    "seconds": round(seconds, 1),
                    "processor_seconds": round(cpu, 1),
                    "last": last.replace(f"{folder}/", "")[:200],
                }
            row |= about | {"date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())}
            with (folder / "rows.jsonl").open("a", encoding="utf-8") as sink:
                sink.write(json.dumps(row) + "\n")
            print(
                f"| `{command}` | {row.get('seconds', '')} | {row.get('not run', row.get('rc'))} |",
                flush=True,
            )
    print(f"fresh: {failed} failed" if failed else "fresh: ok")
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
