"""What is a LoRA is found from marks, names and shapes, and stays what it was found to be."""

from __future__ import annotations

import copy
import io
import logging
import pickle
from typing import Any

import peft
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from automagic_cameamp import (
    OPTIMIZERS,
    Automagic_CameAMP,
    Automagic_CameAMP_Improved,
    mark_lora,
)
from automagic_cameamp.lora import table_of_name
from automagic_cameamp.state.pairs import low_rank

ENGINES = ["auto", "reference"]


class Adapted(nn.Module):
    """One adapter and a head that is trained beside it."""

    def __init__(self) -> None:
        super().__init__()
        self.lora_A = nn.Linear(32, 4, bias=False)
        self.lora_B = nn.Linear(4, 32, bias=False)
        self.head = nn.Linear(32, 32)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(x + self.lora_B(self.lora_A(x)))


def rates(model: Adapted, optimizer: Any) -> list[float]:
    model(torch.ones(2, 32)).square().mean().backward()
    optimizer.step()
    return [float(optimizer.state[p]["avg_lr"]) for p in model.parameters()]


def found(*groups: list[tuple[int, ...]]) -> list[list[int]]:
    return [sorted(positions) for positions in low_rank([[(s, True) for s in g] for g in groups])]


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_lost_marks_change_nothing_where_names_or_shapes_tell(name: str, engine: str) -> None:
    results = []
    for way in ("marked", "named", "shapes", "LoRA+"):
        torch.manual_seed(0)
        model = Adapted()
        if way == "marked":
            mark_lora(model)
        params: Any = model.named_parameters() if way == "named" else model.parameters()
        if way == "LoRA+":
            params = [
                {"params": [model.lora_A.weight]},
                {"params": [model.lora_B.weight]},
                {"params": list(model.head.parameters())},
            ]
        optimizer = OPTIMIZERS[name](params, lr=1e-4, engine=engine)
        results.append(rates(model, optimizer))
        report = optimizer.lora_report()
        assert (report.lora, report.parameters) == (2, 4)
        assert (report.by_mark, report.by_name, report.by_shape) == {
            "marked": (2, 0, 0), "named": (0, 2, 0), "shapes": (0, 0, 2), "LoRA+": (0, 0, 2)
        }[way]  # fmt: skip
    assert all(result == results[0] for result in results)
    head = results[0][2]
    if "Improved" not in name and "8Bit" not in name and "COptim" not in name:
        assert head == pytest.approx(1e-4, rel=1e-6)


