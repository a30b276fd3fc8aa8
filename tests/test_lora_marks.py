"""mark_lora on real PEFT models, on modules named as kohya and LyCORIS name theirs, and by shape."""

from __future__ import annotations

import re
from typing import Any

import peft
import pytest
import torch
from torch import nn

from automagic_cameamp import Automagic_CameAMP, Automagic_CameAMP_Improved_8Bit
from automagic_cameamp.lora import LoraMarks, kind_of, mark_lora, unmark_lora


class Block(nn.Module):
    """Something of each kind that an adapter can be put on."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(40, 16)
        self.q = nn.Linear(16, 16)
        self.conv = nn.Conv2d(4, 8, 3, padding=1)
        self.one = nn.Conv2d(8, 8, 1)
        self.norm = nn.LayerNorm(16)

    def forward(self, tokens: torch.Tensor, picture: torch.Tensor) -> torch.Tensor:
        return self.norm(self.q(self.embed(tokens))).mean() + self.one(self.conv(picture)).mean()


def marked(model: nn.Module, attribute: str = "_is_lora_layer") -> set[str]:
    return {name for name, p in model.named_parameters() if getattr(p, attribute, False)}


def trainable(model: nn.Module) -> set[str]:
    return {name for name, p in model.named_parameters() if p.requires_grad}


TARGETS = ["q", "conv", "one"]
PEFT: dict[str, tuple[Any, set[str]]] = {
    "LoRA": (peft.LoraConfig(r=4, target_modules=TARGETS), {"LoRA"}),
    "embedding": (
        peft.LoraConfig(r=4, target_modules=["embed", "q"]),
        {"LoRA", "LoRA of an embedding"},
    ),
    "DoRA": (peft.LoraConfig(r=4, target_modules=TARGETS, use_dora=True), {"LoRA", "DoRA magnitude"}),
    "LoKr": (peft.LoKrConfig(r=2, target_modules=TARGETS, decompose_both=True), {"LoKr"}),
    "LoKr full": (peft.LoKrConfig(r=4, target_modules=TARGETS), {"LoKr"}),
    "LoHa": (peft.LoHaConfig(r=4, target_modules=TARGETS, use_effective_conv2d=True), {"LoHa"}),
    "AdaLoRA": (peft.AdaLoraConfig(target_modules=["q"], total_step=10), {"LoRA"}),
}


@pytest.mark.parametrize("kind", PEFT)
@pytest.mark.filterwarnings("ignore::UserWarning:peft")
def test_peft_marks_exactly_what_it_trains(kind: str) -> None:
    """What PEFT left trainable is what it added: an oracle that knows no names."""
    config, kinds = PEFT[kind]
    model = peft.get_peft_model(Block(), config)
    report = mark_lora(model)
    assert marked(model) == trainable(model) == set(report.lora)
    assert set(report.lora.values()) == kinds
    assert report.elements == sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert any(name.endswith("embed.weight") or "embed.base_layer" in name for name in report.embeddings)


def test_the_token_side_of_an_embedding_lora_is_an_embedding() -> None:
    model = peft.get_peft_model(Block(), PEFT["embedding"][0])
    mark_lora(model)
    found = {name.split(".")[-2] for name in marked(model, "_is_embedding") & trainable(model)}
    assert found == {"lora_embedding_A"}


def test_modules_to_save_and_trainable_tokens() -> None:
    config = peft.LoraConfig(r=4, target_modules=["q"], modules_to_save=["embed", "norm"])
    model = peft.get_peft_model(Block(), config)
    report = mark_lora(model)
    assert {kind_of(name) for name in trainable(model) - set(report.lora)} == {None}
    saved = {n for n in trainable(model) if "modules_to_save" in n and "embed" in n}
    assert saved and saved <= set(report.embeddings)
    config = peft.LoraConfig(r=4, target_modules=["q"], trainable_token_indices={"embed": [1, 2]})
    model = peft.get_peft_model(Block(), config)
    report = mark_lora(model)
    (delta,) = {n for n in trainable(model) if n not in report.lora}
    assert delta in report.embeddings


KOHYA = {
    "lora_unet_down_blocks_0_attentions_0_proj_in.lora_down.weight": ((4, 320, 1, 1), "LoRA"),
    "lora_unet_down_blocks_0_attentions_0_proj_in.lora_up.weight": ((320, 4, 1, 1), "LoRA"),
    "lora_unet_down_blocks_0_resnets_0_conv1.lora_down.weight": ((4, 32, 3, 3), "LoRA"),
    "lora_unet_mid.lora_mid.weight": ((4, 4, 3, 3), "LoRA"),
    "lora_te_text_model_encoder_layers_0_self_attn_q_proj.lora_down.weight": ((4, 768), "LoRA"),
    "lora_te_text_model_encoder_layers_0_self_attn_q_proj.dora_scale": ((768, 1), "DoRA magnitude"),
    "lycoris_unet_to_q.lokr_w1": ((8, 8), "LoKr"),
    "lycoris_unet_to_q.lokr_w1_a": ((8, 4), "LoKr"),
    "lycoris_unet_to_q.lokr_w2_b": ((4, 40), "LoKr"),
    "lycoris_unet_to_q.lokr_t2": ((4, 4, 3, 3), "LoKr"),
    "lycoris_unet_to_k.hada_w1_a": ((320, 4), "LoHa"),
    "lycoris_unet_to_k.hada_w2_b": ((4, 320), "LoHa"),
    "lycoris_unet_to_k.hada_t1": ((4, 4, 3, 3), "LoHa"),
    "unet.to_q_lora.down.weight": ((4, 320), "LoRA"),
    "unet.to_q_lora.up.weight": ((320, 4), "LoRA"),
    "layers.0.lora_a.weight": ((4, 320), "LoRA"),
}
NOT_LORA = [
    "to_q.weight",
    "down.weight",
    "unet.up.weight",
    "lora.weight",
    "lora_scale",
    "flora_a.weight",
    "hada",
]


def network(shapes: dict[str, tuple[int, ...]]) -> nn.Module:
    """Modules nested so that the parameters have these names."""
    root = nn.Module()
    for name, shape in shapes.items():
        module = root
        *path, last = name.split(".")
        for part in path:
            if part not in dict(module.named_children()):
                module.add_module(part, nn.Module())
            module = module.get_submodule(part)
        module.register_parameter(last, nn.Parameter(torch.zeros(shape)))
    return root


def test_kohya_and_lycoris_names() -> None:
    model = network({name: shape for name, (shape, _) in KOHYA.items()} | {n: (3, 3) for n in NOT_LORA})
    report = mark_lora(model)
    assert report.lora == {name: kind for name, (_, kind) in KOHYA.items()}
    assert marked(model) == set(KOHYA)
    assert report.embeddings == []


def test_marking_twice_is_marking_once_and_unmarking_undoes_it() -> None:
    model = peft.get_peft_model(Block(), PEFT["DoRA"][0])
    before = {name: dict(p.__dict__) for name, p in model.named_parameters()}
    first = mark_lora(model)
    after = {name: dict(p.__dict__) for name, p in model.named_parameters()}
    assert mark_lora(model) == first
    assert {name: dict(p.__dict__) for name, p in model.named_parameters()} == after
    removed = unmark_lora(model)
    assert removed == first
    assert {name: dict(p.__dict__) for name, p in model.named_parameters()} == before
    assert not unmark_lora(model)


def test_a_mark_by_hand_is_removed_too() -> None:
    model = nn.Linear(4, 4)
    model.weight._is_lora_layer = True  # type: ignore[attr-defined]
    assert list(unmark_lora(model).lora.items()) == [("weight", "LoRA by hand or by shape")]
    assert not hasattr(model.weight, "_is_lora_layer")


def test_report_prints_what_was_found() -> None:
    model = peft.get_peft_model(Block(), PEFT["DoRA"][0])
    report = mark_lora(model)
    assert report.counts == {"LoRA": 6, "DoRA magnitude": 3, "embedding": 1}
    lines = str(report).splitlines()
    assert re.fullmatch(rf"9 LoRA parameters \({report.elements:,} elements\)", lines[0])
    assert "  LoRA: 6" in lines and "  DoRA magnitude: 3" in lines and "    ... and 6 more" in lines
    assert lines[-1].startswith("1 embeddings: ")
    assert str(LoraMarks()) == "no LoRA parameters and no embeddings found"


# -------------------------------------------------------------------------------------------- by shape


@pytest.mark.parametrize(
    ("shapes", "found"),
    [
        ([(8, 64), (64, 8)], 2),  # down, up
        ([(64, 8), (8, 64)], 2),  # up, down
        ([(8, 16, 3, 3), (32, 8, 1, 1)], 2),  # convolution
        ([(8, 64, 1, 1), (64, 8, 1, 1)], 2),
        ([(128, 256), (256, 128)], 2),
        ([(129, 256), (256, 129)], 0),  # rank above 128
        ([(64, 64), (64, 64)], 0),  # nothing of low rank
        ([(8, 64), (64, 9)], 0),  # do not multiply
        ([(8,), (64, 8)], 0),
        ([(8, 64), (64, 8), (8, 64), (64, 8)], 4),
        ([(32, 32), (8, 64), (64, 8), (5, 5)], 2),
        ([(8, 64)], 0),
        ([(8, 64), (64,), (64, 8)], 0),  # a bias between them: an ordinary network
    ],
)
def test_by_shape(shapes: list[tuple[int, ...]], found: int) -> None:
    model = network({f"layer{i}": shape for i, shape in enumerate(shapes)})
    assert not mark_lora(model)
    report = mark_lora(model, by_shape=True)
    assert len(report.lora) == found == len(marked(model))
    assert set(report.lora.values()) <= {"LoRA by shape"}


def test_by_shape_leaves_frozen_and_named_parameters() -> None:
    model = network({"a": (8, 64), "b": (64, 8), "x.lora_A.weight": (8, 64), "x.lora_B.weight": (64, 8)})
    model.get_parameter("a").requires_grad = False
    report = mark_lora(model, by_shape=True)
    assert report.lora == {"x.lora_A.weight": "LoRA", "x.lora_B.weight": "LoRA"}
    assert len(mark_lora(network({"a": (8, 64), "b": (64, 8)}), by_shape=True, max_rank=7).lora) == 0


# ------------------------------------------------------------------------------- what the optimizer sees


def test_only_marked_parameters_get_the_row_gain() -> None:
    model = peft.get_peft_model(Block(), peft.LoraConfig(r=4, target_modules=["q"], modules_to_save=["norm"]))
    report = mark_lora(model)
    params = [p for p in model.parameters() if p.requires_grad]
    optimizer = Automagic_CameAMP(params)
    lora = {id(p): c.lora for _, c in optimizer.model.chunks() for p in c.params}
    by_id = {id(p): name for name, p in model.named_parameters()}
    assert {by_id[i] for i, flag in lora.items() if flag} == set(report.lora) & trainable(model)
    assert False in lora.values()


def test_stable_emb_keeps_marked_embeddings_in_32_bits() -> None:
    model = nn.Sequential(nn.Embedding(64, 64), nn.Linear(64, 64, bias=False))
    mark_lora(model)
    optimizer = Automagic_CameAMP_Improved_8Bit(model.parameters(), lr=1e-4, min_8bit_size=0, stable_emb=True)
    model(torch.arange(64)).square().mean().backward()
    optimizer.step()
    report = optimizer.get_memory_efficiency_report()
    assert (report["32bit_parameters"], report["8bit_parameters"]) == (64 * 64, 64 * 64)


def test_training_goes_on_with_marks() -> None:
    model = peft.get_peft_model(Block(), PEFT["LoRA"][0])
    mark_lora(model)
    params = [p for p in model.parameters() if p.requires_grad]
    optimizer = Automagic_CameAMP_Improved_8Bit(params, lr=1e-3)
    for _ in range(2):
        model(torch.arange(4), torch.randn(1, 4, 8, 8)).backward()
        optimizer.step()
    assert optimizer.health()["skipped_updates"] == 0


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (([nn.Parameter(torch.zeros(2))], {}), "model=list is not allowed"),
        ((nn.Linear(2, 2), {"max_rank": 0}), "max_rank=0 is not allowed"),
        ((nn.Linear(2, 2), {"max_rank": 1.5}), "max_rank=1.5 is not allowed"),
    ],
)
def test_bad_input(arguments: Any, error: str) -> None:
    with pytest.raises((TypeError, ValueError), match=error):
        mark_lora(arguments[0], **arguments[1])
