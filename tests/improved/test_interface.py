"""Arguments of the improved classes: every documented name, default and range; profiles, aliases."""

from __future__ import annotations

import dataclasses
import inspect
import math
from typing import Any

import pytest
import torch

import automagic_cameamp as package
from automagic_cameamp import (
    Automagic_CameAMP_8Bit,
    Automagic_CameAMP_Improved,
    Automagic_CameAMP_Improved_8Bit,
    Improved8BitOptimizerConfig,
    ImprovedOptimizerConfig,
    OptimizationProfiles,
    Optimizer8BitConfig,
    aliases,
    create_improved_8bit_optimizer,
)
from reference.draws import normal

INF = math.inf
BOOL: tuple[list[Any], list[Any]] = ([True, False], [2, "yes", None, 0.5])
SHARE: tuple[list[Any], list[Any]] = ([0, 0.5, 1], [-0.1, 1.1, math.nan, "a", None, True])
OPEN_SHARE: tuple[list[Any], list[Any]] = ([0.01, 0.6, 0.99], [0, 1, -1, math.nan, "a"])
POSITIVE: tuple[list[Any], list[Any]] = ([1e-9, 3], [0, -1, math.nan, "x"])
NOT_NEGATIVE: tuple[list[Any], list[Any]] = ([0, 2.5], [-1e-9, math.nan, "x", None])

