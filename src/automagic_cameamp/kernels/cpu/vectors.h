// One register of numbers, and the few operations that the bands need, for each instruction set.
//
// A compiler keeps values of this type in registers from load to store; in a chain of loops over arrays
// every step between two loops costs a store and a load.
#pragma once

#include "abi.h"
#include "rounding.h"
#include "tables256.h"
#include "tables512.h"

namespace AUTOMAGIC_ISA {

#if defined(AUTOMAGIC_TABLES512)

struct V {
    __m512 v;
};
struct Mask {
    __mmask16 m;
};
constexpr int64_t W = 16;

AUTOMAGIC_INLINE V all(float x) { return {_mm512_set1_ps(x)}; }
AUTOMAGIC_INLINE V load(const float* p) { return {_mm512_loadu_ps(p)}; }
AUTOMAGIC_INLINE V load(const float* p, int64_t left) { return {_mm512_maskz_loadu_ps(lanes(left), p)}; }
AUTOMAGIC_INLINE void store(V x, float* p) { _mm512_storeu_ps(p, x.v); }
AUTOMAGIC_INLINE void store(V x, float* p, int64_t left) { _mm512_mask_storeu_ps(p, lanes(left), x.v); }
AUTOMAGIC_INLINE V operator+(V a, V b) { return {_mm512_add_ps(a.v, b.v)}; }
AUTOMAGIC_INLINE V operator-(V a, V b) { return {_mm512_sub_ps(a.v, b.v)}; }
AUTOMAGIC_INLINE V operator*(V a, V b) { return {_mm512_mul_ps(a.v, b.v)}; }
AUTOMAGIC_INLINE V operator/(V a, V b) { return {_mm512_div_ps(a.v, b.v)}; }
AUTOMAGIC_INLINE V fused(V a, V b, V c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }
// c - a b
AUTOMAGIC_INLINE V fused_minus(V a, V b, V c) { return {_mm512_fnmadd_ps(a.v, b.v, c.v)}; }
AUTOMAGIC_INLINE V larger(V a, V b) { return {_mm512_max_ps(a.v, b.v)}; }
AUTOMAGIC_INLINE V smaller(V a, V b) { return {_mm512_min_ps(a.v, b.v)}; }
AUTOMAGIC_INLINE V magnitude(V a) { return {_mm512_abs_ps(a.v)}; }
AUTOMAGIC_INLINE Mask operator<(V a, V b) { return {_mm512_cmp_ps_mask(a.v, b.v, _CMP_LT_OQ)}; }
AUTOMAGIC_INLINE V choose(Mask m, V yes, V no) { return {_mm512_mask_mov_ps(no.v, m.m, yes.v)}; }
// x, times f where the mask is set.
AUTOMAGIC_INLINE V scaled(Mask m, V x, V f) { return {_mm512_mask_mul_ps(x.v, m.m, x.v, f.v)}; }
AUTOMAGIC_INLINE float total(V a) { return _mm512_reduce_add_ps(a.v); }
AUTOMAGIC_INLINE V root(V a) { return {_mm512_sqrt_ps(a.v)}; }
AUTOMAGIC_INLINE V guess_root(V a) { return {_mm512_rsqrt14_ps(a.v)}; }
AUTOMAGIC_INLINE V guess_inverse(V a) { return {_mm512_rcp14_ps(a.v)}; }
AUTOMAGIC_INLINE uint64_t lanes_of(Mask m) { return m.m; }
// y 2^n, where y is about 1 and `shifted` = n + ROUNDER, |n| < 126: its lowest bits are n.
AUTOMAGIC_INLINE V times_power(V y, V shifted) {
    __m512i power = _mm512_slli_epi32(_mm512_castps_si512(shifted.v), 23);
    return {_mm512_castsi512_ps(_mm512_add_epi32(_mm512_castps_si512(y.v), power))};
}

AUTOMAGIC_INLINE Mask below(int64_t left) { return {lanes(left)}; }  // the first lanes
// Lanes one further on, the first twice; one back, the last twice.
AUTOMAGIC_INLINE V first_twice(V a) {
    return {_mm512_permutexvar_ps(_mm512_setr_epi32(0, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14), a.v)};
}
AUTOMAGIC_INLINE V last_twice(V a) {
    return {_mm512_permutexvar_ps(_mm512_setr_epi32(1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 15), a.v)};
}
AUTOMAGIC_INLINE V from_halves(const uint16_t* p, bool bf16) {
    __m256i h = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
    return {bf16 ? _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(h), 16)) : _mm512_cvtph_ps(h)};
}

