# Written by scripts/stubs.py from the options in configs.py; change those.
import inspect
from collections.abc import Iterable, Sequence
from typing import Any, Literal, TypedDict

from torch import Tensor
from typing_extensions import Unpack

from .configs import (
    ContextualConfig,
    ContextualConfig8bit,
    Improved8BitOptimizerConfig,
    ImprovedOptimizerConfig,
    Optimizer8BitConfig,
    OptimizerConfig,
    OptimizerConfig8bit,
    SharedConfig,
)
from .control import ContextualController
from .optimizer import CameAMPOptimizer

OPTIMIZERS: dict[str, type[CameAMPOptimizer]]

def signature(config_class: type[SharedConfig]) -> inspect.Signature: ...

class _Contextual(CameAMPOptimizer):
    @property
    def c_optim(self) -> ContextualController: ...
    def record_loss(self, loss: float | Tensor) -> None: ...

class BaseTechniques(TypedDict, total=False):
    """Words of ``techniques``."""

    lr_bump: float
    clip_threshold: float
    beta1_decay: float
    beta1_follows_lr: bool | None
    eta: float
    factored: bool
    confidence_1d: bool
    final_clip: float | None
    agr: bool
    tam: bool
    grams: bool
    orthograd: bool
    lr_mask: bool
    tam_granularity: Literal['tensor', 'row']
    hard_min_lr: bool
    lr_mask_rule: Literal['geometric', 'additive', 'none', None]
    lr_mask_granularity: Literal['element', 'row', 'tensor', 'group']
    weight_decay_phase: Literal['early', 'always']

class BaseSingle(TypedDict, total=False):
    """The same as keywords of their own."""

    lr_bump: float
    clip_threshold: float
    beta1_decay: float
    beta1_follows_lr: bool | None
    eta: float
    factored: bool
    confidence_1d: bool
    final_clip: float | None
    use_agr: bool
    use_tam: bool
    use_grams: bool
    use_orthograd: bool
    use_lr_mask: bool
    tam_granularity: Literal['tensor', 'row']
    hard_min_lr: bool
    lr_mask_rule: Literal['geometric', 'additive', 'none', None]
    lr_mask_granularity: Literal['element', 'row', 'tensor', 'group']
    weight_decay_phase: Literal['early', 'always']
    came_enabled: bool

class Automagic_CameAMP(CameAMPOptimizer):
    config: OptimizerConfig
    def __init__(
        self, params: Iterable[Any], lr: float | Tensor = 1e-06, *, min_lr: float = 1e-07,
        max_lr: float = 0.001, eps: float | Sequence[float] = (1e-30, 1e-16, 1e-08),
        betas: Sequence[float] = (0.8, 0.99, 0.999), weight_decay: float = 0.0005, warmup_steps: int = 500,
        came: bool = True, full_finetune: bool = False, verbose: bool = False,
        lr_level: Literal['auto', 'fixed', 'distance', 'vote', None] = None,
        stochastic_rounding: bool | None = None, master_weight_bits: Literal[24, None] = None, seed: int = 0,
        engine: Literal['auto', 'reference', 'native', 'compiled'] = 'auto',
        offload: Literal['none', 'cpu', None] = 'none',
        techniques: BaseTechniques | Sequence[str] | None = None, **single: Unpack[BaseSingle]
    ) -> None: ...

class Automagic_CameAMP8bit(CameAMPOptimizer):
    config: OptimizerConfig8bit
    def __init__(
        self, params: Iterable[Any], lr: float | Tensor = 1e-06, *, min_lr: float = 1e-07,
        max_lr: float = 0.001, eps: float | Sequence[float] = (1e-30, 1e-16, 1e-08),
        betas: Sequence[float] = (0.8, 0.99, 0.999), weight_decay: float = 0.0005, warmup_steps: int = 500,
        came: bool = True, full_finetune: bool = False, verbose: bool = False,
        lr_level: Literal['auto', 'fixed', 'distance', 'vote', None] = None,
        stochastic_rounding: bool | None = None, master_weight_bits: Literal[24, None] = None, seed: int = 0,
        engine: Literal['auto', 'reference', 'native', 'compiled'] = 'auto',
        offload: Literal['none', 'cpu', None] = 'none', blocksize: int = 256,
        state_code: Literal['dynamic', 'softsign', 'softsign4'] = 'dynamic',
        techniques: BaseTechniques | Sequence[str] | None = None, **single: Unpack[BaseSingle]
    ) -> None: ...