# argument -> (documented default, (allowed values, refused values))
SHARED: dict[str, tuple[Any, tuple[list[Any], list[Any]]]] = {
    "lr": (1e-6, ([0, 1e-4], [-1e-9, math.nan, "a", None])),
    "min_lr": (1e-7, ([0, 1e-8], [-1, math.nan, "a", 1e-3, 1.0])),  # below max_lr
    "max_lr": (1e-3, ([1e-2, 1.0], [0, -1, math.nan, 1e-7, 1e-8])),  # above min_lr
    "lr_bump": (3e-6, NOT_NEGATIVE),
    "eps": ((1e-30, 1e-16, 1e-8), ([(1e-20, 1e-10, 1e-6)], [(0, 0, 0), (-1, 0, 0), "abc", (1, 2, 3, 4)])),
    "clip_threshold": (1.0, ([0.1, INF], [0, -1, math.nan])),
    "betas": (
        (0.8, 0.99, 0.999),
        ([(0, 0, 0), (0.9, 0.999, 0.9999)], [(1, 0.9, 0.9), (-0.1, 0.9, 0.9), 0.9, (0.9,), (0.9,) * 4]),
    ),
    "beta1_decay": (0.9995, ([1, 0.5], [0, -1, 1.1, math.nan])),
    "eta": (2.0, POSITIVE),
    "weight_decay": (5e-4, NOT_NEGATIVE),
    "warmup_steps": (500, ([0, 1, 500.0], [-1, 1.5, math.nan, "a"])),
    "came": (True, BOOL),
    "full_finetune": (False, BOOL),
    "verbose": (False, BOOL),
}
REGULARISERS: dict[str, tuple[Any, tuple[list[Any], list[Any]]]] = {
    "edge_suppression": (True, BOOL),
    "edge_penalty": (0.1, SHARE),
    "edge_threshold": (0.6, OPEN_SHARE),
    "background_regularization": (True, BOOL),
    "spatial_awareness": (True, BOOL),
    "detail_preservation": (0.8, SHARE),
    "frequency_penalty": (0.05, SHARE),
    "lora_rank_penalty": (True, BOOL),
    "rank_penalty_strength": (0.01, SHARE),
    "low_rank_emphasis": (1.2, ([1, 1.2, 5], [0.9, 0, -1, math.nan, INF])),
    "sync_frequency": (100, ([1, 50], [0, -1, 1.5])),
}
OURS: dict[str, tuple[Any, tuple[list[Any], list[Any]]]] = {
    "factored": (True, BOOL),
    "confidence_1d": (False, BOOL),
    "final_clip": (None, ([None, 0.5, INF], [0, -1, math.nan])),
    "use_agr": (False, BOOL),
    "use_tam": (True, BOOL),
    "use_grams": (True, BOOL),
    "use_orthograd": (False, BOOL),
    "use_cautious": (True, BOOL),
    "use_spd": (True, BOOL),
    "use_lr_mask": (True, BOOL),
    "tam_granularity": ("tensor", (["tensor", "row"], ["Row", "element", 1])),
    "hard_min_lr": (False, BOOL),
    "lr_mask_rule": ("geometric", (["geometric", "additive", "none"], ["Additive", "vote"])),
    "lr_mask_granularity": ("element", (["element", "row", "tensor", "group"], ["rows", ""])),
    "lr_level": (None, (["auto", "fixed", "distance", "vote"], ["automatic", 1])),
    "rank_keep": (10, ([1, 64], [0, -1, 1.5])),
    "spatial_mode": ("all", (["all", "conv"], ["none", "ALL"])),
    "stochastic_rounding": (None, ([None, True, False], [2, "yes"])),
    "master_weight_bits": (None, ([None, 24], [16, 32, "16"])),
    "offload": ("none", (["none", "cpu"], ["gpu", True, 1])),
    "engine": ("auto", (["auto", "reference"], ["fast", None, 1])),
    "seed": (0, ([0, 1, 2**32 - 1], [-1, 2**32, 0.5])),
}
IMPROVED: dict[str, tuple[Any, tuple[list[Any], list[Any]]]] = {
    **SHARED,
    **REGULARISERS,
    **OURS,
    "d_coef": (2.0, ([1, 2.0, 40], [0, 0.5, 1.5, 41, "1.5"])),
}
EIGHT_BIT: dict[str, tuple[Any, tuple[list[Any], list[Any]]]] = {
    **SHARED,
    **REGULARISERS,
    **OURS,
    "quantize_states": (True, BOOL),
    "error_correction": (True, BOOL),
    "block_size": (256, ([32, 128, 512, 4096], [16, 100, 8192, 256.5, "255"])),
    "mixed_precision": (True, BOOL),
    "adaptive_block_size": (False, BOOL),
    "min_block_size": (64, ([32, 512], [16, 100, 2048])),
    "max_block_size": (1024, ([64, 4096], [8192, 1000, 32])),
    "error_bits": (4, ([4, 8], [0, 2, 16, 4.5])),
    "state_code": ("affine", (["affine", "softsign", "dynamic"], ["Affine", "int8", None])),
    "quantization_strategy": (None, ([None], [3, "all", object()])),
}
IMPROVED_EIGHT_BIT: dict[str, tuple[Any, tuple[list[Any], list[Any]]]] = {
    **SHARED,
    **REGULARISERS,
    **OURS,
    "optim_bits": (8, ([4, 8, 32], [2, 16, "16"])),
    "min_8bit_size": (4096, ([0, 1024, 99999999], [-1, 1.5])),
    "force_8bit": (False, BOOL),
    "percentile_clipping": (100, ([1, 5, 100], [0, 101, 99.5, -1])),
    "block_wise": (True, BOOL),
    "stable_emb": (False, BOOL),
    "profile": (
        None,
        (
            [None, "memory_optimized", "quality_optimized", "balanced", "minimal"],
            ["Balanced", "fast", "MEMORY_OPTIMIZED", ""],
        ),
    ),
}
CLASSES: dict[str, tuple[Any, Any, dict[str, tuple[Any, tuple[list[Any], list[Any]]]]]] = {
    "I": (Automagic_CameAMP_Improved, ImprovedOptimizerConfig, IMPROVED),
    "A8": (Automagic_CameAMP_8Bit, Optimizer8BitConfig, EIGHT_BIT),
    "N8": (Automagic_CameAMP_Improved_8Bit, Improved8BitOptimizerConfig, IMPROVED_EIGHT_BIT),
}
ROWS = [(cls, argument) for cls, (_, _, table) in CLASSES.items() for argument in table]


def params() -> list[torch.nn.Parameter]:
    return [torch.nn.Parameter(normal((12, 13), 0, dtype=torch.float32))]


def same(a: Any, b: Any) -> bool:
    return a == b and isinstance(a, bool) == isinstance(b, bool)


@pytest.mark.parametrize(("cls", "argument"), ROWS)
def test_every_argument_has_its_documented_default(cls, argument):
    optimizer_class, config_class, table = CLASSES[cls]
    default = table[argument][0]
    assert same(getattr(config_class(), argument), default)
    word = {f.name: word for word, f in aliases.settings(config_class).items()}.get(argument)
    if word is None:
        assert same(inspect.signature(optimizer_class).parameters[argument].default, default)
    optimizer = optimizer_class(params())
    assert same(getattr(optimizer.config, argument), default)
    assert f"    {word or argument}: " in optimizer_class.__doc__, "the docstring explains it"


