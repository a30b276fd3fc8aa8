"""What the documents read from the optimizers: views of the state, both reports, before and after a step."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from automagic_cameamp import (
    BITSANDBYTES_AVAILABLE,
    OPTIMIZERS,
    Automagic_CameAMP_8Bit,
    Automagic_CameAMP_Improved,
    Automagic_CameAMP_Improved_8Bit,
)
from improved import drive
from reference import drive as base_drive
from reference.draws import normal

SHAPES = [(40, 40), (9,), (64, 3, 3, 3), (33, 32), (4, 20, 20)]
FAMILY = [Automagic_CameAMP_Improved, Automagic_CameAMP_8Bit, Automagic_CameAMP_Improved_8Bit]
STATS = {
    "total_quantized_memory", "total_high_precision_memory", "quantized_params", "high_precision_params",
    "compression_ratio", "fraction_of_fp32", "bytes_per_parameter", "fraction_of_adam",
}  # fmt: skip
REPORT = {
    "bitsandbytes_available", "total_parameters", "8bit_parameters", "32bit_parameters", "memory_saved_mb",
    "compression_ratio", "8bit_fraction", "states_breakdown",
}  # fmt: skip


def stepped(
    cls: Any = Automagic_CameAMP_8Bit, steps: int = 3, **options: Any
) -> tuple[Any, list[nn.Parameter]]:
    params = base_drive.parameters(SHAPES)
    return drive.train(params, steps, cls, **options), params


# ------------------------------------------------------------------ quantised states


@pytest.mark.parametrize("code", ["affine", "softsign", "dynamic"])
@pytest.mark.parametrize("correction", [True, False])
def test_quantised_states_are_what_the_documents_read(code, correction):
    optimizer, params = stepped(state_code=code, error_correction=correction, block_size=64)
    views = optimizer.quantized_states
    assert isinstance(views, Mapping)
    # every matrix of 1,024 elements or more; a vector is not quantised
    assert set(views) == {0, 1, 2, 3, 4}
    assert [bool(views[i]) for i in range(5)] == [True, False, True, True, True]
    for i, p in enumerate(params):
        for name, view in views[i].items():
            assert name in ("exp_avg", "edge_history")
            assert view.block_size == (64 if name == "exp_avg" else 0)  # four bits of [0, 1] have no scale
            assert view.shape == tuple(p.shape)
            value = view.dequantize()
            assert value.dtype == torch.float32 and value.shape == p.shape
            assert bool(torch.isfinite(value).all())
            assert view.codes.dtype in (torch.uint8, torch.int8)
            if name == "edge_history":
                assert view.scales is None and view.zeros is None
                assert bool(((value >= 0) & (value <= 1)).all())
                continue
            assert view.block_size == 64
            assert view.scales.numel() == math.ceil(p.numel() / 64)
            assert (view.zeros is not None) == (code == "affine")
            error = view.error_accumulator
            assert isinstance(error, Tensor)
            if correction and code != "dynamic":
                assert error.shape == p.shape and 0 < float(torch.norm(error)) < float(torch.norm(value))
            else:
                assert error.numel() == 0 and float(torch.norm(error)) == 0.0


def test_codes_scales_and_zeros_are_the_documents_formula():
    """dequantized = quantized * scales + zeros, and error_accumulator on top of it."""
    optimizer, params = stepped(block_size=64)
    view = optimizer.quantized_states[0]["exp_avg"]
    blocks = view.codes.flatten().view(-1, 64).float()
    by_hand = (blocks * view.scales.view(-1, 1) + view.zeros.view(-1, 1)).view(40, 40)
    torch.testing.assert_close(by_hand + view.error_accumulator, view.dequantize(), rtol=0, atol=1e-6)
    # zeros is an integer number of steps, so that a state of 0 is exactly 0
    steps = view.zeros / view.scales
    torch.testing.assert_close(steps, steps.round(), rtol=0, atol=1e-4)
    assert float(view.error_accumulator.abs().max()) <= float(view.scales.max()) / 2 * (1 + 1e-5)


def test_a_view_copies_nothing_and_follows_the_state():
    optimizer, params = stepped()
    views = optimizer.quantized_states
    assert views[0]["exp_avg"].codes.data_ptr() == optimizer.state[params[0]]["exp_avg_q"].data_ptr()
    before = views[0]["exp_avg"].dequantize()
    base_drive.give_gradients(params, 99)
    optimizer.step()
    assert not torch.equal(optimizer.quantized_states[0]["exp_avg"].dequantize(), before)


def test_the_view_is_the_momentum():
    """One step from nothing: m = (1 - beta1) u, so the exact class's state is known."""
    params, twins = base_drive.parameters(SHAPES), base_drive.parameters(SHAPES)
    exact = drive.train(twins, 1, Automagic_CameAMP_Improved)
    coded = drive.train(params, 1, Automagic_CameAMP_8Bit)
    for i in (0, 2, 3, 4):
        m = exact.state[twins[i]]["exp_avg"]
        back = coded.quantized_states[i]["exp_avg"].dequantize()
        assert float((back - m).norm() / m.norm()) < 2e-3