class Automagic_CameAMP_COptim(_Contextual):
    config: ContextualConfig
    def __init__(
        self, params: Iterable[Any], lr: float | Tensor = 1e-06, *, min_lr: float = 1e-07,
        max_lr: float = 0.001, eps: float | Sequence[float] = (1e-30, 1e-16, 1e-08),
        betas: Sequence[float] = (0.8, 0.99, 0.999), weight_decay: float = 0.0005, warmup_steps: int = 500,
        came: bool = True, full_finetune: bool = False, verbose: bool = False,
        lr_level: Literal['auto', 'fixed', 'distance', 'vote', None] = None,
        stochastic_rounding: bool | None = None, master_weight_bits: Literal[24, None] = None, seed: int = 0,
        engine: Literal['auto', 'reference', 'native', 'compiled'] = 'auto',
        offload: Literal['none', 'cpu', None] = 'none', context_window: int = 100,
        edge_case_threshold: float = 0.95, adaptation_rate: float = 0.1,
        context_lr_bounds: Sequence[float] = (0.5, 2.0),
        momentum_scales: Sequence[int] | None = [1, 5, 10, 25], edge_threshold: float = 0.95,
        techniques: BaseTechniques | Sequence[str] | None = None, **single: Unpack[BaseSingle]
    ) -> None: ...

class Automagic_CameAMP_COptim8bit(_Contextual):
    config: ContextualConfig8bit
    def __init__(
        self, params: Iterable[Any], lr: float | Tensor = 1e-06, *, min_lr: float = 1e-07,
        max_lr: float = 0.001, eps: float | Sequence[float] = (1e-30, 1e-16, 1e-08),
        betas: Sequence[float] = (0.8, 0.99, 0.999), weight_decay: float = 0.0005, warmup_steps: int = 500,
        came: bool = True, full_finetune: bool = False, verbose: bool = False,
        lr_level: Literal['auto', 'fixed', 'distance', 'vote', None] = None,
        stochastic_rounding: bool | None = None, master_weight_bits: Literal[24, None] = None, seed: int = 0,
        engine: Literal['auto', 'reference', 'native', 'compiled'] = 'auto',
        offload: Literal['none', 'cpu', None] = 'none', context_window: int = 100,
        edge_case_threshold: float = 0.95, adaptation_rate: float = 0.1,
        context_lr_bounds: Sequence[float] = (0.5, 2.0),
        momentum_scales: Sequence[int] | None = [1, 5, 10, 25], blocksize: int = 4096,
        state_code: Literal['dynamic', 'softsign', 'softsign4'] = 'dynamic', edge_threshold: float = 0.95,
        techniques: BaseTechniques | Sequence[str] | None = None, **single: Unpack[BaseSingle]
    ) -> None: ...

class ImprovedTechniques(TypedDict, total=False):
    """Words of ``techniques``."""

    lr_bump: float
    clip_threshold: float
    beta1_decay: float
    beta1_follows_lr: bool | None
    eta: float
    factored: bool
    confidence_1d: bool
    final_clip: float | None
    agr: bool
    tam: bool
    grams: bool
    orthograd: bool
    lr_mask: bool
    tam_granularity: Literal['tensor', 'row']
    hard_min_lr: bool
    lr_mask_rule: Literal['geometric', 'additive', 'none', None]
    lr_mask_granularity: Literal['element', 'row', 'tensor', 'group']
    detail_preservation: float
    rank_keep: int
    d_coef: int
    spatial_mode: Literal['all', 'conv']
    cautious: bool
    spd: bool

class ImprovedSingle(TypedDict, total=False):
    """The same as keywords of their own."""

    lr_bump: float
    clip_threshold: float
    beta1_decay: float
    beta1_follows_lr: bool | None
    eta: float
    factored: bool
    confidence_1d: bool
    final_clip: float | None
    use_agr: bool
    use_tam: bool
    use_grams: bool
    use_orthograd: bool
    use_lr_mask: bool
    tam_granularity: Literal['tensor', 'row']
    hard_min_lr: bool
    lr_mask_rule: Literal['geometric', 'additive', 'none', None]
    lr_mask_granularity: Literal['element', 'row', 'tensor', 'group']
    detail_preservation: float
    rank_keep: int
    d_coef: int
    spatial_mode: Literal['all', 'conv']
    use_cautious: bool
    use_spd: bool
    came_enabled: bool