@pytest.mark.parametrize(("cls", "argument"), ROWS)
def test_allowed_values_are_taken_and_others_refused(cls, argument):
    optimizer_class, _, table = CLASSES[cls]
    allowed, refused = table[argument][1]
    for value in allowed:
        extra = {"min_block_size": 32} if argument == "max_block_size" else {}
        extra = {"lr": 1e-6} if argument == "lr_level" else extra
        optimizer = optimizer_class(params(), **{argument: value, **extra})
        taken = getattr(optimizer.config, argument)
        assert taken == (tuple(value) if isinstance(value, tuple) else value)
    for value in refused:
        with pytest.raises(ValueError, match=argument) as error:
            optimizer_class(params(), **{argument: value})
        text = str(error.value)
        assert len(text.splitlines()) == 1 and ("allowed" in text or "must" in text or "needs" in text), text


@pytest.mark.parametrize("cls", CLASSES)
def test_there_is_no_argument_beyond_the_table(cls):
    optimizer_class, config_class, table = CLASSES[cls]
    names = {f.name for f in dataclasses.fields(config_class)}
    extra = names - table.keys()
    assert not table.keys() - names
    # The shared table stands in full in the docs; what is here beyond it must say why it exists.
    assert extra <= {"d_coef", "lr_mask_dtype", "beta1_follows_lr"}, extra
    signature = inspect.signature(optimizer_class).parameters
    single = {f.name for f in aliases.settings(config_class).values()}
    assert set(signature) - {"params", "techniques", "single"} == names - single


@pytest.mark.parametrize("cls", CLASSES)
def test_configs_are_plain_dataclasses_that_round_trip(cls):
    optimizer_class, config_class, _ = CLASSES[cls]
    config: Any = config_class(lr=3e-4, warmup_steps=7)
    config.edge_penalty = 0.12  # mutable
    assert dataclasses.is_dataclass(config)
    assert not [name for name in config.__dict__ if name.startswith("_")]
    optimizer = optimizer_class(params(), **config.__dict__)
    assert optimizer.config == config
    group = optimizer.param_groups[0]
    assert (group["lr"], group["warmup_steps"], group["edge_penalty"]) == (3e-4, 7, 0.12)
    # and once more, from the resolved config
    assert optimizer_class(params(), **optimizer.config.__dict__).config == config


@pytest.mark.parametrize("profile", ["memory_optimized", "quality_optimized", "balanced"])
def test_configs_of_profiles_round_trip(profile):
    config = getattr(OptimizationProfiles, profile)()
    assert isinstance(config, Improved8BitOptimizerConfig)
    assert config is not getattr(OptimizationProfiles, profile)(), "a fresh one each time"
    optimizer = Automagic_CameAMP_Improved_8Bit(params(), **config.__dict__)
    assert optimizer.config == config
    config.min_8bit_size = 99999999
    assert Automagic_CameAMP_Improved_8Bit(params(), **config.__dict__).config.min_8bit_size == 99999999


@pytest.mark.parametrize("cls", CLASSES)
def test_an_unknown_keyword_is_a_type_error_that_names_the_nearest(cls):
    optimizer_class = CLASSES[cls][0]
    with pytest.raises(TypeError, match="edge_penalti.*edge_penalty"):
        optimizer_class(params(), edge_penalti=0.1)
    with pytest.raises(TypeError, match="zzz"):
        optimizer_class(params(), zzz=1)
    with pytest.raises(TypeError):
        CLASSES[cls][1](zzz=1)


@pytest.mark.parametrize("cls", CLASSES)
def test_came_enabled_is_came(cls):
    optimizer_class = CLASSES[cls][0]
    assert optimizer_class(params(), came_enabled=False).config.came is False
    assert optimizer_class(params(), came_enabled=True).config.came is True
    with pytest.raises((TypeError, ValueError), match="came"):
        optimizer_class(params(), came_enabled="maybe")


@pytest.mark.parametrize("cls", CLASSES)
def test_lr_may_be_given_by_position_and_nothing_else(cls):
    optimizer_class = CLASSES[cls][0]
    assert optimizer_class(params(), 3e-4).param_groups[0]["lr"] == 3e-4
    with pytest.raises(TypeError):
        optimizer_class(params(), 3e-4, 1e-7)
    with pytest.raises(TypeError, match="lr"):
        optimizer_class(params(), 3e-4, lr=1e-3)


def test_a_d_coef_that_is_no_whole_number_is_refused():
    """The counters stay exact integers."""
    assert Automagic_CameAMP_Improved(params(), d_coef=2.0).config.d_coef == 2
    with pytest.raises(ValueError, match=r"d_coef=2\.5 .*whole number"):
        Automagic_CameAMP_Improved(params(), d_coef=2.5)


