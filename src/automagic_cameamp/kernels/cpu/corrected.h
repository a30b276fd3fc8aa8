// The affine code with four bits of error, in registers: what small_codes.h does in loops, bit for bit.
#pragma once

#include "codecs.h"
#include "vectors.h"

#if defined(AUTOMAGIC_TABLES512) || defined(AUTOMAGIC_TABLES256)
#define AUTOMAGIC_CORRECTED 1

namespace AUTOMAGIC_ISA {

#if defined(AUTOMAGIC_TABLES512)

// Whole numbers of four registers as bytes.
AUTOMAGIC_INLINE __m512i bytes_of(const V* x) {
    __m512i k[4];
    for (int i = 0; i < 4; ++i) k[i] = _mm512_cvtps_epi32(x[i].v);
    const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    return _mm512_permutexvar_epi32(
        order, _mm512_packus_epi16(_mm512_packus_epi32(k[0], k[1]), _mm512_packus_epi32(k[2], k[3])));
}
AUTOMAGIC_INLINE void put_bytes(const V* x, uint8_t* to) { _mm512_storeu_si512(to, bytes_of(x)); }
AUTOMAGIC_INLINE void put_nibbles(const V* x, uint8_t* to) {
    __m512i pairs = _mm512_maddubs_epi16(bytes_of(x), _mm512_set1_epi16(0x1001));  // low + 16 high
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), _mm512_cvtepi16_epi8(pairs));
}

// A number for each of the sixteen values of a nibble.
struct OfNibbles {
    __m512 table;

    AUTOMAGIC_INLINE explicit OfNibbles(const float* from) : table(_mm512_loadu_ps(from)) {}
    AUTOMAGIC_INLINE V at(const uint8_t* byte) const {
        // The lookup heeds four bits of each index, so a byte needs no masks in becoming two of them.
        __m512i q = _mm512_cvtepu8_epi64(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(byte)));
        return {_mm512_permutexvar_ps(_mm512_or_si512(q, _mm512_slli_epi64(q, 28)), table)};
    }
};

#else

AUTOMAGIC_INLINE __m256i bytes_of(const V* x) {
    __m256i k[4];
    for (int i = 0; i < 4; ++i) k[i] = _mm256_cvtps_epi32(x[i].v);
    return packed(k);
}
AUTOMAGIC_INLINE void put_bytes(const V* x, uint8_t* to) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), bytes_of(x));
}
AUTOMAGIC_INLINE void put_nibbles(const V* x, uint8_t* to) {
    __m256i pairs = _mm256_maddubs_epi16(bytes_of(x), _mm256_set1_epi16(0x1001));
    pairs = _mm256_permute4x64_epi64(_mm256_packus_epi16(pairs, pairs), 0x08);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(to), _mm256_castsi256_si128(pairs));
}

struct OfNibbles {
    __m256 low, high;

    AUTOMAGIC_INLINE explicit OfNibbles(const float* from) : low(_mm256_loadu_ps(from)), high(_mm256_loadu_ps(from + 8)) {}
    AUTOMAGIC_INLINE V at(const uint8_t* byte) const {
        int32_t held;
        std::memcpy(&held, byte, 4);
        const __m256i places = _mm256_setr_epi32(0, 4, 8, 12, 16, 20, 24, 28);
        __m256i q = _mm256_srlv_epi32(_mm256_set1_epi32(held), places);  // a lookup heeds three bits
        __m256 fourth = _mm256_castsi256_ps(_mm256_slli_epi32(q, 28));
        return {_mm256_blendv_ps(_mm256_permutevar8x32_ps(low, q), _mm256_permutevar8x32_ps(high, q), fourth)};
    }
};

#endif

// out = code value + what its nibble stands for (`rests`, by nibble); returns how many elements are done.
inline int64_t corrected_decode(const uint8_t* q, const uint8_t* nibbles, float scale, int32_t zero, const float* rests,
                                int64_t n, float* out) {
    const OfNibbles rest(rests);
    const V by = all(scale), none = all(static_cast<float>(zero));
    int64_t i = 0;
    for (; i + W <= n; i += W) store((from_bytes(q + i) - none) * by + rest.at(nibbles + (i >> 1)), out + i);
    return i;
}

// Codes and nibbles of a block; `unit`: steps of an error to a unit. Returns how many elements are done.
inline int64_t corrected_encode(const float* x, Divider divider, float scale, float zero, float unit, int64_t n,
                                uint8_t* q, uint8_t* nibbles) {
    const V r = all(divider.r), d = all(divider.d), by = all(scale), none = all(zero), steps = all(unit);
    const V round = all(ROUNDER), least = all(0.0f), most = all(255.0f), low = all(-7.0f), high = all(7.0f);
    int64_t i = 0;
    for (; i + 4 * W <= n; i += 4 * W) {
        V code[4], rest[4];
        for (int k = 0; k < 4; ++k) {
            const V v = load(x + i + k * W);
            V guess = v * r, t = fused(fused_minus(guess, d, v), r, guess);
            code[k] = smaller(larger(((t + round) - round) + none, least), most);
            V error = (v - (code[k] - none) * by) * steps;
            rest[k] = ((smaller(larger(error, low), high) + round) - round) + high;
        }
        put_bytes(code, q + i);
        put_nibbles(rest, nibbles + (i >> 1));
    }
    return i;
}

}  // namespace AUTOMAGIC_ISA

#endif