AUTOMAGIC_INLINE V from_bytes(const uint8_t* p) {
    return {_mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))))};
}

// Lane i: the sum of a[i]. The registers are added while they are transposed.
AUTOMAGIC_INLINE V totals(const V* a) {
    __m512 b[8], c[4];
    for (int i = 0; i < 8; ++i)
        b[i] = _mm512_add_ps(_mm512_unpacklo_ps(a[2 * i].v, a[2 * i + 1].v),
                             _mm512_unpackhi_ps(a[2 * i].v, a[2 * i + 1].v));
    for (int i = 0; i < 4; ++i) {
        __m512d p = _mm512_castps_pd(b[2 * i]), q = _mm512_castps_pd(b[2 * i + 1]);
        c[i] = _mm512_add_ps(_mm512_castpd_ps(_mm512_unpacklo_pd(p, q)), _mm512_castpd_ps(_mm512_unpackhi_pd(p, q)));
    }
    for (int i = 0; i < 2; ++i)
        c[i] = _mm512_add_ps(_mm512_shuffle_f32x4(c[2 * i], c[2 * i + 1], 0x88),
                             _mm512_shuffle_f32x4(c[2 * i], c[2 * i + 1], 0xDD));
    return {_mm512_add_ps(_mm512_shuffle_f32x4(c[0], c[1], 0x88), _mm512_shuffle_f32x4(c[0], c[1], 0xDD))};
}

#elif defined(__AVX2__) && defined(__FMA__)

struct V {
    __m256 v;
};
struct Mask {
    __m256 m;
};
constexpr int64_t W = 8;

