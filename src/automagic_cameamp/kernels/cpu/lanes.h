// Small loops over runs of elements, written so that a compiler turns each into vectors.
#pragma once

#include "abi.h"
#include "codecs.h"
#include "rounding.h"
#include "small_codes.h"

namespace AUTOMAGIC_ISA {

// torch.lerp: both halves of the range keep their end exact.
AUTOMAGIC_INLINE float lerp(float a, float b, float w) {
    return w < 0.5f ? a + w * (b - a) : b - (b - a) * (1.0f - w);
}

// 2^x for |x| < 126; the polynomial is off by 5e-9 at most.
AUTOMAGIC_INLINE float exp2_small(float x) {
    float shifted = x + ROUNDER;
    float f = x - (shifted - ROUNDER);
    float y = 1.5252734e-5f;
    y = fused(y, f, 1.5403530e-4f);
    y = fused(y, f, 1.3333558e-3f);
    y = fused(y, f, 9.6181291e-3f);
    y = fused(y, f, 5.5504109e-2f);
    y = fused(y, f, 2.4022651e-1f);
    y = fused(y, f, 6.9314718e-1f);
    y = fused(y, f, 1.0f);
    return y * float_of((bits_of(shifted) - 0x4B400000u + 127u) << 23);
}

constexpr float MASK_STEP = 6.0f / 127.0f;  // octaves per count: log2(4 / (1 / 16)) / 127
constexpr int32_t MASK_LOW = -84, MASK_HIGH = 42;

AUTOMAGIC_INLINE float magnitude(float x) { return float_of(bits_of(x) & 0x7FFFFFFFu); }

inline float sum(const float* AUTOMAGIC_RESTRICT x, int64_t n) {
    float s = 0.0f;
#pragma omp simd reduction(+ : s)
    for (int64_t i = 0; i < n; ++i) s += x[i];
    return s;
}

inline float sum_squares(const float* AUTOMAGIC_RESTRICT x, int64_t n) {
    float s = 0.0f;
#pragma omp simd reduction(+ : s)
    for (int64_t i = 0; i < n; ++i) s += x[i] * x[i];
    return s;
}

inline float dot(const float* AUTOMAGIC_RESTRICT x, const float* AUTOMAGIC_RESTRICT y, int64_t n) {
    float s = 0.0f;
#pragma omp simd reduction(+ : s)
    for (int64_t i = 0; i < n; ++i) s += x[i] * y[i];
    return s;
}

template <int N>
inline void short_rows(const float* AUTOMAGIC_RESTRICT x, int64_t rows, float* AUTOMAGIC_RESTRICT out) {
    for (int64_t r = 0; r < rows; ++r) {
        float s = 0.0f;
#pragma omp simd reduction(+ : s)
        for (int i = 0; i < N; ++i) s += x[r * N + i];
        out[r] = s;
    }
}

// Sums of consecutive rows of n elements.
inline void row_sums(const float* x, int64_t rows, int64_t n, float* out) {
    if (n == 8) return short_rows<8>(x, rows, out);
    if (n == 4) return short_rows<4>(x, rows, out);
    for (int64_t r = 0; r < rows; ++r) out[r] = sum(x + r * n, n);
}

template <int N>
inline void short_spread(const float* AUTOMAGIC_RESTRICT v, int64_t rows, float* AUTOMAGIC_RESTRICT out) {
    for (int64_t r = 0; r < rows; ++r)
        for (int i = 0; i < N; ++i) out[r * N + i] = v[r];
}

// One value per row -> one per element.
inline void spread(const float* v, int64_t rows, int64_t n, float* out) {
    if (n == 8) return short_spread<8>(v, rows, out);
    for (int64_t r = 0; r < rows; ++r)
        for (int64_t i = 0; i < n; ++i) out[r * n + i] = v[r];
}

// The same values again and again: [n] -> [rows, n].
inline void tile_rows(const float* v, int64_t rows, int64_t n, float* out) {
    for (int64_t r = 0; r < rows; ++r)
        for (int64_t i = 0; i < n; ++i) out[r * n + i] = v[i];
}

// ---- memory of any type ------------------------------------------------------------------------

// Elements [first, first + n) in fp32: in place where they are that already.
inline const float* load_run(const void* p, int32_t type, int64_t first, int64_t n, float* buffer) {
    if (type == F32) return static_cast<const float*>(p) + first;
    const uint16_t* h = static_cast<const uint16_t*>(p) + first;
    if (type == BF16)
        run_from_bf16(h, n, buffer);
    else
        run_from_fp16(h, n, buffer);
    return buffer;
}

inline void copy_run(const float* AUTOMAGIC_RESTRICT x, int64_t n, float* AUTOMAGIC_RESTRICT y) {
    for (int64_t i = 0; i < n; ++i) y[i] = x[i];
}

inline void store_run(const float* x, void* p, int32_t type, int64_t first, int64_t n, bool rounds, uint32_t base) {
    uint16_t* h = static_cast<uint16_t*>(p) + first;
    if (type == F32) {
        copy_run(x, n, static_cast<float*>(p) + first);
    } else if (type == BF16) {
        if (rounds)
            run_stochastic_bf16(x, base, first, n, h);
        else
            run_to_bf16(x, n, h);
    } else if (rounds) {
        run_stochastic_fp16(x, base, first, n, h);
    } else {
        run_to_fp16(x, n, h);
    }
}

// Weights, with the bits beside them where they have some.
inline const float* load_weights(const Task& t, int64_t first, int64_t n, float* buffer) {
    if (t.rest == nullptr) return load_run(t.p, t.p_type, first, n, buffer);
    const uint16_t* h = static_cast<const uint16_t*>(t.p) + first;
    if (t.p_type == BF16)
        run_joined_bf16(h, t.rest + first, n, buffer);
    else
        run_joined_fp16(h, t.rest + first, n, buffer);
    return buffer;
}

inline void store_weights(const float* x, const Task& t, int64_t first, int64_t n, uint32_t base) {
    if (t.rest == nullptr) return store_run(x, t.p, t.p_type, first, n, t.rounds, base);
    uint16_t* h = static_cast<uint16_t*>(t.p) + first;
    if (t.p_type == BF16)
        run_split_bf16(x, t.rounds, base, first, n, h, t.rest + first);
    else
        run_split_fp16(x, t.rounds, base, first, n, h, t.rest + first);
}

// ---- coded fields ------------------------------------------------------------------------------

inline const float* decode_run(const Coded& c, int64_t first, int64_t n, float* buffer) {
    const uint8_t* q = static_cast<const uint8_t*>(c.q);
    const float* scale = static_cast<const float*>(c.scale);
    const uint8_t* zero = static_cast<const uint8_t*>(c.zero);
    const uint8_t* rest = static_cast<const uint8_t*>(c.residual);
    switch (c.code) {
        case PLAIN: return static_cast<const float*>(c.q) + first;
        case DYNAMIC8: Dynamic8::decode(q, scale, first, n, c.block, buffer); break;
        case SOFTSIGN8:
            if (c.bits == 4)
                CorrectedSoftsign8<4>::decode(q, scale, rest, first, n, c.block, buffer);
            else if (c.bits == 8)
                CorrectedSoftsign8<8>::decode(q, scale, rest, first, n, c.block, buffer);
            else
                Softsign8::decode(q, scale, first, n, c.block, buffer);
            break;
        case AFFINE8:
            if (c.bits == 4)
                CorrectedAffine8<4>::decode(q, scale, zero, rest, first, n, c.block, buffer);
            else if (c.bits == 8)
                CorrectedAffine8<8>::decode(q, scale, zero, rest, first, n, c.block, buffer);
            else
                Affine8::decode(q, scale, zero, first, n, c.block, buffer);
            break;
        case LOG8: Log8::decode(q, scale, first, n, c.block, buffer); break;
        case SOFTSIGN4: Softsign4::decode(q, static_cast<const uint16_t*>(c.scale), first, n, c.block, buffer); break;
        default: Unit4::decode(q, first, n, buffer); break;
    }
    return buffer;
}

// Whole blocks; the codes of [0, 1] take any even range.
inline void encode_run(const Coded& c, const float* x, int64_t first, int64_t n, int64_t numel, uint32_t base) {
    uint8_t* q = static_cast<uint8_t*>(c.q);
    float* scale = static_cast<float*>(c.scale);
    uint8_t* zero = static_cast<uint8_t*>(c.zero);
    uint8_t* rest = static_cast<uint8_t*>(c.residual);
    switch (c.code) {
        case PLAIN: copy_run(x, n, static_cast<float*>(c.q) + first); break;
        case DYNAMIC8: Dynamic8::encode(x, first, n, c.block, q, scale); break;
        case SOFTSIGN8:
            if (c.bits == 4)
                CorrectedSoftsign8<4>::encode(x, first, n, c.block, numel, q, scale, rest);
            else if (c.bits == 8)
                CorrectedSoftsign8<8>::encode(x, first, n, c.block, numel, q, scale, rest);
            else
                Softsign8::encode(x, first, n, c.block, q, scale);
            break;
        case AFFINE8:
            if (c.bits == 4)
                CorrectedAffine8<4>::encode(x, first, n, c.block, numel, q, scale, zero, rest);
            else if (c.bits == 8)
                CorrectedAffine8<8>::encode(x, first, n, c.block, numel, q, scale, zero, rest);
            else
                Affine8::encode(x, first, n, c.block, q, scale, zero);
            break;
        case LOG8: Log8::encode(x, first, n, c.block, q, scale); break;
        case SOFTSIGN4:
            Softsign4::encode(x, first, n, c.block, numel, base, q, static_cast<uint16_t*>(c.scale));
            break;
        default: Unit4::encode(x, first, n, numel, true, base, q); break;
    }
}

// A row or column statistic as a whole.
inline void decode_vector(const Coded& c, int64_t n, float* out) {
    if (c.code == PLAIN)
        copy_run(static_cast<const float*>(c.q), n, out);
    else if (c.code == LOG16)
        Log16::decode(static_cast<const int16_t*>(c.q), static_cast<const uint16_t*>(c.scale), n, out);
    else
        decode_run(c, 0, n, out);
}

inline void encode_vector(const Coded& c, const float* x, int64_t n, uint32_t base) {
    if (c.code == PLAIN)
        copy_run(x, n, static_cast<float*>(c.q));
    else if (c.code == LOG16)
        Log16::encode(x, n, true, base, static_cast<int16_t*>(c.q), static_cast<uint16_t*>(c.scale));
    else
        encode_run(c, x, 0, n, n, base);
}

}  // namespace AUTOMAGIC_ISA
