// Bits, conversions and stochastic rounding: state/random_bits.py and storage/rounding.py, bit for bit.
//
// Everything lives in a namespace named after the instruction set, because one library holds several
// builds of this header and the linker would keep only one copy of an inline function.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__AVX2__) || defined(__AVX512F__) || defined(__F16C__)
#include <immintrin.h>
#endif

#ifndef AUTOMAGIC_ISA
#define AUTOMAGIC_ISA isa_base
#endif

#if defined(_MSC_VER) && !defined(__clang__)
#define AUTOMAGIC_RESTRICT __restrict
#define AUTOMAGIC_INLINE __forceinline
#else
#define AUTOMAGIC_RESTRICT __restrict__
#define AUTOMAGIC_INLINE inline __attribute__((always_inline))
#endif

#if defined(__GNUC__) || defined(__clang__)
#define AUTOMAGIC_PREFETCH(p) __builtin_prefetch(p, 0, 3)
#else
#define AUTOMAGIC_PREFETCH(p)
#endif

// MSVC has no macro for F16C; every processor with AVX2 has it.
#if defined(__F16C__) || (defined(_MSC_VER) && defined(__AVX2__))
#define AUTOMAGIC_F16C 1
#endif

#if defined(__FMA__) || defined(__ARM_FEATURE_FMA)
#define AUTOMAGIC_FMA 1
#endif

namespace AUTOMAGIC_ISA {

AUTOMAGIC_INLINE uint32_t bits_of(float x) {
    uint32_t u;
    std::memcpy(&u, &x, 4);
    return u;
}

AUTOMAGIC_INLINE float float_of(uint32_t u) {
    float x;
    std::memcpy(&x, &u, 4);
    return x;
}

AUTOMAGIC_INLINE float smaller(float a, float b) { return a < b ? a : b; }
AUTOMAGIC_INLINE float larger(float a, float b) { return a > b ? a : b; }
AUTOMAGIC_INLINE int32_t smaller(int32_t a, int32_t b) { return a < b ? a : b; }
AUTOMAGIC_INLINE int32_t larger(int32_t a, int32_t b) { return a > b ? a : b; }
AUTOMAGIC_INLINE int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
AUTOMAGIC_INLINE int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }

AUTOMAGIC_INLINE float fused(float a, float b, float c) {
#if defined(AUTOMAGIC_FMA)
    return __builtin_fmaf(a, b, c);
#else
    return a * b + c;
#endif
}

// Nearest integer, ties to even, of |x| < 2^22: adding 1.5 * 2^23 leaves no bits for a fraction.
constexpr float ROUNDER = 12582912.0f;
AUTOMAGIC_INLINE float nearest(float x) { return (x + ROUNDER) - ROUNDER; }
AUTOMAGIC_INLINE int32_t nearest_int(float x) {
    return static_cast<int32_t>(bits_of(x + ROUNDER) - 0x4B400000u);
}

// Floor of |x| < 2^22.
AUTOMAGIC_INLINE float floor_small(float x) {
    float t = nearest(x);
    return t > x ? t - 1.0f : t;
}

// ---- counter-based random bits --------------------------------------------------------------

constexpr uint32_t MIX_A = 0x7FEB352Du, MIX_B = 0x846CA68Bu, GOLDEN = 0x9E3779B1u;

// Finaliser of a 32-bit hash (Wellons' lowbias32, public domain).
AUTOMAGIC_INLINE uint32_t mix32(uint32_t x) {
    x = (x ^ (x >> 16)) * MIX_A;
    x = (x ^ (x >> 15)) * MIX_B;
    return x ^ (x >> 16);
}

// What the elements of one tensor share: key of the parameter (xor the salt of the use), number of the
// update.
AUTOMAGIC_INLINE uint32_t random_base(uint32_t key, int32_t step) {
    return mix32(key + static_cast<uint32_t>(step) * GOLDEN);
}

// Random bits of element ``index`` of the flattened tensor.
AUTOMAGIC_INLINE uint32_t random_bits(uint32_t base, uint32_t index) { return mix32(base ^ (index * GOLDEN)); }