AUTOMAGIC_INLINE __m256i first_lanes(int64_t left) {
    alignas(32) static const int32_t ones[16] = {-1, -1, -1, -1, -1, -1, -1, -1, 0, 0, 0, 0, 0, 0, 0, 0};
    return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(ones + 8 - (left < 8 ? left : 8)));
}
AUTOMAGIC_INLINE V all(float x) { return {_mm256_set1_ps(x)}; }
AUTOMAGIC_INLINE V load(const float* p) { return {_mm256_loadu_ps(p)}; }
AUTOMAGIC_INLINE V load(const float* p, int64_t left) { return {_mm256_maskload_ps(p, first_lanes(left))}; }
AUTOMAGIC_INLINE void store(V x, float* p) { _mm256_storeu_ps(p, x.v); }
AUTOMAGIC_INLINE void store(V x, float* p, int64_t left) { _mm256_maskstore_ps(p, first_lanes(left), x.v); }
AUTOMAGIC_INLINE V operator+(V a, V b) { return {_mm256_add_ps(a.v, b.v)}; }
AUTOMAGIC_INLINE V operator-(V a, V b) { return {_mm256_sub_ps(a.v, b.v)}; }
AUTOMAGIC_INLINE V operator*(V a, V b) { return {_mm256_mul_ps(a.v, b.v)}; }
AUTOMAGIC_INLINE V operator/(V a, V b) { return {_mm256_div_ps(a.v, b.v)}; }
AUTOMAGIC_INLINE V fused(V a, V b, V c) { return {_mm256_fmadd_ps(a.v, b.v, c.v)}; }
AUTOMAGIC_INLINE V fused_minus(V a, V b, V c) { return {_mm256_fnmadd_ps(a.v, b.v, c.v)}; }
AUTOMAGIC_INLINE V larger(V a, V b) { return {_mm256_max_ps(a.v, b.v)}; }
AUTOMAGIC_INLINE V smaller(V a, V b) { return {_mm256_min_ps(a.v, b.v)}; }
AUTOMAGIC_INLINE V magnitude(V a) { return {_mm256_andnot_ps(_mm256_set1_ps(-0.0f), a.v)}; }
AUTOMAGIC_INLINE Mask operator<(V a, V b) { return {_mm256_cmp_ps(a.v, b.v, _CMP_LT_OQ)}; }
AUTOMAGIC_INLINE V choose(Mask m, V yes, V no) { return {_mm256_blendv_ps(no.v, yes.v, m.m)}; }
AUTOMAGIC_INLINE V scaled(Mask m, V x, V f) { return choose(m, x * f, x); }
AUTOMAGIC_INLINE V root(V a) { return {_mm256_sqrt_ps(a.v)}; }
AUTOMAGIC_INLINE V guess_root(V a) { return {_mm256_rsqrt_ps(a.v)}; }
AUTOMAGIC_INLINE V guess_inverse(V a) { return {_mm256_rcp_ps(a.v)}; }
AUTOMAGIC_INLINE uint64_t lanes_of(Mask m) { return static_cast<uint64_t>(_mm256_movemask_ps(m.m)); }
AUTOMAGIC_INLINE float total(V a) {
    __m128 h = _mm_add_ps(_mm256_castps256_ps128(a.v), _mm256_extractf128_ps(a.v, 1));
    h = _mm_add_ps(h, _mm_movehl_ps(h, h));
    return _mm_cvtss_f32(_mm_add_ss(h, _mm_movehdup_ps(h)));
}
AUTOMAGIC_INLINE V times_power(V y, V shifted) {
    __m256i power = _mm256_slli_epi32(_mm256_castps_si256(shifted.v), 23);
    return {_mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(y.v), power))};
}
AUTOMAGIC_INLINE Mask below(int64_t left) { return {_mm256_castsi256_ps(first_lanes(left))}; }
AUTOMAGIC_INLINE V first_twice(V a) {
    return {_mm256_permutevar8x32_ps(a.v, _mm256_setr_epi32(0, 0, 1, 2, 3, 4, 5, 6))};
}
AUTOMAGIC_INLINE V last_twice(V a) {
    return {_mm256_permutevar8x32_ps(a.v, _mm256_setr_epi32(1, 2, 3, 4, 5, 6, 7, 7))};
}
AUTOMAGIC_INLINE V from_halves(const uint16_t* p, bool bf16) {
    __m128i h = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
    return {bf16 ? _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(h), 16)) : _mm256_cvtph_ps(h)};
}
AUTOMAGIC_INLINE V from_bytes(const uint8_t* p) {
    return {_mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p))))};
}
AUTOMAGIC_INLINE V totals(const V* a) {
    __m256 b[4];
    for (int i = 0; i < 4; ++i) b[i] = _mm256_hadd_ps(a[2 * i].v, a[2 * i + 1].v);
    __m256 c = _mm256_hadd_ps(b[0], b[1]), d = _mm256_hadd_ps(b[2], b[3]);
    return {_mm256_add_ps(_mm256_permute2f128_ps(c, d, 0x20), _mm256_permute2f128_ps(c, d, 0x31))};
}

#else

// Four lanes in the compiler's own vectors: SSE, NEON and others.
typedef float Four __attribute__((vector_size(16)));
typedef int32_t FourInts __attribute__((vector_size(16)));
struct V {
    Four v;
};
struct Mask {
    FourInts m;
};
constexpr int64_t W = 4;

