// Histories of edges in four bits (stencil.h, move_edges), read, moved and written in registers.
#pragma once

#include "vectors.h"

#if defined(AUTOMAGIC_TABLES512) || (defined(__AVX2__) && defined(__FMA__))
#define AUTOMAGIC_EDGES 1

namespace AUTOMAGIC_ISA {

#if defined(AUTOMAGIC_TABLES512)

// The low 13 bits of random_bits of sixteen elements; `place` is GOLDEN times their index.
AUTOMAGIC_INLINE __m512i noise_lanes(__m512i place, __m512i key) {
    __m512i x = _mm512_xor_si512(place, key);
    x = _mm512_mullo_epi32(_mm512_xor_si512(x, _mm512_srli_epi32(x, 16)), _mm512_set1_epi32(static_cast<int>(MIX_A)));
    x = _mm512_mullo_epi32(_mm512_xor_si512(x, _mm512_srli_epi32(x, 15)), _mm512_set1_epi32(static_cast<int>(MIX_B)));
    return _mm512_ternarylogic_epi32(x, _mm512_srli_epi32(x, 16), _mm512_set1_epi32(0x1FFF), 0x28);  // (a ^ b) & c
}

// Histories of edges in four bits, fifteen times what they stand for: h = 0.9 old + 1.5 e.
struct Edges {
    __m512 kept, rest, least, weight;
    __m512i key, place;

    Edges(float scale, float threshold, float penalty, int64_t first, uint32_t base) {
        const __m512i order = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
        kept = _mm512_mul_ps(_mm512_cvtepi32_ps(order), _mm512_set1_ps(0.9f));
        rest = _mm512_set1_ps(scale + 1e-38f);
        least = _mm512_set1_ps(threshold);
        weight = _mm512_set1_ps(-penalty / 15.0f);
        key = _mm512_set1_epi32(static_cast<int>(base));
        place = _mm512_add_epi32(order, _mm512_set1_epi32(static_cast<int>(first)));
        place = _mm512_mullo_epi32(place, _mm512_set1_epi32(static_cast<int>(GOLDEN)));
    }

    // Gains of sixteen elements, and their eight bytes of history, which are replaced.
    AUTOMAGIC_INLINE __m512 move(__m512 laplace, __m128i& bytes) {
        __m512 edge = _mm512_abs_ps(laplace), one = _mm512_set1_ps(1.0f);
        // A real division: it is done while the random bits are made.
        __m512 e = _mm512_div_ps(edge, _mm512_add_ps(edge, rest));
        // The lookup heeds four bits of each index, so a byte needs no masks in becoming two of them.
        __m512i q = _mm512_cvtepu8_epi64(bytes);
        __m512 old = _mm512_permutexvar_ps(_mm512_or_si512(q, _mm512_slli_epi64(q, 28)), kept);
        __m512 h = _mm512_mask3_fmadd_ps(e, _mm512_set1_ps(1.5f), old, _mm512_cmp_ps_mask(e, least, _CMP_GT_OQ));
        __m512 noise = _mm512_cvtepi32_ps(noise_lanes(place, key));
        place = _mm512_add_epi32(place, _mm512_set1_epi32(static_cast<int>(16 * GOLDEN)));
        __m512i c = _mm512_cvttps_epi32(_mm512_fmadd_ps(noise, _mm512_set1_ps(0x1p-13f), h));  // below 16, as e <= 1
        bytes = _mm512_cvtepi64_epi8(_mm512_or_si512(c, _mm512_srli_epi64(c, 28)));
        return _mm512_fmadd_ps(weight, h, one);
    }
};

// edge_gains of stencil.h on a history of four bits, read and, unless DRY, written here: `first` is even.
template <bool DRY>
inline void move_nibbles(uint8_t* plane, const float* laplace, Edges edges, int64_t first, int64_t n, float* factor) {
    uint8_t* byte = plane + (first >> 1);
    int64_t i = 0;
    for (; i + 16 <= n; i += 16, byte += 8) {
        __m128i held = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(byte));
        __m512 gain = edges.move(_mm512_loadu_ps(laplace + i), held);
        if (!DRY) _mm_storel_epi64(reinterpret_cast<__m128i*>(byte), held);
        _mm512_storeu_ps(factor + i, gain);
    }
    if (i == n) return;
    __mmask16 there = lanes(n - i), bytes_there = lanes((n - i + 1) >> 1);
    __m128i held = _mm_maskz_loadu_epi8(bytes_there, byte);
    __m512 gain = edges.move(_mm512_maskz_loadu_ps(there, laplace + i), held);
    if ((n - i) & 1) {  // the end of the tensor: the half byte behind it is 0
        alignas(16) uint8_t last[16];
        _mm_store_si128(reinterpret_cast<__m128i*>(last), held);
        last[(n - i) >> 1] &= 15;
        held = _mm_load_si128(reinterpret_cast<const __m128i*>(last));
    }
    if (!DRY) _mm_mask_storeu_epi8(byte, bytes_there, held);
    _mm512_mask_storeu_ps(factor + i, there, gain);
}