class Automagic_CameAMP_Improved(CameAMPOptimizer):
    config: ImprovedOptimizerConfig
    def __init__(
        self, params: Iterable[Any], lr: float | Tensor = 1e-06, *, min_lr: float = 1e-07,
        max_lr: float = 0.001, eps: float | Sequence[float] = (1e-30, 1e-16, 1e-08),
        betas: Sequence[float] = (0.8, 0.99, 0.999), weight_decay: float = 0.0005, warmup_steps: int = 500,
        came: bool = True, full_finetune: bool = False, verbose: bool = False,
        lr_level: Literal['auto', 'fixed', 'distance', 'vote', None] = None,
        stochastic_rounding: bool | None = None, master_weight_bits: Literal[24, None] = None, seed: int = 0,
        engine: Literal['auto', 'reference', 'native', 'compiled'] = 'auto',
        offload: Literal['none', 'cpu', None] = 'none', edge_suppression: bool = True,
        edge_penalty: float = 0.1, edge_threshold: float = 0.6, background_regularization: bool = True,
        spatial_awareness: bool = True, frequency_penalty: float = 0.05, lora_rank_penalty: bool = True,
        rank_penalty_strength: float = 0.01, low_rank_emphasis: float = 1.2, sync_frequency: int = 100,
        techniques: ImprovedTechniques | Sequence[str] | None = None, **single: Unpack[ImprovedSingle]
    ) -> None: ...

class EightBitTechniques(TypedDict, total=False):
    """Words of ``techniques``."""

    lr_bump: float
    clip_threshold: float
    beta1_decay: float
    beta1_follows_lr: bool | None
    eta: float
    factored: bool
    confidence_1d: bool
    final_clip: float | None
    agr: bool
    tam: bool
    grams: bool
    orthograd: bool
    lr_mask: bool
    tam_granularity: Literal['tensor', 'row']
    hard_min_lr: bool
    lr_mask_rule: Literal['geometric', 'additive', 'none', None]
    lr_mask_granularity: Literal['element', 'row', 'tensor', 'group']
    detail_preservation: float
    rank_keep: int
    d_coef: int
    spatial_mode: Literal['all', 'conv']
    cautious: bool
    spd: bool
    error_bits: Literal[4, 8]

class EightBitSingle(TypedDict, total=False):
    """The same as keywords of their own."""

    lr_bump: float
    clip_threshold: float
    beta1_decay: float
    beta1_follows_lr: bool | None
    eta: float
    factored: bool
    confidence_1d: bool
    final_clip: float | None
    use_agr: bool
    use_tam: bool
    use_grams: bool
    use_orthograd: bool
    use_lr_mask: bool
    tam_granularity: Literal['tensor', 'row']
    hard_min_lr: bool
    lr_mask_rule: Literal['geometric', 'additive', 'none', None]
    lr_mask_granularity: Literal['element', 'row', 'tensor', 'group']
    detail_preservation: float
    rank_keep: int
    d_coef: int
    spatial_mode: Literal['all', 'conv']
    use_cautious: bool
    use_spd: bool
    error_bits: Literal[4, 8]
    came_enabled: bool

