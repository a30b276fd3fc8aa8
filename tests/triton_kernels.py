"""Small kernels around single functions of the Triton engine, for tests that compare number by number."""

import triton
import triton.language as tl

from automagic_cameamp.kernels import codes as C
from automagic_cameamp.kernels import device as D
from automagic_cameamp.kernels import master as M


@triton.jit
def tile_of(numel, NB: tl.constexpr, QB: tl.constexpr):
    places = tl.program_id(0) * NB + tl.arange(0, NB)
    at = places[:, None] * QB + tl.arange(0, QB)[None, :]
    return places, at, at < numel


@triton.jit(do_not_specialize=["numel", "share", "key", "salt", "step"])
def keep(
    AT, X, MAP, BASE, BOUND, numel, share, key, salt, step,
    CODE: tl.constexpr, ERROR: tl.constexpr, NB: tl.constexpr, QB: tl.constexpr, DOUBLINGS: tl.constexpr,
):  # fmt: skip
    places, at, mask = tile_of(numel, NB, QB)
    first = (places * QB < numel) & (places % share == 0)
    noise = D.random_bits(key, salt, step, at)
    p, s, z, e = tl.load(AT), tl.load(AT + 1), tl.load(AT + 2), tl.load(AT + 3)
    x = tl.load(X + at, mask=mask, other=0.0)
    C.store_mean(
        p, s, z, e, x, at, places, share, 1, mask, first, noise,
        MAP, BASE, BOUND, CODE, ERROR, NB, QB, DOUBLINGS,
    )  # fmt: skip


@triton.jit(do_not_specialize=["numel", "block"])
def look_up(
    AT, Y, MAP, numel, block,
    CODE: tl.constexpr, ERROR: tl.constexpr, NB: tl.constexpr, QB: tl.constexpr,
):  # fmt: skip
    places, at, mask = tile_of(numel, NB, QB)
    p, s, z, e = tl.load(AT), tl.load(AT + 1), tl.load(AT + 2), tl.load(AT + 3)
    tl.store(Y + at, C.decode(p, s, z, e, at, block, mask, MAP, CODE, ERROR), mask=mask)


@triton.jit(do_not_specialize=["numel", "share", "block"])
def moments(
    AT, X, Y, numel, share, block, NB: tl.constexpr, QB: tl.constexpr, DOUBLINGS: tl.constexpr
):  # fmt: skip
    places, at, mask = tile_of(numel, NB, QB)
    first = (places * QB < numel) & (places % share == 0)
    x = tl.load(X + at, mask=mask, other=1.0)
    p, s = tl.load(AT), tl.load(AT + 1)
    C.store_moment(p, s, x, at, places, share, mask, first, True, NB, DOUBLINGS)
    tl.debug_barrier()
    tl.store(Y + at, C.load_moment(p, s, at, block, mask, True), mask=mask)


@triton.jit
def parts(X, BITS, P, REST, KIND: tl.constexpr, RANDOM: tl.constexpr, N: tl.constexpr):
    at = tl.program_id(0) * N + tl.arange(0, N)
    p, rest = tl.load(P), tl.load(REST)
    M.store_weights(
        p, rest, KIND, tl.load(X + at), tl.load(BITS + at), at, at >= 0, KIND, RANDOM, True
    )  # fmt: skip


@triton.jit
def joined(P, REST, Y, KIND: tl.constexpr, N: tl.constexpr):
    at = tl.program_id(0) * N + tl.arange(0, N)
    tl.store(Y + at, M.load_weights(tl.load(P), tl.load(REST), at, at >= 0, KIND, KIND, True))
