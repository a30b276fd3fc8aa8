// Bytes and the dynamic encoder in AVX2, where lookups in a table of 256 numbers go through memory one by one.
#pragma once

#if defined(__AVX2__) && defined(__FMA__) && !(defined(__AVX512F__) && defined(__AVX512BW__))
#define AUTOMAGIC_TABLES256 1

#include "dynamic_map.h"
#include "rounding.h"

namespace AUTOMAGIC_ISA {

// Thirty-two numbers in four registers, a byte each.
AUTOMAGIC_INLINE __m256i in_order(__m256i bytes) {
    return _mm256_permutevar8x32_epi32(bytes, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
}
AUTOMAGIC_INLINE __m256i packed(const __m256i* k) {
    return in_order(_mm256_packus_epi16(_mm256_packus_epi32(k[0], k[1]), _mm256_packus_epi32(k[2], k[3])));
}
AUTOMAGIC_INLINE __m256i packed_signs(const __m256i* k) {
    return in_order(_mm256_packs_epi16(_mm256_packs_epi32(k[0], k[1]), _mm256_packs_epi32(k[2], k[3])));
}

// DecadeLines in registers: a number's bits, read as an integer, are a logarithm that is off by 0.026 decades at
// most, so its decade is known but for one comparison.
struct DynamicEncoder {
    __m256 border, slope, start, steep_start;

    AUTOMAGIC_INLINE explicit DynamicEncoder(const DecadeLines& from) {
        border = _mm256_load_ps(from.border);
        slope = _mm256_load_ps(from.slope);
        start = _mm256_load_ps(from.start);
        steep_start = _mm256_set1_ps(from.steep_start);
    }

    // Units (plus `unsure`) of |v|; a negative number takes the lower code on a tie, that of the larger |v|.
    AUTOMAGIC_INLINE __m256i units(__m256 v, __m256i& negative) const {
        constexpr float unit = static_cast<float>(DecadeLines::unit);
        __m256i u = _mm256_castps_si256(v);
        negative = _mm256_srai_epi32(u, 31);
        u = _mm256_sub_epi32(_mm256_and_si256(u, _mm256_set1_epi32(INT32_MAX)), negative);
        __m256 a = _mm256_castsi256_ps(u);
        // log10 |v| + 6.1 at most, and more than that less 0.026: the decade, or the one below where the border of
        // that one, 0.01 to 0.28 above its power of ten, is passed.
        __m256 decades = _mm256_fmadd_ps(_mm256_cvtepi32_ps(u), _mm256_set1_ps(0.30103f / 8388608.0f),
                                         _mm256_set1_ps(6.1f - 127 * 0.30103f));
        __m256i e = _mm256_cvttps_epi32(_mm256_max_ps(decades, _mm256_setzero_ps()));
        __m256 above = _mm256_cmp_ps(a, _mm256_permutevar8x32_ps(border, e), _CMP_GT_OQ);
        e = _mm256_sub_epi32(e, _mm256_castps_si256(above));
        __m256 from = _mm256_permutevar8x32_ps(start, e);
        __m256 y = _mm256_fmadd_ps(a, _mm256_permutevar8x32_ps(slope, e), from);
        // A decade's last code reaches into the next decade: up to half a code below 2^(e + 1) = 2.25 start.
        y = _mm256_min_ps(y, _mm256_fmadd_ps(from, _mm256_set1_ps(2.25f), _mm256_set1_ps(-0.5f * unit)));
        y = _mm256_max_ps(y, _mm256_fmadd_ps(a, _mm256_set1_ps(128.0f * unit), steep_start));
        return _mm256_cvttps_epi32(y);
    }

    static AUTOMAGIC_INLINE __m256i doubtful(__m256i y) {
        constexpr int32_t sure = DecadeLines::unit - 2 * DecadeLines::unsure;
        return _mm256_cmpeq_epi32(_mm256_and_si256(y, _mm256_set1_epi32(sure)), _mm256_setzero_si256());
    }

    AUTOMAGIC_INLINE void block(const float* x, __m256 inverse, uint8_t* q, const uint32_t* cell) const {
        __m256i k[4], below[4], doubt[4];
        for (int j = 0; j < 4; ++j) {
            __m256i y = units(_mm256_mul_ps(_mm256_loadu_ps(x + 8 * j), inverse), below[j]);
            doubt[j] = doubtful(y);
            k[j] = _mm256_srli_epi32(y, 16);
        }
        __m256i sign = packed_signs(below);
        // -1 has no code of its own.
        __m256i size = _mm256_min_epu8(packed(k), _mm256_add_epi8(sign, _mm256_set1_epi8(-128)));
        __m256i code = _mm256_add_epi8(_mm256_sub_epi8(_mm256_xor_si256(size, sign), sign), _mm256_set1_epi8(127));
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(q), code);
        __m256i any = _mm256_or_si256(_mm256_or_si256(doubt[0], doubt[1]), _mm256_or_si256(doubt[2], doubt[3]));
        if (__builtin_expect(_mm256_testz_si256(any, any), 1)) return;
        float factor = _mm256_cvtss_f32(inverse);
        for (uint32_t rest = static_cast<uint32_t>(_mm256_movemask_epi8(packed_signs(doubt))); rest != 0; rest &= rest - 1) {
            int at = __builtin_ctz(rest);
            q[at] = static_cast<uint8_t>(dynamic_code(x[at] * factor, cell));
        }
    }

    inline void run(const float* x, float inverse, int64_t count, uint8_t* q, const uint32_t* cell) const {
        const __m256 factor = _mm256_set1_ps(inverse);
        int64_t i = 0;
        for (; i + 32 <= count; i += 32) block(x + i, factor, q + i, cell);
        if (i == count) return;
        alignas(32) float held[32] = {0};
        alignas(32) uint8_t codes[32];
        const size_t left = static_cast<size_t>(count - i);
        std::memcpy(held, x + i, left * 4);
        block(held, factor, codes, cell);
        std::memcpy(q + i, codes, left);
    }
};

}  // namespace AUTOMAGIC_ISA

#endif