def test_without_quantisation_there_are_no_quantised_states():
    for optimizer, _ in (
        stepped(quantize_states=False),
        stepped(Automagic_CameAMP_Improved),
        stepped(Automagic_CameAMP_Improved_8Bit, min_8bit_size=99999999),
        stepped(Automagic_CameAMP_Improved_8Bit, optim_bits=32),
    ):
        assert not any(states for states in optimizer.quantized_states.values())
        assert optimizer.get_memory_stats()["total_quantized_memory"] == 0


def test_quantize_states_off_is_the_exact_class_bit_for_bit():
    a, first = stepped(quantize_states=False, steps=8)
    b, second = stepped(Automagic_CameAMP_Improved, steps=8)
    c, third = stepped(Automagic_CameAMP_Improved_8Bit, steps=8, optim_bits=32)
    for p, q, r in zip(first, second, third, strict=True):
        assert torch.equal(p, q) and torch.equal(p, r)


# ------------------------------------------------------------------ high-precision states


def test_high_precision_states_are_what_the_documents_read():
    optimizer, params = stepped()
    views = optimizer.high_precision_states
    assert isinstance(views, Mapping) and set(views) == set(range(5))
    for i, p in enumerate(params):
        states = views[i]
        assert "lr_mask" in states and "last_polarity" in states
        mask, polarity = states["lr_mask"], states["last_polarity"]
        assert mask.shape == p.shape and mask.dtype == torch.float32
        config = optimizer.config
        assert config.min_lr <= float(mask.min()) <= float(mask.max()) <= config.max_lr
        f"{mask.min():.2e} {mask.max():.2e} {mask.mean():.2e}"  # what the documents print
        assert polarity.shape == p.shape and polarity.dtype == torch.bool
        # True where the last gradient was positive
        assert p.grad is not None and torch.equal(polarity, p.grad > 0)
        matrix = p.dim() > 1
        for name in (
            "spatial_variance",
            "row_scaling",
            "exp_avg_sq_row",
            "exp_avg_sq_col",
            "exp_avg_res_row",
        ):
            assert (name in states) == matrix, name
        if matrix:
            rows = math.prod(p.shape[:-1]) if p.dim() == 3 else p.shape[0]
            assert states["row_scaling"].numel() == rows
            assert 0 < float(states["row_scaling"].min()) <= float(states["row_scaling"].max()) <= config.eta
            assert bool((states["spatial_variance"] >= 0).all())


