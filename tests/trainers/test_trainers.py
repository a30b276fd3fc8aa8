"""Real training programs from the package index, each in a process of its own with the start-up hook.

`make test-trainers` builds the environments that have them all; elsewhere, what is not installed is skipped.
The programs under programs/ are written as a user writes them, and fail by their own assertions.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
SOURCES = HERE.parents[1] / "src"
# program -> packages that it needs
PROGRAMS = {
    "hf_trainer": ("transformers", "accelerate"),
    "trl_sft": ("trl", "peft", "datasets"),
    "peft_optimizers": ("peft",),
    "lightning_fit": ("lightning",),
    "diffusers_lora": ("diffusers", "peft", "accelerate"),
    "whole_accelerate": ("diffusers", "accelerate"),
    "whole_lightning": ("lightning",),
    "whole_transformers": ("transformers", "accelerate"),
    "lycoris_networks": ("lycoris",),
    "simpletuner_choice": ("simpletuner",),
    "llama_factory": ("llamafactory",),
    "pytorch_optimizer_names": ("pytorch_optimizer",),
}
# Stands in for the hook of an environment where it is not installed: the same finder, from the same file.
# The rest lets a torchvision that was built for CUDA be imported beside a torch that was not.
START = """
import importlib.util, runpy, sys
if importlib.util.find_spec("torchvision"):
    import torch
    try:
        import torchvision
    except RuntimeError:
        library = torch.library.Library("torchvision", "DEF")
        for name in ("nms", "qnms"):
            library.define(name + "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        for name in [name for name in sys.modules if name.startswith("torchvision")]:
            del sys.modules[name]
try:
    import _automagic_cameamp_hook
except ImportError:
    from automagic_cameamp.integrations import hook
    hook.watch(*hook.MODULES)
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def test_every_program_is_listed() -> None:
    assert {path.stem for path in (HERE / "programs").glob("*.py")} == PROGRAMS.keys()


@pytest.mark.parametrize("name", PROGRAMS)
def test_program(name: str, tmp_path: Path) -> None:
    missing = [package for package in PROGRAMS[name] if importlib.util.find_spec(package) is None]
    if missing:
        pytest.skip(f"needs {', '.join(missing)}: make test-trainers")
    env = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}
    path = os.pathsep.join(map(str, (SOURCES, HERE / "parts")))
    env |= {"PYTHONPATH": path, "WANDB_DISABLED": "true"}
    script = str(HERE / "programs" / f"{name}.py")
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", START, script, str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
        env=env,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
