"""Pure, batch-first, fp32 functions: one per technique, one definition of every equation.

A stack of same-shape parameters is ``[B, K, m, n]`` (see ``types.Layout``). No function here
knows a state, a group or a step counter, and none writes into its arguments.
"""

from ._bits import pack_bits, packed_size, unpack_bits
from ._reduce import (
    Ranks,
    all_finite,
    local_sum,
    mean_of_rows,
    numel,
    over_ranks,
    rms,
    row_mean,
    row_sum,
    tensor_mean,
    tensor_sum,
)
from .decay import adaptive_decay, spd
from .direction import agreeing, cautious, grams, orthograd
from .gradient import agr
from .learning_rate import (
    GEOMETRIC,
    MaskCode,
    additive_code,
    additive_mask,
    agreement,
    allora_gain,
    count,
    geometric_mask,
    join_word,
    majority,
    split_word,
)
from .level import (
    DISTANCE_GAIN,
    VOTE_HISTORY,
    distance_evidence,
    distance_level,
    push_sign,
    sample,
    sample_size,
    sign_vote,
)
from .lowrank import emphasise, has_tail, shrink_tail, tail_basis, tail_is_smaller, top_basis
from .momentum import ema, torque
from .multiscale import kept_scales, multiscale, multiscale_gain, own_beta, own_scale, scale_weights
from .scaling import belief_residual, factored_moment, factored_rsqrt, rms_clip, rms_gain
from .sketch import SKETCH_SIZE, fold, random_signs, sketch
from .spatial import SPATIAL_BETA, background_gain, row_variance, spatial_gain
from .stencil import EDGE_BETA, edge_hits, frequency_filter, laplacian, picture, second_difference

__all__ = [
    "EDGE_BETA",
    "SKETCH_SIZE",
    "SPATIAL_BETA",
    "background_gain",
    "edge_hits",
    "emphasise",
    "frequency_filter",
    "has_tail",
    "laplacian",
    "picture",
    "row_variance",
    "second_difference",
    "shrink_tail",
    "spatial_gain",
    "spd",
    "tail_basis",
    "tail_is_smaller",
    "top_basis",
    "DISTANCE_GAIN",
    "GEOMETRIC",
    "VOTE_HISTORY",
    "MaskCode",
    "Ranks",
    "adaptive_decay",
    "additive_code",
    "additive_mask",
    "agr",
    "agreeing",
    "agreement",
    "all_finite",
    "allora_gain",
    "belief_residual",
    "cautious",
    "count",
    "distance_evidence",
    "distance_level",
    "ema",
    "fold",
    "factored_moment",
    "factored_rsqrt",
    "geometric_mask",
    "kept_scales",
    "grams",
    "join_word",
    "local_sum",
    "majority",
    "mean_of_rows",
    "multiscale",
    "multiscale_gain",
    "numel",
    "orthograd",
    "own_beta",
    "over_ranks",
    "own_scale",
    "pack_bits",
    "packed_size",
    "push_sign",
    "random_signs",
    "rms",
    "rms_clip",
    "rms_gain",
    "row_mean",
    "row_sum",
    "sample",
    "sample_size",
    "scale_weights",
    "sign_vote",
    "sketch",
    "split_word",
    "tensor_mean",
    "tensor_sum",
    "torque",
    "unpack_bits",
]