def test_the_mask_of_the_view_starts_at_lr_and_spreads():
    optimizer, _ = stepped(steps=1)
    for states in optimizer.high_precision_states.values():
        torch.testing.assert_close(states["lr_mask"], torch.full_like(states["lr_mask"], 1e-3))
    optimizer, _ = stepped(steps=5)
    mask = optimizer.high_precision_states[0]["lr_mask"]
    assert float(mask.min()) < 1e-3 < float(mask.max())


@pytest.mark.parametrize("granularity", ["row", "tensor", "group"])
@pytest.mark.parametrize("rule", ["geometric", "additive"])
def test_a_coarser_mask_looks_the_same_from_outside(granularity, rule):
    optimizer, params = stepped(lr_mask_granularity=granularity, lr_mask_rule=rule, steps=5)
    for i, p in enumerate(params):
        states = optimizer.high_precision_states[i]
        assert states["lr_mask"].shape == p.shape
        assert p.grad is not None and torch.equal(states["last_polarity"], p.grad > 0)


def test_without_a_mask_there_is_none_to_see():
    optimizer, _ = stepped(use_lr_mask=False)
    assert all("lr_mask" not in states for states in optimizer.high_precision_states.values())


def test_parameters_are_counted_in_their_order_over_all_groups_and_across_a_load():
    params = base_drive.parameters(SHAPES)
    groups = [{"params": params[:2], "lr": 1e-3}, {"params": params[2:], "lr": 5e-4}]
    optimizer = Automagic_CameAMP_8Bit(groups, lr=1e-3)
    base_drive.give_gradients(params, 1)
    params[1].grad = None
    optimizer.step()
    assert set(optimizer.quantized_states) == {0, 2, 3, 4}
    before = {i: s["exp_avg"].dequantize() for i, s in optimizer.quantized_states.items()}
    buffer = io.BytesIO()
    torch.save(optimizer.state_dict(), buffer)
    buffer.seek(0)
    twins = base_drive.parameters(SHAPES, seed=5)
    other = Automagic_CameAMP_8Bit([{"params": twins[:2]}, {"params": twins[2:]}], lr=1e-3)
    other.load_state_dict(torch.load(buffer, weights_only=True))
    after = other.quantized_states
    assert set(after) == before.keys()
    assert all(torch.equal(after[i]["exp_avg"].dequantize(), before[i]) for i in before)


# ------------------------------------------------------------------ reports


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_reports_before_the_first_step(name):
    optimizer = OPTIMIZERS[name](base_drive.parameters([(64, 64), (5000,)]), lr=1e-4)
    stats, report = optimizer.get_memory_stats(), optimizer.get_memory_efficiency_report()
    assert set(stats) == STATS and set(report) == REPORT
    assert all(value == 0 for value in stats.values())
    f"{stats['total_quantized_memory'] / 1024**2:.2f} {stats['compression_ratio']:.2%}"
    assert report["total_parameters"] == 64 * 64 + 5000
    assert report["8bit_parameters"] + report["32bit_parameters"] == report["total_parameters"]
    assert report["memory_saved_mb"] == 0 and report["states_breakdown"] == {}
    f"{report['compression_ratio']:.2%} {report['memory_saved_mb']:.2f} {report['8bit_parameters']:,}"
    assert not optimizer.quantized_states and not optimizer.high_precision_states
    assert optimizer.get_avg_learning_rate() == pytest.approx(1e-4)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_reports_after_one_step(name):
    params = base_drive.parameters([(64, 64), (5000,)])
    optimizer = OPTIMIZERS[name](params, lr=1e-4)
    base_drive.give_gradients(params, 1)
    optimizer.step()
    stats, report = optimizer.get_memory_stats(), optimizer.get_memory_efficiency_report()
    assert set(stats) == STATS and set(report) == REPORT
    assert all(type(value) in (int, float) for value in stats.values())
    assert all(type(value) in (int, float, bool, dict) for value in report.values())
    eight = "8bit" in name.lower()
    assert stats["quantized_params"] == report["8bit_parameters"] == (4096 if eight else 0)
    assert stats["high_precision_params"] == report["32bit_parameters"] == (5000 if eight else 9096)
    # two keys of one name in the documents, with opposite senses; each has a name of its own as well
    assert 0 < stats["compression_ratio"] == stats["fraction_of_fp32"] < 1
    assert report["compression_ratio"] == report["8bit_fraction"] == report["8bit_parameters"] / 9096
    assert report["memory_saved_mb"] > 0
    assert report["bitsandbytes_available"] is BITSANDBYTES_AVAILABLE