class Automagic_CameAMP_8Bit(CameAMPOptimizer):
    config: Optimizer8BitConfig
    def __init__(
        self, params: Iterable[Any], lr: float | Tensor = 1e-06, *, min_lr: float = 1e-07,
        max_lr: float = 0.001, eps: float | Sequence[float] = (1e-30, 1e-16, 1e-08),
        betas: Sequence[float] = (0.8, 0.99, 0.999), weight_decay: float = 0.0005, warmup_steps: int = 500,
        came: bool = True, full_finetune: bool = False, verbose: bool = False,
        lr_level: Literal['auto', 'fixed', 'distance', 'vote', None] = None,
        stochastic_rounding: bool | None = None, master_weight_bits: Literal[24, None] = None, seed: int = 0,
        engine: Literal['auto', 'reference', 'native', 'compiled'] = 'auto',
        offload: Literal['none', 'cpu', None] = 'none', edge_suppression: bool = True,
        edge_penalty: float = 0.1, edge_threshold: float = 0.6, background_regularization: bool = True,
        spatial_awareness: bool = True, frequency_penalty: float = 0.05, lora_rank_penalty: bool = True,
        rank_penalty_strength: float = 0.01, low_rank_emphasis: float = 1.2, sync_frequency: int = 100,
        quantize_states: bool = True, error_correction: bool = True, block_size: int = 256,
        mixed_precision: bool = True, adaptive_block_size: bool = False, min_block_size: int = 64,
        max_block_size: int = 1024, quantization_strategy: object = None,
        state_code: Literal['affine', 'softsign', 'dynamic', 'softsign4'] = 'affine',
        techniques: EightBitTechniques | Sequence[str] | None = None, **single: Unpack[EightBitSingle]
    ) -> None: ...

class Automagic_CameAMP_Improved_8Bit(CameAMPOptimizer):
    config: Improved8BitOptimizerConfig
    def __init__(
        self, params: Iterable[Any], lr: float | Tensor = 1e-06, *, min_lr: float = 1e-07,
        max_lr: float = 0.001, eps: float | Sequence[float] = (1e-30, 1e-16, 1e-08),
        betas: Sequence[float] = (0.8, 0.99, 0.999), weight_decay: float = 0.0005, warmup_steps: int = 500,
        came: bool = True, full_finetune: bool = False, verbose: bool = False,
        lr_level: Literal['auto', 'fixed', 'distance', 'vote', None] = None,
        stochastic_rounding: bool | None = None, master_weight_bits: Literal[24, None] = None, seed: int = 0,
        engine: Literal['auto', 'reference', 'native', 'compiled'] = 'auto',
        offload: Literal['none', 'cpu', None] = 'none', edge_suppression: bool = True,
        edge_penalty: float = 0.1, edge_threshold: float = 0.6, background_regularization: bool = True,
        spatial_awareness: bool = True, frequency_penalty: float = 0.05, lora_rank_penalty: bool = True,
        rank_penalty_strength: float = 0.01, low_rank_emphasis: float = 1.2, sync_frequency: int = 100,
        optim_bits: Literal[4, 8, 32] = 8, min_8bit_size: int = 4096, force_8bit: bool = False,
        percentile_clipping: int = 100, block_wise: bool = True, stable_emb: bool = False,
        profile: str | None = None, techniques: ImprovedTechniques | Sequence[str] | None = None,
        **single: Unpack[ImprovedSingle]
    ) -> None: ...

def create_improved_8bit_optimizer(
    params: Iterable[Any], profile: str | None = None, *, lr: float | Tensor = 1e-06,
    min_lr: float = 1e-07, max_lr: float = 0.001, eps: float | Sequence[float] = (1e-30, 1e-16, 1e-08),
    betas: Sequence[float] = (0.8, 0.99, 0.999), weight_decay: float = 0.0005, warmup_steps: int = 500,
    came: bool = True, full_finetune: bool = False, verbose: bool = False,
    lr_level: Literal['auto', 'fixed', 'distance', 'vote', None] = None,
    stochastic_rounding: bool | None = None, master_weight_bits: Literal[24, None] = None, seed: int = 0,
    engine: Literal['auto', 'reference', 'native', 'compiled'] = 'auto',
    offload: Literal['none', 'cpu', None] = 'none', edge_suppression: bool = True,
    edge_penalty: float = 0.1, edge_threshold: float = 0.6, background_regularization: bool = True,
    spatial_awareness: bool = True, frequency_penalty: float = 0.05, lora_rank_penalty: bool = True,
    rank_penalty_strength: float = 0.01, low_rank_emphasis: float = 1.2, sync_frequency: int = 100,
    optim_bits: Literal[4, 8, 32] = 8, min_8bit_size: int = 4096, force_8bit: bool = False,
    percentile_clipping: int = 100, block_wise: bool = True, stable_emb: bool = False,
    techniques: ImprovedTechniques | Sequence[str] | None = None, **single: Unpack[ImprovedSingle]
) -> Automagic_CameAMP_Improved_8Bit: ...