// Integer below or above x >= 0 or < 0, |x| < 2^22, up with the probability of the fraction.
AUTOMAGIC_INLINE float round_to_grid(float x, uint32_t bits) {
    float noise = static_cast<float>(static_cast<int32_t>(bits & 0x1FFFu)) * 0x1p-13f;
    return floor_small(noise + x);
}

// ---- bf16 -----------------------------------------------------------------------------------

AUTOMAGIC_INLINE float from_bf16(uint16_t h) { return float_of(static_cast<uint32_t>(h) << 16); }

AUTOMAGIC_INLINE uint16_t to_bf16(float x) {
    uint32_t u = bits_of(x);
    uint32_t r = (u + 0x7FFFu + ((u >> 16) & 1u)) >> 16;
    uint32_t nan = 0x7FC0u;
    return static_cast<uint16_t>((u & 0x7FFFFFFFu) > 0x7F800000u ? nan : r);
}

AUTOMAGIC_INLINE uint16_t stochastic_bf16(float x, uint32_t bits) {
    uint32_t raw = bits_of(x);
    int32_t size = static_cast<int32_t>(raw & 0x7FFFFFFFu);
    // The limit keeps the largest finite numbers finite, and infinities what they are.
    int32_t limit = larger(size, static_cast<int32_t>(0x7F7F0000)) | 0xFFFF;
    int32_t up = static_cast<int32_t>(static_cast<uint32_t>(size) + (bits & 0xFFFFu));
    uint32_t out = (static_cast<uint32_t>(smaller(up, limit)) & 0xFFFF0000u) | (raw & 0x80000000u);
    return static_cast<uint16_t>((out & 0x7FFFFFFFu) > 0x7F800000u ? 0x7FC0u : out >> 16);
}

// ---- fp16 -----------------------------------------------------------------------------------

AUTOMAGIC_INLINE float from_fp16_portable(uint16_t h) {
    uint32_t magnitude = static_cast<uint32_t>(h & 0x7FFFu) << 13;
    float x = float_of(magnitude) * 0x1p112f;  // moves the exponent's bias and normalises subnormals
    uint32_t u = bits_of(x);
    u = magnitude >= 0x0F800000u ? u | 0x7F800000u : u;
    return float_of(u | (static_cast<uint32_t>(h & 0x8000u) << 16));
}

AUTOMAGIC_INLINE uint16_t to_fp16_portable(float x) {
    uint32_t raw = bits_of(x), u = raw & 0x7FFFFFFFu;
    // Subnormal results: 0.5 has the weight of fp16's last place in its own last place.
    uint32_t small = bits_of(float_of(u) + 0.5f) - 0x3F000000u;
    uint32_t normal = (u - 0x38000000u + 0xFFFu + ((u >> 13) & 1u)) >> 13;
    uint32_t out = u < 0x38800000u ? small : normal;
    out = u >= 0x47800000u ? 0x7C00u : out;
    out = u > 0x7F800000u ? 0x7E00u : out;
    return static_cast<uint16_t>(out | (raw >> 31 << 15));
}

AUTOMAGIC_INLINE float from_fp16(uint16_t h) { return from_fp16_portable(h); }
AUTOMAGIC_INLINE uint16_t to_fp16(float x) { return to_fp16_portable(x); }

// fp32 value of the stochastically rounded fp16 number (the conversion that follows is exact).
AUTOMAGIC_INLINE float stochastic_fp16_value(float x, uint32_t bits) {
    uint32_t raw = bits_of(x);
    uint32_t size = raw & 0x7FFFFFFFu;
    // Units of the last place of fp16, a power of two, and its reciprocal.
    int32_t exponent = larger(static_cast<int32_t>(size >> 23), 113);
    exponent = smaller(exponent, 254);
    float unit = float_of(static_cast<uint32_t>(exponent - 10) << 23);
    float inverse = float_of(static_cast<uint32_t>(264 - exponent) << 23);
    float rounded = round_to_grid(x * inverse, bits) * unit;
    rounded = float_of((bits_of(rounded) & 0x7FFFFFFFu) | (raw & 0x80000000u));
    float inside = larger(smaller(rounded, 65504.0f), -65504.0f);
    rounded = float_of(size) < 65520.0f ? inside : rounded;
    return size < 0x7F800000u ? rounded : x;
}

