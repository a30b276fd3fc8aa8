"""The launcher: the documented command lines, config files, accelerate, musubi-tuner, clear errors."""

from __future__ import annotations

import json
import os
import re
import runpy
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from automagic_cameamp import OPTIMIZERS
from automagic_cameamp.kohya import launch
from automagic_cameamp.kohya.config_file import LauncherError
from automagic_cameamp.kohya.rewrite import rewrite

from .conftest import FAKES

ROOT = Path(__file__).resolve().parents[2]
BARE = "Automagic_CameAMP_Improved_8Bit"
DOCUMENT = ROOT.parent / "shared" / "documents" / "003_329e73a4bc79002d.txt"

pytestmark = pytest.mark.usefixtures("no_bitsandbytes")


def test_documented_line(launched: Any, capsys: pytest.CaptureFixture[str]) -> None:
    line = f"--optimizer_type={BARE} --optimizer_args profile=memory_optimized lr=1e-4"
    result = launched(*line.split(), "--network_module=networks.lora")
    assert result["class"] == BARE and result["moved"]
    assert result["lr"] == [1e-4] and result["learning_rate"] == 1e-4
    assert result["config"]["profile"] == "memory_optimized" and result["config"]["lr"] == 1e-4
    assert result["ss_optimizer"] == f"automagic_cameamp.optimizers.{BARE}(profile=memory_optimized)"
    said = capsys.readouterr().err
    assert said.count("lr=1e-4 is given as --learning_rate=1e-4") == 1


@pytest.mark.parametrize("name", sorted(OPTIMIZERS))
@pytest.mark.parametrize("module", ["", "automagic_cameamp."])
def test_every_class_by_every_name(launched: Any, module: str, name: str) -> None:
    result = launched(f"--optimizer_type={module}{name}", "--optimizer_args", "lr=1e-3", "warmup_steps=4")
    assert (result["class"], result["lr"], result["moved"]) == (name, [1e-3], True)


@pytest.mark.parametrize(
    "name",
    [
        "automagic_cameamp_improved_8bit.Automagic_CameAMP_Improved_8Bit",
        "library.automagic_cameamp_improved_8bit.Automagic_CameAMP_Improved_8Bit",
        "automagic_cameamp_improved_8bit".replace("_8bit", "_q8"),
        "AUTOMAGIC_CAMEAMP_IMPROVED_8BIT",
        "automagic_cameamp.balanced.Automagic_CameAMP_Improved_8Bit",
    ],
)
def test_other_spellings(launched: Any, name: str) -> None:
    if name == "automagic_cameamp_improved_q8":
        name = "Automagic_CameAMP_Improved_Q8"
    result = launched("--optimizer_type", name)
    assert result["class"] == BARE
    assert result["config"].get("profile") == ("balanced" if "balanced" in name else None)


def test_options_are_literals(launched: Any) -> None:
    words = ["edge_penalty=0.15", "verbose=true", "betas=0.9,0.99", "clip_threshold=inf", "final_clip=none"]
    result = launched("--optimizer_args", *words, f"--optimizer_type={BARE}")
    assert result["config"]["edge_penalty"] == 0.15 and result["config"]["verbose"] is True
    assert result["config"]["clip_threshold"] == float("inf")