AUTOMAGIC_INLINE V all(float x) { return {Four{x, x, x, x}}; }
AUTOMAGIC_INLINE V load(const float* p) {
    V x;
    std::memcpy(&x.v, p, 16);
    return x;
}
AUTOMAGIC_INLINE V load(const float* p, int64_t left) {
    if (left >= 4) return load(p);
    return {Four{left > 0 ? p[0] : 0.0f, left > 1 ? p[1] : 0.0f, left > 2 ? p[2] : 0.0f, 0.0f}};
}
AUTOMAGIC_INLINE void store(V x, float* p) { std::memcpy(p, &x.v, 16); }
AUTOMAGIC_INLINE void store(V x, float* p, int64_t left) {
    if (left >= 4) return store(x, p);
    for (int64_t i = 0; i < left; ++i) p[i] = x.v[i];
}
AUTOMAGIC_INLINE V operator+(V a, V b) { return {a.v + b.v}; }
AUTOMAGIC_INLINE V operator-(V a, V b) { return {a.v - b.v}; }
AUTOMAGIC_INLINE V operator*(V a, V b) { return {a.v * b.v}; }
AUTOMAGIC_INLINE V operator/(V a, V b) { return {a.v / b.v}; }
#if defined(AUTOMAGIC_FMA)
AUTOMAGIC_INLINE V fused(V a, V b, V c) {
    for (int i = 0; i < 4; ++i) c.v[i] = __builtin_fmaf(a.v[i], b.v[i], c.v[i]);
    return c;
}
#else
AUTOMAGIC_INLINE V fused(V a, V b, V c) { return {a.v * b.v + c.v}; }
#endif
AUTOMAGIC_INLINE V fused_minus(V a, V b, V c) { return fused({-a.v}, b, c); }
AUTOMAGIC_INLINE Mask operator<(V a, V b) { return {a.v < b.v}; }
AUTOMAGIC_INLINE V choose(Mask m, V yes, V no) {
    FourInts y = reinterpret_cast<FourInts>(yes.v), n = reinterpret_cast<FourInts>(no.v);
    return {reinterpret_cast<Four>((m.m & y) | (~m.m & n))};
}
AUTOMAGIC_INLINE V scaled(Mask m, V x, V f) { return choose(m, x * f, x); }
AUTOMAGIC_INLINE V larger(V a, V b) { return choose(b < a, a, b); }
AUTOMAGIC_INLINE V smaller(V a, V b) { return choose(a < b, a, b); }
AUTOMAGIC_INLINE V magnitude(V a) { return {reinterpret_cast<Four>(reinterpret_cast<FourInts>(a.v) & 0x7FFFFFFF)}; }
AUTOMAGIC_INLINE float total(V a) { return (a.v[0] + a.v[2]) + (a.v[1] + a.v[3]); }
AUTOMAGIC_INLINE V times_power(V y, V shifted) {
    FourInts power = reinterpret_cast<FourInts>(shifted.v) << 23;
    return {reinterpret_cast<Four>(reinterpret_cast<FourInts>(y.v) + power)};
}
AUTOMAGIC_INLINE Mask below(int64_t left) {
    return {FourInts{-(left > 0), -(left > 1), -(left > 2), -(left > 3)}};
}
AUTOMAGIC_INLINE V first_twice(V a) { return {Four{a.v[0], a.v[0], a.v[1], a.v[2]}}; }
AUTOMAGIC_INLINE V last_twice(V a) { return {Four{a.v[1], a.v[2], a.v[3], a.v[3]}}; }
AUTOMAGIC_INLINE V from_halves(const uint16_t* p, bool bf16) {
    V x = all(0.0f);
    for (int i = 0; i < 4; ++i) x.v[i] = bf16 ? from_bf16(p[i]) : from_fp16_portable(p[i]);
    return x;
}
AUTOMAGIC_INLINE V from_bytes(const uint8_t* p) {
    return {Four{static_cast<float>(p[0]), static_cast<float>(p[1]), static_cast<float>(p[2]), static_cast<float>(p[3])}};
}
AUTOMAGIC_INLINE V totals(const V* a) { return {Four{total(a[0]), total(a[1]), total(a[2]), total(a[3])}}; }
AUTOMAGIC_INLINE V root(V a) {
    for (int i = 0; i < 4; ++i) a.v[i] = __builtin_sqrtf(a.v[i]);
    return a;
}
AUTOMAGIC_INLINE V guess_inverse(V a) { return all(1.0f) / a; }
AUTOMAGIC_INLINE uint64_t lanes_of(Mask m) {
    return static_cast<uint64_t>((m.m[0] & 1) | (m.m[1] & 2) | (m.m[2] & 4) | (m.m[3] & 8));
}
AUTOMAGIC_INLINE V guess_root(V a) {
    for (int i = 0; i < 4; ++i) a.v[i] = 1.0f / __builtin_sqrtf(a.v[i]);
    return a;
}