def test_the_two_senses_of_compression_ratio():
    """More eight-bit state: the ratio of the statistics falls, that of the report rises."""
    options = {"cls": Automagic_CameAMP_Improved_8Bit, "force_8bit": True}
    few, _ = stepped(**options, min_8bit_size=1_500)
    many, _ = stepped(**options, min_8bit_size=0)
    assert many.get_memory_stats()["compression_ratio"] < few.get_memory_stats()["compression_ratio"]
    a, b = few.get_memory_efficiency_report(), many.get_memory_efficiency_report()
    assert a["compression_ratio"] < b["compression_ratio"] == 1.0
    for method in ("get_memory_stats", "get_memory_efficiency_report"):
        text = getattr(Automagic_CameAMP_8Bit, method).__doc__
        assert "better" in text and "compression_ratio" in text


def test_documents_thresholds_make_sense():
    """< .3 warns, > .8 is excellent: a model of matrices is above, one of small tensors below."""
    large = [nn.Parameter(normal((128, 128), i, dtype=torch.float32)) for i in range(2)]
    small = [nn.Parameter(normal((30, 30), i, dtype=torch.float32)) for i in range(4)]
    for params, low, high in ((large, 0.8, 1.0), (small, 0.0, 0.3)):
        optimizer = Automagic_CameAMP_Improved_8Bit(params, lr=1e-4)
        for p in params:
            p.grad = torch.ones_like(p)
        optimizer.step()
        assert low <= optimizer.get_memory_efficiency_report()["compression_ratio"] <= high


# ------------------------------------------------------------------ options of the eight-bit classes


def codes_of(optimizer: Any, index: int = 0) -> Any:
    return optimizer.quantized_states[index].get("exp_avg")


def test_min_8bit_size_and_force_8bit():
    """force_8bit takes vectors too, but not what is smaller than min_8bit_size."""
    shapes = [(64, 64), (64, 63), (5000,), (4095,)]
    found = {}
    for force in (False, True):
        params = base_drive.parameters(shapes)
        optimizer = drive.train(params, 1, Automagic_CameAMP_Improved_8Bit, force_8bit=force)
        found[force] = [bool(codes_of(optimizer, i)) for i in range(4)]
    assert found == {False: [True, False, False, False], True: [True, False, True, False]}


def test_stable_emb_keeps_marked_parameters_in_fp32():
    for stable, marked, force, expected in [
        (False, True, False, True),
        (True, True, False, False),
        (True, False, False, True),
        (True, True, True, True),  # force_8bit overrides it
    ]:
        p = nn.Parameter(normal((100, 64), 0, dtype=torch.float32))
        p._is_embedding = marked  # type: ignore[attr-defined]
        optimizer = Automagic_CameAMP_Improved_8Bit([p], lr=1e-4, stable_emb=stable, force_8bit=force)
        p.grad = torch.ones_like(p)
        optimizer.step()
        assert (codes_of(optimizer) is not None) is expected


def test_block_wise_off_is_one_scale_per_tensor():
    for block_wise, scales in ((True, 17), (False, 1)):
        p = nn.Parameter(normal((66, 64), 0, dtype=torch.float32))  # 4,224 elements
        optimizer = Automagic_CameAMP_Improved_8Bit([p], lr=1e-4, block_wise=block_wise)
        p.grad = normal((66, 64), 1, dtype=torch.float32)
        optimizer.step()
        assert codes_of(optimizer).scales.numel() == scales


