// Bytes, lookups by byte and the dynamic encoder in AVX2.
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

// Eight numbers of a table, by byte. The bytes are read as one word: loads are what the lookup takes most of, and
// the processor's own gather takes longer than both.
AUTOMAGIC_INLINE __m256 look_up(const float* table, const uint8_t* byte) {
    uint32_t one, two;
    std::memcpy(&one, byte, 4);
    std::memcpy(&two, byte + 4, 4);
    const auto at = [table](uint32_t place) { return _mm_load_ss(table + (place & 255)); };
    __m128 low = at(one), high = at(two);
    low = _mm_insert_ps(low, at(one >> 8), 0x10), high = _mm_insert_ps(high, at(two >> 8), 0x10);
    low = _mm_insert_ps(low, at(one >> 16), 0x20), high = _mm_insert_ps(high, at(two >> 16), 0x20);
    low = _mm_insert_ps(low, at(one >> 24), 0x30), high = _mm_insert_ps(high, at(two >> 24), 0x30);
    return _mm256_insertf128_ps(_mm256_castps128_ps256(low), high, 1);
}

// Encoding by DecadeShifts in registers. What is said of a decade e is found at 23 - e, of which a lookup heeds three bits.
struct DynamicEncoder {
    __m256i border, below;
    __m256 rise;

    AUTOMAGIC_INLINE explicit DynamicEncoder(const DecadeShifts& from) {
        border = _mm256_load_si256(reinterpret_cast<const __m256i*>(from.border));
        rise = _mm256_load_ps(from.rise);
        below = _mm256_broadcastsi128_si256(_mm_load_si128(reinterpret_cast<const __m128i*>(from.below)));
    }

    // Code of |v|; `rest`: how far it is above the midpoint below it, in 2^32 parts of the way to the next one. A
    // negative number takes the lower code on a tie, that of the larger |v|.
    AUTOMAGIC_INLINE __m256i size(__m256 v, __m256i& rest) const {
        __m256i u = _mm256_castps_si256(v);
        u = _mm256_add_epi32(_mm256_and_si256(u, _mm256_set1_epi32(INT32_MAX)), _mm256_srli_epi32(u, 31));
        __m256i pair = _mm256_srli_epi32(_mm256_max_epi32(u, _mm256_set1_epi32(DecadeShifts::first_pair << 24)), 24);
        __m256i place = _mm256_shuffle_epi8(below, pair);
        place = _mm256_add_epi32(place, _mm256_cmpgt_epi32(u, _mm256_permutevar8x32_epi32(border, place)));
        __m256 y = _mm256_fmadd_ps(_mm256_castsi256_ps(u), _mm256_permutevar8x32_ps(rise, place),
                                   _mm256_set1_ps(DecadeShifts::start));
        // A decade's last code reaches into the next decade.
        __m256i bits = _mm256_castps_si256(_mm256_min_ps(y, _mm256_set1_ps(DecadeShifts::last)));
        rest = _mm256_sllv_epi32(bits, _mm256_sub_epi32(_mm256_set1_epi32(32), place));
        return _mm256_srlv_epi32(_mm256_sub_epi32(bits, _mm256_set1_epi32(126 << 23)), place);
    }

    AUTOMAGIC_INLINE void block(const float* x, __m256 inverse, uint8_t* q, const uint32_t* cell) const {
        __m256i k[4], v[4], least = _mm256_set1_epi32(-1);
        for (int j = 0; j < 4; ++j) {
            __m256i rest;
            __m256 number = _mm256_mul_ps(_mm256_loadu_ps(x + 8 * j), inverse);
            v[j] = _mm256_castps_si256(number);
            k[j] = size(number, rest);
            least = _mm256_min_epu32(least, rest);
        }
        // 127 + k, or 127 - k, but -1 has no code of its own.
        __m256i sizes = packed(k), middle = _mm256_set1_epi8(127);
        __m256i code = _mm256_blendv_epi8(_mm256_add_epi8(middle, sizes), _mm256_subs_epu8(middle, sizes), packed_signs(v));
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(q), code);
        __m256i doubt = _mm256_cmpeq_epi32(_mm256_srli_epi32(least, DecadeShifts::sure), _mm256_setzero_si256());
        if (__builtin_expect(_mm256_testz_si256(doubt, doubt), 1)) return;
        float factor = _mm256_cvtss_f32(inverse);
        for (int i = 0; i < 32; ++i) q[i] = static_cast<uint8_t>(dynamic_code(x[i] * factor, cell));
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