#else

// The same in registers of eight, thirty-two elements at a time.
struct Edges {
    __m256 rest, least, weight;
    __m256i key, place;

    Edges(float scale, float threshold, float penalty, int64_t first, uint32_t base) {
        rest = _mm256_set1_ps(scale + 1e-38f);
        least = _mm256_set1_ps(threshold);
        weight = _mm256_set1_ps(-penalty / 15.0f);
        key = _mm256_set1_epi32(static_cast<int>(base));
        const __m256i order = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
        place = _mm256_add_epi32(order, _mm256_set1_epi32(static_cast<int>(first)));
        place = _mm256_mullo_epi32(place, _mm256_set1_epi32(static_cast<int>(GOLDEN)));
    }

    AUTOMAGIC_INLINE __m256i noise() {
        __m256i x = _mm256_xor_si256(place, key);
        place = _mm256_add_epi32(place, _mm256_set1_epi32(static_cast<int>(8 * GOLDEN)));
        x = _mm256_xor_si256(x, _mm256_srli_epi32(x, 16));
        x = _mm256_mullo_epi32(x, _mm256_set1_epi32(static_cast<int>(MIX_A)));
        x = _mm256_xor_si256(x, _mm256_srli_epi32(x, 15));
        x = _mm256_mullo_epi32(x, _mm256_set1_epi32(static_cast<int>(MIX_B)));
        return _mm256_and_si256(_mm256_xor_si256(x, _mm256_srli_epi32(x, 16)), _mm256_set1_epi32(0x1FFF));
    }

    // Codes of eight elements, which are replaced; their gains are stored.
    AUTOMAGIC_INLINE __m256i move(__m256 laplace, __m256i q, float* factor) {
        __m256 edge = _mm256_andnot_ps(_mm256_set1_ps(-0.0f), laplace);
        __m256 e = _mm256_div_ps(edge, _mm256_add_ps(edge, rest));
        e = _mm256_and_ps(e, _mm256_cmp_ps(e, least, _CMP_GT_OQ));
        __m256 old = _mm256_mul_ps(_mm256_cvtepi32_ps(q), _mm256_set1_ps(0.9f));
        __m256 h = _mm256_fmadd_ps(e, _mm256_set1_ps(1.5f), old);
        _mm256_storeu_ps(factor, _mm256_fmadd_ps(weight, h, _mm256_set1_ps(1.0f)));
        return _mm256_cvttps_epi32(_mm256_fmadd_ps(_mm256_cvtepi32_ps(noise()), _mm256_set1_ps(0x1p-13f), h));
    }

    // Gains of thirty-two elements, and their sixteen bytes of history, which are replaced.
    template <bool DRY>
    AUTOMAGIC_INLINE void move_block(const float* laplace, uint8_t* byte, float* factor) {
        const __m256i places = _mm256_setr_epi32(0, 4, 8, 12, 16, 20, 24, 28), low = _mm256_set1_epi32(15);
        __m256i c[4];
        for (int k = 0; k < 4; ++k) {
            int32_t held;
            std::memcpy(&held, byte + 4 * k, 4);
            __m256i q = _mm256_and_si256(_mm256_srlv_epi32(_mm256_set1_epi32(held), places), low);
            c[k] = move(_mm256_loadu_ps(laplace + 8 * k), q, factor + 8 * k);
        }
        if (DRY) return;
        __m256i pairs = _mm256_maddubs_epi16(packed(c), _mm256_set1_epi16(0x1001));  // low + 16 high
        pairs = _mm256_permute4x64_epi64(_mm256_packus_epi16(pairs, pairs), 0x08);
        _mm_storeu_si128(reinterpret_cast<__m128i*>(byte), _mm256_castsi256_si128(pairs));
    }
};

// edge_gains of stencil.h on a history of four bits, read and, unless DRY, written here: `first` is even.
template <bool DRY>
inline void move_nibbles(uint8_t* plane, const float* laplace, Edges edges, int64_t first, int64_t n, float* factor) {
    uint8_t* byte = plane + (first >> 1);
    int64_t i = 0;
    for (; i + 32 <= n; i += 32, byte += 16) edges.template move_block<DRY>(laplace + i, byte, factor + i);
    if (i == n) return;
    alignas(32) float held[32] = {0}, gains[32];
    alignas(16) uint8_t bytes[16] = {0};
    const int64_t left = n - i, whole = (left + 1) >> 1;
    std::memcpy(held, laplace + i, static_cast<size_t>(left) * 4);
    std::memcpy(bytes, byte, static_cast<size_t>(whole));
    edges.template move_block<DRY>(held, bytes, gains);
    if (left & 1) bytes[whole - 1] &= 15;  // the end of the tensor: the half byte behind it is 0
    if (!DRY) std::memcpy(byte, bytes, static_cast<size_t>(whole));
    std::memcpy(factor + i, gains, static_cast<size_t>(left) * 4);
}

#endif

}  // namespace AUTOMAGIC_ISA

#endif