@pytest.mark.parametrize("engine", ENGINES)
def test_a_whole_model_is_no_lora(engine: str) -> None:
    """It needs no full_finetune=True to be trained at the rate that was asked."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 32), nn.LayerNorm(32), nn.Linear(32, 16))
    for p in model.parameters():
        p.data.mul_(0.01)  # ALLoRA would double the rate of such rows
    optimizer = Automagic_CameAMP(model.parameters(), lr=1e-4, engine=engine)
    model(torch.randn(4, 16)).square().mean().backward()
    optimizer.step()
    for p in model.parameters():
        assert float(optimizer.state[p]["avg_lr"]) == pytest.approx(1e-4, rel=1e-5)
    assert str(optimizer.lora_report()) == "none of 6 parameters is LoRA, by mark, name or shape"


def test_a_whole_model_keeps_no_directions() -> None:
    model = nn.Linear(16, 32)
    optimizer = Automagic_CameAMP_Improved(model.parameters(), lr=1e-4, rank_keep=2)
    model(torch.randn(4, 16)).square().mean().backward()
    optimizer.step()
    assert not [key for state in optimizer.state.values() for key in state if key.startswith("lowrank")]


# ------------------------------------------------------------------------------------------------- marks


@pytest.mark.parametrize("mark", ["_is_lora_layer", "_is_lora_A", "_is_lora_B", "_is_dora_scale"])
def test_marks_of_this_and_other_libraries(mark: str) -> None:
    one, other = nn.Parameter(torch.ones(6, 8)), nn.Parameter(torch.ones(6, 8))
    setattr(one, mark, True)
    optimizer = Automagic_CameAMP([one, other], lr=1e-4)
    found = optimizer.adapters.kinds(optimizer.param_groups, False)
    assert [bool(kind) for kind in found[0]] == [True, False]


def test_a_mark_may_say_no() -> None:
    """Against a name, and against shapes."""
    model = Adapted()
    for p in (model.lora_A.weight, model.lora_B.weight):
        p._is_lora_layer = False  # type: ignore[assignment]
    for params in (model.named_parameters(), model.parameters()):
        assert Automagic_CameAMP(params, lr=1e-4).lora_report().lora == 0


def test_marks_and_names_leave_shapes_unasked() -> None:
    shapes = [(4, 32), (32, 4)] * 2
    params = [nn.Parameter(torch.zeros(s)) for s in shapes]
    assert Automagic_CameAMP(params, lr=1e-4).lora_report().lora == 4
    params[0]._is_lora_layer = True  # type: ignore[attr-defined]
    assert Automagic_CameAMP(params, lr=1e-4).lora_report().lora == 1


def test_a_mark_of_another_library_makes_a_new_plan() -> None:
    params = [nn.Parameter(torch.ones(6, 8)) for _ in range(2)]
    optimizer = Automagic_CameAMP(params, lr=1e-4)
    for mark in (None, "_is_lora_A"):
        if mark:
            setattr(params[0], mark, True)
        for p in params:
            p.grad = torch.ones_like(p)
        optimizer.step()
    assert optimizer.stepper.plans.current.table.options["allora"].tolist() == [1, 0]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("embed_tokens.weight", 1), ("model.wte.weight", 1), ("text.embeddings.token_embedding.weight", 1),
        ("pos_embed", 1), ("bert.embeddings.word_embeddings.weight", 1), ("x.label_emb.weight", 1),
        ("m.embed_tokens.modules_to_save.default.weight", 1), ("e.trainable_tokens_delta.default", 1),
        ("embed.lora_embedding_A.default", 2), ("embed.lora_embedding_B.default", 0),
        ("time_embed.0.weight", 0), ("time_embedding.linear_1.weight", 0), ("x_embedder.weight", 0),
        ("patch_embed.proj.weight", 0), ("fc.weight", 0), ("embed.lora_A.weight", 0), ("member.weight", 0),
    ],
)  # fmt: skip
def test_names_of_embeddings(name: str, expected: int) -> None:
    assert table_of_name(name) == expected


# ------------------------------------------------------------------------------------------------ shapes


@pytest.mark.parametrize(
    ("groups", "expected"),
    [
        ([[(4, 32), (32, 4), (32, 32), (32,)]], [[0, 1]]),
        ([[(32, 32), (4, 32), (32, 4)]], [[1, 2]]),
        ([[(8, 64), (64, 8)] * 3], [[0, 1, 2, 3, 4, 5]]),
        ([[(64, 8), (8, 64)] * 2], [[]]),  # could be MLPs
        ([[(640, 8), (8, 640)] * 2], [[0, 1, 2, 3]]),  # LoHa
        ([[(8, 64), (64, 8), (64,)] * 2], [[0, 1, 3, 4]]),  # DoRA's magnitude has no rows
        ([[(8, 64), (64, 8), (64, 1)] * 2], [[0, 1, 2, 3, 4, 5]]),  # unless it is a matrix
        ([[(8, 64), (8, 96)], [(64, 8), (32, 8)]], [[0, 1], [0, 1]]),  # LoRA+
        ([[(8, 64)], [(64, 8)]], [[0], [0]]),  # a group for each parameter
        ([[(8, 36), (320, 8), *[(8, 320), (320, 8)] * 8, (8, 2880), (4, 8)]], [list(range(20))]),
        ([[(8, 4, 3, 3), (32, 8, 1, 1)]], [[0, 1]]),
        ([[(1, 64), (64, 1), (64, 64)]], [[0, 1]]),
        # Whole models.
        ([[(8, 64), (8,), (64, 8), (64,)]], [[]]),  # a bottleneck
        ([[(8, 64), (64, 8)], [(8,), (64,)]], [[], []]),  # the same, split for weight decay
        ([[(8, 64, 1, 1), (64, 8, 1, 1), (64, 64, 3, 3), (64, 64, 3, 3)]], [[]]),  # squeeze and excitation
        ([[(32, 8), (8, 32)]], [[]]),  # an MLP that is wide inside
        ([[(64, 64)] * 4 + [(256, 64), (64, 256)]], [[]]),  # a small transformer
        ([[(192, 64), (64, 64), (256, 64), (64, 256)] * 4], [[]]),  # with its projections fused
        ([[(256, 512), (512, 256)]], [[]]),
        ([[(40, 64), (64, 40)]], [[]]),  # hardly low
        ([[]], [[]]),
        ([[(7,), ()]], [[]]),
    ],
)
def test_what_shapes_say(groups: Any, expected: list[list[int]]) -> None:
    assert found(*groups) == expected


@given(
    st.integers(1, 16),
    st.lists(st.tuples(st.integers(68, 400), st.integers(68, 400)), min_size=1, max_size=30),
)
def test_every_lora_is_found_in_one_group_in_two_and_in_many(rank: int, sizes: list[tuple[int, int]]) -> None:
    downs, ups = [(rank, n) for _, n in sizes], [(m, rank) for m, _ in sizes]
    plain = [shape for both in zip(downs, ups, strict=True) for shape in both]
    for groups in ([plain], [downs, ups], [[shape] for shape in plain]):
        assert sum(map(len, found(*groups))) == 2 * len(sizes)


@given(st.sampled_from([8, 16, 32, 64, 128]), st.integers(1, 8), st.sampled_from([2, 3, 4]), st.booleans())
def test_no_transformer_is_one(width: int, layers: int, wide: int, split: bool) -> None:
    block = [
        (3 * width, width),
        (width, width),
        (wide * width, width),
        (width, wide * width),
        (width,),
        (width,),
    ]
    shapes = [(1000, width), *block * layers]
    groups = [[s for s in shapes if len(s) > 1], [s for s in shapes if len(s) < 2]] if split else [shapes]
    assert not any(found(*groups))


@pytest.mark.parametrize("dora", [False, True])
@pytest.mark.parametrize("way", ["bare", "LoRA+", "decay"])
def test_peft_models_of_a_small_transformer(way: str, dora: bool) -> None:
    """Names are an oracle for the shapes."""
    layers = [nn.ModuleDict({k: nn.Linear(64, 64) for k in "qkv"}) for _ in range(3)]
    model: Any = nn.ModuleList(layers)
    model = peft.get_peft_model(model, peft.LoraConfig(r=4, target_modules=["q", "v"], use_dora=dora))
    named = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
    split = {
        "LoRA+": lambda n, p: "lora_A" in n,
        "decay": lambda n, p: p.dim() > 1,
        "bare": lambda n, p: True,
    }[way]
    groups = [[p for n, p in named if split(n, p)], [p for n, p in named if not split(n, p)]]
    optimizer = Automagic_CameAMP([{"params": g} for g in groups if g], lr=1e-4)
    report = optimizer.lora_report()
    assert report.by_shape == sum(p.dim() > 1 for _, p in named) == 12


# ------------------------------------------------------------------------------------------- what stays


IA3 = [(256, 1), (256, 1), (1, 1024)]  # keys, values, the wide side of the feed-forward
BOFT = [(1, 8, 4, 4), (32, 1)]


@pytest.mark.parametrize("layer", [IA3, BOFT, [(256, 1)], [(1, 256), (1, 1024)]])
@pytest.mark.parametrize("layers", [1, 2, 24])
def test_vectors_that_are_written_as_matrices_are_no_lora(layer: Any, layers: int) -> None:
    """PEFT's IA3 scales what passes, BOFT rotates it: no product of two grows from 0."""
    assert found(layer * layers) == [[]]