def test_explicit_learning_rate_wins_and_is_said_once(
    launched: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    result = launched("--optimizer_type", BARE, "--optimizer_args", "lr=1e-4", "--learning_rate", "3e-4")
    assert result["lr"] == [3e-4]
    assert capsys.readouterr().err.count("--learning_rate=3e-4 wins over lr=1e-4") == 1


def test_unet_lr_stays_the_groups_own(launched: Any) -> None:
    result = launched("--optimizer_type", BARE, "--optimizer_args", "lr=1e-4", "--unet_lr=5e-5")
    assert (result["lr"], result["learning_rate"]) == ([5e-5], 1e-4)


def test_without_any_rate_the_trainer_decides(launched: Any) -> None:
    assert launched("--optimizer_type", BARE)["lr"] == [2e-6]


def test_other_optimizers_are_left_alone() -> None:
    for line in (
        "--optimizer_type AdamW8bit --optimizer_args lr=1 a=b=c",
        "--optimizer_type=pkg.Automagic_CameAMP --optimizer_args profile=x",
        "--optimizer_args profile=x",
        "--max_train_steps 3",
    ):
        assert rewrite(line.split()) == (line.split(), [])


def test_only_what_concerns_us_is_changed() -> None:
    line = f"--a 1 --optimizer_type {BARE} --b -2 --optimizer_args profile=balanced -3 --c= --flag"
    args, _ = rewrite(line.replace(" -3", "").split())
    assert args[:6] == ["--a", "1", "--b", "-2", "--c=", "--flag"]
    assert args[6:] == [
        "--optimizer_type=Automagic_CameAMP_Improved_Q8",
        "--optimizer_args",
        "profile='balanced'",
    ]


def test_abbreviations_of_argparse() -> None:
    args, _ = rewrite(["--optimizer_ty", BARE, "--optimizer_arg", "profile=balanced"])
    assert args[-1] == "profile='balanced'"


def test_sys_path_and_argv_are_the_scripts(launched: Any, checkout: Path) -> None:
    result = launched("--optimizer_type", BARE)
    assert result["path0"] == str(checkout) and result["argv"][0] == "train_network.py"


# ------------------------------------------------------------------------------------------ config file


def config(tmp_path: Path, text: str) -> str:
    path = tmp_path / "run.toml"
    path.write_text(text, encoding="utf-8")
    return str(path)


def test_everything_in_the_config_file(launched: Any, tmp_path: Path) -> None:
    text = (
        f'[training]\noptimizer_type = "{BARE}"\n[more]\noptimizer_args = ["profile=balanced", "lr=2e-4"]\n'
    )
    result = launched("--config_file", config(tmp_path, text))
    assert (result["config"]["profile"], result["lr"]) == ("balanced", [2e-4])


def test_config_file_without_its_ending_and_args_as_text(launched: Any, tmp_path: Path) -> None:
    text = f'optimizer_type = "{BARE}"\noptimizer_args = "profile=balanced edge_penalty=0.2"\n'
    result = launched("--config_file=" + config(tmp_path, text).removesuffix(".toml"))
    assert (result["config"]["profile"], result["config"]["edge_penalty"]) == ("balanced", 0.2)


@pytest.mark.parametrize(
    ("file", "words", "rate"),
    [
        ('optimizer_args = ["lr=1e-4"]\nlearning_rate = 3e-4', [], 3e-4),
        ('optimizer_args = ["lr=1e-4"]', ["--learning_rate=5e-4"], 5e-4),
        ('optimizer_args = ["lr=1e-4"]', ["--optimizer_args", "lr=6e-4"], 6e-4),
        ("learning_rate = 3e-4", ["--optimizer_args", "lr=6e-4"], 6e-4),
        ("learning_rate = 3e-4", [], 3e-4),
        ('optimizer_args = ["lr=1e-4"]', ["--optimizer_args", "warmup_steps=3"], 2e-6),
    ],
)
def test_which_rate_wins(launched: Any, tmp_path: Path, file: str, words: list[str], rate: float) -> None:
    text = f'optimizer_type = "{BARE}"\n{file}\n'
    assert launched("--config_file", config(tmp_path, text), *words)["lr"] == [rate]


def test_command_line_type_over_the_files(launched: Any, tmp_path: Path) -> None:
    path = config(tmp_path, 'optimizer_type = "AdamW"\noptimizer_args = ["warmup_steps=7"]\n')
    result = launched("--config_file", path, "--optimizer_type", BARE)
    assert (result["class"], result["config"]["warmup_steps"]) == (BARE, 7)


# ------------------------------------------------------------------------------- the document, literally


def documented_lines() -> list[list[str]]:
    """Command lines of document 003: continuation lines joined, comments and the trailing "..." dropped."""
    text = DOCUMENT.read_text("utf-8")
    rows = []
    for body in re.findall(r"^```bash\n(.*?)^```", text, re.M | re.S):
        for line in re.sub(r"\\\n", " ", body).splitlines():
            words = [w for w in shlex.split(line, comments=True) if w != "..."]
            if words:
                rows.append(words)
    return rows


@pytest.mark.skipif(not DOCUMENT.is_file(), reason="the document is not beside this checkout")
def test_every_command_line_of_the_document(launched: Any) -> None:
    rows = documented_lines()
    assert len(rows) == 11
    for words in rows:
        script = words[1] if words[0] == "python" else "train_network.py"
        args = [w for w in words if w not in ("python", script)]
        if not any(w.startswith("--optimizer_type") for w in args):
            args.insert(0, f"--optimizer_type={BARE}")  # the line that only explains optimizer_args
        result = launched(*args, script=script)
        wanted = dict(w.split("=") for w in args if "=" in w and not w.startswith("--"))
        assert result["class"] == BARE and result["moved"], words
        assert result["lr"] == [float(wanted.pop("lr", 2e-6))], words
        for name, value in wanted.items():
            assert str(result["config"][name]).lower() in (value.lower(), str(float_or(value))), words


def float_or(text: str) -> Any:
    try:
        return float(text)
    except ValueError:
        return text


# --------------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ([], "name a training script"),
        (["--optimizer_type=x"], "name a training script"),
        (["-m"], "name a module after -m"),
        (["-m", "no.such.module"], "no module no.such.module"),
        (["nowhere.py"], "there is no script nowhere.py"),
        (["library"], "is a folder"),
        (["train_network.py", "--optimizer_type=Automagic_CameAMP_Improved_8Bits"], "no such class"),
        (["train_network.py", "--optimizer_type=automagic_cameamp.Nope"], "no such class"),
        (["train_network.py", "--optimizer_type"], "--optimizer_type needs a value"),
        (["train_network.py", "--config_file", "nowhere.toml"], "there is no file nowhere.toml"),
        (["train_network.py", "T", "edge_penalty"], "must be written key=value"),
        (["train_network.py", "T", "betas=0.9,", "0.99"], "'0.99' must be written key=value"),
        (["train_network.py", "T", "profile=a=b"], "may not contain '='"),
        (["train_network.py", "T", "lr=fast"], "lr=fast: it must be a number"),
        (["train_network.py", "T", "edge_penalty=1", "edge_penalty=2"], "given twice"),
        (["train_network.py", "T", "edge_penality=1"], "Did you mean 'edge_penalty'"),
        (["train_network.py", "T", "profile=Balanced"], "Did you mean 'balanced'"),
        (["train_network.py", "T", "edge_penalty=2", "--fused_backward_pass"], "written for Adafactor"),
        (
            ["train_network.py", "--optimizer_type=automagic_cameamp.balanced.Automagic_CameAMP"],
            "has no such profile",
        ),
    ],
)
def test_mistakes_are_one_line_before_anything_runs(
    checkout: Path, capsys: pytest.CaptureFixture[str], args: list[str], message: str
) -> None:
    full = [
        a for arg in args for a in ([f"--optimizer_type={BARE}", "--optimizer_args"] if arg == "T" else [arg])
    ]
    assert launch.main(full) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert "library" not in sys.modules