AUTOMAGIC_INLINE uint16_t stochastic_fp16(float x, uint32_t bits) {
    return to_fp16_portable(stochastic_fp16_value(x, bits));
}

// ---- 24 bits: a weight and 256ths of its last place ------------------------------------------

AUTOMAGIC_INLINE float join_bf16(uint16_t h, int8_t rest) {
    const int32_t size = static_cast<int32_t>(static_cast<uint32_t>(h & 0x7FFFu) << 16);
    const int32_t whole = larger(size + static_cast<int32_t>(rest) * 256, 0);
    return float_of(static_cast<uint32_t>(size < 0x7F800000 ? whole : size) | static_cast<uint32_t>(h & 0x8000u) << 16);
}

// The noise is 0x80 to round to nearest, or eight random bits.
AUTOMAGIC_INLINE void split_bf16(float x, uint32_t noise, uint16_t* h, int8_t* rest) {
    const uint32_t raw = bits_of(x), size = raw & 0x7FFFFFFFu;
    const bool finite = size < 0x7F800000u;
    const int32_t word = smaller(static_cast<int32_t>((size + noise) >> 8), static_cast<int32_t>(0x7F7F7F));
    const int32_t high = (word + 0x80) >> 8;
    const uint32_t special = size >> 16 | static_cast<uint32_t>(size > 0x7F800000u) << 6;
    *h = static_cast<uint16_t>((finite ? static_cast<uint32_t>(high) : special) | raw >> 31 << 15);
    *rest = static_cast<int8_t>(finite ? word - high * 256 : 0);
}

// A 256th of the last place of a number of fp16, and the reciprocal: powers of two.
AUTOMAGIC_INLINE float fine_unit(float w) {
    const int32_t exponent = larger(static_cast<int32_t>(bits_of(w) >> 23 & 0xFFu), 113);
    return float_of(static_cast<uint32_t>(exponent - 18) << 23);
}

AUTOMAGIC_INLINE float inverse_fine_unit(float w) {
    const int32_t exponent = larger(static_cast<int32_t>(bits_of(w) >> 23 & 0xFFu), 113);
    return float_of(static_cast<uint32_t>(272 - smaller(exponent, 254)) << 23);
}

AUTOMAGIC_INLINE float join_fp16(uint16_t h, int8_t rest) {
    const float x = from_fp16_portable(h);
    const bool plain = (h & 0x7C00u) == 0x7C00u || rest == 0;  // nothing is added to -0, which would lose its sign
    return plain ? x : x + static_cast<float>(rest) * fine_unit(x);
}

AUTOMAGIC_INLINE void split_fp16(float x, bool rounds, uint32_t bits, uint16_t* h, int8_t* rest) {
    const float size = float_of(bits_of(x) & 0x7FFFFFFFu), inside = larger(smaller(x, 65504.0f), -65504.0f);
    const uint16_t half = to_fp16_portable(size < 65520.0f ? inside : x);
    const float w = from_fp16_portable(half), part = (x - w) * inverse_fine_unit(w);
    // 127 at most: a half is a tie, which would be split into other two.
    const float whole = larger(smaller(rounds ? round_to_grid(part, bits) : nearest(part), 127.0f), -127.0f);
    *h = half;
    *rest = static_cast<int8_t>((half & 0x7C00u) == 0x7C00u ? 0 : static_cast<int32_t>(whole));
}

// ---- runs of elements -----------------------------------------------------------------------
// ``first`` is the position in the flattened tensor of the run's first element: it decides the noise.

inline void run_from_bf16(const uint16_t* AUTOMAGIC_RESTRICT h, int64_t count, float* AUTOMAGIC_RESTRICT x) {
    for (int64_t i = 0; i < count; ++i) x[i] = from_bf16(h[i]);
}

inline void run_to_bf16(const float* AUTOMAGIC_RESTRICT x, int64_t count, uint16_t* AUTOMAGIC_RESTRICT h) {
    for (int64_t i = 0; i < count; ++i) h[i] = to_bf16(x[i]);
}

