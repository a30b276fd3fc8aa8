// The neighbourhoods of stencil.h in AVX-512: a strip of columns is walked from row to row, so that a row is
// loaded once and what its two neighbours need of it stays in registers.
#pragma once

#include "tables512.h"

#if defined(AUTOMAGIC_TABLES512)

namespace AUTOMAGIC_ISA {

// Elements of a tensor of any type; only the lanes of the mask are touched.
template <int TYPE>
AUTOMAGIC_INLINE __m512 load_lanes(const void* p, int64_t at, __mmask16 mask) {
    if (TYPE == F32) return _mm512_maskz_loadu_ps(mask, static_cast<const float*>(p) + at);
    __m256i h = _mm256_maskz_loadu_epi16(mask, static_cast<const uint16_t*>(p) + at);
    if (TYPE == F16) return _mm512_cvtph_ps(h);
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(h), 16));
}

constexpr int64_t PICTURE_AHEAD = 256;  // elements; further than the processor's own prefetch at the end of a page

// Where the strip of a picture lies: on both borders, as all of a row of one register; on one of them; or within.
enum Place { ROW, BORDER, WITHIN };

// What the outputs of a row take from it and from its neighbours in the strip.
struct PictureRow {
    __m512 x, across;

    // Beyond the border of the picture lies its last column again.
    template <int TYPE, int PLACE>
    AUTOMAGIC_INLINE void read(const void* g, int64_t at, __mmask16 mask, __mmask16 left, __mmask16 right) {
        __m512 before, after;
        if (PLACE == WITHIN) {
            x = load_lanes<TYPE>(g, at, 0xFFFF);
            before = load_lanes<TYPE>(g, at - 1, 0xFFFF);
            after = load_lanes<TYPE>(g, at + 1, 0xFFFF);
        } else if (PLACE == ROW) {
            x = load_lanes<TYPE>(g, at, 0xFFFF);
            before = _mm512_permutexvar_ps(_mm512_setr_epi32(0, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14), x);
            after = _mm512_permutexvar_ps(_mm512_setr_epi32(1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 15), x);
        } else {
            x = load_lanes<TYPE>(g, at, mask);
            before = _mm512_mask_mov_ps(x, left, load_lanes<TYPE>(g, at - 1, left));
            after = _mm512_mask_mov_ps(x, right, load_lanes<TYPE>(g, at + 1, right));
        }
        across = _mm512_add_ps(_mm512_sub_ps(before, x), _mm512_sub_ps(after, x));
    }
};

// Rows [first, end) of a picture of n columns.
struct Picture {
    const void* g;
    int64_t first, end, top, bottom, n;
    float penalty;
    float *filtered, *laplace;
};

// Registers from column c on, downwards. With a = x(left) + x(right) - 2 x and D the second difference from row to
// row, the Laplacian is L = a + D x, and one quarter of it, with D a / 16, the step to the filtered picture. A
// difference to the row below serves both rows.
template <int TYPE, int PLACE, int WIDE>
inline double picture_strip(const Picture& p, int64_t c) {
    PictureRow here[WIDE], below[WIDE];
    __mmask16 mask[WIDE], left[WIDE], right[WIDE];
    __m512 squares[WIDE], fall[WIDE], fall_across[WIDE];  // differences to the row above
    __m512 quarter = _mm512_set1_ps(p.penalty * 0.25f), sixteenth = _mm512_set1_ps(p.penalty * 0.0625f);
    for (int i = 0; i < WIDE; ++i) {
        int64_t there = p.n - c - 16 * i, at = p.first * p.n + c + 16 * i;
        mask[i] = lanes(there);
        left[i] = c + i > 0 ? mask[i] : static_cast<__mmask16>(mask[i] & ~1);
        right[i] = there > 16 ? mask[i] : static_cast<__mmask16>(mask[i] >> 1);
        squares[i] = fall[i] = fall_across[i] = _mm512_setzero_ps();
        here[i].template read<TYPE, PLACE>(p.g, at, mask[i], left[i], right[i]);
        if (p.first == p.top) continue;
        below[i].template read<TYPE, PLACE>(p.g, at - p.n, mask[i], left[i], right[i]);
        fall[i] = _mm512_sub_ps(here[i].x, below[i].x);
        fall_across[i] = _mm512_sub_ps(here[i].across, below[i].across);
    }
    for (int64_t r = p.first; r < p.end; ++r) {
        bool last = r + 1 == p.bottom;
        for (int i = 0; i < WIDE; ++i) {
            int64_t at = r * p.n + c + 16 * i, to = at - p.first * p.n;
            AUTOMAGIC_PREFETCH(static_cast<const char*>(p.g) + (at + p.n + PICTURE_AHEAD) * (TYPE == F32 ? 4 : 2));
            __m512 next = _mm512_setzero_ps(), next_across = next;
            if (!last) {
                below[i].template read<TYPE, PLACE>(p.g, at + p.n, mask[i], left[i], right[i]);
                next = _mm512_sub_ps(below[i].x, here[i].x);
                next_across = _mm512_sub_ps(below[i].across, here[i].across);
            }
            __m512 l = _mm512_add_ps(here[i].across, _mm512_sub_ps(next, fall[i]));
            if (p.laplace != nullptr) {
                if (PLACE == BORDER) {
                    _mm512_mask_storeu_ps(p.laplace + to, mask[i], l);
                    squares[i] = _mm512_mask3_fmadd_ps(l, l, squares[i], mask[i]);
                } else {
                    _mm512_storeu_ps(p.laplace + to, l);
                    squares[i] = _mm512_fmadd_ps(l, l, squares[i]);
                }
            }
            if (p.filtered != nullptr) {
                __m512 y = _mm512_fmadd_ps(quarter, l, here[i].x);
                y = _mm512_fmadd_ps(sixteenth, _mm512_sub_ps(next_across, fall_across[i]), y);
                if (PLACE == BORDER)
                    _mm512_mask_storeu_ps(p.filtered + to, mask[i], y);
                else
                    _mm512_storeu_ps(p.filtered + to, y);
            }
            fall[i] = next, fall_across[i] = next_across;
            here[i] = below[i];
        }
    }
    double sum = 0;
    for (int i = 0; i < WIDE; ++i) sum += static_cast<double>(_mm512_reduce_add_ps(squares[i]));
    return sum;
}