def test_fused_backward_in_the_file_and_bad_toml(checkout: Path, tmp_path: Path) -> None:
    path = config(tmp_path, "fused_backward_pass = true\n")
    with pytest.raises(LauncherError, match="Adafactor"):
        rewrite(["--optimizer_type", BARE, "--config_file", path])
    with pytest.raises(LauncherError, match="not readable as TOML"):
        rewrite(["--optimizer_type", BARE, "--config_file", config(tmp_path, "a = = 1\n")])
    with pytest.raises(LauncherError, match="list of texts"):
        path = config(tmp_path, f'optimizer_type = "{BARE}"\noptimizer_args = [1, 2]\n')
        rewrite(["--config_file", path])


def test_help_and_show(checkout: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert launch.main(["--help"]) == 0
    assert capsys.readouterr().out.startswith("usage: python -m automagic_cameamp.kohya")
    line = f"--show train_network.py --optimizer_type={BARE} --optimizer_args profile=balanced lr=1e-4"
    assert launch.main(line.split()) == 0
    shown = shlex.split(capsys.readouterr().out)
    assert shown[0] == "train_network.py" and shown[-2:] == ["profile='balanced'", "--learning_rate=1e-4"]


def test_the_scripts_own_exit_is_kept(checkout: Path) -> None:
    with pytest.raises(SystemExit) as stop:
        launch.main(["train_network.py", "--no_such_option"])
    assert stop.value.code == 2


# ---------------------------------------------------------------------------------------- musubi-tuner


def musubi(*args: str) -> dict[str, Any]:
    code = launch.main(list(args))
    assert code == 0
    return json.loads((Path(args[-1]) / "out.json").read_text("utf-8"))


def test_musubi_refuses_without_us_what_works_with_us(
    checkout: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = str(FAKES / "musubi" / "fake_musubi_train.py")
    words = [
        "--optimizer_type",
        "automagic_cameamp.Automagic_CameAMP_Improved",
        "--output_dir",
        str(tmp_path),
    ]
    monkeypatch.setattr(sys, "argv", [script, *words, "--optimizer_args", "lr_mask_rule=none"])
    with pytest.raises(ValueError, match="malformed"):
        runpy.run_path(script, run_name="__main__")
    line = f"--optimizer_type {BARE} --optimizer_args profile=balanced lr=1e-4 --output_dir"
    result = musubi(script, *line.split(), str(tmp_path))
    assert (result["lr"], result["moved"]) == ([1e-4], True)


def test_musubi_as_a_module(checkout: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(FAKES / "musubi"))
    line = f"-m fake_musubi_train --optimizer_type {BARE} --optimizer_args lr=1e-4 --output_dir"
    assert musubi(*line.split(), str(tmp_path))["lr"] == [1e-4]


# ------------------------------------------------------------------------------------- in other processes

NO_BITSANDBYTES = "raise ImportError('hidden by the test')\n"


@pytest.mark.parametrize("way", ["python -m", "accelerate launch -m"])
def test_in_a_process_of_its_own(checkout: Path, tmp_path: Path, way: str) -> None:
    """From another folder, with the script's full path; bitsandbytes cannot be imported."""
    hidden = tmp_path / "hidden"
    hidden.mkdir()
    (hidden / "bitsandbytes.py").write_text(NO_BITSANDBYTES, encoding="utf-8")
    path = os.pathsep.join([str(hidden), str(ROOT / "src")])
    env = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "HF_HOME": str(tmp_path)}
    launcher = [sys.executable, "-m", "automagic_cameamp.kohya"]
    if way == "accelerate launch -m":
        one = "--cpu --num_processes=1 --num_machines=1 --mixed_precision=no --dynamo_backend=no"
        one += " --num_cpu_threads_per_process=1 -m automagic_cameamp.kohya"
        launcher = [sys.executable, "-m", "accelerate.commands.launch", *one.split()]
    line = f"--optimizer_type={BARE} --optimizer_args profile=quality_optimized lr=8e-5"
    command = [*launcher, str(checkout / "train_network.py"), *line.split(), "--output_dir", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=env, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "out.json").read_text("utf-8"))
    assert (result["class"], result["lr"]) == (BARE, [8e-5])
    assert result["config"]["profile"] == "quality_optimized" and result["path0"] == str(checkout)
    assert "lr=8e-5 is given as --learning_rate=8e-5" in done.stderr