inline void run_stochastic_bf16(const float* AUTOMAGIC_RESTRICT x, uint32_t base, int64_t first,
                                int64_t count, uint16_t* AUTOMAGIC_RESTRICT h) {
    uint32_t start = static_cast<uint32_t>(first);
    int32_t size = static_cast<int32_t>(count);
    for (int32_t i = 0; i < size; ++i)
        h[i] = stochastic_bf16(x[i], random_bits(base, start + static_cast<uint32_t>(i)));
}

inline void run_joined_bf16(const uint16_t* AUTOMAGIC_RESTRICT h, const int8_t* AUTOMAGIC_RESTRICT rest,
                            int64_t count, float* AUTOMAGIC_RESTRICT x) {
    for (int64_t i = 0; i < count; ++i) x[i] = join_bf16(h[i], rest[i]);
}

inline void run_joined_fp16(const uint16_t* AUTOMAGIC_RESTRICT h, const int8_t* AUTOMAGIC_RESTRICT rest,
                            int64_t count, float* AUTOMAGIC_RESTRICT x) {
    for (int64_t i = 0; i < count; ++i) x[i] = join_fp16(h[i], rest[i]);
}

inline void run_split_bf16(const float* AUTOMAGIC_RESTRICT x, bool rounds, uint32_t base, int64_t first, int64_t count,
                           uint16_t* AUTOMAGIC_RESTRICT h, int8_t* AUTOMAGIC_RESTRICT rest) {
    const uint32_t start = static_cast<uint32_t>(first);
    const int32_t size = static_cast<int32_t>(count);
    if (!rounds) {
        for (int32_t i = 0; i < size; ++i) split_bf16(x[i], 0x80u, h + i, rest + i);
        return;
    }
    for (int32_t i = 0; i < size; ++i)
        split_bf16(x[i], random_bits(base, start + static_cast<uint32_t>(i)) & 0xFFu, h + i, rest + i);
}

inline void run_split_fp16(const float* AUTOMAGIC_RESTRICT x, bool rounds, uint32_t base, int64_t first, int64_t count,
                           uint16_t* AUTOMAGIC_RESTRICT h, int8_t* AUTOMAGIC_RESTRICT rest) {
    const uint32_t start = static_cast<uint32_t>(first);
    const int32_t size = static_cast<int32_t>(count);
    for (int32_t i = 0; i < size; ++i)
        split_fp16(x[i], rounds, random_bits(base, start + static_cast<uint32_t>(i)), h + i, rest + i);
}

inline void run_from_fp16(const uint16_t* AUTOMAGIC_RESTRICT h, int64_t count, float* AUTOMAGIC_RESTRICT x) {
    int64_t i = 0;
#if defined(AUTOMAGIC_F16C)
    for (; i + 8 <= count; i += 8)
        _mm256_storeu_ps(x + i, _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(h + i))));
#endif
    for (; i < count; ++i) x[i] = from_fp16_portable(h[i]);
}

inline void run_to_fp16(const float* AUTOMAGIC_RESTRICT x, int64_t count, uint16_t* AUTOMAGIC_RESTRICT h) {
    int64_t i = 0;
#if defined(AUTOMAGIC_F16C)
    for (; i + 8 <= count; i += 8)
        _mm_storeu_si128(reinterpret_cast<__m128i*>(h + i),
                         _mm256_cvtps_ph(_mm256_loadu_ps(x + i), _MM_FROUND_TO_NEAREST_INT));
#endif
    for (; i < count; ++i) h[i] = to_fp16_portable(x[i]);
}

inline void run_stochastic_fp16(const float* AUTOMAGIC_RESTRICT x, uint32_t base, int64_t first,
                                int64_t count, uint16_t* AUTOMAGIC_RESTRICT h) {
    uint32_t start = static_cast<uint32_t>(first);
    int32_t size = static_cast<int32_t>(count);
    for (int32_t i = 0; i < size; ++i)
        h[i] = stochastic_fp16(x[i], random_bits(base, start + static_cast<uint32_t>(i)));
}

}  // namespace AUTOMAGIC_ISA