@pytest.mark.parametrize("layers", [1, 24])
def test_a_lora_of_rank_one_is_one(layers: int) -> None:
    shapes = [(1, 256), (256, 1), (1, 256), (1024, 1)] * layers
    assert found(shapes) == [list(range(len(shapes)))]
    kernels = [(1, 64, 3, 3), (64, 1, 1, 1)] * layers
    assert found(kernels) == [list(range(len(kernels)))]


def adapters(count: int) -> list[nn.Parameter]:
    draw = torch.Generator().manual_seed(0)
    return [nn.Parameter(torch.randn(s, generator=draw) * 0.1) for s in [(12, 64), (64, 12)] * count]


def step(optimizer: Any) -> None:
    for i, p in enumerate(p for g in optimizer.param_groups for p in g["params"]):
        p.grad = torch.randn(p.shape, generator=torch.Generator().manual_seed(i))
    optimizer.step()


def test_a_group_that_comes_later_flips_nothing_and_says_so() -> None:
    optimizer = Automagic_CameAMP_Improved(adapters(1), lr=1e-3, rank_keep=4)
    step(optimizer)
    keys = [set(optimizer.state[p]) for p in optimizer.param_groups[0]["params"]]
    assert all(any(key.startswith("lowrank") for key in own) for own in keys)
    optimizer.add_param_group({"params": [nn.Parameter(torch.randn(64, 64)) for _ in range(5)]})
    with pytest.warns(UserWarning, match="2 parameters of the earlier groups no LoRA"):
        step(optimizer)
    step(optimizer)  # once
    assert optimizer.lora_report().by_shape == 2
    assert [set(optimizer.state[p]) for p in optimizer.param_groups[0]["params"]] == keys