def test_behind_the_arguments_of_accelerate(
    checkout: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """kohya_ss' GUI puts its own arguments of accelerate behind the extra ones, and so before the script."""
    for name in ("CUDA_VISIBLE_DEVICES", "ACCELERATE_MIXED_PRECISION"):
        monkeypatch.setenv(name, "?")
    threads: list[int] = []
    monkeypatch.setattr(torch, "set_num_threads", threads.append)
    gui = "--gpu_ids 0 --mixed_precision bf16 --num_processes 1 --num_machines=1 "
    gui += "--num_cpu_threads_per_process 2"
    argv = [*gui.split(), "train_network.py", f"--optimizer_type={BARE}", "--output_dir", str(tmp_path)]
    assert launch.main(argv) == 0
    assert (tmp_path / "out.json").is_file()
    assert [os.environ[n] for n in ("CUDA_VISIBLE_DEVICES", "ACCELERATE_MIXED_PRECISION")] == ["0", "bf16"]
    assert threads[0] == 2


@pytest.mark.parametrize("words", ["--multi_gpu", "--num_processes 2", "--num_machines=3"])
def test_more_processes_than_the_launcher_can_start(
    checkout: Path, capsys: pytest.CaptureFixture[str], words: str
) -> None:
    assert launch.main([*words.split(), "train_network.py"]) == 2
    assert "accelerate does not see it" in capsys.readouterr().err