@pytest.mark.parametrize("block", [32, 64, 128, 256, 512])
def test_block_size_is_what_it_says(block):
    optimizer, params = stepped(block_size=block, steps=1)
    assert codes_of(optimizer).block_size == block
    assert codes_of(optimizer).scales.numel() == math.ceil(1600 / block)


@pytest.mark.parametrize(
    ("numel", "low", "high", "expected"),
    [(1600, 64, 1024, 128), (1600, 256, 1024, 256), (1600, 32, 64, 64), (160_000, 64, 1024, 256),
     (160_000, 64, 128, 128), (1_210_000, 64, 1024, 512), (1_210_000, 1024, 2048, 1024)],
)  # fmt: skip
def test_adaptive_blocks_follow_the_size_within_their_limits(numel, low, high, expected):
    side = math.isqrt(numel)
    p = nn.Parameter(torch.zeros(side, side))
    optimizer = Automagic_CameAMP_8Bit(
        [p], lr=1e-4, adaptive_block_size=True, min_block_size=low, max_block_size=high, **drive.OFF
    )
    p.grad = torch.linspace(-1, 1, numel).view(side, side)
    optimizer.step()
    assert codes_of(optimizer).block_size == expected


class Strategy:
    """The documents' duck type, and what it was asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, torch.Size, Any]] = []

    def should_quantize(self, param_name: str, param_shape: torch.Size, param_type: Any) -> bool:
        self.asked.append((param_name, param_shape, param_type))
        return param_shape.numel() > 1300

    def get_block_size(self, param_shape: torch.Size) -> int:
        return 512 if param_shape.numel() > 1650 else 128


@pytest.mark.parametrize("named", [True, False])
def test_a_quantisation_strategy_decides(named):
    strategy, params = Strategy(), base_drive.parameters(SHAPES)
    given = [(f"layer.{i}.weight", p) for i, p in enumerate(params)] if named else params
    optimizer = Automagic_CameAMP_8Bit(given, lr=1e-4, quantization_strategy=strategy)
    base_drive.give_gradients(params, 1)
    optimizer.step()
    blocks = {i: codes_of(optimizer, i).block_size for i in range(5) if codes_of(optimizer, i)}
    assert blocks == {0: 128, 2: 512, 4: 128}  # 1,600, 1,728 and 1,600 elements; 1,056 is too few for it
    prefix = "layer.{}.weight" if named else "param_{}"
    assert {prefix.format(i) for i in range(5)} == {name for name, _, _ in strategy.asked}
    assert all(isinstance(shape, torch.Size) for _, shape, _ in strategy.asked)
    assert all(isinstance(kind, torch.dtype) for _, _, kind in strategy.asked)


def test_a_strategy_with_static_methods_as_the_documents_write_it():
    class Documents:
        @staticmethod
        def should_quantize(param_name, param_shape, param_type):
            return param_shape.numel() > 10000

        @staticmethod
        def get_block_size(param_shape):
            return 128

    for strategy in (Documents, Documents()):
        p = nn.Parameter(torch.ones(101, 100))
        optimizer = Automagic_CameAMP_8Bit([p], lr=1e-4, quantization_strategy=strategy)
        p.grad = torch.ones_like(p)
        optimizer.step()
        assert codes_of(optimizer).block_size == 128


def test_mixed_precision_off_holds_the_vectors_in_half_the_bytes():
    sizes = {}
    for mixed in (True, False):
        optimizer, params = stepped(mixed_precision=mixed)
        state = optimizer.state[params[0]]
        names = ["exp_avg_sq_row", "exp_avg_sq_col", "exp_avg_res_row", "exp_avg_res_col"]
        held = [value for key, value in state.items() if key.startswith(tuple(names))]
        sizes[mixed] = sum(value.numel() * value.element_size() for value in held)
        rows = optimizer.high_precision_states[0]["exp_avg_sq_row"]
        assert rows.dtype == torch.float32 and rows.shape == (40,) and bool((rows > 0).all())
        assert not set(names) & set(optimizer.quantized_states[0])
    grids = len(names) * 4  # low end and step of each vector
    assert (sizes[False] - grids) * 2 == sizes[True]


# ------------------------------------------------------------------ the rest


@pytest.mark.parametrize("cls", FAMILY)
def test_small_contracts(cls):
    optimizer, params = stepped(cls)
    assert optimizer.clear_cache() is None
    assert optimizer.config.edge_penalty == 0.1
    assert optimizer.base_lrs == [1e-3]
    rates = optimizer.get_learning_rates()
    assert len(rates) == 1 and rates[0] == pytest.approx(optimizer._get_group_lr(optimizer.param_groups[0]))
    assert optimizer.get_avg_learning_rate() == pytest.approx(rates[0])
    assert float(optimizer.state[params[0]]["avg_lr"]) > 0
    assert optimizer.health()["skipped_updates"] == 0
    assert optimizer.step(lambda: torch.tensor(3.0)) == 3.0
    assert optimizer.step(loss=2.5) == 2.5


@pytest.mark.parametrize("cls", FAMILY)
def test_clear_cache_and_reports_change_nothing(cls):
    """Reading between steps: the same bits as without."""
    results = []
    for read in (False, True):
        params = base_drive.parameters(SHAPES)
        optimizer = drive.train(params, 0, cls)
        for t in range(1, 6):
            base_drive.give_gradients(params, t)
            optimizer.step()
            if read:
                optimizer.clear_cache()
                optimizer.get_memory_stats()
                optimizer.get_memory_efficiency_report()
                optimizer.get_learning_rates()
                optimizer.health()
                for states in optimizer.quantized_states.values():
                    assert all(bool(torch.isfinite(view.dequantize()).all()) for view in states.values())
                for states in optimizer.high_precision_states.values():
                    assert all(isinstance(value, Tensor) for value in states.values())
        results.append(base_drive.bits(optimizer))
    assert base_drive.equal(*results)


def test_bitsandbytes_is_named_but_not_needed(monkeypatch):
    """Without it nothing changes: the code is our own. So the promised fall-back has nothing to fall from."""
    from automagic_cameamp import policies
    from automagic_cameamp.reading import reports

    monkeypatch.setattr(policies, "BITSANDBYTES_AVAILABLE", False)
    monkeypatch.setattr(reports, "BITSANDBYTES_AVAILABLE", False)
    optimizer, _ = stepped(Automagic_CameAMP_Improved_8Bit, min_8bit_size=0)
    assert optimizer.get_memory_efficiency_report()["bitsandbytes_available"] is False
    assert codes_of(optimizer).codes.dtype == torch.uint8
    assert isinstance(BITSANDBYTES_AVAILABLE, bool)


def test_state_names_are_the_documents():
    optimizer, params = stepped(Automagic_CameAMP_Improved, factored=False)
    state = optimizer.state[params[0]]
    named = {"step", "lr_mask", "avg_lr", "exp_avg", "exp_avg_sq", "exp_avg_res", "s"}
    assert named | {"edge_history", "spatial_variance"} <= set(state)
    optimizer, params = stepped()
    for name in ("exp_avg_q", "exp_avg_q_scale", "exp_avg_q_zero", "exp_avg_q_residual", "edge_history_q"):
        assert name in optimizer.state[params[0]], name


@pytest.mark.parametrize("cls", FAMILY)
def test_a_state_dict_is_plain(cls):
    optimizer, _ = stepped(cls)
    saved = optimizer.state_dict()
    buffer = io.BytesIO()
    torch.save(saved, buffer)
    buffer.seek(0)
    torch.load(buffer, weights_only=True)
    assert saved["magic_version"] >= 1