def test_groups_before_the_first_step_are_one_model() -> None:
    """LoRA+ adds its groups one after the other."""
    params = adapters(2)
    optimizer = Automagic_CameAMP(params[::2], lr=1e-3)
    assert optimizer.lora_report().lora == 0
    optimizer.add_param_group({"params": params[1::2]})
    assert optimizer.lora_report().by_shape == 4


@pytest.mark.parametrize("way", ["deepcopy", "pickle"])
@pytest.mark.parametrize("marked", [False, True])
def test_a_copy_of_an_optimizer_goes_on_as_the_original(marked: bool, way: str) -> None:
    """Its parameters have lost their marks; shapes alone would find nothing here."""
    params = [nn.Parameter(p.detach()[:, :12].clone()) for p in adapters(1)]
    for p in params:
        p._is_lora_layer = marked  # type: ignore[attr-defined]
    optimizer = Automagic_CameAMP_Improved(params, lr=1e-3, rank_keep=4)
    step(optimizer)
    other = copy.deepcopy(optimizer) if way == "deepcopy" else pickle.loads(pickle.dumps(optimizer))
    step(optimizer)
    step(other)
    for p, q in zip(params, other.param_groups[0]["params"], strict=True):
        assert torch.equal(p, q) and set(optimizer.state[p]) == set(other.state[q])
    assert other.lora_report().lora == (2 if marked else 0)
    assert optimizer.verify_resume()


def test_what_was_found_is_the_same_after_resume() -> None:
    one = Automagic_CameAMP_Improved(adapters(2), lr=1e-3, rank_keep=4)
    for _ in range(3):
        step(one)
    file = io.BytesIO()
    torch.save(one.state_dict(), file)
    file.seek(0)
    params = [nn.Parameter(p.detach().clone()) for p in one.param_groups[0]["params"]]
    other = Automagic_CameAMP_Improved(params, lr=1e-3, rank_keep=4)
    other.load_state_dict(torch.load(file, weights_only=True))
    for optimizer in (one, other):
        step(optimizer)
    assert all(torch.equal(p, q) for p, q in zip(one.param_groups[0]["params"], params, strict=True))


def test_a_saved_run_that_was_a_lora_says_so(caplog: pytest.LogCaptureFixture) -> None:
    """Also what old checkpoints of whole models hold: they were trained as one LoRA."""

    def make(marked: bool) -> Any:
        p = nn.Parameter(torch.randn(20, 24, generator=torch.Generator().manual_seed(0)))
        if marked:
            p._is_lora_layer = True  # type: ignore[attr-defined]
        return Automagic_CameAMP_Improved([p], lr=1e-3, rank_keep=4)

    saved, lost = make(True), make(False)
    step(saved)
    with caplog.at_level(logging.WARNING, logger="automagic_cameamp"):
        lost.load_state_dict(saved.state_dict())
    (record,) = caplog.records
    text = record.getMessage()
    assert (
        "dropped: lowrank_" in text and "none of 1 parameters is LoRA" in text and "mark_lora(model)" in text
    )
    step(lost)


@pytest.mark.parametrize(
    ("verbose", "pairs", "lines"), [(True, 1, 1), (False, 1, 1), (True, 0, 1), (False, 0, 0)]
)
def test_one_line_of_log(verbose: bool, pairs: int, lines: int, caplog: pytest.LogCaptureFixture) -> None:
    params = adapters(pairs) or [nn.Parameter(torch.ones(64, 64))]
    optimizer = Automagic_CameAMP(params, lr=1e-3, verbose=verbose)
    with caplog.at_level(logging.INFO, logger="automagic_cameamp"):
        for _ in range(3):
            step(optimizer)
    said = [r.getMessage() for r in caplog.records if "LoRA" in r.getMessage()]
    assert len(said) == lines
    assert not pairs or "2 of 2 parameters are LoRA, by shape" in said[0]
