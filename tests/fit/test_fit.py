"""`automagic fit`: what is counted is what is allocated; questions are checked; commands can be run."""

from __future__ import annotations

import json
import math
import re
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from benchmarks.common import FAMILY, read_rows
from benchmarks.meters import OpMeter
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from automagic_cameamp import cli
from automagic_cameamp.fit import (
    FitError,
    adapters,
    candidates,
    fit,
    known,
    markdown,
    models,
    picture,
    show,
    text,
    trace,
)
from automagic_cameamp.fit.commands import command
from automagic_cameamp.fit.meter import Meter
from automagic_cameamp.fit.trace import Trained
from benchmarks import fit_check

diffusers = pytest.importorskip("diffusers")
pytest.importorskip("transformers")
pytestmark = pytest.mark.filterwarnings("ignore")  # of diffusers and transformers

SHAPES = [(64, 96), (16, 320), (320, 16), (8, 8), (96,), (32, 16, 3, 3), (128, 128)]
LLAMA = {**fit_check.LLAMA, "num_hidden_layers": 2, "hidden_size": 64, "vocab_size": 128}


@pytest.fixture
def llama(tmp_path: Path) -> str:
    path = tmp_path / "config.json"
    path.write_text(json.dumps(LLAMA), "utf-8")
    return str(path)


# -------------------------------------------------------------------------------------------------- counting


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(64, 256), nn.Linear(256, 64)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(torch.nn.functional.gelu(self.first(x)))


def loss(net: nn.Module) -> torch.Tensor:
    return net(torch.ones(32, 64)).square().mean()


def test_a_trace_is_what_a_real_step_allocates() -> None:
    found = trace(Net, loss)
    net = Net()
    assert found.weights == found.gradients == sum(4 * p.numel() for p in net.parameters())
    with OpMeter() as meter:  # another meter: by addresses of real memory
        loss(net).backward()
    assert found.together == pytest.approx(meter.peak, rel=0.02)
    assert sum(t.bytes for t in found.trained) == found.gradients
    assert sum(n for _, n in found.arrivals) == sum(p.numel() for p in net.parameters())


def test_a_view_counts_once_and_what_is_gone_not_at_all() -> None:
    with Meter() as meter:
        x = torch.ones(100)
        y = x[10:20]
        assert meter.live == 400
        del x
        assert meter.live == 400
        del y
    assert meter.live == 0 and meter.peak == 400


def test_checkpointing_lowers_and_gradients_raise(llama: str) -> None:
    kept, again = (
        fit(llama, train="full", checkpointing=on, optimizers=("AdamW",)).trace for on in (False, True)
    )
    assert again.activations < kept.activations
    assert again.gradients == kept.gradients and again.together <= kept.together


def test_nothing_is_allocated_for_a_large_model() -> None:
    spec = known()["flux"]
    with FakeTensorMode():
        net = models.build(spec, torch.bfloat16)
    assert sum(p.numel() for p in net.parameters()) == 11_901_408_320


def test_a_wrong_published_number_is_noticed() -> None:
    from dataclasses import replace

    wrong = replace(
        known()["sd15"],
        parameters=1,
        config={**known()["sd15"].config, "block_out_channels": [32, 64, 64, 64]},
    )
    with FakeTensorMode(), pytest.raises(FitError, match="in place of the published 1"):
        models.build(wrong, torch.float32)


@pytest.mark.parametrize(
    "case", [fit_check.CASES[9], fit_check.CASES[11]], ids=lambda c: f"{c.model} {c.way}"
)
def test_said_is_found(case: fit_check.Case, tmp_path: Path) -> None:
    """Within five per cent of the allocator's own events; all cases are committed rows."""
    path = tmp_path / "config.json"
    path.write_text(json.dumps(fit_check.MODELS[case.model]), "utf-8")
    assert fit_check.said(case, path).peak == pytest.approx(
        sum(fit_check.found(case, path).values()), rel=0.05
    )


def test_committed_rows_are_within_five_per_cent() -> None:
    rows = read_rows(fit_check.RESULTS / "fit_check.jsonl")
    assert len({(r["model"], r["optimizer"]) for r in rows}) >= 6
    for r in rows:
        assert r["said"] == pytest.approx(r["weights"] + r["state"] + r["beside"], rel=0.05), r


# ------------------------------------------------------------------------------------------------- optimizers