@pytest.mark.parametrize(
    ("name", "value"),
    [("enable_cache", False), ("max_cache_size", 7), ("use_approximate_svd", False), ("long_term_beta", 0.5),
     ("alpha_mix_ratio", 2.0), ("tam_correlation_method", "vectorized"), ("tam_large_tensor_threshold", 1),
     ("tam_use_inplace_ops", False)],
)  # fmt: skip
def test_options_without_effect_say_so_once(name, value):
    aliases._said.discard(name)
    with pytest.warns(UserWarning, match=f"{name}=.*no effect: {aliases.DEAD[name].reason}"):
        Automagic_CameAMP_Improved(params(), **{name: value})
    assert not hasattr(Automagic_CameAMP_Improved(params(), **{name: value}).config, name)  # silent now
    assert ImprovedOptimizerConfig(**{name: value}) == ImprovedOptimizerConfig()


def test_dead_names_at_their_default_are_taken_in_silence():
    for config, cls in ((ImprovedOptimizerConfig, Automagic_CameAMP_Improved),
                        (Improved8BitOptimizerConfig, Automagic_CameAMP_Improved_8Bit)):  # fmt: skip
        dead = {n: d.default for n, d in aliases.DEAD.items() if config.__name__ in d.owners}
        assert dead and cls(params(), **dead).config == config(**dead) == config()


def test_fused_adam_is_accepted_and_says_that_it_does_nothing():
    aliases._said.discard("fused_adam")
    with pytest.warns(UserWarning, match="fused_adam=True has no effect"):
        Automagic_CameAMP_Improved_8Bit(params(), fused_adam=True)


def test_dual_momentum_is_refused_in_one_line():
    with pytest.raises(ValueError, match="enable_dual_momentum=True is not allowed: only False"):
        Automagic_CameAMP_Improved(params(), enable_dual_momentum=True)


def test_the_lr_outside_the_range_warns():
    with pytest.warns(UserWarning, match="above max_lr"):
        Automagic_CameAMP_Improved(params(), lr=0.5, max_lr=0.1)
    with pytest.warns(UserWarning, match="below min_lr"):
        Automagic_CameAMP_Improved(params(), lr=1e-9)


# ------------------------------------------------------------------ profiles

DOCUMENTED: dict[str, dict[str, Any]] = {
    "memory_optimized": {
        "force_8bit": True,
        "min_8bit_size": 1024,
        "edge_suppression": False,
        "spatial_awareness": False,
        "background_regularization": False,
        "frequency_penalty": 0.0,
        "lora_rank_penalty": False,
        "verbose": False,
    },
    "quality_optimized": {
        "edge_suppression": True,
        "edge_penalty": 0.15,
        "background_regularization": True,
        "spatial_awareness": True,
        "lora_rank_penalty": True,
        "frequency_penalty": 0.08,
        "rank_penalty_strength": 0.02,
        "verbose": True,
    },
    "balanced": {
        "min_8bit_size": 4096,
        "edge_suppression": True,
        "edge_penalty": 0.1,
        "background_regularization": True,
        "spatial_awareness": True,
        "lora_rank_penalty": True,
        "frequency_penalty": 0.05,
        "verbose": True,
    },
}
# What a profile may set beyond the documents: the mask per row, which is where the last bytes are.
BEYOND = {"memory_optimized": {"lr_mask_granularity": "row"}, "quality_optimized": {}, "balanced": {}}


@pytest.mark.parametrize("profile", DOCUMENTED)
def test_a_profile_sets_what_the_documents_say_and_nothing_else(profile):
    expected = dataclasses.asdict(Improved8BitOptimizerConfig())
    expected |= DOCUMENTED[profile] | BEYOND[profile]
    given = dataclasses.asdict(Automagic_CameAMP_Improved_8Bit(params(), profile=profile).config)
    assert given.pop("profile") == profile
    expected.pop("profile")
    assert given == expected
    fresh = dataclasses.asdict(getattr(OptimizationProfiles, profile)())
    fresh.pop("profile")
    assert fresh == expected


def test_minimal_is_memory_optimized_with_four_bits_and_exact_vectors():
    ours, theirs = OptimizationProfiles.minimal(), OptimizationProfiles.memory_optimized()
    theirs.optim_bits, theirs.force_8bit = 4, False
    assert ours == theirs
    assert Automagic_CameAMP_Improved_8Bit(params(), profile="minimal").config.optim_bits == 4


@pytest.mark.parametrize("profile", [*DOCUMENTED, "minimal"])
def test_a_profile_never_sets_the_learning_rate(profile):
    assert Automagic_CameAMP_Improved_8Bit(params(), profile=profile).param_groups[0]["lr"] == 1e-6
    assert getattr(OptimizationProfiles, profile)().lr == 1e-6
    assert create_improved_8bit_optimizer(params(), profile=profile).config.lr == 1e-6