#endif

// Elements [0, left) of a row, zeros beyond; FULL: rows are whole registers long.
template <bool FULL>
AUTOMAGIC_INLINE V get(const float* p, int64_t left) {
    return FULL || left >= W ? load(p) : load(p, left);
}
template <bool FULL>
AUTOMAGIC_INLINE void put(V x, float* p, int64_t left) {
    if (FULL || left >= W)
        store(x, p);
    else
        store(x, p, left);
}

AUTOMAGIC_INLINE V get_bytes(const uint8_t* p, int64_t left) {
    if (left >= W) return from_bytes(p);
    uint8_t held[W] = {0};
    for (int64_t i = 0; i < left; ++i) held[i] = p[i];
    return from_bytes(held);
}

// Elements of a tensor of any type in fp32.
template <int TYPE>
AUTOMAGIC_INLINE V load_typed(const void* p, int64_t at) {
    if (TYPE == F32) return load(static_cast<const float*>(p) + at);
    return from_halves(static_cast<const uint16_t*>(p) + at, TYPE == BF16);
}
template <int TYPE>
AUTOMAGIC_INLINE V load_typed(const void* p, int64_t at, int64_t left) {
    if (TYPE == F32) return load(static_cast<const float*>(p) + at, left);
    uint16_t held[W] = {0};
    for (int64_t i = 0; i < left; ++i) held[i] = static_cast<const uint16_t*>(p)[at + i];
    return from_halves(held, TYPE == BF16);
}

// 1 / sqrt(x) of a normal x > 0, off by 2^-22 at most: one step of Newton's method on the processor's guess.
AUTOMAGIC_INLINE V inverse_root(V x) {
    V y = guess_root(x), error = fused_minus(x * y, y, all(1.0f));
    return fused(y * all(0.5f), error, y);
}

// 1 / x of 2^-126 < x < 2^126, as exactly.
AUTOMAGIC_INLINE V inverse(V x) {
    V y = guess_inverse(x);
    return fused(y, fused_minus(x, y, all(1.0f)), y);
}

// 2^x for |x| < 126, as in lanes.h.
AUTOMAGIC_INLINE V exp2_small(V x) {
    V shifted = x + all(ROUNDER), f = x - (shifted - all(ROUNDER));
    V y = all(1.5252734e-5f);
    y = fused(y, f, all(1.5403530e-4f));
    y = fused(y, f, all(1.3333558e-3f));
    y = fused(y, f, all(9.6181291e-3f));
    y = fused(y, f, all(5.5504109e-2f));
    y = fused(y, f, all(2.4022651e-1f));
    y = fused(y, f, all(6.9314718e-1f));
    y = fused(y, f, all(1.0f));
    return times_power(y, shifted);
}

// The same, off by 1.1e-7 at most; its products do not wait for each other.
AUTOMAGIC_INLINE V exp2_quick(V x) {
    V shifted = x + all(ROUNDER), f = x - (shifted - all(ROUNDER)), square = f * f;
    V low = fused(all(6.93147004e-1f), f, all(1.0f)), middle = fused(all(5.55073358e-2f), f, all(2.40222424e-1f));
    V high = fused(all(1.32647273e-3f), f, all(9.67151299e-3f));
    return times_power(fused(fused(high, square, middle), square, low), shifted);
}

}  // namespace AUTOMAGIC_ISA