def held(optimizer: torch.optim.Optimizer, but: tuple[str, ...]) -> int:
    """Bytes of all tensors in the state after a step."""
    for group in optimizer.param_groups:
        for p in group["params"]:
            p.grad = torch.linspace(-1, 1, p.numel()).view(p.shape).to(p.dtype)
    optimizer.step()
    entries = [(key, v) for state in optimizer.state.values() for key, v in state.items()]
    return sum(v.nbytes for key, v in entries if isinstance(v, torch.Tensor) and key not in but)


OTHERS = {
    "AdamW": ("torch.optim", "AdamW", {}),
    "AdamW8bit": ("bitsandbytes.optim", "AdamW8bit", {}),
    "Adafactor": ("transformers", "Adafactor", {"relative_step": False, "scale_parameter": False}),
    "Prodigy": ("prodigyopt", "Prodigy", {}),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", candidates.OTHERS)
def test_state_of_the_others_is_what_they_hold(name: str, dtype: torch.dtype) -> None:
    module, cls, options = OTHERS[name]
    library = pytest.importorskip(module)
    params = [nn.Parameter(torch.full(s, 0.02, dtype=dtype)) for s in SHAPES]
    # A count lies on the host; tables of a code are one per device.
    real = held(getattr(library, cls)(params, lr=1e-3, **options), ("step", "qmap1", "qmap2"))
    assert candidates.cost(candidates.Candidate(name), [Trained("", s, dtype) for s in SHAPES]).state == real


@pytest.mark.parametrize(
    "text_",
    [
        "Automagic_CameAMP8bit",
        "Automagic_CameAMP8bit:profile=minimal",
        FAMILY[-1],
        "Automagic_CameAMP:master_weight_bits=24",
    ],
)
def test_state_of_ours_is_what_they_hold(text_: str) -> None:
    one = candidates.parse(text_)
    params = [nn.Parameter(torch.full(s, 0.02, dtype=torch.bfloat16)) for s in SHAPES]
    optimizer = candidates._build(one, params, engine="reference")
    planned = candidates.cost(one, [Trained(f"w{i}", s, torch.bfloat16) for i, s in enumerate(SHAPES)])
    assert planned.state == held(optimizer, ("c_optim",))


def test_everyone_is_there() -> None:
    labels = [one.label for one in candidates.everyone()]
    assert len(labels) == len(set(labels)) == len(FAMILY) + 4 + len(candidates.OTHERS)


# -------------------------------------------------------------------------------------------------- answers


def test_ways(llama: str) -> None:
    answer = fit(llama, train="full", gpu=24)
    rows = {(r.optimizer, r.way): r for r in answer.rows}
    eight = [rows["Automagic_CameAMP8bit", way] for way in candidates.WAYS]
    plain, release, offload, both = eight
    assert plain.host == release.host == 0 < both.host < offload.host
    assert release.gradients < plain.gradients == answer.trace.gradients
    assert offload.state == both.state == 0 < plain.state == release.state
    assert both.peak == min(r.peak for r in eight)
    largest = max(t.bytes for t in answer.trace.trained)
    assert largest < both.gradients < 1.02 * largest + answer.trace.gradients / 99
    assert all(r.fits for r in eight)
    assert ("AdamW", "release") not in rows and ("Adafactor", "release") in rows
    assert len(answer.best()) == len(candidates.everyone())
    accumulated = fit(llama, train="full", accumulation=2, optimizers=("Automagic_CameAMP8bit",))
    *others, added = accumulated.rows
    assert all(r.gradients == answer.trace.gradients for r in others)
    assert added.gradients == both.gradients and added.host >= both.host + answer.trace.gradients


def test_a_small_card_or_host_does_not_fit(llama: str) -> None:
    tight = fit(llama, train="full", gpu=0.5)
    assert tight.recommended() is None
    assert "Nothing fits" in text(tight)
    poor = fit(llama, train="full", gpu=24, host=4, optimizers=("Automagic_CameAMP8bit",))
    assert {r.way: r.fits for r in poor.rows}["offload"] is False
    assert poor.recommended() is not None, "what needs nothing of the host fits"


def test_it_is_said_which_memory_lacks(llama: str) -> None:
    answer = fit(llama, train="full", gpu=24, optimizers=("Automagic_CameAMP8bit",))
    (row,) = (r for r in answer.rows if r.way == "offload")
    for gpu, host, words in (
        (24.0, 4.0, r"offload has room on the card, and wants \d\.\d\d GiB of host memory.*--host says 4"),
        (0.5, 4.0, r"least is Automagic_CameAMP8bit, offload: \d\.\d\d GiB\. Try --train lora"),
        (0.5, None, r"least is .*Try --train lora"),
    ):
        asked = replace(answer.question, gpu=gpu, host=host)
        said = text(answer._replace(question=asked, rows=(row._replace(fits=False),)))
        assert re.search(f"Nothing fits[:;] .*{words}", said), said


@pytest.mark.parametrize("base", ["", "fp8", "nf4"])
@pytest.mark.parametrize("train", ["lora", "lokr"])
def test_adapters(llama: str, train: str, base: str) -> None:
    answer = fit(
        llama,
        train=train,
        base=base,
        rank=4 if train == "lora" else None,
        trained="bf16",
        checkpointing=False,
        optimizers=("AdamW",),
    )
    layers = 2 * 7
    assert len(answer.trace.trained) == 2 * layers
    whole = fit(llama, train="full", optimizers=("AdamW",)).trace.weights
    assert answer.trace.weights - answer.trace.gradients < whole * (0.8 if base else 1.01)
    parts = {t.name.rpartition(".")[2] for t in answer.trace.trained}
    assert parts == ({"lora_up", "lora_down"} if train == "lora" else {"lokr_w1", "lokr_w2"})


def test_an_adapted_layer_computes_what_it_says() -> None:
    torch.manual_seed(0)
    for layer, x in ((nn.Linear(16, 8), torch.randn(3, 16)), (nn.Conv2d(16, 8, 1), torch.randn(2, 16, 4, 4))):
        for kind in ("lora", "lokr"):
            one = adapters.Adapted(layer, kind, 4, torch.float32, "")
            torch.testing.assert_close(one(x), layer(x))


def test_blocks_wait_on_the_host(llama: str) -> None:
    config = {**LLAMA, "num_hidden_layers": 6}
    Path(llama).write_text(json.dumps(config), "utf-8")
    all_here, away = (fit(llama, swap=n, optimizers=("AdamW",)).rows[0] for n in (0, 4))
    assert away.host > 0 and all_here.weights - away.weights == away.host
    with pytest.raises(FitError, match="swap=5 .* at most 4 of these blocks; two of a list have to stay"):
        fit(llama, swap=5, optimizers=("AdamW",))
    assert {r.way for r in fit(llama, train="full", swap=4, optimizers=("Automagic_CameAMP8bit",)).rows} == {
        "release",
        "release+offload",
    }


@pytest.mark.parametrize(
    ("options", "what"),
    [
        ({"train": "loro"}, "train='loro' .* did you mean lora"),
        ({"weights": "int3"}, "weights='int3' .* bf16, fp16, fp32"),
        ({"compute": "x"}, "compute='x'"),
        ({"batch": 0}, "batch=0 .* at least 1"),
        ({"gpu": float("nan")}, "gpu=nan"),
        ({"gpu": float("inf")}, "gpu=inf .* finite"),
        ({"host": -4.0}, "host=-4.0"),
        ({"host": float("nan")}, "host=nan"),
        ({"tokens": 0}, "tokens=0 .* at least 1"),
        ({"resolution": 512}, "resolution=512 .* draws no pictures"),
        ({"resolution": 7}, "resolution=7 .* draws no pictures"),
        ({"batch": 10**15}, "batch, resolution, frames or tokens are far too large"),
        ({"frames": 5}, "frames=5 .* makes no videos"),
        ({"train": "full", "base": "nf4"}, "base='nf4' .* not allowed with train='full'"),
        ({"train": "full", "rank": 8}, "rank=8 .* train='full', where it has no effect"),
        ({"train": "lora", "factor": 8}, "factor=8 .* train='lora'"),
        ({"train": "full", "trained": "bf16"}, "trained='bf16' .* train='full'"),
        ({"rank": 0}, "rank=0 .* at least 1"),
        ({"optimizers": ("Adam",)}, "optimizer='Adam' is not known"),
        ({"optimizers": ("Automagic_CameAMP:zzz=1",)}, "optimizer Automagic_CameAMP zzz=1: .*zzz"),
        ({"optimizers": ("AdamW:fused=true",)}, "with its defaults only"),
        ({"optimizers": ("Automagic_CameAMP8bit:profile=tiny",)}, "profile='tiny' .* there are"),
        ({"model": "sdx"}, "model='sdx' is neither .* sdxl"),
        ({"model": "sdxl", "resolution": 1000}, "resolution=1000 .* multiples of 64"),
        ({"model": "wan21-1.3b", "frames": 16}, "frames=16"),
    ],
)
def test_bad_questions(options: dict[str, Any], what: str, llama: str) -> None:
    with pytest.raises(FitError, match=what):
        fit(**{"model": llama, **options})


def test_bad_configurations(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    for content, what in (
        ("{", "is not JSON"),
        ("{}", "names no class"),
        ('{"_class_name": "NoModel"}', "has no NoModel"),
    ):
        path.write_text(content, "utf-8")
        with pytest.raises(FitError, match=what):
            fit(str(path))
    with pytest.raises(FitError, match="holds no config.json"):
        fit(str(tmp_path.parent))
    path.write_text(json.dumps({"_class_name": "ControlNetModel"}), "utf-8")
    with pytest.raises(FitError, match="needs controlnet_cond"):
        fit(str(path))


@pytest.mark.parametrize(
    "config",
    [
        {"_class_name": "PixArtTransformer2DModel", "num_layers": 1, "caption_channels": 64},
        {"_class_name": "ChromaTransformer2DModel", "num_layers": 1, "num_single_layers": 1},
        {"model_type": "gemma2", "num_hidden_layers": 1, "vocab_size": 64, "pad_token_id": 0},
    ],
    ids=lambda config: next(iter(config.values())),
)
def test_configurations_of_other_classes(config: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text(json.dumps(config), "utf-8")
    answer = fit(str(path), train="full", optimizers=("AdamW",), tokens=64)
    assert answer.trace.gradients > 0 and command(answer, answer.rows[0]).startswith("import torch")


def test_a_missing_library_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "diffusers", None)
    with pytest.raises(FitError, match=r"needs diffusers .*pip install \"automagic-cameamp\[fit\]\""):
        fit("sd15")


def test_a_model_that_looks_at_values_is_an_error_that_says_so() -> None:
    with pytest.raises(FitError, match="does not run on fake tensors"):
        trace(Net, lambda net: loss(net) if loss(net).item() > 0 else loss(net))
    with pytest.raises(FitError, match="nothing to train"):
        trace(lambda: Net().requires_grad_(False), loss)


# ---------------------------------------------------------------------------------------------- the command


def test_the_command(
    llama: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    base = ["fit", "--model", llama, "--train", "full", "--gpu", "8", "--tokens", "64"]
    image = tmp_path / "fit.png"
    assert cli.main([*base, "--picture", str(image)]) == 0
    out = capsys.readouterr().out
    assert "Automagic_CameAMP8bit" in out and "checkpointing on" in out and "98% of 8 GiB" in out
    assert image.read_bytes()[:4] == b"\x89PNG"
    assert cli.main([*base, "--json", "--optimizers", "AdamW", "automagic_cameamp8bit"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert {row["optimizer"] for row in found["rows"]} == {"AdamW", "Automagic_CameAMP8bit"}
    assert all(row["command"] and row["peak"] > 0 for row in found["rows"])
    assert found["recommended"]["optimizer"] == "Automagic_CameAMP8bit"
    assert cli.main(["fit", "--list"]) == 0
    assert "FLUX.1-dev" in capsys.readouterr().out
    assert cli.main(["fit"]) == 2 and "--model" in capsys.readouterr().err
    assert cli.main([*base, "--batch", "0"]) == 2
    assert capsys.readouterr().err.startswith("automagic fit: batch=0")
    assert cli.main([*base, "--picture", str(tmp_path / "none" / "x.png")]) == 2
    assert "no folder" in capsys.readouterr().err
    with monkeypatch.context() as patch:
        patch.setattr("automagic_cameamp.fit.answer.fit", None)  # nothing is worked out
        assert cli.main([*base, "--picture", str(tmp_path / "x.txt")]) == 2
    assert "must end in one of" in capsys.readouterr().err


def test_tables(llama: str) -> None:
    answer = fit(llama, optimizers=("AdamW", "Automagic_CameAMP8bit"))
    plain, rich = text(answer), text(answer, colour=True, every=True)
    assert "\x1b[" not in plain and "\x1b[" in rich
    assert markdown(answer.rows).count("\n") == 1 + len(answer.rows)
    picture_parts = show._parts(answer.rows[0])
    assert math.isclose(sum(picture_parts), answer.rows[0].peak / 2**30)
    assert callable(picture)