template <int TYPE>
inline double picture_strips(const Picture& p) {
    if (p.n == 16) return picture_strip<TYPE, ROW, 1>(p, 0);
    double sum = 0;
    int64_t c = 0;
    for (; p.n - c > 16; c += 32)
        sum += c > 0 && p.n - c > 32 ? picture_strip<TYPE, WITHIN, 2>(p, c) : picture_strip<TYPE, BORDER, 2>(p, c);
    return c < p.n ? sum + picture_strip<TYPE, BORDER, 1>(p, c) : sum;
}

// Filtered rows and their Laplacian, where wanted; the planes start at the first row. Returns the sum of squares of
// the Laplacian.
inline double picture_rows(const Picture& p, int32_t type) {
    if (type == F32) return picture_strips<F32>(p);
    if (type == BF16) return picture_strips<BF16>(p);
    return picture_strips<F16>(p);
}

// The low 13 bits of random_bits of sixteen elements; `place` is GOLDEN times their index.
AUTOMAGIC_INLINE __m512i noise_lanes(__m512i place, __m512i key) {
    __m512i x = _mm512_xor_si512(place, key);
    x = _mm512_mullo_epi32(_mm512_xor_si512(x, _mm512_srli_epi32(x, 16)), _mm512_set1_epi32(static_cast<int>(MIX_A)));
    x = _mm512_mullo_epi32(_mm512_xor_si512(x, _mm512_srli_epi32(x, 15)), _mm512_set1_epi32(static_cast<int>(MIX_B)));
    return _mm512_ternarylogic_epi32(x, _mm512_srli_epi32(x, 16), _mm512_set1_epi32(0x1FFF), 0x28);  // (a ^ b) & c
}

// Histories of edges in four bits, fifteen times what they stand for: h = 0.9 old + 1.5 e.
struct Edges512 {
    __m512 kept, rest, least, weight;
    __m512i key, place;

    Edges512(float scale, float threshold, float penalty, int64_t first, uint32_t base) {
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

// edge_gains of stencil.h on a history of four bits, read and written here: `first` is even. FRESH: the factor is
// the gain itself.
template <bool FRESH>
inline void edges_512(uint8_t* plane, const float* laplace, Edges512 edges, int64_t first, int64_t n, float* factor) {
    uint8_t* byte = plane + (first >> 1);
    int64_t i = 0;
    for (; i + 16 <= n; i += 16, byte += 8) {
        __m128i held = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(byte));
        __m512 gain = edges.move(_mm512_loadu_ps(laplace + i), held);
        _mm_storel_epi64(reinterpret_cast<__m128i*>(byte), held);
        _mm512_storeu_ps(factor + i, FRESH ? gain : _mm512_mul_ps(gain, _mm512_loadu_ps(factor + i)));
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
    _mm_mask_storeu_epi8(byte, bytes_there, held);
    if (!FRESH) gain = _mm512_mul_ps(gain, _mm512_maskz_loadu_ps(there, factor + i));
    _mm512_mask_storeu_ps(factor + i, there, gain);
}

}  // namespace AUTOMAGIC_ISA

#endif