@pytest.mark.parametrize("profile", DOCUMENTED)
@pytest.mark.parametrize(
    "explicit",
    [
        {"edge_suppression": True, "lr": 2e-4},
        {"edge_suppression": False},
        {"edge_penalty": 0.12},
        {"verbose": False},
        {"min_8bit_size": 2048, "force_8bit": False},
        {"lr_mask_granularity": "tensor", "frequency_penalty": 1.0},
    ],
)
def test_explicit_options_win_over_the_profile(profile, explicit):
    optimizer = Automagic_CameAMP_Improved_8Bit(params(), profile=profile, **explicit)
    expected = dict(DOCUMENTED[profile]) | BEYOND[profile] | explicit
    for name, value in expected.items():
        assert getattr(optimizer.config, name) == value, name
        if name in optimizer.param_groups[0]:
            assert optimizer.param_groups[0][name] == value, name


def test_even_an_explicit_value_that_is_the_default_wins():
    optimizer = Automagic_CameAMP_Improved_8Bit(params(), profile="quality_optimized", edge_penalty=0.1)
    assert optimizer.config.edge_penalty == 0.1
    optimizer = Automagic_CameAMP_Improved_8Bit(params(), profile="memory_optimized", frequency_penalty=0.05)
    assert optimizer.config.frequency_penalty == 0.05


@pytest.mark.parametrize("name", ["Balanced", "BALANCED", "balance", "memory", "Memory_Optimized", "fast"])
def test_profiles_are_case_sensitive_and_the_error_lists_them_all(name):
    with pytest.raises(ValueError, match=f"profile='{name}'") as error:
        Automagic_CameAMP_Improved_8Bit(params(), profile=name)
    for known in (*DOCUMENTED, "minimal"):
        assert known in str(error.value)
    with pytest.raises(ValueError, match="profile="):
        create_improved_8bit_optimizer(params(), profile=name)


def test_other_classes_have_no_profile():
    for cls in (Automagic_CameAMP_Improved, Automagic_CameAMP_8Bit):
        with pytest.raises(TypeError, match="profile"):
            cls(params(), profile="balanced")


def test_the_factory_takes_balanced_where_nothing_is_said():
    optimizer = create_improved_8bit_optimizer(params(), lr=1e-4, edge_suppression=False)
    assert isinstance(optimizer, Automagic_CameAMP_Improved_8Bit)
    assert optimizer.config.profile == "balanced"
    assert optimizer.config.lr == 1e-4 and optimizer.config.edge_suppression is False
    assert create_improved_8bit_optimizer(params(), None).config.profile == "balanced"
    memory = create_improved_8bit_optimizer(params(), "memory_optimized", warmup_steps=800)
    assert memory.config.force_8bit is True and memory.config.warmup_steps == 800
    with pytest.raises(TypeError, match="zzz"):
        create_improved_8bit_optimizer(params(), zzz=1)


# ------------------------------------------------------------------ names

NAMES = [
    "Automagic_CameAMP_Improved", "Automagic_CameAMP_8Bit", "Automagic_CameAMP_Improved_8Bit",
    "ImprovedOptimizerConfig", "Optimizer8BitConfig", "Improved8BitOptimizerConfig", "OptimizationProfiles",
    "create_improved_8bit_optimizer", "BITSANDBYTES_AVAILABLE",
]  # fmt: skip


def test_names_and_import_paths():
    for name in NAMES:
        assert hasattr(package, name) and name in package.__all__
    import automagic_cameamp_8bit
    import automagic_cameamp_improved
    import automagic_cameamp_improved_8bit

    assert automagic_cameamp_8bit.Automagic_CameAMP_8Bit is Automagic_CameAMP_8Bit
    assert automagic_cameamp_8bit.Optimizer8BitConfig is Optimizer8BitConfig
    assert automagic_cameamp_improved.Automagic_CameAMP_Improved is Automagic_CameAMP_Improved
    assert automagic_cameamp_improved.ImprovedOptimizerConfig is ImprovedOptimizerConfig
    for name in ("Automagic_CameAMP_Improved_8Bit", "Improved8BitOptimizerConfig", "OptimizationProfiles",
                 "create_improved_8bit_optimizer", "BITSANDBYTES_AVAILABLE"):  # fmt: skip
        assert getattr(automagic_cameamp_improved_8bit, name) is getattr(package, name)
